"""What certplanectl makes of the broker's messages."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from certplane.ctl.live import open_display
from certplane.ctl.output import json_line
from certplane.ctl.show.fleet import host_columns, host_rows, totals, urgency
from certplane.ctl.show.host import sections
from certplane.ctl.show.renewals import held_up_lines, renewal_line
from certplane.ctl.show.words import HEALTHS, STATES
from certplane.ctl.show.words import alarms as alarming_ones
from certplane.ctl.view import FleetView, change_line, fleet_rows
from certplane.errors import OperationError
from certplane.v1 import fleet_pb2, renewal_pb2

NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
Status = renewal_pb2.CertificateStatus
Message = renewal_pb2.WatchRenewalsResponse


def alarms(host: renewal_pb2.Host) -> bool:
    return alarming_ones(host.certificates)


def host_lines(host: renewal_pb2.Host, now: datetime) -> list[str]:
    """All that `host` shows, without what is empty."""
    return [f"{name:11}{value}" for facts, _ in sections(host, now) for name, value in facts if value]


def held(serial: str, **fields: object) -> renewal_pb2.CertificateStatus.Held:
    made = Status.Held(serial_number=serial, **fields)  # type: ignore[arg-type]  # as the caller writes them
    made.not_after_time.FromDatetime(NOW + timedelta(days=30))
    return made


def serving(name: str = "web", serial: str = "0a1b") -> renewal_pb2.CertificateStatus:
    status = Status(name=name, state=Status.STATE_SERVING, profile="web", dns_names=["www.example.test"])
    status.health = renewal_pb2.HEALTH_OK
    status.installed.CopyFrom(held(serial, version=3))
    status.served.CopyFrom(held(serial))
    status.renew_time.FromDatetime(NOW + timedelta(days=20))
    return status


def a_host(name: str = "web1.example.test", *certificates: renewal_pb2.CertificateStatus) -> renewal_pb2.Host:
    host = renewal_pb2.Host(name=name, connected=True, agent_version="0.2.0", certificates=certificates)
    host.connect_time.FromDatetime(NOW - timedelta(minutes=5))
    return host


def test_every_state_of_the_wire_has_a_word() -> None:
    """People write states in lower case without their prefix; none is left out."""
    assert set(STATES.values()) == set(Status.State.values()) - {Status.STATE_UNSPECIFIED}
    assert STATES["degraded"] == Status.STATE_DEGRADED


def test_a_row_for_each_certificate_and_one_for_a_host_without() -> None:
    """The fleet's table names a host once, and leaves out none that holds nothing."""
    rows = fleet_rows([a_host("a", serving("mail"), serving("web")), a_host("b")], NOW)
    assert [row[:5] for row in rows[1:]] == [
        ("a", "up 5m", "mail", "OK", "serving"),
        ("", "", "web", "OK", "serving"),
        ("b", "up 5m", "-", "-", "-"),
    ]
    assert rows[1][5:] == ("2026-06-03 03:02Z (in 30d 0h)", "2026-05-24 03:02Z (in 20d 0h)", "yes")


def other_served() -> renewal_pb2.CertificateStatus:
    status = serving()
    status.served.serial_number = "ff00112233"
    return status


def failed() -> renewal_pb2.CertificateStatus:
    return Status(name="web", state=Status.STATE_FAILED, failed_step=Status.STEP_RELOAD, last_error="exit status 1")


@pytest.mark.parametrize(
    ("status", "state", "served"),
    [
        pytest.param(serving(), "serving", "yes", id="serves-what-is-installed"),
        pytest.param(other_served(), "serving", "ANOTHER (ff001122...)", id="serves-another"),
        pytest.param(failed(), "failed (reload)", "-", id="failed-step"),
        pytest.param(Status(name="web", state=99), "state 99", "-", id="a-newer-brokers-state"),  # type: ignore[arg-type]  # open enum
    ],
)
def test_state_and_served(status: renewal_pb2.CertificateStatus, state: str, served: str) -> None:
    """What is served is compared with what is installed, and an unknown state is shown as it came."""
    row = fleet_rows([a_host("a", status)], NOW)[1]
    assert (row[4], row[7]) == (state, served)


def expired(name: str = "web") -> renewal_pb2.CertificateStatus:
    status = serving(name)
    status.health = renewal_pb2.HEALTH_EXPIRED
    status.health_reason, status.health_remedy = "expired at 2026-05-04 03:00:00 UTC", "see that its host runs"
    return status


def of_health(number: int) -> renewal_pb2.CertificateStatus:
    status = serving()
    status.health = number  # type: ignore[assignment]  # open enum
    return status


def test_every_health_of_the_wire_has_a_word() -> None:
    """People write healths in lower case without their prefix; none is left out."""
    assert set(HEALTHS.values()) == set(renewal_pb2.Health.values()) - {renewal_pb2.HEALTH_UNSPECIFIED}
    assert HEALTHS["revoked_in_use"] == renewal_pb2.HEALTH_REVOKED_IN_USE


def test_what_is_worst_comes_first() -> None:
    """Of a host's certificates, and of hosts; one that a newer broker invented stands before those that are well."""
    host = a_host("a", serving("mail"), of_health(99), expired("zone"))
    rows = fleet_rows([host], NOW)[1:]
    assert [row[2:4] for row in rows] == [("zone", "EXPIRED"), ("web", "health 99"), ("mail", "OK")]
    assert [row[0] for row in rows] == ["a", "", ""]
    away = a_host("away", serving())
    away.connected = False
    hosts = [
        a_host("well", serving()),
        a_host("empty"),
        away,
        a_host("newer", of_health(99)),
        a_host("old", failed()),
        host,
    ]
    assert [each.name for each in sorted(hosts, key=urgency)] == ["a", "old", "newer", "away", "well", "empty"]


def test_hosts_of_several_brokers_say_where_they_are() -> None:
    """Where all are at one, its name would only take room."""
    one, other, away = a_host("a"), a_host("b"), a_host("c")
    one.broker_id, one.broker_name = "1", "machine-1"
    other.broker_id, other.broker_name = "2", "machine-2"
    assert [row[1] for row in fleet_rows([one, other, away], NOW)[1:]] == [
        "up 5m at machine-1",
        "up 5m at machine-2",
        "up 5m",
    ]
    assert [row[1] for row in fleet_rows([one, away], NOW)[1:]] == ["up 5m", "up 5m"]
    for host, port in ((one, 8443), (other, 8444)):
        host.broker_name, host.broker_address = "machine-1", f"[::]:{port}"
    assert [row[1] for row in fleet_rows([one, other], NOW)[1:]] == [
        "up 5m at machine-1 [::]:8443",
        "up 5m at machine-1 [::]:8444",
    ]


def shown(hosts: list[renewal_pb2.Host], *titles: str) -> list[tuple[str, ...]]:
    """These columns of `fleet`."""
    columns = {column.title: column for column in host_columns(hosts, NOW)}
    return [tuple(columns[title].text(row).strip() for title in titles) for row in host_rows(hosts)]


def test_a_row_for_each_host_and_for_what_is_wrong() -> None:
    """A host that is well is one row, without its identity; each further certificate that isn't well is one more."""
    well = a_host("a", serving("identity"), serving("mail"), serving("web"))
    ill = a_host("b", serving("identity"), serving("mail"), expired("web"), expired("zone"))
    ill.certificate_count = 9
    nothing = a_host("c")
    nothing.health, nothing.blocked_reason = renewal_pb2.HEALTH_UNHEARD, "not in the policy"
    assert shown([well, ill, nothing], "HOST", "HEALTH", "CERTIFICATE", "EXPIRES", "CAUSE") == [
        ("a", "OK", "mail (+2)", "in 30d 0h", ""),
        ("b", "EXPIRED", "web (+7)", "in 30d 0h", "expired at 2026-05-04 03:00:00 UTC"),
        ("", "EXPIRED", "zone", "in 30d 0h", "expired at 2026-05-04 03:00:00 UTC"),
        ("c", "UNHEARD", "", "", "not in the policy"),
    ]
    ill.certificates[2].health_cause = "UNHEARD"
    assert shown([ill], "CAUSE")[0] == ("UNHEARD",)


def test_totals_are_the_worst_first() -> None:
    """Each health that there is one of."""
    counts = [
        fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_OK, certificate_count=371),
        fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_OVERDUE),
        fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_UNHEARD, certificate_count=5),
        fleet_pb2.HealthCount(health=renewal_pb2.HEALTH_EXPIRED, certificate_count=3),
    ]
    assert [text for text, _ in totals(counts)] == ["3 EXPIRED", "5 UNHEARD", "371 OK"]


def test_health_with_its_cause_and_what_to_do() -> None:
    """`host` has both as lines; one that is well has neither."""
    text = "\n".join(host_lines(a_host("a", expired()), NOW))
    assert "health   EXPIRED: expired at 2026-05-04 03:00:00 UTC" in text
    assert "remedy   see that its host runs" in text
    assert "remedy" not in "\n".join(host_lines(a_host("a", serving()), NOW))


@pytest.mark.parametrize("word", HEALTHS)
def test_what_is_an_alarm(word: str) -> None:
    """What needs a person now, whatever else the host has that is well."""
    alarming = {"expired", "revoked_in_use", "foreign_served", "wont_heal", "overdue"}
    assert alarms(a_host("a", serving(), of_health(HEALTHS[word]))) == (word in alarming)


def test_a_broker_that_says_nothing_of_health_is_no_all_clear() -> None:
    """A monitor that asks an older broker hears so, and not that all is well."""
    with pytest.raises(OperationError, match="older"):
        alarms(a_host("a", serving(), failed()))
    assert not alarms(a_host("a", of_health(99)))


def test_one_host_in_full() -> None:
    """`host` shows what a person at night looks for: link, clock, clones, errors, what waits to be told."""
    status = failed()
    status.activation_failures = 3
    status.next_attempt_time.FromDatetime(NOW + timedelta(minutes=7))
    host = a_host("web1.example.test", status)
    host.label = "web1"
    host.displaced_streams = 2
    host.contested = True
    host.clock_skew.FromTimedelta(timedelta(hours=-1))
    host.directive_error.message = "no such certificate"
    host.broker_id, host.broker_name, host.broker_address = "b-1", "machine-2", "[::]:8443"
    renewal = host.pending_renewals.add(certificate_id="c-1", cause=renewal_pb2.Renewal.CAUSE_ISSUER, reason="incident")
    renewal.explanation_url = "https://ca.example/incident"
    renewal.renew_time.FromDatetime(NOW)
    text = "\n".join(host_lines(host, NOW))
    for part in (
        "web1.example.test (web1 in the policy)",
        "CONTESTED, up 5m",
        "broker     machine-2 [::]:8443 (b-1)",
        "1h 0m behind the broker's",
        "2 streams",
        "refused    the last directive: no such certificate",
        "exit status 1 (3 times); next try 2026-05-04 03:09Z (in 7m)",
        "renew certificate c-1",
        "the CA: incident",
        "https://ca.example/incident",
    ):
        assert part in text


def snapshot(*hosts: renewal_pb2.Host) -> list[renewal_pb2.WatchRenewalsResponse]:
    messages = [Message(host=host) for host in hosts]
    return [*messages, Message(snapshot_end=Message.SnapshotEnd(host_count=len(hosts)))]


def changed(host: str, status: renewal_pb2.CertificateStatus, *, removed: bool = False) -> Message:
    return Message(certificate_change=Message.CertificateChange(host=host, certificate=status, removed=removed))


def test_a_watch_is_followed() -> None:
    """A change replaces one certificate of one host, a removal takes it out, an unknown event changes nothing."""
    view = FleetView()
    for message in snapshot(a_host("b", serving()), a_host("a", serving())):
        assert not view.complete
        view.apply(message)
    assert view.complete
    view.apply(changed("b", failed()))
    view.apply(changed("a", serving("mail")))
    view.apply(changed("a", serving(), removed=True))
    view.apply(Message())
    assert [(host.name, [each.name for each in host.certificates]) for host in view.hosts] == [
        ("a", ["mail"]),
        ("b", ["web"]),
    ]
    assert view.hosts[1].certificates[0].state == Status.STATE_FAILED


def test_a_watch_that_begins_again_forgets_whom_it_isnt_told_of() -> None:
    """What was known stays until the new snapshot is complete, then only what that one told."""
    view = FleetView()
    for message in snapshot(a_host("a"), a_host("b")):
        view.apply(message)
    view.begin_again()
    assert [host.name for host in view.hosts] == ["a", "b"]
    for message in snapshot(a_host("b")):
        view.apply(message)
    assert [host.name for host in view.hosts] == ["b"]


def test_changes_as_lines() -> None:
    """A change is one line for a person; the end of a snapshot is none."""
    assert change_line(changed("a", failed()), NOW) == "a: web: failed (reload): exit status 1"
    assert change_line(changed("a", expired()), NOW) == "a: web: EXPIRED, serving"
    assert change_line(Message(host=a_host("a", serving("mail"), expired())), NOW) == "a: up 5m, web EXPIRED"
    assert change_line(changed("a", failed(), removed=True), NOW) == "a: web: removed"
    assert change_line(Message(host=a_host("a")), NOW) == "a: up 5m"
    elsewhere = a_host("a")
    elsewhere.broker_name = "machine-2"
    assert change_line(Message(host=elsewhere), NOW) == "a: up 5m at machine-2"
    assert change_line(Message(snapshot_end=Message.SnapshotEnd()), NOW) == ""


def test_json_is_the_proto3_mapping_on_one_line() -> None:
    """Programs get what grpcurl prints: lowerCamelCase names, enum names, RFC 3339 times."""
    line = json_line(a_host("a", serving()))
    assert "\n" not in line
    decoded = json.loads(line)
    assert decoded["certificates"][0]["state"] == "STATE_SERVING"
    assert decoded["connectTime"] == "2026-05-04T02:57:01Z"


@pytest.mark.parametrize(
    ("picked", "changed_count", "dry_run", "text"),
    [
        pytest.param(0, 0, False, "no certificate in force matches", id="nothing"),
        pytest.param(3, 0, False, "due earlier anyway", id="all-due-earlier"),
        pytest.param(3, 2, False, "2 of 3 matching certificates will be renewed, the last at 2026-05-04", id="done"),
        pytest.param(3, 2, False, "(the others are due earlier anyway)", id="one-due-earlier"),
        pytest.param(1, 1, True, "1 of 1 matching certificate would be renewed", id="dry-run"),
    ],
)
def test_what_a_renewal_did(picked: int, changed_count: int, dry_run: bool, text: str) -> None:
    """The answer says how many, until when, and who hears of it now."""
    answer = fleet_pb2.RequestRenewalResponse(
        certificate_count=picked, changed_count=changed_count, connected_host_count=1
    )
    answer.last_renew_time.FromDatetime(NOW)
    assert text in renewal_line(answer, dry_run=dry_run)


def test_a_renewal_tells_what_holds_certificates_up() -> None:
    """Until when and why, whether that is given up now, and that a person has to act where nothing else helps."""
    answer = fleet_pb2.RequestRenewalResponse(certificate_count=9, changed_count=2, held_up_count=5)
    waits = answer.held_up.add(host="web1.test", certificate_name="web", reason="RATE_LIMITED: 2 in a day")
    waits.next_attempt_time.FromDatetime(NOW)
    answer.held_up.add(host="web2.test", reason="two holders use its identity")
    assert "(the others are due earlier anyway, or held up: 1)" in renewal_line(answer, dry_run=False)
    assert held_up_lines(answer, dry_run=False) == [
        f"web1.test: web waited until {NOW:%Y-%m-%d %H:%M:%S}Z and is told to try now: RATE_LIMITED: 2 in a day",
        "web2.test gets no certificate: two holders use its identity",
        "and 3 more",
    ]
    assert "would be told to try now" in held_up_lines(answer, dry_run=True)[0]


def test_what_is_held_up_is_not_due_anyway() -> None:
    """Where nothing but what needs a person is left over, nobody hears that it is due earlier."""
    answer = fleet_pb2.RequestRenewalResponse(certificate_count=1, held_up_count=1)
    answer.held_up.add(host="web2.test", reason="two holders use its identity")
    line = renewal_line(answer, dry_run=False)
    assert line == "0 of 1 matching certificate will be renewed (what holds up the others is below)"
    answer.certificate_count = answer.changed_count = 2
    assert renewal_line(answer, dry_run=False, identities=True).startswith("2 of 2 matching identities will be renewed")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_piped_a_watch_is_json_lines() -> None:
    """Each message is a line, and what is about the watch itself goes elsewhere."""
    stream, said = io.StringIO(), []
    with open_display(stream, said.append, lambda: NOW, as_json=False) as display:
        for message in snapshot(a_host("a")):
            display.show(message)
        display.interrupted("the broker has gone")
    assert [next(iter(json.loads(line))) for line in stream.getvalue().splitlines()] == ["host", "snapshotEnd"]
    assert said == ["the broker has gone"]


def test_on_a_terminal_a_watch_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live table shows hosts, what changed, and why the watch was interrupted; what hosts say is no markup."""
    pytest.importorskip("rich")
    stream = Terminal()
    status = failed()
    monkeypatch.setenv("COLUMNS", "160")
    with open_display(stream, lambda _: None, lambda: NOW, as_json=False) as display:
        for message in snapshot(a_host("[red]a[/red]", status), a_host("Z-well")):
            display.show(message)
        display.interrupted("the broker has gone")
    text = stream.getvalue()
    assert text.index("[red]a[/red]") < text.index("well")
    assert "[red]a[/red]" in text
    assert "failed" in text
    assert "the broker has gone" in text


def test_on_a_terminal_without_rich_the_table_comes_once_and_then_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional package is optional: the same facts, line by line."""
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    stream, said = Terminal(), []
    with open_display(stream, said.append, lambda: NOW, as_json=False) as display:
        for message in [*snapshot(a_host("a", serving())), changed("a", failed())]:
            display.show(message)
    lines = stream.getvalue().splitlines()
    assert lines[0].split()[:2] == ["HOST", "LINK"]
    assert lines[-1] == "a: web: failed (reload): exit status 1"


NO_TIMES = {
    "far too late": (2**62, 0),
    "far too early": (-(2**62), 0),
    "negative nanoseconds": (1, -1),
    "too many nanoseconds": (1, 2_000_000_000),
}


def with_times(message: Message, seconds: int, nanos: int) -> None:
    """Set each time and span of a message, and of those in it that are set."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is None:
            continue
        if field.message_type.full_name in {"google.protobuf.Timestamp", "google.protobuf.Duration"}:
            value = getattr(message, field.name)
            value.seconds, value.nanos = seconds, nanos
    for _, value in message.ListFields():
        for each in value if hasattr(value, "add") else [value]:
            if hasattr(each, "DESCRIPTOR") and each.DESCRIPTOR.file.package == message.DESCRIPTOR.file.package:
                with_times(each, seconds, nanos)


@pytest.mark.parametrize(("seconds", "nanos"), NO_TIMES.values(), ids=NO_TIMES)
def test_times_that_are_none_are_shown_all_the_same(seconds: int, nanos: int) -> None:
    """A broker of nonsense makes no traceback at the operator's terminal; JSON, which programs read, is refused with cause and remedy."""
    host = a_host("web1.example.test", serving(), failed())
    with_times(host, seconds, nanos)
    assert host.certificates[0].update_time.seconds == seconds
    header, *rows = fleet_rows([host], NOW)
    assert [row[header.index("CERTIFICATE")] for row in rows] == ["web", "web"]
    assert rows[0][header.index("LINK")] == "up"
    assert "web1.example.test" in "\n".join(host_lines(host, NOW))
    message = changed("web1.example.test", host.certificates[0])
    assert "web1.example.test" in change_line(message, NOW)
    with pytest.raises(OperationError, match="the broker sent an invalid message"):
        json_line(message)
