# ruff: noqa: N802 - methods bear the names of the proto file
"""`OrderService`: the orders of all callers, as operators see them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.broker.issuance.listing import OrderQuery
from certplane.broker.issuance.overview import OrdersView, OrderView
from certplane.broker.services.convert import page_size
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.broker.services.orders_convert import place_of, query_of, status_message, token_of
from certplane.errors import Reason, RefusalError
from certplane.rpc.times import timestamp
from certplane.v1 import order_pb2 as pb
from certplane.v1 import order_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_WRITE_TIMEOUT: Final = timedelta(seconds=30)
"""How long one message may wait for a reader."""
_READ_AT_ONCE: Final = 64


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["OrderService"].full_name

    def __init__(self, view: OrdersView) -> None:
        self._view = view

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        order_pb2_grpc.add_OrderServiceServicer_to_server(self, server)

    async def ListOrders(self, request: pb.ListOrdersRequest, _context: RpcContext) -> pb.ListOrdersResponse:
        """A page of orders; it ends where another one would be too much for a message."""
        query = query_of(request.filter, self._view.identities, self._view.now())
        after, most = place_of(request.page_token), page_size(request.page_size)
        views, page = await self._view.page(query, after, most)
        response = pb.ListOrdersResponse(open_order_count=await self._view.count_open())
        size, last = response.ByteSize(), page.after
        for index, view in enumerate(views):
            message = status_message(view)
            size += message.ByteSize() + 8
            if response.orders and size > MESSAGE_ROOM:
                last = views[index - 1].place
                break
            response.orders.append(message)
        response.next_page_token = token_of(last)
        return response

    async def WatchOrders(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, request: pb.WatchOrdersRequest, context: RpcContext
    ) -> None:
        """Send the open orders, then what changes of any order, the latest of each."""
        query = query_of(request.filter, self._view.identities, self._view.now())
        watch = _Watch(query, context)
        with self._view.watchers.watching() as watcher:
            await self._send_open(watch)
            await watch.send_end(pb.WatchOrdersResponse(event_time=timestamp(self._view.now())))
            while (changes := await watcher.next_changes()) is not None:
                if not changes:
                    followed = set(watch.followed)
                    changes = dict.fromkeys(followed - await self._send_open(watch))  # they have ended meanwhile
                for start in range(0, len(changes), _READ_AT_ONCE):
                    some = [*changes.items()][start : start + _READ_AT_ONCE]
                    known = [order for _, order in some if order is not None]
                    unread = [order_id for order_id, order in some if order is None]
                    await watch.send(await self._view.read(known, unread), timestamp(self._view.now()))
        raise RefusalError(Reason.DRAINING, "the broker is shutting down; watch again shortly")

    async def _send_open(self, watch: _Watch) -> set[str]:
        """Send what is open and picked; which those are."""
        sent = set()
        async for view in self._view.all_open(watch.query):
            await watch.send([view], timestamp(self._view.now()))
            sent.add(view.order.order_id)
        return sent


class _Watch:
    """One call of WatchOrders."""

    def __init__(self, query: OrderQuery, context: RpcContext) -> None:
        self.query = query
        self._context = context
        self.followed: set[str] = set()
        """Those that were picked and haven't ended."""
        self._count = 0

    async def send(self, views: Iterable[OrderView], time: Any) -> None:
        """Those of them that are picked, or were before."""
        for view in views:
            order_id = view.order.order_id
            if order_id in self.followed or self.query.picks(view.order):
                self._count += order_id not in self.followed
                (self.followed.add if view.order.state.is_open else self.followed.discard)(order_id)
                await self._write(pb.WatchOrdersResponse(event_time=time, order=status_message(view)))

    async def send_end(self, message: pb.WatchOrdersResponse) -> None:
        """All that were open have been sent."""
        message.snapshot_end.order_count = self._count
        await self._write(message)

    async def _write(self, message: pb.WatchOrdersResponse) -> None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT.total_seconds()):
                await self._context.write(message)
        except TimeoutError as error:
            raise RefusalError(Reason.STREAM_TIMED_OUT, "the watcher doesn't read its stream") from error
