"""Repeated reports and hand-outs counted together, durably."""

import asyncio
import gc
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.audit.fallback import FailureMode
from certplane.broker.audit.repeats import RepeatCoalescer
from certplane.broker.audit.windows import WindowBudget, Windows
from certplane.broker.events import AuditEvent, AuditEventType, EventKind
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores

WEB1 = "spiffe://example.org/host/web1"
LENGTH = timedelta(minutes=10)
SECOND = timedelta(seconds=1)


class Setting:
    def __init__(self, *, failure_mode: FailureMode = "fail_closed", burst: int = 100, most: int = 1000) -> None:
        self.clock = ManualClock()
        self.stores = MemoryStores.open(self.clock, failure_mode=failure_mode)
        self.meter = FakeMeter()
        self.burst, self.most = burst, most
        self._numbers = iter(range(1, 1_000_000))
        self.start()

    def start(self) -> None:
        """Another broker over the same database."""
        windows = Windows(LENGTH, self.most, WindowBudget(self.burst, timedelta(seconds=20)))
        self.repeats = RepeatCoalescer(
            self.stores.audit, self.stores.repeats, self.clock, self.new_id, windows=windows, meter=self.meter
        )

    def new_id(self) -> str:
        return f"event-{next(self._numbers):06d}"

    def event(self, **values: Any) -> AuditEvent:
        return AuditEvent(
            self.new_id(), self.clock.now(), AuditEventType.CERTIFICATE_CACHE_HIT, identity=WEB1, **values
        )

    async def hand_out(self, *subject: str, identity: str = WEB1, **values: Any) -> None:
        certificate, *address = subject or ("c1",)
        kind = EventKind(identity, ("hit", identity, certificate, *address), ("hit", identity, certificate))
        await self.repeats.record(kind, [self.event(certificate_id=certificate, **values)])

    @property
    def told(self) -> list[tuple[str, int]]:
        return [(event.event_type.value, event.count) for event in self.stores.database.events]

    async def pass_time(self, span: timedelta = LENGTH) -> None:
        await settled()
        self.clock.advance(span)
        await settled()


async def settled() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_a_flood_is_one_event_and_one_count() -> None:
    """Ten thousand equal hand-outs: the first at once, the others as one summary with all that the last one said."""
    s = Setting()
    async with s.repeats.running():
        await s.hand_out(request_id="first", reason="asked")
        first = s.stores.database.events[0]
        for number in range(9_999):
            await s.hand_out(request_id=f"request-{number}", reason="asked again", user_agent="agent/9")
            if number == 5_000:
                s.clock.advance(SECOND)
        assert s.told == [("certificate_cache_hit", 0)]
        await s.pass_time()
    assert s.told == [("certificate_cache_hit", 0), ("events_coalesced", 9_999)]
    summary = s.stores.database.events[1]
    assert (summary.identity, summary.certificate_id, summary.request_id, summary.user_agent) == (
        WEB1,
        "c1",
        "request-9998",
        "agent/9",
    )
    assert summary.timestamp == first.timestamp + SECOND
    for part in ("certificate_cache_hit", f"{first.timestamp:%Y-%m-%dT%H:%M:%SZ}", first.event_id, "asked again"):
        assert part in summary.reason
    assert s.meter.total(metrics.EVENTS_COALESCED, type="certificate_cache_hit") == 9_999


async def test_a_count_is_durable_before_its_caller_is_answered() -> None:
    """A kill at any moment loses no hand-out: the next start makes an event of the count."""
    s = Setting()
    for _ in range(5):
        await s.hand_out()
    assert [event.count for event in s.stores.database.counts.values()] == [4]
    assert await MemoryStores.over(s.stores.database).repeats.recover() == 1
    assert s.told == [("certificate_cache_hit", 0), ("events_coalesced", 4)]


async def test_those_that_come_together_share_a_write() -> None:
    """A thousand callers at once cost some transactions, not a thousand."""
    s = Setting()
    await s.hand_out()
    before = s.stores.database.commits
    await asyncio.gather(*(s.hand_out() for _ in range(1000)))
    assert s.stores.database.commits - before <= 3
    assert [event.count for event in s.stores.database.counts.values()] == [1000]


async def test_a_repeat_that_can_not_be_counted_is_refused() -> None:
    """`fail_closed`: no hand-out without its record, the hundredth as the first; each caller has an error of its own."""
    s = Setting()
    await s.hand_out()
    s.stores.database.audit_down = True
    refused = await asyncio.gather(*(s.hand_out() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(e, RefusalError) and e.refusal.reason is Reason.AUDIT_UNAVAILABLE for e in refused)
    assert len({id(error) for error in refused}) == 3
    s.stores.database.audit_down = False
    await s.hand_out()


class _Slow:
    """Counts that are kept when the test says so, or not."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
        self.go = asyncio.Event()
        self.kept: list[AuditEvent] = []

    async def keep(self, events: list[AuditEvent]) -> None:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.kept += events


async def test_who_goes_meanwhile_takes_nobody_along() -> None:
    """A call that is cancelled leaves the write, and those who wait for it, as they are."""
    s = Setting()
    await s.hand_out()
    slow = s.repeats._counts = _Slow(None)  # type: ignore[assignment] # a part of it
    calls = [asyncio.create_task(s.hand_out()) for _ in range(3)]
    await settled()
    calls[0].cancel()
    await settled()
    assert [call.done() for call in calls] == [True, False, False]

    slow.go.set()
    assert await asyncio.gather(*calls[1:]) == [None, None]
    assert [event.count for event in slow.kept] == [3]


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("broken"), RuntimeError), (asyncio.CancelledError(), asyncio.CancelledError)]
)
async def test_whatever_happens_to_the_write_each_of_its_callers_is_told(
    error: BaseException, told: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody is answered without a count, nobody waits for ever, and the next one tries again."""
    s = Setting()
    await s.hand_out()
    counts, s.repeats._counts = s.repeats._counts, _Slow(error)  # type: ignore[assignment] # a part of it
    s.repeats._counts.go.set()  # type: ignore[attr-defined]
    calls = [asyncio.create_task(s.hand_out()) for _ in range(3)]
    assert [type(end) for end in await asyncio.gather(*calls, return_exceptions=True)] == [told] * 3

    s.repeats._counts = counts
    await s.hand_out()
    gc.collect()
    assert caplog.records == []


async def test_fail_open_counts_on_without_the_database() -> None:
    """Nobody is refused, and the summary says all of it."""
    s = Setting(failure_mode="fail_open")
    async with s.repeats.running():
        await s.hand_out()
        s.stores.database.audit_down = True
        for _ in range(3):
            await s.hand_out()
        s.stores.database.audit_down = False
    assert s.told == [("certificate_cache_hit", 0), ("events_coalesced", 3)]


async def test_the_end_of_the_broker_writes_what_is_counted() -> None:
    """A stop in the middle of a window loses no count, and keeps none for the next start."""
    s = Setting()
    async with s.repeats.running():
        for _ in range(3):
            await s.hand_out()
    assert s.told == [("certificate_cache_hit", 0), ("events_coalesced", 2)]
    assert s.stores.database.counts == {}


async def test_a_summary_that_can_not_be_written_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged whole, stays counted in the database, and becomes an event when the database takes it."""
    s = Setting()
    async with s.repeats.running():
        await s.hand_out()
        await s.hand_out()
        s.stores.database.audit_down = True
        await s.pass_time()
        assert "could not be audited" in caplog.text
        assert len(s.stores.database.counts) == 1
        s.stores.database.audit_down = False
        await s.pass_time(10 * SECOND)
        assert s.told == [("certificate_cache_hit", 0), ("events_coalesced", 1)]
        assert s.stores.database.counts == {}


async def test_a_first_event_that_can_not_be_audited_is_first_again() -> None:
    """Nothing is counted into an event that isn't there."""
    s = Setting()
    s.stores.database.audit_down = True
    with pytest.raises(RefusalError):
        await s.hand_out()
    s.stores.database.audit_down = False
    await s.hand_out()
    assert s.told == [("certificate_cache_hit", 0)]


@pytest.mark.parametrize(
    ("subjects", "events"),
    [
        pytest.param([("c1", "192.0.2.1"), ("c1", "192.0.2.2")], 2, id="another address is another kind"),
        pytest.param([("c1",), ("c2",)], 2, id="another certificate is another kind"),
        pytest.param([("c1", f"2001:db8::{n}") for n in range(500)], 101, id="a network full of addresses"),
        pytest.param(
            [(f"c{n}",) for n in range(500)], 500, id="each certificate has an event whatever else is made up"
        ),
    ],
)
async def test_an_identity_can_not_make_kinds_without_end(subjects: list[tuple[str, ...]], events: int) -> None:
    """Past its budget an identity's events are counted by what it can't invent: which certificate it got."""
    s = Setting(burst=100)
    for subject in subjects:
        await s.hand_out(*subject)
    assert len(s.stores.database.events) == events
    counted = sum(event.count for event in s.stores.database.counts.values())
    assert events + counted == len(subjects)


async def test_a_budget_is_each_identitys_own_and_comes_back() -> None:
    """One that makes up kinds takes none of its neighbours', and has some again later."""
    s = Setting(burst=2)
    for number in range(10):
        await s.hand_out("c1", f"2001:db8::{number}")
    await s.hand_out("c9", "192.0.2.9", identity="spiffe://example.org/host/web2")
    assert len(s.stores.database.events) == 4
    s.clock.advance(timedelta(seconds=20))
    await s.hand_out("c1", "2001:db8::77")
    assert len(s.stores.database.events) == 5


async def test_windows_are_bounded() -> None:
    """Past the bound the oldest are closed early, and what they counted is written."""
    s = Setting(most=3, burst=1000)
    async with s.repeats.running():
        for number in range(50):
            await s.hand_out(f"c{number}")
            await s.hand_out(f"c{number}")
        await settled()
        assert len(s.stores.database.counts) <= 3
    assert sum(count for kind, count in s.told if kind == "events_coalesced") == 50


async def test_what_comes_while_a_first_one_is_written_is_a_repeat() -> None:
    """A thousand calls at once are one event, whoever of them writes it."""
    s = Setting()
    kind = EventKind(WEB1, ("reported", WEB1, "1"), ("reported", WEB1))
    events = [s.event() for _ in range(1000)]
    firsts = [event for event in events if s.repeats.begin(kind, event)]
    assert firsts == events[:1]
    await asyncio.gather(s.stores.audit.append(firsts), *(s.repeats.record(kind, [event]) for event in events[1:]))
    assert len(s.stores.database.events) == 1
    assert [event.count for event in s.stores.database.counts.values()] == [999]


async def test_a_first_one_that_was_not_written_takes_no_budget() -> None:
    """Nor does it hide the next one; what was counted beside it is told."""
    s = Setting(burst=2)
    async with s.repeats.running():
        kinds = [EventKind(WEB1, ("reported", WEB1, str(number)), ("reported", WEB1)) for number in range(3)]
        for kind in kinds:
            event = s.event()
            assert s.repeats.begin(kind, event)
            s.repeats.withdraw(kind, event)
        event = s.event()
        assert s.repeats.begin(kinds[0], event)
        await s.repeats.record(kinds[0], [s.event()])
        s.repeats.withdraw(kinds[0], event)
        await settled()
        assert s.told == [("events_coalesced", 1)]
        assert s.repeats.begin(kinds[0], s.event())
