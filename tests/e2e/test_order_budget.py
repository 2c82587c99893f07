"""Brokers that share a database and a CA with limits: they never ask for more, leave nothing, and lose no order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from certplane.sandbox.postgres import PostgresCluster
from certplane.v1 import budget_pb2, budget_pb2_grpc, certificate_pb2, certificate_pb2_grpc
from tests.support.database_servers import DATABASE
from tests.support.fleet import OPERATOR, Fleet, policy_of
from tests.support.killing import KILLED, assert_issued_once, ended, killing_at
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

HOST = "web1.certplane.test"
PROFILES = [f"p{number}" for number in range(7)]
AMOUNT, INTERVAL = 3, 2
"""Orders at once, and seconds until another one."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """Two brokers."""
    need_part("pebble")
    policy = policy_of({name: [f"{name}.certplane.test"] for name in PROFILES}, {HOST: PROFILES})
    limits = [{"name": "orders", "scope": "account", "amount": AMOUNT, "per": f"{AMOUNT * INTERVAL}s"}]
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        url = await cluster.create_database(DATABASE)
        folder = tmp_path_factory.mktemp("order-budget")
        async with Fleet.running(folder, policy, [url] * 2, limits=limits) as made:
            await made.enroll(HOST)
            yield made


async def test_two_brokers_keep_one_budget(fleet: Fleet) -> None:
    """Of seven orders three go at once, each other one when a place has come back; who waits is told why.

    One broker is killed when it has taken a place: the other one uses it.
    """
    loop, pebble = asyncio.get_running_loop(), fleet.deployment.pebble
    first, second = fleet.brokers
    await first.process.stop()
    await first.start(killing_at("order.take_places.after"))
    seen: list[tuple[float, int]] = []

    async def look() -> None:
        while True:
            seen.append((loop.time(), len(pebble.log.orders)))
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    brokers = [(first, second), *[(second,)] * (len(PROFILES) - 1)]
    asked = [
        asyncio.create_task(fleet.certificate(HOST, profile, fleet.csr(f"{profile}.certplane.test"), *mine))
        for profile, mine in zip(PROFILES, brokers, strict=True)
    ]
    assert await ended(first.process) == KILLED
    query = "SELECT order_id FROM orders WHERE end_time IS NULL AND progress LIKE '%budget: 3 per 6s for the account%'"
    ((order_id,), *_) = await until(lambda: fleet.query(query), what="an order that waits for a place")
    async with fleet.channel(HOST, second) as channel:
        stub = certificate_pb2_grpc.CertificateServiceStub(channel)
        answer = await stub.GetOrder(certificate_pb2.GetOrderRequest(order_id=order_id), timeout=HANG)
    told = answer.order.state != certificate_pb2.Order.STATE_PENDING or answer.order.HasField("wait_time")
    assert told, answer.order
    leaves = await asyncio.gather(*asked)
    looking.cancel()
    for leaf in leaves:
        await assert_issued_once(fleet.deployment, leaf)
    start = next(time for time, count in seen if count)
    assert all(count <= AMOUNT + (time - start) / INTERVAL + 1 for time, count in seen), seen
    assert len(pebble.log.orders) == len(PROFILES)
    ((left,),) = await fleet.query("SELECT count(*) FROM orders WHERE places IS NOT NULL")
    assert left == 0
    await fleet.until_settled()
    await assert_the_budget_is_told_by_the_other_broker(fleet)
    fleet.assert_no_tracebacks()


async def assert_the_budget_is_told_by_the_other_broker(fleet: Fleet) -> None:
    """What is left is what was taken at both; a forecast of the seven fills what the limit lets go at once."""
    async with fleet.channel(OPERATOR, fleet.brokers[1]) as channel:
        stub = budget_pb2_grpc.BudgetServiceStub(channel)
        (ca,) = (await stub.GetBudget(budget_pb2.GetBudgetRequest(), timeout=HANG)).issuers
        everything = budget_pb2.ForecastOrdersRequest(selection={"all": True})
        answer = await stub.ForecastOrders(everything, timeout=HANG)
    (limit,) = ca.budgets
    assert (ca.limits, limit.name, limit.amount, ca.waiting_order_count) == ("configuration", "orders", AMOUNT, 0)
    forecast = answer.forecast
    assert (answer.certificate_count, forecast.order_count, forecast.exempt_count) == (7, 7, 0)
    assert forecast.bound_by.endswith(": 3 per 6s"), forecast
    takes = forecast.last_order_time.ToDatetime() - forecast.steps[0].time.ToDatetime()
    least = (len(PROFILES) - AMOUNT) * INTERVAL
    assert 0.9 * least <= takes.total_seconds() <= least + AMOUNT * INTERVAL + INTERVAL
