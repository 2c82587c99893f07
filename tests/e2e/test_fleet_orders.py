"""Orders of brokers that share a database, and that are killed, stand still, or stop in the midst of them.

Four broker programs on one PostgreSQL. In each round three of them meet their fate at three places of an order, and the
fourth ends what they have left: the CA finalises each order once and makes one certificate for each key, the audit log
says so once, and the DNS is as it was.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from certplane.broker.members.membership import SPAN
from certplane.sandbox.pebble import PebbleOptions
from certplane.sandbox.postgres import PostgresCluster
from tests.support.database_servers import DATABASE
from tests.support.fleet import Fleet, policy_of
from tests.support.killing import KILLED, assert_issued_once, ended, killing_at, stopping_at
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "web1.certplane.test"

DEATHS = [
    ("acme.create_order.sent", "order.answer.before", "acme.finalize.sent"),
    ("dns.present.written", "order.download.after", "dns.remove.removed"),
]
LOSES_AN_ORDER = "acme.create_order.sent"
"""The CA has an order whose URL was never written down: it is left to expire, and a second one is made."""

PAUSES = [
    ("order.create.before", "order.present.before", "order.finalize.before"),
    ("order.journal_url.before", "order.answer.before", "order.remove.before"),
]
MAKES_ANOTHER_ORDER = {"order.create.before", "order.journal_url.before"}
"""Where a broker stands still, another one can't see that it has made, or is about to make, an order at the CA."""


def profile_of(failpoint: str) -> str:
    return failpoint.replace(".", "-").replace("_", "-")


def name_of(profile: str) -> str:
    return f"{profile}.certplane.test"


PROFILES = [
    *(profile_of(point) for points in DEATHS for point in points),
    *(f"still-{profile_of(point)}" for points in PAUSES for point in points),
    "handed-over",
    "one-key",
    "one-name",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Four brokers; the CA validates for longer than they wait when they stop, so that orders are met in the midst."""
    need_part("pebble")
    policy = policy_of({name: [name_of(name)] for name in PROFILES}, {HOST: PROFILES})
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        url = await cluster.create_database(DATABASE)
        folder = tmp_path_factory.mktemp("fleet-orders")
        pebble = PebbleOptions(validation_sleep=timedelta(seconds=2))
        async with Fleet.running(folder, policy, [url] * 4, pebble=pebble) as made:
            await made.enroll(HOST)
            yield made


async def running(fleet: Fleet) -> None:
    """Start those that were killed; what the others were told of failpoints is passed."""
    await asyncio.gather(*(broker.start() for broker in fleet.brokers if not broker.process.running))


@pytest.mark.parametrize("points", DEATHS, ids=" and ".join)
async def test_orders_of_killed_brokers_end_at_another_one(fleet: Fleet, points: tuple[str, ...]) -> None:
    """Each host asks on at the broker that is left, with the same key, and gets the one certificate."""
    *dying, heir = fleet.brokers
    await running(fleet)
    pebble = fleet.deployment.pebble
    before = pebble.log
    await asyncio.gather(*(broker.start(killing_at(point)) for broker, point in zip(dying, points, strict=True)))
    profiles = [profile_of(point) for point in points]
    asked = [
        asyncio.create_task(fleet.certificate(HOST, profile, fleet.csr(name_of(profile)), broker, heir))
        for profile, broker in zip(profiles, dying, strict=True)
    ]
    for broker in dying:
        assert await ended(broker.process) == KILLED
    leaves = await asyncio.gather(*asked)
    await fleet.until_settled()
    for leaf in leaves:
        await assert_issued_once(fleet.deployment, leaf)
    orders = len(pebble.log.orders) - len(before.orders)
    assert orders == len(points) + (LOSES_AN_ORDER in points)
    await fleet.assert_no_records_left(*map(name_of, profiles))
    await fleet.assert_nothing_doubled()
    fleet.assert_no_tracebacks()


@pytest.mark.parametrize("points", PAUSES, ids=" and ".join)
async def test_orders_of_brokers_that_stood_still_end_once(fleet: Fleet, points: tuple[str, ...]) -> None:
    """Awake again, each does at most what it was about to do, finds its order taken, and undoes nothing of the heir's.

    Who waited for the order at the broker that stood still has the same certificate in the end.
    """
    *sleepers, heir = fleet.brokers
    await running(fleet)
    pebble = fleet.deployment.pebble
    before = pebble.log
    await asyncio.gather(*(broker.start(stopping_at(point)) for broker, point in zip(sleepers, points, strict=True)))
    profiles = [f"still-{profile_of(point)}" for point in points]
    csrs = [fleet.csr(name_of(profile)) for profile in profiles]
    waiting = [
        asyncio.create_task(fleet.certificate(HOST, profile, csr, broker))
        for profile, csr, broker in zip(profiles, csrs, sleepers, strict=True)
    ]
    for broker in sleepers:
        await broker.until_still()
        broker.stop_still()
    leaves = await asyncio.gather(
        *(fleet.certificate(HOST, profile, csr, heir) for profile, csr in zip(profiles, csrs, strict=True))
    )
    await fleet.until_leases_end(1)
    for broker in sleepers:
        broker.go_on()
    await asyncio.gather(*(broker.until_lost() for broker in sleepers))
    await asyncio.gather(*(broker.until_leased_again() for broker in sleepers))
    assert await asyncio.gather(*waiting) == leaves
    await fleet.until_settled()
    for leaf in leaves:
        await assert_issued_once(fleet.deployment, leaf)
    orders = len(pebble.log.orders) - len(before.orders)
    assert len(points) <= orders <= len(points) + len(MAKES_ANOTHER_ORDER.intersection(points))
    await fleet.assert_no_records_left(*map(name_of, profiles))
    await fleet.assert_nothing_doubled()
    fleet.assert_no_tracebacks()


async def test_a_broker_that_stops_hands_its_order_over(fleet: Fleet) -> None:
    """Another one takes it long before a lease could end, and who waits for it there has the certificate."""
    await running(fleet)
    stopping, other, *_ = fleet.brokers
    loop = asyncio.get_running_loop()
    pebble = fleet.deployment.pebble
    before = len(pebble.log.orders)
    csr = fleet.csr(name_of("handed-over"))
    asked = asyncio.create_task(fleet.certificate(HOST, "handed-over", csr, stopping, other))
    query = "SELECT holder FROM orders WHERE profile = 'handed-over' AND end_time IS NULL"
    ((holder,),) = await until(lambda: fleet.query(query), what="the open order")
    joined = asyncio.create_task(fleet.certificate(HOST, "handed-over", csr, other))
    await until(lambda: len(pebble.log.orders) > before, what="the order at the CA")

    async def taken() -> bool:
        return (await fleet.query(query)) != [(holder,)]

    await stopping.process.stop()
    stopped = loop.time()
    await until(taken, what="another holder, or the end of the order")
    assert loop.time() - stopped < SPAN.total_seconds() / 2
    leaf = await asked
    assert leaf == await joined
    await fleet.until_settled()
    await assert_issued_once(fleet.deployment, leaf)
    assert len(pebble.log.orders) == before + 1
    log = stopping.process.log.read_text()
    assert "Traceback" not in log


async def test_one_key_at_all_brokers_is_one_order(fleet: Fleet) -> None:
    """Asked in the same moment with the same CSR, all brokers answer with the same certificate."""
    await running(fleet)
    before = len(fleet.deployment.pebble.log.orders)
    csr = fleet.csr(name_of("one-key"))
    leaves = await asyncio.gather(
        *(fleet.certificate(HOST, "one-key", csr, broker) for broker in fleet.brokers for _ in range(3))
    )
    assert len(set(leaves)) == 1
    await assert_issued_once(fleet.deployment, leaves[0])
    assert len(fleet.deployment.pebble.log.orders) == before + 1


async def test_one_name_at_all_brokers_is_one_order_at_a_time(fleet: Fleet) -> None:
    """Several keys for one name: the CA never has two of these orders open, and each key gets its certificate."""
    await running(fleet)
    log = fleet.deployment.folder / "pebble" / "pebble.log"
    start = log.stat().st_size
    leaves = await asyncio.gather(
        *(fleet.certificate(HOST, "one-name", fleet.csr(name_of("one-name")), broker) for broker in fleet.brokers)
    )
    await fleet.until_settled()
    story = re.findall(r"(Added order|Issued certificate)", log.read_text()[start:])
    assert story == ["Added order", "Issued certificate"] * len(leaves)
    for leaf in leaves:
        await assert_issued_once(fleet.deployment, leaf)
