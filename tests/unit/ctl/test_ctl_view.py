"""What certplanectl makes of the broker's messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.ctl.arguments.command import STATES as OFFERED
from certplane.ctl.output import json_line
from certplane.ctl.show.fleet import host_columns, host_rows, totals, urgency
from certplane.ctl.show.host import host_facts, sections
from certplane.ctl.show.renewals import held_up_lines, renewal_line
from certplane.ctl.show.summary import summary_lines
from certplane.ctl.show.words import HEALTHS, STATES, by_health, ending_one, link_text, served_text, state_text
from certplane.ctl.show.words import alarms as alarming_ones
from certplane.ctl.watch.fleet import host_row
from certplane.ctl.watch.lines import change_line
from certplane.ctl.watch.table import host_lines as watched_table
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
    assert set(OFFERED) == set(STATES), "what the shell offers"


def other_served() -> renewal_pb2.CertificateStatus:
    status = serving()
    status.served.serial_number = "ff00112233"
    return status


def older_served() -> renewal_pb2.CertificateStatus:
    status = serving()
    status.issued.CopyFrom(held("0a1c", version=4))
    return status


def failed() -> renewal_pb2.CertificateStatus:
    return Status(name="web", state=Status.STATE_FAILED, failed_step=Status.STEP_RELOAD, last_error="exit status 1")


@pytest.mark.parametrize(
    ("status", "state", "served"),
    [
        pytest.param(serving(), "serving", "yes", id="serves-the-newest"),
        pytest.param(other_served(), "serving", "ANOTHER (ff001122...)", id="serves-another"),
        pytest.param(older_served(), "serving", "older", id="serves-what-is-installed-and-not-the-newest"),
        pytest.param(failed(), "failed (reload)", "-", id="failed-step"),
        pytest.param(Status(name="web", state=99), "state 99", "-", id="a-newer-brokers-state"),  # type: ignore[arg-type]  # open enum
    ],
)
def test_state_and_served(status: renewal_pb2.CertificateStatus, state: str, served: str) -> None:
    """What is served is compared with the newest, and an unknown state is shown as it came."""
    assert (state_text(status), served_text(status)) == (state, served)


def expired(name: str = "web") -> renewal_pb2.CertificateStatus:
    status = serving(name)
    status.health = renewal_pb2.HEALTH_EXPIRED
    status.health_reason, status.health_remedy = "expired at 2026-05-04 03:00:00 UTC", "see that its host runs"
    return status


def test_the_end_that_makes_it_expired_is_shown() -> None:
    """What is in place has weeks to go; what the service serves has ended."""
    status = expired()
    status.served.CopyFrom(Status.Held(serial_number="0a1a"))
    status.served.not_after_time.FromDatetime(NOW - timedelta(hours=2))
    found = ending_one(status)
    assert found is not None
    assert found.serial_number == "0a1a"
    summary = fleet_pb2.SummarizeFleetResponse(hurt_count=1)
    summary.hurt.add(host="web1.example.test", certificate=status)
    line = next(line.text for line in summary_lines(summary, NOW) if "web1" in line.text)
    assert "ended 2h 0m ago" in line
    assert shown([a_host("a", status)], "EXPIRES") == [("2h 0m ago",)]
    status.health = renewal_pb2.HEALTH_OK
    assert ending_one(status) == status.installed


def test_a_list_of_changes_that_is_full_says_where_the_rest_is() -> None:
    """The broker sends twenty, and no count."""
    summary = fleet_pb2.SummarizeFleetResponse(changes=[fleet_pb2.SummarizeFleetResponse.Change()] * 19)
    assert not any("certplanectl audit" in line.text for line in summary_lines(summary, NOW))
    summary.changes.add()
    assert any("certplanectl audit" in line.text for line in summary_lines(summary, NOW))


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
    assert [each.name for each in by_health(host.certificates)] == ["zone", "web", "mail"]
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
    status.held_by_rollout_id = "r-7f3a"
    status.activate_time.FromDatetime(NOW + timedelta(days=2))
    host = a_host("web1.example.test", status)
    host.label = "web1"
    host.displaced_streams = 2
    host.contested = True
    host.clock_skew.FromTimedelta(timedelta(hours=-1))
    host.directive_error.message = "no such certificate"
    host.broker_id, host.broker_name, host.broker_address = "b-1", "machine-2", "[::]:8443"
    renewal = host.pending_renewals.add(certificate_id="c-1", cause=renewal_pb2.Renewal.CAUSE_ISSUER, reason="incident")
    renewal.explanation_url = "https://ca.example/incident"
    renewal.rollout_id = "r-8888"
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
        "as rollout r-7f3a says, at the latest 2026-05-06 03:02Z (in 2d 0h)",
        "r-8888",
        "https://ca.example/incident",
    ):
        assert part in text


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
    assert "(the others are due earlier anyway, or held up)" in renewal_line(answer, dry_run=False)
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
    answer.certificate_count = 2
    assert "(the others are due earlier anyway, or held up: 1)" in renewal_line(answer, dry_run=False)
    answer.changed_count = 2
    assert renewal_line(answer, dry_run=False, identities=True).startswith("2 of 2 matching identities will be renewed")


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
    assert "web1.example.test" in "\n".join(host_lines(host, NOW))
    message = Message(certificate_change=Message.CertificateChange(host=host.name, certificate=host.certificates[0]))
    assert "web1.example.test" in change_line(message, NOW)
    table = watched_table([host_row(host)], lambda: NOW, 160)
    assert "web1.example.test" in table.line(0).text
    with pytest.raises(OperationError, match="the broker sent an invalid message"):
        json_line(message)


@pytest.mark.parametrize(
    ("fields", "shown_link"),
    [
        pytest.param({}, "service", id="never watched"),
        pytest.param({"connected": True, "connect_time": NOW - timedelta(minutes=3)}, "service, up 3m", id="watches"),
        pytest.param({"disconnect_time": NOW - timedelta(hours=2)}, "service, down 2h 0m", id="watched"),
    ],
)
def test_a_service_is_there_while_it_watches(fields: dict[str, Any], shown_link: str) -> None:
    """Of one that never watched its certificates nothing is said; else since when it is there, or away."""
    service = renewal_pb2.Host(name="spiffe://example/api", kind=renewal_pb2.HOST_KIND_SERVICE, **fields)
    if fields:
        service.last_seen_time.FromDatetime(NOW - timedelta(hours=2))
    assert link_text(service, NOW) == shown_link
    service.agent_version, service.watch_count = "api/1.2", 3
    facts = dict(host_facts(service, NOW))
    assert (facts["client"], facts["watches"]) == ("api/1.2", "3")
    assert "agent" not in facts
