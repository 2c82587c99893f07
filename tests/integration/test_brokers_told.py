"""Whole brokers over one PostgreSQL: what one was told by a CA or an operator, the others and their heirs know."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.app import Broker
from certplane.broker.issuance.holds import IssuerHolds
from certplane.broker.issuance.queue import Lane
from certplane.broker.model import Scope, ScopeKind
from certplane.errors import Reason, Refusal
from certplane.runtime.clock import SystemClock
from tests.support.waiting import until
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration

LANE = Lane("default", "", ("shop.test",))
LIMITED = Refusal(Reason.ISSUER_RATE_LIMITED, "too many orders")
AWAY = Refusal(Reason.ISSUER_UNAVAILABLE, "no answer")


def holds(broker: Broker) -> IssuerHolds:
    return broker.authority._dispatcher.holds


def epoch(broker: Broker) -> str:
    """As the broker tells its hosts."""
    return broker.authority._ports.epoch.current


async def test_what_one_broker_is_told_all_know(tmp_path: Path, postgres_url: str) -> None:
    """Within a second, by the change feed; a broker that starts knows it too, be it the only one."""
    now = SystemClock().now()
    end = now + timedelta(hours=1)
    first_files, second_files = (configured(tmp_path / name, postgres_url) for name in ("first", "second"))
    async with starting(first_files) as first:
        async with starting(second_files) as second:
            assert epoch(first) == epoch(second)
            told = asyncio.get_running_loop().time()
            holds(first).hold(LANE, [Scope(ScopeKind.ACCOUNT)], end, LIMITED, now)
            holds(first).suspect("other", now, AWAY)
            await holds(first).save(now)
            await until(lambda: holds(second).held(LANE, now) and holds(second).suspected("other", now))
            assert asyncio.get_running_loop().time() - told < 5.0  # a second, on a machine that has time
            assert holds(second).held(LANE, now) == (end, LIMITED)
            holds(second).works("other")
            await until(lambda: holds(first).suspected("other", now) is None)

            before = epoch(first)
            await second.reloader.request()
            await until(lambda: epoch(first) == epoch(second) != before)
            moved = epoch(first)
        async with starting(second_files) as second:  # where another one lives
            assert epoch(second) == moved
            assert holds(second).held(LANE, now) == (end, LIMITED)
    async with starting(first_files) as first:  # alone
        assert epoch(first) != moved
        assert holds(first).held(LANE, now) == (end, LIMITED)


async def test_brokers_that_start_at_once_have_one_epoch(tmp_path: Path, postgres_url: str) -> None:
    """Of the same fleet, on a database that is empty or not: their hosts hear of one."""
    files = [configured(tmp_path / str(number), postgres_url) for number in range(2)]
    for _ in range(2):
        async with AsyncExitStack() as first, AsyncExitStack() as second:
            both = await asyncio.gather(
                *(stack.enter_async_context(starting(each)) for stack, each in zip((first, second), files, strict=True))
            )
            await until(lambda: epoch(both[0]) == epoch(both[1]))  # noqa: B023 - awaited here
