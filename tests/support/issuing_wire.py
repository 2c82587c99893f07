"""Adapters as the broker has them: over a socket pair, with both halves of the issuing process's connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from typing_extensions import override

from certplane.broker.issuing import messages as m
from certplane.broker.issuing.answering import Adapters, Answering
from certplane.broker.issuing.child import Child
from certplane.broker.issuing.connection import Connection, connect
from certplane.broker.issuing.remote import Calls
from certplane.broker.ports import NoPreflight, OrderPreflight
from certplane.broker.renewal.ports import RenewalInfoSource
from tests.support.waiting import until

R = TypeVar("R")


class Wire(Calls):
    """Calls of adapters of this process, each message written and read as between two. Connects at the first call."""

    def __init__(
        self,
        *,
        issuers: Mapping[str, Any] | None = None,
        solver: Any = None,
        preflight: OrderPreflight | None = None,
        renewal_infos: Mapping[str, RenewalInfoSource] | None = None,
    ) -> None:
        self._adapters = Adapters(issuers or {}, solver, preflight or NoPreflight(), renewal_infos or {})
        self._child: Child | None = None
        self._far: Connection | None = None
        self._connecting = asyncio.Lock()

    @override
    async def ask(self, call: m.Call[R], tell: Callable[[str], object] | None = None) -> R:
        async with self._connecting:
            if self._child is None:
                await self._connect()
        assert self._child is not None
        return await self._child.ask(call, tell)

    async def _connect(self) -> None:
        self._child = child = Child(lambda _: None)
        near, far = socket.socketpair()
        answering = Answering(self._adapters, lambda octets: self._far.send(octets) if self._far is not None else None)

        def take(octets: bytes) -> None:
            match m.decode_to_child(octets):
                case m.Request() as request:
                    answering.begin(request)
                case m.Cancel(number):
                    answering.cancel(number)

        self._far = await connect(far, take, lambda _: None)
        child._connection = await connect(near, child._take, child._lost)

    async def close(self) -> None:
        """Close both ends."""
        if self._child is not None and self._far is not None:
            self._far.close()
            await until(self._child.ended.is_set, what="the end of the connection")
