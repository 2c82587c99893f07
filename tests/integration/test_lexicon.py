"""Lexicon's own PowerDNS provider, in its process, before an API that writes into a real DNS server."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns import lexicon
from certplane.broker.issuers.dns.lexicon import LexiconProvider, LexiconSettings
from certplane.broker.model import TxtRecord
from certplane.config.values import HostPort
from certplane.errors import Reason, Refusal, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import SystemClock
from certplane.sandbox.ports import DnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.powerdns_server import PowerDnsServer

pytestmark = pytest.mark.integration


@pytest.fixture
def api(dns_server: DnsServer, own_name: str) -> Iterator[PowerDnsServer]:
    with PowerDnsServer(dns_server.endpoint, names=(f"_acme-challenge.{own_name}",)) as api:
        yield api


def provider(api: PowerDnsServer, dns_server: DnsServer, seconds: float = 30) -> LexiconProvider:
    dns = dns_server.endpoint
    settings = LexiconSettings(
        "powerdns",
        "dns/key",
        {"pdns_server": api.url},
        (HostPort(dns.addresses[0], dns.port),),
        timedelta(seconds=seconds),
    )
    return LexiconProvider(settings, FakeSecretSource({"dns/key": api.key}), random.Random(1))


async def refusal_of(made: LexiconProvider, name: str) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await made.add_txt(TxtRecord("", f"_acme-challenge.{name}", "value"), deadline())
    assert "horse" not in caught.value.refusal.message
    return caught.value.refusal


def deadline() -> Deadline:
    return Deadline.after(timedelta(seconds=60), SystemClock())


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        pytest.param(401, Reason.DNS_REJECTED, "HTTP status 401; check the credentials", id="401"),
        pytest.param(503, Reason.DNS_UNAVAILABLE, "127.0.0.1 answered with HTTP status 503", id="503"),
        pytest.param(200, Reason.DNS_UNAVAILABLE, "can't be reached", id="no-json"),
    ],
)
async def test_what_the_api_answers(
    api: PowerDnsServer,
    dns_server: DnsServer,
    own_name: str,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    reason: Reason,
    message: str,
) -> None:
    """Errors come out of the process with whose job they are."""
    hour = timedelta(hours=1)
    monkeypatch.setattr(lexicon, "_REPEAT", Backoff(first=hour, most=hour, floor=hour))
    api.script.append((status, b"horse"))
    refusal = await refusal_of(provider(api, dns_server), own_name)
    assert (refusal.reason, message in refusal.message) == (reason, True), refusal.message


async def test_api_that_hangs(api: PowerDnsServer, dns_server: DnsServer, own_name: str) -> None:
    """A call that its library would wait for without end is ended at the limit."""
    api.script.append((0, b""))
    made = provider(api, dns_server, 2)
    with pytest.raises(RefusalError, match=r"did not create the record at [^ ]+ in time") as caught:
        await made.add_txt(
            TxtRecord("", f"_acme-challenge.{own_name}", "value"), Deadline.after(timedelta(seconds=2), SystemClock())
        )
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE


async def test_temporary_failure_is_repeated(api: PowerDnsServer, dns_server: DnsServer, own_name: str) -> None:
    """What may pass is tried again until the deadline."""
    api.script.append((503, b""))
    record = TxtRecord("", f"_acme-challenge.{own_name}", "value")
    await provider(api, dns_server).add_txt(record, deadline())
    assert await dns_server.endpoint.txt(record.name) == {"value"}
