"""What `status` shows, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from certplane.agent.link.state import LinkPhase, LinkState
from certplane.agent.model import DirectedRenewal, LineageStatus, PendingRequest, Version
from certplane.agent.renewal.due import LineageSpec
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.status import new_status
from certplane.agent.status import StatusReport, lineage_report, link_report, to_text
from certplane.agent.status_json import to_json
from certplane.fleet_report.model import CertificateState, RenewalCause, RenewalStep
from certplane.runtime.terminal import Terminal
from certplane.v1 import renewal_pb2

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SPEC = LineageSpec("web", phase_key="host/web", dns_names=("a.example", "b.example"), renew_before=30 * DAY)
VERSION = Version(
    number=3,
    path=Path("/state/certificates/web/versions/3"),
    dns_names=("a.example", "b.example"),
    serial_number="1f",
    public_key_sha256="ab" * 32,
    not_before=NOW - 10 * DAY,
    not_after=NOW + 80 * DAY,
    certificate_id="certificate-3",
)
WAITING = replace(new_status("web", NOW), state=CertificateState.WAITING, confirmed_version=3)
FACTS = LineageFacts(versions=(VERSION,), current=VERSION, pending=None, status=WAITING)
IDENTITY = lineage_report(
    LineageSpec("identity", phase_key="host/identity"),
    LineageFacts((), None, None, new_status("identity", NOW)),
    NOW,
)


def report(*facts: LineageFacts, running: str = "", link: LinkState | None = None, waiting: int = 0) -> StatusReport:
    lineages = tuple(lineage_report(SPEC, each, NOW) for each in facts)
    broker = link_report(link or LinkState(), running=bool(running), unacknowledged=waiting)
    return StatusReport("web1.example", running, IDENTITY, lineages, broker)


def test_a_table_shows_each_lineage_and_nothing_more_while_all_is_well() -> None:
    """State, end, renewal and names, with how far away each moment is."""
    moments = "2027-02-11 12:00Z (in 80d 0h)  2027-01-12 12:00Z (in 50d 0h)"
    assert to_text(report(FACTS, running="process 7"), NOW).splitlines() == [
        "agent: running (process 7)",
        "",
        "          STATE    VALID UNTIL                    RENEWAL                        WHY           SERVED  NAMES",
        f"identity  absent   {'-':29}  {'-':29}  -             -       web1.example",
        f"web       waiting  {moments}  renew_before  -       a.example b.example",
    ]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_table_fits_the_terminal(width: int) -> None:
    """A lineage is one line; its state stays, and is coloured where somebody is hurt."""
    over = replace(
        FACTS, current=replace(VERSION, not_after=NOW - DAY), versions=(replace(VERSION, not_after=NOW - DAY),)
    )
    lines = to_text(report(FACTS, over), NOW, Terminal(width)).splitlines()
    assert max(map(len, lines[2:6])) <= width
    assert [line.split()[:2] for line in lines[3:6]] == [["identity", "absent"], ["web", "waiting"], ["web", "EXPIRED"]]
    assert "\x1b[1;31mEXPIRED\x1b[0m" in to_text(report(over), NOW, Terminal(width, colour=True))


def test_an_error_has_its_own_line_with_the_next_try() -> None:
    """Cause, how often, and when it is tried again."""
    failed = replace(
        WAITING,
        state=CertificateState.FAILED,
        failures=3,
        last_error="RATE_LIMITED: 20 an hour",
        next_attempt_time=NOW + timedelta(minutes=7),
        retry_time=NOW + timedelta(hours=2, minutes=5),
    )
    lines = to_text(report(replace(FACTS, status=failed)), NOW).splitlines()
    assert lines[0] == "agent: not running"
    assert lines[-1] == "web: RATE_LIMITED: 20 an hour (3 times) (next try 2026-11-23 14:05Z (in 2h 5m))"


def test_what_is_over_or_late_is_shown_as_such() -> None:
    """Whatever the state says: an expired certificate first, then an overdue renewal, in the words of `check`."""
    for not_after, state in ((NOW - timedelta(seconds=5), "EXPIRED"), (NOW + 5 * DAY, "OVERDUE")):
        version = replace(VERSION, not_before=NOW - 85 * DAY, not_after=not_after)
        lines = to_text(report(replace(FACTS, versions=(version,), current=version)), NOW).splitlines()
        assert any(line.startswith(f"web       {state}") for line in lines)
        assert any(line.startswith(f"web: {state}: ") and "certplane-agent renew web" in line for line in lines)
    assert "5s ago" in to_text(report(replace(FACTS, current=replace(VERSION, not_after=NOW - timedelta(0, 5)))), NOW)


def test_who_is_hurt_or_will_be_is_an_alarm() -> None:
    """As `check` has it: what passes by itself is none."""
    expired = replace(FACTS, current=replace(VERSION, not_after=NOW))
    failing = replace(WAITING, failures=1, last_error="DNS_UNAVAILABLE: no answer", next_attempt_time=NOW + DAY)
    assert report(FACTS, expired).alarms
    assert not report(FACTS, replace(FACTS, status=failing)).alarms
    assert replace(report(FACTS), identity=lineage_report(SPEC, expired, NOW, identity=True)).alarms


def test_an_enrolled_host_that_no_agent_has_seen_is_waiting() -> None:
    """`enroll` writes no status; the identity is there all the same."""
    facts = replace(FACTS, status=new_status("web", NOW))
    assert lineage_report(SPEC, facts, NOW).state == "waiting"
    assert lineage_report(SPEC, replace(facts, current=None, versions=()), NOW).state == "absent"


def test_json_has_every_field_and_times_as_rfc_3339() -> None:
    """Programs read the same facts; keys are only ever added."""
    pending = PendingRequest("", "cd" * 32, NOW, order_id="order-9")
    newer = replace(VERSION, number=4)
    degraded = LineageStatus(
        "web", CertificateState.DEGRADED, NOW, last_error="the reload ended with status 1", activation_failures=2,
        rejected_version=4, next_activation_time=NOW + DAY, confirmed_version=3, failed_step=RenewalStep.RELOAD,
        verified_version=3, verify_time=NOW, served_serial_number="1f", served_not_after=NOW + 80 * DAY,
        next_verify_time=NOW + DAY, activate_after=NOW + DAY,
    )  # fmt: skip
    facts = LineageFacts(versions=(VERSION, newer), current=VERSION, pending=pending, status=degraded)
    document = json.loads(to_json(report(facts)))
    assert sorted(document) == ["broker", "certificates", "identity", "identityName"]
    assert document["broker"] == {"phase": "idle", "unacknowledgedReports": 0}
    (web,) = document["certificates"]
    assert web == {
        "name": "web",
        "dnsNames": ["a.example", "b.example"],
        "state": "STATE_DEGRADED",
        "failedStep": "STEP_RELOAD",
        "issued": {"version": "4"},
        "installed": {
            "certificateId": "certificate-3",
            "serialNumber": "1f",
            "notBeforeTime": "2026-11-13T12:00:00Z",
            "notAfterTime": "2027-02-11T12:00:00Z",
            "version": "3",
        },
        "served": {
            "serialNumber": "1f",
            "notAfterTime": "2027-02-11T12:00:00Z",
            "version": "3",
            "observeTime": "2026-11-23T12:00:00Z",
        },
        "renewTime": "2027-01-12T12:00:00Z",
        "renewReason": "renew_before",
        "lastError": "the reload ended with status 1",
        "requestFailures": 0,
        "activationFailures": 2,
        "nextAttemptTime": "2026-11-24T12:00:00Z",
        "activateTime": "2026-11-24T12:00:00Z",
        "updateTime": "2026-11-23T12:00:00Z",
        "health": "HEALTH_FAILING",
        "healthReason": "reload: the reload ended with status 1",
        "severity": "warning",
        "expired": False,
        "overdue": False,
        "orderId": "order-9",
        "verifyFailures": 0,
        "nextVerifyTime": "2026-11-24T12:00:00Z",
    }


def test_the_shape_is_that_of_the_broker() -> None:
    """A script reads a host's own answer as it reads `certplanectl host`: each shared member is the message's."""
    members = json.loads(to_json(report(FACTS)))["certificates"][0]
    own = {"severity", "expired", "overdue", "orderId", "verifyError", "verifyFailures", "nextVerifyTime"}
    shared = {name: value for name, value in members.items() if name not in own}
    message = ParseDict(shared, renewal_pb2.CertificateStatus())
    back = MessageToDict(message)
    assert {name: value for name, value in shared.items() if value} == back


def test_what_is_served_and_what_waits_is_shown() -> None:
    """The serial number that clients get, the find of the last look, and a version that its window holds back."""
    newer = replace(VERSION, number=4)
    status = replace(
        WAITING,
        state=CertificateState.DEGRADED,
        verify_time=NOW,
        served_serial_number="2e",
        verify_failures=2,
        verify_error="127.0.0.1:443 serves another certificate",
        next_verify_time=NOW + timedelta(minutes=9),
        activate_after=NOW + timedelta(hours=14),
    )
    lines = to_text(report(LineageFacts((VERSION, newer), VERSION, None, status)), NOW).splitlines()
    assert "  2e      a.example" in lines[4]
    assert lines[-2:] == [
        "web: 127.0.0.1:443 serves another certificate (2 times) (next check 2026-11-23 12:09Z (in 9m))",
        "web: version 4 waits for its window, 2026-11-24 02:00Z (in 14h 0m)",
    ]


def test_the_reason_for_the_renewal_time_is_shown() -> None:
    """Whose word it is: the host's configuration, the broker, or the broker for the CA or an operator."""
    spec = replace(SPEC, renew_before=None)
    directed = DirectedRenewal("certificate-3", NOW + DAY, RenewalCause.ISSUER, "an incident", "https://ca.example/why")
    for version, why in (
        (VERSION, "the host's rule"),
        (replace(VERSION, renew_time=NOW + 40 * DAY), "the broker's time"),
        (
            replace(VERSION, renew_time=NOW + DAY, directed=directed),
            "an incident: https://ca.example/why",
        ),
    ):
        facts = replace(FACTS, versions=(version,), current=version)
        assert lineage_report(spec, facts, NOW).renew_reason == why
    due = replace(FACTS, status=replace(WAITING, state=CertificateState.DUE, renew_reason="an operator asked for it"))
    assert lineage_report(SPEC, due, NOW).renew_reason == "an operator asked for it"


def test_the_link_is_shown_while_an_agent_runs() -> None:
    """How the broker is reached, since when, and what went wrong last."""
    link = LinkState(LinkPhase.WAITING, since=NOW - timedelta(minutes=3), last_error="no connection")
    assert to_text(report(FACTS, running="process 7", link=link), NOW).splitlines()[1] == (
        "broker: waiting since 2026-11-23 11:57Z (3m ago): no connection"
    )
    assert to_text(report(FACTS, link=link), NOW).splitlines()[1] == ""


def test_a_clock_that_is_wrong_is_shown() -> None:
    """More than 30 seconds from the broker's is worth a line; less is the network."""
    for skew, line in (
        (timedelta(seconds=45), "clock: 45s ahead of the broker's; set the clocks by NTP"),
        (timedelta(hours=-1), "clock: 1h 0m behind the broker's; set the clocks by NTP"),
        (timedelta(seconds=29), ""),
    ):
        shown = report(FACTS, link=LinkState(clock_skew=skew))
        assert to_text(shown, NOW).splitlines()[1] == line
        assert json.loads(to_json(shown))["broker"]["clockSkew"] == f"{skew.total_seconds():g}s"


def test_reports_that_wait_are_counted_and_a_dead_agents_stream_is_none() -> None:
    """An agent that was killed has left word of a stream that is no more; what it had to say is still there."""
    link = LinkState(LinkPhase.CONNECTED, NOW, last_connected_time=NOW, next_attempt_time=NOW + DAY)
    dead = report(FACTS, link=link, waiting=3)
    assert (dead.broker.phase, dead.broker.since, dead.broker.next_attempt_time) == ("idle", None, None)
    assert dead.broker.last_connected_time == NOW
    assert to_text(dead, NOW).splitlines()[:2] == ["agent: not running", "reports: 3 wait for the broker"]
