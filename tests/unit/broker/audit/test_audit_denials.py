"""Repeated denials counted together."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.audit.denials import DenialCoalescer, denial_kind
from certplane.broker.audit.windows import Windows
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType
from certplane.errors import RefusalError
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores

MINUTE = timedelta(seconds=60)


class Setting:
    def __init__(self, **windows: Any) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock)
        self._numbers = iter(range(1, 1_000_000))
        self.denials = DenialCoalescer(self.stores.audit, self.clock, self.new_id, Windows(MINUTE, **windows))

    def new_id(self) -> str:
        return f"event-{next(self._numbers)}"

    async def deny(self, times: int = 1, **values: Any) -> None:
        for _ in range(times):
            event = AuditEvent(
                **{
                    "event_id": self.new_id(),
                    "timestamp": self.clock.now(),
                    "event_type": AuditEventType.CERTIFICATE_DENIED,
                    "decision": AuditDecision.DENY,
                    "identity": "spiffe://example.org/host/web1",
                    "reason_code": "NAMES_NOT_ALLOWED",
                    "profile_name": "web",
                    "profile_hash": "known to policy",
                    "request_id": "request",
                    **values,
                }
            )
            await self.denials.record(event)

    @property
    def events(self) -> list[AuditEvent]:
        return self.stores.database.events

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(event.event_type.value, event.count) for event in self.events]

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


async def test_the_first_of_its_kind_is_audited_at_once_and_repeats_are_counted() -> None:
    """One event now, one with the count when the minute is over."""
    s = Setting()
    async with s.denials.running():
        await s.deny(5)
        assert s.told == [("certificate_denied", 0)]
        await s.settle()
        s.clock.advance(MINUTE)
        await s.settle()
        assert s.told == [("certificate_denied", 0), ("denials_coalesced", 4)]
    summary = s.events[1]
    assert (summary.identity, summary.reason_code, summary.profile_name, summary.decision) == (
        "spiffe://example.org/host/web1",
        "NAMES_NOT_ALLOWED",
        "web",
        AuditDecision.DENY,
    )
    assert summary.event_id not in ("", s.events[0].event_id)
    assert s.events[0].event_id in summary.reason
    assert summary.request_id == ""


async def test_a_denial_that_stays_alone_has_no_summary() -> None:
    """Nothing to count, nothing to write; the next one after the window is a first one again."""
    s = Setting()
    async with s.denials.running():
        await s.deny()
        await s.settle()
        s.clock.advance(MINUTE)
        await s.settle()
        await s.deny()
    assert s.told == [("certificate_denied", 0), ("certificate_denied", 0)]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"identity": "spiffe://example.org/host/web2"}, id="identity"),
        pytest.param({"reason_code": "KEY_REUSED"}, id="reason"),
        pytest.param({"profile_name": "db"}, id="profile"),
        pytest.param({"event_type": AuditEventType.RPC_DENIED}, id="kind"),
    ],
)
async def test_different_denials_are_not_counted_together(other: dict[str, Any]) -> None:
    """Each kind has its own first event."""
    s = Setting()
    await s.deny()
    await s.deny(**other)
    assert len(s.events) == 2


async def test_invented_profiles_are_one() -> None:
    """A caller that asks for another name each time gets one event and a count, as one that repeats itself."""
    s = Setting()
    async with s.denials.running():
        for number in range(100):
            await s.deny(profile_name=f"invented-{number}", profile_hash="", reason_code="PROFILE_NOT_ALLOWED")
    assert s.told == [("certificate_denied", 0), ("denials_coalesced", 99)]
    assert [event.profile_name for event in s.events] == ["invented-0", ""]


async def test_unknown_identities_are_told_apart_by_their_address() -> None:
    """Whoever has no name is an address."""
    s = Setting()
    for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        await s.deny(identity="", source_ip=address)
    assert [event.source_ip for event in s.events] == ["192.0.2.1", "192.0.2.2"]


async def test_a_stranger_with_ever_another_address_fills_no_disk() -> None:
    """Addresses are free for who has an IPv6 network: above a budget they are counted together, none is lost."""
    s = Setting()
    s.denials = DenialCoalescer(s.stores.audit, s.clock, s.new_id)
    for number in range(3_000):
        await s.deny(identity="", source_ip=f"2001:db8::{number:x}", reason_code="RATE_LIMITED")
    assert len(s.events) == 1_001
    await s.deny()
    assert s.events[-1].identity == "spiffe://example.org/host/web1", "who has a name has budget of its own"
    async with s.denials.running():
        pass
    assert (s.events[-1].count, s.events[-1].reason_code, s.events[-1].source_ip) == (1_999, "RATE_LIMITED", "")


async def test_the_end_of_the_broker_writes_what_is_counted() -> None:
    """A stop in the middle of a window loses no count."""
    s = Setting()
    async with s.denials.running():
        await s.deny(3)
    assert s.told == [("certificate_denied", 0), ("denials_coalesced", 2)]


async def test_windows_are_bounded() -> None:
    """Past the bound the oldest window is closed and told; memory doesn't grow with the number of names."""
    s = Setting(most=2)
    for name in ("a", "b"):
        await s.deny(2, identity=name)
    await s.deny(identity="c")
    assert [(event.identity, event.count) for event in s.events] == [("a", 0), ("b", 0), ("a", 1), ("c", 0)]
    await s.deny(identity="a")
    assert [(event.identity, event.count) for event in s.events[4:]] == [("b", 1), ("a", 0)]


async def test_a_first_denial_that_can_not_be_audited_is_first_again() -> None:
    """`fail_closed` is told to the caller, and the next one is tried, not counted into nothing."""
    s = Setting()
    s.stores.database.audit_down = True
    with pytest.raises(RefusalError):
        await s.deny()
    s.stores.database.audit_down = False
    await s.deny()
    assert len(s.events) == 1


async def test_a_summary_that_can_not_be_audited_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The task that writes summaries lives on."""
    s = Setting()
    async with s.denials.running():
        await s.deny(2)
        s.stores.database.audit_down = True
        await s.settle()
        s.clock.advance(MINUTE)
        await s.settle()
        s.stores.database.audit_down = False
        await s.deny(2)
    assert "could not be audited" in caplog.text
    assert s.told == [("certificate_denied", 0), ("certificate_denied", 0), ("denials_coalesced", 1)]


async def test_windows_that_ended_unseen_are_told_by_the_next_denial() -> None:
    """Also where nothing runs in the background."""
    s = Setting()
    await s.deny(3)
    s.clock.advance(MINUTE + timedelta(seconds=1))
    await s.deny()
    assert s.told == [("certificate_denied", 0), ("denials_coalesced", 2), ("certificate_denied", 0)]


def test_a_window_ends_exactly_a_minute_after_its_first() -> None:
    """At the end a denial is a first one again, a moment before it is not."""
    windows = Windows(MINUTE)
    event = AuditEvent("e", ManualClock().now(), AuditEventType.CERTIFICATE_DENIED)
    kind = denial_kind(event)
    assert windows.admit(kind, event, 0.0) is None
    assert windows.admit(kind, event, 59.999) is not None
    assert windows.next_end() == 60.0
    assert windows.admit(kind, event, 60.0) is None
    assert [window.repeats for window in windows.take_ended(60.0)] == [1]
