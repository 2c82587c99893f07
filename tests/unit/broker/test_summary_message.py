"""The summary of the fleet as a message: under the size of one, whatever hosts, CAs and operators have written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.fleet.index import CauseGroup, IndexedCertificate, IndexedHost
from certplane.broker.fleet.summaries import FleetSummary, IssuerTrouble, ShownCause, changes_shown
from certplane.broker.fleet.summary import MOST_SHOWN, FleetSums
from certplane.broker.fleet.view import CertificateView
from certplane.broker.services.calls import EdgeRefusalError
from certplane.broker.services.summary_convert import period_of, summary_message
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus
from certplane.rpc.channel import MAX_MESSAGE_BYTES
from certplane.rpc.times import timestamp
from certplane.runtime.health import MOST_CAUSE, Health, HealthActor, HealthWord

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
LONG = "ä" * 2000
NAME = f"{'n' * 60}." * 4 + "test"
HOST = IndexedHost(NAME, "l" * 63, agent_version="9" * 64, blocked=LONG, last_seen_time=NOW)
STATUS = CertificateStatus(
    "c" * 64, CertificateState.FAILED, "p" * 64, (NAME,) * 100, last_error=LONG, renew_reason=LONG[:250]
)
VIEW = CertificateView(
    HOST,
    IndexedCertificate("c" * 64, issuer="i" * 64, public_key_sha256="ab" * 32),
    STATUS,
    Health(HealthWord.EXPIRED, LONG, LONG, "X" * MOST_CAUSE, HealthActor.DNS, NOW),
)
GROUP = CauseGroup(HealthWord.EXPIRED, "X" * MOST_CAUSE, HealthActor.DNS, 9, 9, (NAME,) * 5, (NAME, "c"), NOW, NOW)
SUMMARY = FleetSummary(
    time=NOW,
    sums=FleetSums(
        host_count=9999,
        healths=Counter(dict.fromkeys(HealthWord, 9)),
        hurt_count=500,
        next_count=500,
        missing=[HOST] * MOST_SHOWN,
        missing_count=500,
        versions=Counter({f"{number:064d}": 9 for number in range(500)}),
    ),
    hurt=[VIEW] * MOST_SHOWN,
    next=[VIEW] * MOST_SHOWN,
    causes=[ShownCause(GROUP, VIEW)] * MOST_SHOWN,
    cause_count=500,
    changes=[AuditEvent("e", NOW, AuditEventType.POLICY_LOADED, reason=LONG, identity=NAME)] * MOST_SHOWN,
    issuers=[IssuerTrouble("i" * 64, NOW, Refusal(Reason.ISSUER_UNAVAILABLE, LONG))] * 5,
    open_orders=1,
    troubled_orders=1,
)


def _events(event_type: AuditEventType, count: int, since: datetime) -> list[AuditEvent]:
    """The newest first, a second apart."""
    times = [since + timedelta(seconds=number) for number in range(count)]
    return [AuditEvent(f"{event_type} {time}", time, event_type) for time in reversed(times)]


def test_hundreds_of_moved_windows_hide_no_incident() -> None:
    """It was opened before they came; the newest of them are shown too, and all of them where there is nothing else."""
    opened = _events(AuditEventType.INCIDENT_OPENED, 1, NOW)
    moved = _events(AuditEventType.RENEWAL_WINDOW_MOVED, MOST_SHOWN, NOW + timedelta(minutes=1))
    assert changes_shown(opened, moved) == [*moved[:-1], *opened]
    loaded = _events(AuditEventType.POLICY_LOADED, MOST_SHOWN, NOW)
    assert changes_shown(loaded, moved) == [*moved[:5], *loaded[:-5]]
    assert changes_shown(loaded, moved[:1]) == [moved[0], *loaded[:-1]]
    assert changes_shown([], moved) == moved
    assert changes_shown(loaded, []) == loaded


def test_the_longest_texts_fit_into_a_message() -> None:
    """Lists are shorter then; each has some, and the counts stay."""
    message = summary_message(SUMMARY)
    assert message.ByteSize() <= MAX_MESSAGE_BYTES
    lists = (message.hurt, message.next, message.causes, message.changes, message.missing)
    assert all(3 <= len(each) <= MOST_SHOWN for each in lists)
    assert (message.hurt_count, message.next_count, message.cause_count, message.missing_count) == (500,) * 4
    assert len(message.agent_versions) == 10


def test_ordinary_texts_are_all_there() -> None:
    """Twenty of each list, with what each says."""
    status = replace(STATUS, dns_names=("www.example.test",), last_error="DNS_UNAVAILABLE: no answer", renew_reason="")
    health = Health(HealthWord.EXPIRED, "expired at noon", "check that it runs", "UNHEARD", HealthActor.HOST, NOW)
    view = replace(VIEW, host=replace(HOST, name="web1.example", blocked="denied"), status=status, health=health)
    group = replace(GROUP, hosts=("web1.example",) * 5)
    event = AuditEvent("e", NOW, AuditEventType.CERTIFICATE_REVOKED, reason="keyCompromise", csr_dns_names=("a.test",))
    message = summary_message(
        replace(
            SUMMARY,
            hurt=[view] * MOST_SHOWN,
            next=[view] * MOST_SHOWN,
            causes=[ShownCause(group, view), ShownCause(group, None)] * 10,
            changes=[event] * MOST_SHOWN,
            issuers=[*SUMMARY.issuers, IssuerTrouble("free", waiting_count=12, waiting_until=NOW)],
        )
    )
    assert [len(each) for each in (message.hurt, message.next, message.causes, message.changes)] == [MOST_SHOWN] * 4
    assert message.hurt[0].certificate.health_reason == "expired at noon"
    assert [each.reason for each in message.causes[:2]] == ["expired at noon", ""]
    assert (message.changes[0].text, message.changes[0].count) == ("keyCompromise; a.test", 1)
    assert not message.issuers[0].usable
    free = message.issuers[-1]
    assert (free.usable, free.waiting_order_count, free.waiting_until_time) == (True, 12, timestamp(NOW))


@pytest.mark.parametrize("seconds", [0, -1, 8 * 86_400])
def test_a_period_is_at_most_a_week(seconds: int) -> None:
    """And more than nothing; a day where none is said."""
    assert period_of(None) == timedelta(days=1)
    assert period_of(Duration(seconds=7 * 86_400)) == timedelta(days=7)
    with pytest.raises(EdgeRefusalError) as refused:
        period_of(Duration(seconds=seconds))
    assert refused.value.refusal.violations[0].subject == "period"
