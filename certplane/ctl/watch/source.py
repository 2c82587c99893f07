"""The calls of a watch, by certplanectl's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from typing import TypeVar

from typing_extensions import override

from certplane.ctl.client import Client
from certplane.ctl.watch.feed import WatchSource
from certplane.ctl.watch.known import PERIOD
from certplane.errors import OperationError
from certplane.rpc.failures import is_cancelled
from certplane.v1 import audit_pb2, budget_pb2, fleet_pb2, incident_pb2, order_pb2, renewal_pb2, rollout_pb2

T = TypeVar("T")

_PAGES = 5
"""Of audit events: one may be empty, where the filter has read much for it, and it is asked every few seconds."""


class ClientSource(WatchSource):
    """What a client is told. `hosts`: the summary is of these alone."""

    def __init__(self, client: Client, hosts: Sequence[str]) -> None:
        self._client = client
        self._hosts = hosts

    @override
    async def watch(self, hosts: Sequence[str]) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        async with aclosing(self._client.watch(hosts)) as messages:
            async for message in messages:
                yield message

    @override
    async def summarize(self) -> fleet_pb2.SummarizeFleetResponse:
        request = fleet_pb2.SummarizeFleetRequest()
        request.period.FromTimedelta(PERIOD)
        if self._hosts:
            request.filter.hosts.extend(self._hosts)
        return await _answer(self._client.summarize(request))

    @override
    async def host(self, name: str) -> renewal_pb2.Host:
        return await _answer(self._client.host(name))

    @override
    async def last_orders(self, wanted: order_pb2.OrderFilter, most: int) -> Sequence[order_pb2.OrderStatus]:
        return await _answer(self._orders(order_pb2.ListOrdersRequest(filter=wanted, page_size=most), most))

    @override
    async def last_events(self, wanted: audit_pb2.AuditFilter, most: int) -> Sequence[audit_pb2.AuditEvent]:
        return await _answer(self._events(audit_pb2.ListAuditEventsRequest(filter=wanted, page_size=most), most))

    async def _orders(self, request: order_pb2.ListOrdersRequest, most: int) -> list[order_pb2.OrderStatus]:
        orders: list[order_pb2.OrderStatus] = []
        async with aclosing(self._client.orders(request)) as pages:
            async for page in pages:  # one may be short, and not the last
                orders += page.orders
                if len(orders) >= most:
                    break
        return orders[:most]

    async def _events(self, request: audit_pb2.ListAuditEventsRequest, most: int) -> list[audit_pb2.AuditEvent]:
        events: list[audit_pb2.AuditEvent] = []
        read = 0
        async with aclosing(self._client.audit_events(request)) as pages:
            async for page in pages:
                events += page.events
                read += 1
                if len(events) >= most or read >= _PAGES:
                    break
        return events[:most]

    @override
    async def last_rollouts(self, most: int) -> Sequence[rollout_pb2.Rollout]:
        return (await _answer(self._rollouts(most))).rollouts

    @override
    async def watch_rollout(self, rollout_id: str) -> AsyncGenerator[rollout_pb2.Rollout, None]:
        async with aclosing(self._client.watch_rollout(rollout_id)) as messages:
            while True:
                message = await _answer(anext(messages, None))
                if message is None:
                    return
                yield message

    @override
    async def last_incidents(self, most: int) -> Sequence[incident_pb2.Incident]:
        return (await _answer(self._incidents(most))).incidents

    @override
    async def budget(self) -> budget_pb2.GetBudgetResponse:
        return await _answer(self._client.budget(budget_pb2.GetBudgetRequest()))

    async def _rollouts(self, most: int) -> rollout_pb2.ListRolloutsResponse:
        async with aclosing(self._client.rollouts(rollout_pb2.ListRolloutsRequest(page_size=most))) as pages:
            return await anext(pages)

    async def _incidents(self, most: int) -> incident_pb2.ListIncidentsResponse:
        async with aclosing(self._client.incidents(incident_pb2.ListIncidentsRequest(page_size=most))) as pages:
            return await anext(pages)


async def _answer(call: Awaitable[T]) -> T:
    """What a call came to, whose connection may be closed under it since the watch beside it has ended."""
    try:
        return await call
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        raise OperationError("the connection has ended") from None
