"""What `status` shows, as text and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from certplane.agent.model import LineageState, LineageStatus, PendingRequest, Version
from certplane.agent.renewal.plan import LineageFacts, LineageSpec
from certplane.agent.renewal.status import new_status
from certplane.agent.status import StatusReport, lineage_report, to_json, to_text

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
WAITING = replace(new_status("web", NOW), state=LineageState.WAITING, confirmed_version=3)
FACTS = LineageFacts(versions=(VERSION,), current=VERSION, pending=None, status=WAITING)
IDENTITY = lineage_report(
    LineageSpec("identity", phase_key="host/identity"),
    LineageFacts((), None, None, new_status("identity", NOW)),
    NOW,
)


def report(*facts: LineageFacts, running: str = "") -> StatusReport:
    lineages = tuple(lineage_report(SPEC, each, NOW) for each in facts)
    return StatusReport("web1.example", running, IDENTITY, lineages)


def test_a_table_shows_each_lineage_and_nothing_more_while_all_is_well() -> None:
    """State, end, renewal and names, with how far away each moment is."""
    assert to_text(report(FACTS, running="process 7"), NOW).splitlines() == [
        "agent: running (process 7)",
        "",
        "          STATE    VALID UNTIL                    RENEWAL                        NAMES",
        "identity  absent   -                              -                              web1.example",
        "web       waiting  2027-02-11 12:00Z (in 80d 0h)  2027-01-12 12:00Z (in 50d 0h)  a.example b.example",
    ]


def test_an_error_has_its_own_line_with_the_next_try() -> None:
    """Cause, how often, and when it is tried again."""
    failed = replace(
        WAITING,
        state=LineageState.FAILED,
        failures=3,
        last_error="RATE_LIMITED: 20 an hour",
        next_attempt_time=NOW + timedelta(minutes=7),
        retry_time=NOW + timedelta(hours=2, minutes=5),
    )
    lines = to_text(report(replace(FACTS, status=failed)), NOW).splitlines()
    assert lines[0] == "agent: not running"
    assert lines[-1] == "web: RATE_LIMITED: 20 an hour (3 times) (next try 2026-11-23 14:05Z (in 2h 5m))"


def test_what_is_over_or_late_is_shown_as_such() -> None:
    """Whatever the state says: an expired certificate first, then an overdue renewal."""
    for not_after, state in ((NOW - timedelta(seconds=5), "EXPIRED"), (NOW + 5 * DAY, "overdue")):
        version = replace(VERSION, not_before=NOW - 85 * DAY, not_after=not_after)
        line = to_text(report(replace(FACTS, versions=(version,), current=version)), NOW).splitlines()[-1]
        assert line.startswith(f"web       {state}")
    assert "5s ago" in to_text(report(replace(FACTS, current=replace(VERSION, not_after=NOW - timedelta(0, 5)))), NOW)


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
        "web", LineageState.DEGRADED, NOW, last_error="the reload ended with status 1", activation_failures=2,
        rejected_version=4, next_activation_time=NOW + DAY, confirmed_version=3,
    )  # fmt: skip
    facts = LineageFacts(versions=(VERSION, newer), current=VERSION, pending=pending, status=degraded)
    document = json.loads(to_json(report(facts)))
    assert sorted(document) == ["certificates", "identity", "identity_name", "running"]
    (web,) = document["certificates"]
    assert web == {
        "name": "web",
        "state": "degraded",
        "version": 3,
        "newest_version": 4,
        "dns_names": ["a.example", "b.example"],
        "serial_number": "1f",
        "not_before": "2026-11-13T12:00:00Z",
        "not_after": "2027-02-11T12:00:00Z",
        "renew_time": "2027-01-12T12:00:00Z",
        "expired": False,
        "overdue": False,
        "certificate_id": "certificate-3",
        "order_id": "order-9",
        "renew_reason": "",
        "failures": 0,
        "activation_failures": 2,
        "next_attempt_time": "2026-11-24T12:00:00Z",
        "last_error": "the reload ended with status 1",
        "update_time": "2026-11-23T12:00:00Z",
    }
