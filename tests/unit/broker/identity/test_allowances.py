"""What one identity may have the broker do, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from certplane.broker.identity.allowances import Allowances, AllowanceSettings
from certplane.broker.model import IdentityKind
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.callers import caller

SETTINGS = AllowanceSettings(
    calls_per_second=2, calls_burst=4, messages_per_second=1, messages_burst=8, calls_in_flight=2, streams_in_flight=3
)
A, B = "a.example", "b.example"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def allowances(clock: ManualClock) -> Allowances:
    return Allowances(SETTINGS, clock)


def refused(call: Callable[[], None]) -> str:
    """The limit's name, of a call that is refused as all are."""
    with pytest.raises(RefusalError) as caught:
        call()
    refusal = caught.value.refusal
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.retry_after
    (violation,) = refusal.violations
    assert violation.description
    return violation.subject


def test_calls_are_counted(allowances: Allowances) -> None:
    """A burst is let through; the next call is told the limit's name, and a neighbour isn't concerned."""
    for _ in range(4):
        allowances.take_call(A, 1)
    assert refused(lambda: allowances.take_call(A, 1)) == "calls_per_identity"
    allowances.take_call(B, 1)


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        pytest.param(0.001, 3, id="a-cheap-call-costs-its-token"),
        pytest.param(0.005, 3, id="as-much-as-a-token-includes"),
        pytest.param(0.0125, 1, id="two-and-a-half-tokens"),
        pytest.param(0.055, 0, id="a-message-of-a-hundred-a-labels"),
        pytest.param(0.680, 0, id="a-path-search-of-128-signatures"),
    ],
)
def test_work_is_charged(allowances: Allowances, seconds: float, left: int) -> None:
    """A call that cost more than its token includes has used up others."""
    allowances.take_call(A, 1)
    allowances.pay_call(caller(name=A), 1, seconds)
    for _ in range(left):
        allowances.take_call(A, 1)
    expected = "calls_per_identity" if seconds < 0.02 else "work_per_identity"
    assert refused(lambda: allowances.take_call(A, 1)) == expected
    allowances.take_call(B, 1)


def test_share_of_the_loop_is_bounded(allowances: Allowances, clock: ManualClock) -> None:
    """Whatever one call costs, an identity gets no more of the thread lastingly than its calls include."""
    for cost in (0.001, 0.02, 0.3):
        name, used = f"cost-{cost}", 0.0
        for _ in range(10_000):
            try:
                allowances.take_call(name, 1)
            except RefusalError:
                pass
            else:
                used += cost
                allowances.pay_call(caller(name=name), 1, cost)
            clock.advance(timedelta(milliseconds=50))
        assert used <= 500 * SETTINGS.calls_per_second * SETTINGS.call_seconds + 4 * 0.005 + cost


def test_operators_are_counted_and_not_weighed(allowances: Allowances) -> None:
    """Listing a fleet costs what it costs."""
    operator = caller(name=A, kind=IdentityKind.OPERATOR)
    for _ in range(4):
        allowances.take_call(A, 1)
        allowances.pay_call(operator, 1, 5.0)
    assert refused(lambda: allowances.take_call(A, 1)) == "calls_per_identity"


def test_messages_are_counted_and_weighed(allowances: Allowances, clock: ManualClock) -> None:
    """Messages have a bucket of their own, which costly ones empty sooner."""
    for _ in range(8):
        allowances.take_message(A, 0.0005)
    assert refused(lambda: allowances.take_message(A, 0.0)) == "messages_per_identity"
    allowances.take_call(A, 1)
    allowances.take_message(B, 0.0)
    assert refused(lambda: allowances.take_message(B, 0.055)) == "work_per_identity"
    clock.advance(timedelta(seconds=50))
    allowances.take_message(B, 0.0)


def test_messages_are_read_at_a_pace(clock: ManualClock) -> None:
    """However full the bucket is, a flood is read slowly, over all streams, and its neighbour's messages at once."""
    allowances = Allowances(AllowanceSettings(messages_pace=10, messages_at_once=5), clock)
    waits = [allowances.take_message(A, 0.0).total_seconds() for _ in range(8)]
    assert waits == pytest.approx([0] * 5 + [0.1, 0.2, 0.3])
    assert allowances.take_message(B, 0.0) == timedelta()
    assert allowances.take_message(B, 0.0, 24).total_seconds() == pytest.approx(2)
    clock.advance(timedelta(seconds=1))
    assert allowances.take_message(A, 0.0) == timedelta()


def test_what_a_message_lists_is_counted(allowances: Allowances) -> None:
    """A hello with six reports is six messages, and includes the work of six."""
    allowances.take_message(A, 0.006, 6)
    allowances.take_message(A, 0.0)
    allowances.take_message(A, 0.0)
    assert refused(lambda: allowances.take_message(A, 0.0)) == "messages_per_identity"


@pytest.mark.parametrize(("stream", "most", "limit"), [(False, 2, "calls"), (True, 3, "streams")])
def test_what_is_in_flight_is_bounded(allowances: Allowances, stream: bool, most: int, limit: str) -> None:
    """So many calls and so many streams at once, each for itself; what has ended makes room."""
    for _ in range(most):
        allowances.begin(A, stream=stream)
    assert refused(lambda: allowances.begin(A, stream=stream)) == f"{limit}_in_flight_per_identity"
    allowances.begin(A, stream=not stream)
    allowances.begin(B, stream=stream)
    allowances.end(A, stream=stream)
    allowances.begin(A, stream=stream)


def test_nothing_is_kept_of_what_has_ended(allowances: Allowances) -> None:
    """Tables hold what is in flight, and nobody who was there once."""
    for number in range(100):
        allowances.begin(str(number), stream=True)
        allowances.end(str(number), stream=True)
    assert not allowances._streams_in_flight


@pytest.mark.parametrize(
    ("stranger", "address"),
    [
        pytest.param(lambda _: "leaf", lambda number: f"192.0.2.{number}", id="one-certificate-from-anywhere"),
        pytest.param(lambda number: f"leaf-{number}", lambda _: "192.0.2.1", id="any-certificate-from-one-address"),
    ],
)
def test_refusals_are_counted(
    allowances: Allowances, stranger: Callable[[int], str], address: Callable[[int], str]
) -> None:
    """Who is told why it is refused, again and again, is soon told no more."""
    for number in range(4):
        allowances.take_refusal(stranger(number), address(number))
    assert refused(lambda: allowances.take_refusal(stranger(5), address(5))) == "refused_calls_per_caller"
    allowances.take_refusal("another", "198.51.100.1")
    allowances.take_call(A, 1)


WATCHES = {
    "for hours, of a busy fleet": (3600 * 0.05, 7200.0, True),
    "a fleet, read once": (0.2, 1.0, True),
    "a large fleet, read again and again": (5.0, 5.5, False),
    "all of it at once": (1.0, 0.0, False),
}


@pytest.mark.parametrize(("seconds", "open_for", "goes_on"), WATCHES.values(), ids=WATCHES)
def test_a_stream_of_answers_has_its_share(clock: ManualClock, seconds: float, open_for: float, goes_on: bool) -> None:
    """What happens in a fleet is nobody's doing; to have all of it told again and again is."""
    allowances = Allowances(AllowanceSettings(), clock)
    service = caller(kind=IdentityKind.SERVICE)
    allowances.pay_call(service, 1, seconds, open_for=open_for)
    wait = None
    try:
        allowances.take_call(service.name, 1)
    except RefusalError as error:
        wait = error.refusal.retry_after
    assert (wait is None) == goes_on


def test_work_for_strangers_is_charged(allowances: Allowances) -> None:
    """A refusal that was costly counts for many."""
    allowances.take_refusal("leaf", "")
    allowances.pay_refusal("leaf", 0.1)
    assert refused(lambda: allowances.take_refusal("leaf", "")) == "refused_calls_per_caller"


async def told(allowances: Allowances, clock: ManualClock, count: int, remaining: float | None = None) -> list[float]:
    """When each of so many callers that come at once is told that it was too much."""
    begun, times = clock.monotonic(), []

    async def one() -> None:
        await allowances.hold_back(A, remaining)
        times.append(clock.monotonic() - begun)

    tasks = [asyncio.create_task(one()) for _ in range(count)]
    while len(times) < count:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if len(times) < count:
            clock.advance(timedelta(milliseconds=125))
    await asyncio.gather(*tasks)
    return times


async def test_refusals_wait_on_their_way_out(allowances: Allowances, clock: ManualClock) -> None:
    """A caller in a loop is as slow as its answers, which come one after the other, as often as it may call."""
    assert await told(allowances, clock, 4) == [0.5, 1.0, 1.5, 2.0]
    clock.advance(timedelta(minutes=1))
    assert await told(allowances, clock, 1) == [0.5]


async def test_refusals_do_not_wait_for_ever(allowances: Allowances, clock: ManualClock) -> None:
    """However many there are, each is told within a minute, and well before its caller gives up."""
    assert max(await told(allowances, clock, 200)) == 60
    clock.advance(timedelta(minutes=1))
    assert max(await told(allowances, clock, 10, remaining=2.0)) == 1
    assert max(await told(allowances, clock, 10, remaining=-1.0)) == 0


async def test_only_so_many_refusals_wait(clock: ManualClock) -> None:
    """What is above the bound is told at once, so that waiting takes no memory without end."""
    allowances = Allowances(AllowanceSettings(held_back=2, calls_per_second=1), clock)
    waiting = [asyncio.create_task(allowances.hold_back(A, None)) for _ in range(2)]
    await asyncio.sleep(0)
    await allowances.hold_back(A, None)
    assert not any(task.done() for task in waiting)
    clock.advance(timedelta(seconds=2))
    await asyncio.gather(*waiting)
