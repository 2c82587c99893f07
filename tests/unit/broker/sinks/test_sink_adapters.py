"""Copies of audit events in a file, at a real syslog server over TLS, at a real OTLP endpoint."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from certplane.broker.events import AuditEvent, AuditEventType, AuditSeverity
from certplane.broker.forwarding import new_sink
from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvent
from certplane.broker.sinks.settings import (
    AuditSinkSettings,
    Facility,
    FileSinkSettings,
    OtlpSinkSettings,
    SyslogSinkSettings,
)
from certplane.config.values import HostPort, HttpUrl
from certplane.errors import ConfigurationError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from tests.fakes.clock import ManualClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.log_receivers import Collector, SyslogServer
from tests.support.waiting import HANG, until

NOW = ManualClock().now()
PATIENCE = timedelta(seconds=HANG)
BRIEFLY = timedelta(milliseconds=300)

Make = Callable[..., AuditSink]


def stored(number: int, kind: AuditEventType = AuditEventType.CERTIFICATE_ISSUED, **more: Any) -> StoredEvent:
    event = AuditEvent(f"event-{number}", NOW + timedelta(microseconds=number), kind, **more)
    return StoredEvent(number, event.event_id, event.timestamp, event.encode())


@pytest.fixture(scope="module")
def authority() -> CertificateAuthority:
    return CertificateAuthority.root("Log Root CA")


@pytest.fixture
def bundle(tmp_path: Path, authority: CertificateAuthority) -> Any:
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.pem)
    return file


@pytest.fixture
def context(authority: CertificateAuthority, tmp_path: Path) -> ssl.SSLContext:
    """The server's, which looks at who comes."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(*authority.issue("127.0.0.1", ["127.0.0.1"]).write(tmp_path, "server"))
    made.load_verify_locations(cadata=authority.pem.decode())
    made.verify_mode = ssl.CERT_OPTIONAL
    return made


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        def made(**section: Any) -> AuditSink:
            secrets = FakeSecretSource({"otlp/token": "t0ken", "otlp/bad": "a\nb"})
            sink = new_sink("audit.sinks.a", AuditSinkSettings(**section), secrets, SystemClock())
            stack.push_async_callback(sink.close)
            return sink

        yield made


def ids(file: Path) -> list[str]:
    return [json.loads(line)["event_id"] for line in file.read_text().splitlines()]


# A file.


async def test_a_file_gets_a_line_for_each_event(make: Make, tmp_path: Path) -> None:
    """As the public format has it; nobody else may read it."""
    file = tmp_path / "audit.jsonl"
    sink = make(file=FileSinkSettings(file))
    events = [stored(1), stored(2, reason="\N{SNOWMAN}\n")]
    await sink.send(events)
    assert file.read_text() == "".join(f"{event.text}\n" for event in events)
    assert file.stat().st_mode & 0o777 == 0o600
    await sink.send([stored(3)])
    assert ids(file) == ["event-1", "event-2", "event-3"]


async def test_what_a_killed_broker_has_appended_is_not_appended_again(make: Make, tmp_path: Path) -> None:
    """A line that it was writing is made whole; what is in the file by other means stays."""
    file = tmp_path / "audit.jsonl"
    file.write_text(f"not an event\n{stored(1).text}\n{stored(2).text[:40]}")
    await make(file=FileSinkSettings(file)).send([stored(1), stored(2), stored(3)])
    assert file.read_text().splitlines()[0] == "not an event"
    assert [json.loads(line)["event_id"] for line in file.read_text().splitlines()[1:]] == [
        "event-1",
        "event-2",
        "event-3",
    ]


async def test_what_is_nobodys_event_stays_in_a_file(make: Make, tmp_path: Path) -> None:
    """A last line of somebody else's isn't taken for one that was cut off."""
    file = tmp_path / "audit.jsonl"
    file.write_bytes(b"a note\nanother one")
    await make(file=FileSinkSettings(file)).send([stored(1)])
    assert file.read_text().splitlines() == ["a note", "another one", stored(1).text]


async def test_a_file_that_was_renamed_is_left(make: Make, tmp_path: Path) -> None:
    """As logrotate does it."""
    file = tmp_path / "audit.jsonl"
    sink = make(file=FileSinkSettings(file))
    await sink.send([stored(1)])
    file.rename(tmp_path / "audit.1")
    await sink.send([stored(2)])
    assert (ids(tmp_path / "audit.1"), ids(file)) == (["event-1"], ["event-2"])


async def test_a_file_that_cant_be_written(make: Make, tmp_path: Path) -> None:
    """Said with its path; it goes on when that is mended. A link is not followed."""
    file = tmp_path / "logs" / "audit.jsonl"
    sink = make(file=FileSinkSettings(file))
    with pytest.raises(SinkError, match=r"logs/audit\.jsonl can't be written: No such file or directory"):
        await sink.send([stored(1)])
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SinkError, match="Too many levels of symbolic links"):
        await sink.send([stored(1)])
    file.unlink()
    await sink.send([stored(1)])
    assert ids(file) == ["event-1"]


# Syslog.


def syslog(server: SyslogServer, bundle: Any, **more: Any) -> SyslogSinkSettings:
    more.setdefault("timeout", PATIENCE)
    return SyslogSinkSettings(HostPort("127.0.0.1", server.port), ca_bundle=bundle, **more)


_FRAME = re.compile(rb"<(\d+)>1 (\S+) \S+ certplane-broker \d+ (\S+) - (\{.*\})", re.DOTALL)


async def test_a_syslog_server_gets_messages_of_rfc_5424(make: Make, bundle: Any, context: ssl.SSLContext) -> None:
    """By their length; time, priority and type are the event's, the text is its JSON."""
    async with SyslogServer(context) as server:
        sink = make(syslog=syslog(server, bundle))
        events = [
            stored(1),
            stored(2, AuditEventType.RPC_DENIED, severity=AuditSeverity.WARNING, reason="a\n\N{SNOWMAN}"),
        ]
        await sink.send(events)
        await until(lambda: len(server.messages) == 2)
    found = [_FRAME.fullmatch(message) for message in server.messages]
    assert [match and match.groups() for match in found] == [
        (b"110", b"2026-11-23T12:00:00.000001Z", b"certificate_issued", events[0].text.encode()),
        (b"108", b"2026-11-23T12:00:00.000002Z", b"rpc_denied", events[1].text.encode()),
    ]


async def test_the_facility_and_a_certificate_of_ones_own(
    make: Make, bundle: Any, context: ssl.SSLContext, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Where a server wants to know who logs."""
    cert, key = authority.issue("broker.test", ["broker.test"]).write(tmp_path, "client")
    async with SyslogServer(context) as server:
        sink = make(syslog=syslog(server, bundle, facility=Facility.LOCAL3, cert=cert, key=key))
        await sink.send([stored(1)])
        await until(lambda: server.messages)
    assert server.messages[0].startswith(b"<158>1 ")
    assert server.peers[0]["subjectAltName"] == (("DNS", "broker.test"),)


async def test_a_certificate_of_ones_own_that_was_renewed(
    make: Make, bundle: Any, context: ssl.SSLContext, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Is used from the next connection on; one that was written by halves is an error until it is whole."""
    cert, key = authority.issue("first.test", ["first.test"]).write(tmp_path, "client")
    async with SyslogServer(context) as server:
        sink = make(syslog=syslog(server, bundle, cert=cert, key=key))
        await sink.send([stored(1)])
        before = key.read_bytes()
        authority.issue("second.test", ["second.test"]).write(tmp_path, "client")
        after = key.read_bytes()
        key.write_bytes(before)
        await until(lambda: server.messages)
        server.hang_up()
        await until(lambda: sink._connection.is_over)  # type: ignore[attr-defined] # of the adapter
        with pytest.raises(SinkError, match=r"client\.\w+ can't be used with its key"):
            await sink.send([stored(2)])
        key.write_bytes(after)
        await sink.send([stored(2)])
        await until(lambda: len(server.messages) == 2)
    assert [peer["subjectAltName"][0][1] for peer in server.peers] == ["first.test", "second.test"]


async def test_a_syslog_server_that_comes_back(make: Make, bundle: Any, context: ssl.SSLContext) -> None:
    """Away it is an error; back, and with its connections closed meanwhile, nothing is lost of what is sent then."""
    async with SyslogServer(context) as server:
        sink = make(syslog=syslog(server, bundle))
        await sink.send([stored(1)])
        await until(lambda: len(server.messages) == 1)
    with pytest.raises(SinkError, match=r"127\.0\.0\.1:\d+ can't be reached"):
        await sink.send([stored(2)])
    async with SyslogServer(context, port=server.port) as again:
        for number in (2, 3, 4):
            try:
                await sink.send([stored(number)])
            except SinkError:  # the connection had ended, which nobody could see yet
                await sink.send([stored(number)])
            await until(lambda: len(again.messages) >= number - 1)  # noqa: B023 - it is asked at once
            again.hang_up()
    came = [json.loads(message[message.index(b"{") :])["event_id"] for message in again.messages]
    assert list(dict.fromkeys(came)) == ["event-2", "event-3", "event-4"]


async def test_a_syslog_server_that_reads_nothing(make: Make, bundle: Any, context: ssl.SSLContext) -> None:
    """Has nothing, whatever its machine has buffered: the batch comes again."""
    async with SyslogServer(context) as server:
        server.reading.clear()
        sink = make(syslog=syslog(server, bundle, timeout=timedelta(seconds=1)))
        large = [stored(number, reason="x" * 60_000) for number in range(256)]
        with pytest.raises(SinkError, match="has not taken it within 1 s"):
            await sink.send(large)


async def test_a_syslog_server_of_another_ca(make: Make, tmp_path: Path, context: ssl.SSLContext) -> None:
    """Gets nothing."""
    other = tmp_path / "other.pem"
    other.write_bytes(CertificateAuthority.root("other").pem)
    async with SyslogServer(context) as server:
        with pytest.raises(SinkError, match="certificate verify failed"):
            await make(syslog=syslog(server, other)).send([stored(1)])
    assert server.messages == []


# OTLP.


def otlp(collector: Collector, **more: Any) -> OtlpSinkSettings:
    more.setdefault("timeout", PATIENCE)
    scheme = "http" if collector.credentials is None else "https"
    return OtlpSinkSettings(HttpUrl(f"{scheme}://127.0.0.1:{collector.port}"), **more)


async def test_a_collector_gets_log_records(make: Make, bundle: Any, authority: CertificateAuthority) -> None:
    """Over TLS, with a token; each record has its time, severity, name and id."""
    server = authority.issue("127.0.0.1", ["127.0.0.1"])
    credentials = grpc.ssl_server_credentials([(server.key_pem, server.chain_pem)])
    async with Collector(credentials) as collector:
        event = stored(1, AuditEventType.RPC_DENIED, severity=AuditSeverity.WARNING)
        await make(otlp=otlp(collector, ca_bundle=bundle, token_secret="otlp/token")).send([event, stored(2)])
    first, second = collector.records
    assert (first.body.string_value, first.event_name) == (event.text, "certplane.rpc_denied")
    assert (first.severity_text, first.severity_number, second.severity_number) == ("warning", 13, 9)
    assert first.time_unix_nano == (int(NOW.timestamp()) * 1_000_000 + 1) * 1000
    assert {each.key: each.value.string_value for each in first.attributes} == {"event.id": "event-1"}
    resource = {
        each.key: each.value.string_value for each in collector.requests[0].resource_logs[0].resource.attributes
    }
    assert resource["service.name"] == "certplane-broker"
    assert collector.metadata[0]["authorization"] == "Bearer t0ken"


async def test_what_a_collector_doesnt_take_is_an_error(make: Make) -> None:
    """Refused, rejected in part, or not answered."""
    async with Collector() as collector:
        sink = make(otlp=otlp(collector))
        collector.code = grpc.StatusCode.UNAVAILABLE
        with pytest.raises(SinkError, match="it answered UNAVAILABLE: not now"):
            await sink.send([stored(1)])
        collector.code = None
        collector.rejected = [1]
        with pytest.raises(SinkError, match="it rejected 1: too old"):
            await sink.send([stored(1)])
        await sink.send([stored(1)])
        collector.hanging = True
        with pytest.raises(SinkError, match="it answered DEADLINE_EXCEEDED"):
            await make(otlp=otlp(collector, timeout=BRIEFLY)).send([stored(1)])
        with pytest.raises(SinkError, match="there is no secret named 'nosuch'"):
            await make(otlp=otlp(collector, token_secret="nosuch")).send([stored(1)])
        with pytest.raises(SinkError, match="'otlp/bad' has characters that no token has"):
            await make(otlp=otlp(collector, token_secret="otlp/bad")).send([stored(1)])


def test_plain_http_to_another_machine_is_refused(make: Make) -> None:
    """What is decided goes over it."""
    with pytest.raises(ConfigurationError, match=r"audit\.sinks\.a\.otlp\.endpoint: it must be https"):
        make(otlp=OtlpSinkSettings(HttpUrl("http://192.0.2.1:4317")))


def test_the_extra_is_named_where_it_is_missing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what installs it."""
    name = "opentelemetry.proto.collector.logs.v1.logs_service_pb2"
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ConfigurationError, match=r"aren't installed; install the release's optional\.txt"):
        make(otlp=OtlpSinkSettings(HttpUrl("http://127.0.0.1:4317")))


def test_a_key_that_isnt_the_certificates(make: Make, tmp_path: Path, authority: CertificateAuthority) -> None:
    """Told with the key of the configuration."""
    cert, _ = authority.issue("a.test", ["a.test"]).write(tmp_path, "a")
    _, key = authority.issue("b.test", ["b.test"]).write(tmp_path, "b")
    section = SyslogSinkSettings(HostPort("127.0.0.1", 1), cert=cert, key=key)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"audit\.sinks\.a\.syslog\.cert: can't be used with its key"):
        make(syslog=section)
