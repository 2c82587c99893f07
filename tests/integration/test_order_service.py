"""`OrderService` over real mTLS gRPC: pages and filters, ten thousand orders, what is watched, and who may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.broker.model import Order, OrderProgress, OrderState
from certplane.broker.ports import OrderChange
from certplane.errors import Reason, Refusal
from certplane.v1 import certificate_pb2, order_pb2_grpc
from certplane.v1 import order_pb2 as pb
from tests.support.ca import PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge
from tests.support.stores import NO_LIMITS, draft
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

ISSUED = certificate_pb2.Order.STATE_ISSUED
PENDING = certificate_pb2.Order.STATE_PENDING


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


@pytest.fixture
async def orders(edge: EdgeServer) -> AsyncIterator[Any]:
    """The stub, with an operator's identity."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield order_pb2_grpc.OrderServiceStub(channel)


async def opened(edge: EdgeServer, count: int = 1, **values: Any) -> list[Order]:
    made = []
    for _ in range(count):
        number = len(edge.stores.database.orders) if count == 1 else len(made)
        wanted = draft(**{"identity": HOST, "public_key_sha256": f"key-{number}", **values})
        made.append((await edge.stores.orders.open_order(wanted, NO_LIMITS, [])).order)
    return made


async def listed(orders: Any, **fields: Any) -> list[pb.OrderStatus]:
    found: list[pb.OrderStatus] = []
    request = pb.ListOrdersRequest(**fields)
    while True:
        response = await orders.ListOrders(request, timeout=HANG)
        assert response.ByteSize() < 64 * 1024
        found += response.orders
        if not response.next_page_token:
            return found
        request.page_token = response.next_page_token


async def test_an_order_with_all_that_is_known_of_it(edge: EdgeServer, orders: Any) -> None:
    """What it is at, why it failed last, when it is tried again, whose it is and which broker runs it."""
    (order,) = await opened(edge, request_id="call-1")
    now = edge.clock.now()
    at = OrderProgress("answer", now, 3, "ISSUER_UNAVAILABLE: 500\x1b[2J", now + timedelta(seconds=30), "its next try")
    await edge.stores.orders.note_progress([replace(order, progress=at)])
    response = await orders.ListOrders(pb.ListOrdersRequest(), timeout=HANG)
    assert response.open_order_count == 1
    (shown,) = response.orders
    assert (shown.identity, shown.cause, shown.request_id) == (HOST, "ordinary", "call-1")
    assert (shown.step, shown.step_failures, shown.wait_reason) == ("answer", 3, "its next try")
    assert (shown.broker_id, shown.broker_name) == (edge.stores.orders.holder, "machine")
    assert (shown.order.order_id, shown.order.state) == (order.order_id, PENDING)
    assert "ISSUER_UNAVAILABLE" in shown.order.trouble
    assert "\x1b" not in shown.order.trouble
    assert shown.next_attempt_time.ToDatetime() > shown.step_time.ToDatetime()


async def test_pages_of_large_orders_stay_below_a_message(edge: EdgeServer, orders: Any) -> None:
    """A page ends where another order would be too much; none is left out."""
    names = tuple(f"a{number}.{'x' * 50}.example" for number in range(100))
    made = await opened(edge, 20, dns_names=names)
    found = await listed(orders, page_size=500)
    assert sorted(each.order.order_id for each in found) == sorted(order.order_id for order in made)


async def test_ten_thousand_orders(edge: EdgeServer, orders: Any) -> None:
    """A page, and one of a filter that matches next to nothing, come within the goal on a machine that is idle."""
    await opened(edge, 10_000)
    (other,) = await opened(edge, profile="rare", public_key_sha256="rare")
    began = time.monotonic()
    response = await orders.ListOrders(pb.ListOrdersRequest(), timeout=HANG)
    assert time.monotonic() - began < 2  # 0.1 s is the goal; CI is no measure
    assert (len(response.orders), response.open_order_count) == (50, 10_001)
    (found,) = await listed(orders, filter=pb.OrderFilter(profiles=["rare"]))
    assert found.order.order_id == other.order_id


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(pb.ListOrdersRequest(page_size=-1), id="negative page"),
        pytest.param(pb.ListOrdersRequest(page_token="b3Blbg"), id="token of somebody else"),
        pytest.param(pb.ListOrdersRequest(page_token="!"), id="no token"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(profiles=[""])), id="empty value"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(profiles=["x" * 300])), id="long value"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(order_ids=["x"] * 101)), id="many values"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(states=[0])), id="no state"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(within=Duration())), id="no time"),
        pytest.param(pb.ListOrdersRequest(filter=pb.OrderFilter(request_id="a b")), id="no request id"),
    ],
)
async def test_a_bad_request_is_named(orders: Any, request_: pb.ListOrdersRequest) -> None:
    """Each is REQUEST_INVALID."""
    assert (await refused(orders.ListOrders(request_, timeout=HANG))).reason is Reason.REQUEST_INVALID


async def test_a_filter_that_reaches_further_than_time_does(edge: EdgeServer, orders: Any) -> None:
    """Everything is within it; an identity is found by its label, a name however it is written."""
    (order,) = await opened(edge)
    filter_ = pb.OrderFilter(
        within=Duration(seconds=300_000_000_000),
        identities=["web1"],
        dns_names=[order.dns_names[0].upper()],
    )
    (found,) = await listed(orders, filter=filter_)
    assert found.order.order_id == order.order_id


async def test_a_service_is_found_by_its_label(edge: EdgeServer, orders: Any) -> None:
    """As a host is."""
    (order,) = await opened(edge, identity=SERVICE)
    (found,) = await listed(orders, filter=pb.OrderFilter(identities=["builder"]))
    assert found.order.order_id == order.order_id


async def test_only_viewers_and_operators_may(edge: EdgeServer) -> None:
    """A host has its own orders by `CertificateService`."""
    async with edge.channel(edge.ca.issue([HOST])) as channel:
        stub = order_pb2_grpc.OrderServiceStub(channel)
        assert (await refused(stub.ListOrders(pb.ListOrdersRequest(), timeout=HANG))).reason is Reason.ROLE_REQUIRED


async def test_orders_are_watched(edge: EdgeServer, orders: Any) -> None:
    """The open ones, then each change of those that are picked, to their end; others aren't told."""
    (mine,) = await opened(edge, profile="web", public_key_sha256="a")
    (other,) = await opened(edge, profile="mail", public_key_sha256="b")
    call = orders.WatchOrders(
        pb.WatchOrdersRequest(filter=pb.OrderFilter(profiles=["web"], open_only=True)), timeout=HANG
    )
    first, end = await call.read(), await call.read()
    assert (first.order.order.order_id, end.snapshot_end.order_count) == (mine.order_id, 1)
    error = Refusal(Reason.ISSUER_REJECTED, "the CA said no")
    for order in other, mine:
        change = OrderChange(state=OrderState.FAILED, error=error, retry_time=edge.clock.now())
        await edge.stores.orders.change_order(order, change)
    await edge.orders.watchers.changed([other.order_id, mine.order_id])
    last = await call.read()
    assert (last.order.order.order_id, last.order.order.state) == (mine.order_id, certificate_pb2.Order.STATE_FAILED)
    assert last.order.order.error.message == "the CA said no"
    edge.orders.watchers.close()
    assert (await refused(asyncio.ensure_future(call.read()))).reason is Reason.DRAINING


async def test_what_may_have_been_missed_is_read_anew(edge: EdgeServer, orders: Any) -> None:
    """After a gap in what is heard of other brokers the open orders are sent again, and those that ended meanwhile."""
    (mine,) = await opened(edge)
    call = orders.WatchOrders(pb.WatchOrdersRequest(), timeout=HANG)
    await call.read()
    await call.read()
    change = OrderChange(state=OrderState.FAILED, error=Refusal(Reason.INTERNAL, "x"), retry_time=edge.clock.now())
    await edge.stores.orders.change_order(mine, change)
    (new,) = await opened(edge, public_key_sha256="new")
    await edge.orders.watchers.reread(edge.clock.now())
    told = [(await call.read()).order.order for _ in range(2)]
    assert [order.order_id for order in told] == [new.order_id, mine.order_id]
    call.cancel()
