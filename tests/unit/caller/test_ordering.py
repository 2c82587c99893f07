"""How an order is followed while the broker doesn't tell of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from datetime import timedelta
from itertools import pairwise
from typing import Any, cast

import pytest

from certplane.caller.calls import BrokerCalls
from certplane.caller.errors import OrderFailedError
from certplane.caller.ordering import Ordering, Wanted
from certplane.caller.values import Order, OrderState
from certplane.errors import CertplaneError, OperationError, Reason, Refusal, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until

SECOND = timedelta(seconds=1)
OPEN = Order("o1", OrderState.PENDING, "api")
FAILED = Order("o1", OrderState.FAILED, "api", error=Refusal(Reason.DNS_REJECTED, "no zone"))


class Calls:
    """`BrokerCalls` of a broker that tells of its order after some failures; `asked` says when it was asked."""

    def __init__(self, clock: ManualClock, *failures: CertplaneError) -> None:
        self.clock = clock
        self.failures = list(failures)
        self.asked: list[float] = []

    async def issue(self, **_: Any) -> Order:
        return OPEN

    async def watch_order(self, _: str, __: timedelta) -> AsyncGenerator[Order, None]:
        self.asked.append(self.clock.monotonic())
        if self.failures:
            raise self.failures.pop(0)
        yield FAILED


@pytest.mark.parametrize(
    ("failure", "least", "most"),
    [
        pytest.param(OperationError("no broker"), 0, 2, id="restarted"),
        pytest.param(RefusalError(Reason.RATE_LIMITED, "slow down", retry_after=60 * SECOND), 60, 72, id="limited"),
    ],
)
async def test_an_order_that_is_not_told_of(failure: CertplaneError, least: int, most: int) -> None:
    """The broker is asked again when it says, and within 2 s where it was away."""
    clock = ManualClock()
    calls = Calls(clock, *[failure] * 5)
    ordering = Ordering(cast("BrokerCalls", calls), clock, random.Random(1))
    async with no_hang():
        obtaining = asyncio.create_task(ordering.obtain(Wanted("api", "", "", ())))
        await until(lambda: obtaining.done() or clock.advance(clock.next_wake))
        with pytest.raises(OrderFailedError, match="no zone"):
            await obtaining
    waits = [after - before for before, after in pairwise(calls.asked)]
    assert len(waits) == 5
    assert all(least <= wait <= most for wait in waits), waits
