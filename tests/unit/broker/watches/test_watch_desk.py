"""All calls of WatchMyCertificates at one broker, without a network: what services are told, and what is recorded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.model import CertificateRecord, Order, OrderState
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.watches.desk import WatchDesk
from certplane.broker.watches.elsewhere import IssuedElsewhere
from certplane.broker.watches.model import (
    CertificateNews,
    Goodbye,
    Heartbeat,
    HeldByService,
    InForce,
    Listening,
    ServiceWatch,
    Told,
)
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.callers import caller
from tests.support.hub import settled
from tests.support.stores import certificate

API, JOBS = "api", "jobs"
MINUTE, SECOND = timedelta(minutes=1), timedelta(seconds=1)
AWAY = RefusalError(Reason.STORE_UNAVAILABLE, "the database is away")


class FakeWatches:
    """`HeldCertificates` and `WatchStore` in memory."""

    broker_id = "b-1"

    def __init__(self) -> None:
        self.held: dict[str, list[HeldByService]] = {}
        self.reads: list[list[str]] = []
        self.rows: dict[str, ServiceWatch] = {}
        self.told: list[str] = []
        self.error: Exception | None = None
        self.unreadable: frozenset[str] = frozenset()
        self.read_held: asyncio.Event | None = None

    async def held_by(self, identities: Collection[str], now: datetime) -> Sequence[HeldByService]:
        self.reads.append(sorted(identities))
        found = [one for identity in identities for one in self.held.get(identity, ())]
        if self.read_held is not None:
            await self.read_held.wait()
        if self.error is not None:
            raise self.error
        if self.unreadable & set(identities):
            raise ValueError("a row of a newer release")
        return [one for one in found if one.not_after > now]

    async def record_watches(self, watches: Sequence[ServiceWatch], telling: Collection[str] = ()) -> None:
        if self.error is not None:
            raise self.error
        self.rows |= {one.identity: one for one in watches}
        self.told += sorted(telling)

    async def watches_of(self, identities: Collection[str]) -> Sequence[ServiceWatch]:
        return [self.rows[identity] for identity in identities if identity in self.rows]


class World:
    """A desk, and services that watch."""

    def __init__(self, **settings: Any) -> None:
        self.clock = ManualClock()
        self.store = FakeWatches()
        self.meter = FakeMeter()
        self.hashes = ("p0", "t0", "e0")
        self.present: list[str] = []
        self.desk = WatchDesk(
            store=self.store,
            held=self.store,
            hashes=lambda: self.hashes,
            settings=StreamSettings(**settings),
            clock=self.clock,
            meter=self.meter,
            rng=random.Random(1),
        )
        self.desk.subscribe(self.present.append)

    def hold(self, service: str, *numbers: int, **changes: Any) -> None:
        """What a service has from now on; nobody is told of it."""
        now = self.clock.now()
        first = HeldByService("", service, "web", (), "3e7", "", now, now + 90 * MINUTE, now + 60 * MINUTE)
        self.store.held[service] = [
            replace(first, certificate_id=f"{service}-{number}", public_key_sha256=f"{number}", **changes)
            for number in numbers
        ]

    async def pass_time(self, span: timedelta) -> None:
        while span > timedelta():
            self.clock.advance(min(SECOND, span))
            span -= SECOND
            await settled()


class Service:
    """A service's side of a call: what it was told, and how the call ended."""

    def __init__(self, world: World, name: str = API, **changes: Any) -> None:
        self._world = world
        self.caller = caller(name=name, source_ip="192.0.2.1", **changes)
        self.told: list[Told] = []
        self.error: RefusalError | None = None
        self.reads = asyncio.Event()
        self.reads.set()
        self.task = asyncio.create_task(self._live())

    async def _live(self) -> None:
        try:
            with self._world.desk.watching(self.caller, "api/1.2") as watch:
                while (message := await watch.next_message()) is not None:
                    self.told.append(message)
                    await self.reads.wait()
        except RefusalError as error:
            self.error = error

    @property
    def news(self) -> list[str]:
        """The certificates of which it was told, in that order."""
        return [one.certificate_id for one in self.told if isinstance(one, CertificateNews)]

    async def hang_up(self) -> None:
        self.task.cancel()
        await settled()


@asynccontextmanager
async def running(world: World) -> AsyncIterator[Callable[..., Any]]:
    """The desk at work; gives a function that opens a call."""
    looking = asyncio.create_task(world.desk.run())
    services: list[Service] = []

    async def opened(*arguments: Any, **options: Any) -> Service:
        services.append(Service(world, *arguments, **options))
        await settled()
        return services[-1]

    try:
        yield opened
        assert not looking.done()
    finally:
        for task in (looking, *(service.task for service in services)):
            task.cancel()
        await settled()


def plan(service: str, number: int = 1) -> RenewalPlan:
    return RenewalPlan(f"{service}-{number}", service, ManualClock().now(), RenewalCause.OPERATOR, "drill")


async def test_a_service_hears_of_its_own() -> None:
    """What it has, that it listens, and a plan that has changed; of another service's nothing, which isn't even read."""
    world = World()
    world.hold(API, 1)
    async with running(world) as opened:
        api = await opened()
        assert api.news == ["api-1"]
        assert isinstance(api.told[-1], Listening)
        world.hold(API, 1, plan=plan(API))
        world.desk.plans_changed([plan(JOBS), plan(API)])
        await settled()
        assert api.news == ["api-1", "api-1"]
        assert world.store.reads == [[API], [API]]


async def test_services_are_read_about_together() -> None:
    """What changes for many at once is one read; what changes while it is read is read again."""
    world = World()
    async with running(world) as opened:
        services = [await opened(name) for name in (API, JOBS)]
        world.store.reads.clear()
        world.store.read_held = asyncio.Event()
        world.hold(API, 1)
        world.desk.everything_changed()
        await settled()
        world.hold(API, 2)
        world.desk.plans_changed([plan(API)])
        await settled()
        world.store.read_held.set()
        await settled()
        assert world.store.reads == [[API, JOBS], [API]]
        assert [service.news for service in services] == [["api-2"], []]


async def test_all_calls_of_a_service_hear_it() -> None:
    """Each process of a service is told, and the service is there until the last of them ends."""
    world = World()
    async with running(world) as opened:
        first, second = await opened(), await opened()
        world.hold(API, 1)
        world.desk.everything_changed()
        await settled()
        assert (first.news, second.news) == (["api-1"], ["api-1"])
        here = world.desk.here(API)
        assert here is not None
        assert (here.watch_count, len(world.desk)) == (2, 2)
        await first.hang_up()
        assert API in world.desk
        await second.hang_up()
        assert API not in world.desk
        assert world.meter.levels[metrics.SERVICE_WATCHES] == 0


async def test_who_reads_slowly_gets_the_latest() -> None:
    """A call whose messages aren't read holds up nobody, and hears the newest state once they are."""
    world = World()
    async with running(world) as opened:
        slow, fast = await opened(), await opened()
        slow.reads.clear()
        for number in (1, 2, 3):
            world.hold(API, 1, renew_time=world.clock.now() + number * SECOND)
            world.desk.everything_changed()
            await settled()
        slow.reads.set()
        await settled()
        assert (len(slow.news), len(fast.news)) == (2, 3)  # one was on its way
        assert slow.told[-1] == fast.told[-1]


async def test_heartbeats_come_when_nothing_else_does() -> None:
    """A minute after the last message, whatever that was."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        await world.pass_time(40 * SECOND)
        world.hold(API, 1)
        world.desk.everything_changed()
        await world.pass_time(40 * SECOND)
        assert not any(isinstance(message, Heartbeat) for message in api.told)
        await world.pass_time(2 * MINUTE)
        assert sum(isinstance(message, Heartbeat) for message in api.told) == 2


async def test_another_policy_and_another_epoch_are_told() -> None:
    """Each once, within a second or two; another trust bundle is no matter of services."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        for hashes in (("p1", "t0", "e0"), ("p1", "t1", "e0"), ("p1", "t1", "e1")):
            world.hashes = hashes
            await world.pass_time(2 * SECOND)
        assert api.told[1:] == [InForce("p1", "e0"), InForce("p1", "e1")]


async def test_a_call_ends_for_its_age() -> None:
    """With a goodbye that keeps it from no broker."""
    world = World(age=timedelta(minutes=10))
    async with running(world) as opened:
        api = await opened()
        await world.pass_time(8 * MINUTE)
        assert API in world.desk
        await world.pass_time(3 * MINUTE)
        last = api.told[-1]
        assert isinstance(last, Goodbye)
        assert not last.reconnect_delay
        assert API not in world.desk


async def test_an_end_of_the_broker_is_said_and_recorded() -> None:
    """Each is told another time to come back; new calls are refused; others hear that nobody watches here any more."""
    world = World()
    async with running(world) as opened:
        services = [await opened(name) for name in (API, JOBS)]
        draining = asyncio.create_task(world.desk.drain())
        await settled()
        await world.pass_time(SECOND)
        await draining
        delays = {service.told[-1].reconnect_delay for service in services}
        assert len(delays) == 2
        assert min(delays) >= SECOND
        late = await opened()
        assert late.error is not None
        assert late.error.refusal.reason is Reason.DRAINING
        assert all(row.end_time is not None and row.watch_count == 0 for row in world.store.rows.values())


async def test_a_broker_that_is_taken_out_of_service_takes_calls_again() -> None:
    """Between the two none."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        world.desk.send_away("a new kernel")
        await settled()
        assert api.told[-1].reason == "a new kernel"
        assert (await opened()).error is not None
        world.desk.stay()
        assert (await opened()).error is None


async def test_who_watches_is_recorded_for_others() -> None:
    """That it does, where from and since when; each change is told; now and then that it still does, which isn't."""
    world = World()
    async with running(world) as opened:
        api = await opened(serial_number="2f")
        begun = world.store.rows[API]
        assert (begun.watch_count, begun.identity_serial_number, begun.source_ip) == (1, "2f", "192.0.2.1")
        assert (begun.client_version, begun.end_time) == ("api/1.2", None)
        assert world.store.told == [API]
        await world.pass_time(6 * MINUTE)
        seen = world.store.rows[API]
        assert seen.last_seen_time > begun.last_seen_time
        assert seen.connect_time == begun.connect_time
        assert world.store.told == [API]
        await api.hang_up()
        ended = world.store.rows[API]
        assert (ended.watch_count, ended.end_time) == (0, world.clock.now())
        assert world.store.told == [API, API]
        assert world.present == [API, API]
        assert world.desk.here(API) is None, "what is recorded isn't kept here too"


async def test_one_that_comes_back_at_once_is_there() -> None:
    """Whatever was being written of its end meanwhile."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        api.task.cancel()
        again = await opened()
        await settled()
        assert again.error is None
        assert world.store.rows[API].watch_count == 1
        assert API in world.desk


@pytest.mark.parametrize("error", [AWAY, ValueError("a bug")], ids=["away", "a bug"])
async def test_a_store_that_is_away_is_tried_again(error: Exception) -> None:
    """Who listens goes on to, and hears what it missed; who came meanwhile is refused; what wasn't recorded is."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        world.store.error = AWAY
        world.hold(API, 1)
        world.desk.everything_changed()
        await settled()
        jobs = await opened(JOBS)
        await world.pass_time(3 * SECOND)
        assert jobs.error is AWAY
        assert (api.news, api.error) == ([], None)
        assert JOBS not in world.store.rows
        world.store.error = error if error is not AWAY else None
        await world.pass_time(2 * SECOND)
        world.store.error = None
        await world.pass_time(2 * SECOND)
        if error is AWAY:
            assert api.news == ["api-1"]
        assert world.store.rows[JOBS].watch_count == 0


async def test_a_bug_of_one_service_is_no_other_ones() -> None:
    """What of one can't be read ends that one's call, with INTERNAL; all others hear theirs."""
    world = World()
    async with running(world) as opened:
        api, jobs = await opened(), await opened(JOBS)
        world.store.reads.clear()
        world.store.unreadable = frozenset({JOBS})
        world.hold(API, 1)
        world.desk.everything_changed()
        await settled()
        assert world.store.reads == [[API, JOBS], [API], [JOBS]]
        assert (api.news, api.error) == (["api-1"], None)
        assert jobs.error is not None
        assert jobs.error.refusal.reason is Reason.INTERNAL


@pytest.mark.parametrize(("limit", "name"), [("watches_of_one", API), ("service_watches", JOBS)])
async def test_there_are_so_many_calls_at_once(limit: str, name: str) -> None:
    """One more, of one service or of all, is refused with the limit's name."""
    world = World(**{limit: 1})
    async with running(world) as opened:
        await opened()
        refused = (await opened(name)).error
        assert refused is not None
        assert refused.refusal.reason is Reason.RATE_LIMITED
        assert [one.subject for one in refused.refusal.violations] == [limit]


class FakeOrders:
    """`OrderListing`, as far as it is asked here."""

    def __init__(self, *orders: Order) -> None:
        self.orders = orders
        self.asked = 0

    async def page(self, query: Any, after: object, limit: int) -> Any:
        self.asked += 1
        found = [order for order in self.orders if order.order_id in query.order_ids][:limit]
        return type("Page", (), {"orders": found})


def order(order_id: str, identity: str, state: OrderState = OrderState.ISSUED) -> Order:
    now = ManualClock().now()
    return Order(
        order_id=order_id,
        identity=identity,
        identity_serial="1f",
        profile="web",
        profile_hash="h",
        dns_names=("a.example",),
        public_key_sha256="k",
        csr_der=b"",
        issuer="acme",
        request_id="r-1",
        state=state,
        create_time=now,
        update_time=now,
    )


async def test_what_others_issue_is_found_by_their_orders() -> None:
    """Of a service that watches here; an order that is open, or another one's, isn't looked at further."""
    world = World()
    orders = FakeOrders(order("o-1", API), order("o-2", JOBS), order("o-3", API, OrderState.VALIDATING))
    follower: Any = IssuedElsewhere(world.desk, orders)  # type: ignore[arg-type]  # as far as it is asked
    await follower.changed(["o-1"])
    assert orders.asked == 0, "nobody watches"
    async with running(world) as opened:
        api = await opened()
        world.hold(API, 1)
        await follower.changed(["o-2", "o-3"])
        await settled()
        assert api.news == []
        await follower.changed([f"o-{number}" for number in range(1, 300)])
        await settled()
        assert api.news == ["api-1"]
        world.hold(API, 2)
        await follower.reread(world.clock.now())
        await settled()
        assert api.news == ["api-1", "api-2"]


async def test_a_certificate_that_is_issued_here_is_told() -> None:
    """By the order that has brought it: its holder hears of it if it watches."""
    world = World()
    async with running(world) as opened:
        api = await opened()
        world.hold(API, 1)
        issued = order("o-1", API)
        record: CertificateRecord = certificate(issued, "api-1", world.clock.now(), 90 * MINUTE)
        world.desk.certificate_changed(record)
        await settled()
        assert api.news == ["api-1"]
