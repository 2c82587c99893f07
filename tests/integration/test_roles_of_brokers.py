"""Whole brokers over one PostgreSQL: what one of them does for all, who does it next, and what each has alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from certplane.broker.app import Broker
from certplane.broker.members import membership
from certplane.broker.members.membership import SPAN, Membership
from certplane.broker.members.roles import Roles
from certplane.broker.model import ChangeKind
from certplane.broker.ports import NullMeter
from certplane.broker.sharing import follow_members
from certplane.broker.store import Stores, open_stores
from certplane.errors import OperationError
from certplane.runtime.clock import SystemClock
from tests.support.stores import StoreHarness, StorePlace, member
from tests.support.waiting import until
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration

ROLES = [
    "compromised_keys",
    "fleet_health",
    "incidents",
    "renewal_information:default",
    "rollouts",
    "soundness",
    "upkeep",
]
FIGURES = (b"certplane_fleet_certificates{", b"certplane_store_damaged ")


async def roles_of(stores: Stores, broker_id: str = "") -> list[str]:
    """The roles of a broker, of that of these stores unless another is named."""
    return sorted((await stores.members.roles()).get(broker_id or stores.members.broker_id, ()))


def shown(broker: Broker) -> list[bool]:
    """Which figures of the fleet a scrape of a broker finds."""
    page = generate_latest(broker.meter.registry)
    return [figure in page for figure in FIGURES]


async def test_roles_go_on_at_another_broker_after_a_stop(tmp_path: Path, postgres_url: str) -> None:
    """At once, not when a lease has ended; and the figures of the fleet are shown by one broker at a time."""
    async with AsyncExitStack() as first_one, AsyncExitStack() as second_one:
        first = await first_one.enter_async_context(starting(configured(tmp_path / "first", postgres_url)))
        await until(lambda: all(shown(first)))
        second = await second_one.enter_async_context(starting(configured(tmp_path / "second", postgres_url)))
        assert await roles_of(second.stores, first.stores.members.broker_id) == ROLES
        assert await roles_of(second.stores) == []
        assert shown(second) == [False, False]
        stopped = asyncio.get_running_loop().time()
        await first_one.aclose()
        await until(lambda: roles_of(second.stores))
        assert asyncio.get_running_loop().time() - stopped < SPAN.total_seconds()
        assert await roles_of(second.stores) == ROLES
        await until(lambda: all(shown(second)))


async def test_a_second_broker_with_the_same_spill_file(tmp_path: Path, postgres_url: str) -> None:
    """It is refused before it has a lease or takes anything, and disturbs nobody."""
    files = configured(tmp_path / "one", postgres_url)
    async with starting(files) as first:
        with pytest.raises(OperationError, match=r"another broker \(process \d+\) has this spill file"):
            async with starting(files):
                raise AssertionError("it runs")
        (living,) = await first.stores.members.living()
        assert living.broker_id == first.stores.members.broker_id
    async with starting(files):
        pass  # the lock is free again


@asynccontextmanager
async def holding(url: str) -> AsyncIterator[tuple[Stores, Roles]]:
    """A broker's lease and roles; it ends like one that was killed, without a word."""
    clock = SystemClock()
    async with open_stores(driver="postgresql", url=url, audit=None, clock=clock) as stores:
        harness = StoreHarness(StorePlace("postgresql", Path(), url), clock, stores)  # type: ignore[arg-type] # the harness is given its stores
        lease = Membership(stores.members, lambda: member(harness), clock, NullMeter())
        roles = Roles(stores.roles, lease, clock, NullMeter())
        stores.changes.follow(ChangeKind.MEMBER, lease.known, what="other brokers")
        follow_members(roles, stores.changes, lease)
        roles.add("upkeep", asyncio.Event().wait)
        await lease.join()
        tasks = [asyncio.create_task(work) for work in (lease.run(), roles.run())]
        try:
            yield stores, roles
        finally:
            stores.roles.give_back = nothing  # type: ignore[method-assign]  # a killed broker gives nothing back
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def nothing(roles: Collection[str]) -> None:
    pass


async def test_roles_go_on_at_another_broker_after_a_kill(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the lease has ended: the next renewal of any other broker sees it, and tells the rest."""
    for name, seconds in (("SPAN", 2.0), ("_RENEWAL", 0.5), ("_MARGIN", 0.2)):
        monkeypatch.setattr(membership, name, timedelta(seconds=seconds))
    async with AsyncExitStack() as killed, AsyncExitStack() as living:
        first, roles = await killed.enter_async_context(holding(postgres_url))
        await until(lambda: roles.holds("upkeep"))
        second, its = await living.enter_async_context(holding(postgres_url))
        await killed.aclose()
        await until(lambda: its.holds("upkeep"))
        assert await roles_of(second) == ["upkeep"]
        assert await roles_of(second, first.members.broker_id) == []
