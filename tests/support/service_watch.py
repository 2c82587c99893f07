"""A service's side of WatchMyCertificates, and certificates for it in the store of an edge."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from certplane.broker.model import CertificateRecord
from certplane.v1 import renewal_pb2, renewal_pb2_grpc
from tests.support.ca import Leaf
from tests.support.edge import SERVICE, EdgeServer
from tests.support.stores import NO_LIMITS, certificate, draft
from tests.support.waiting import HANG, no_hang

_numbers = itertools.count(1)


class ServiceWatch:
    """One call; `read` gives the next message, as far as a test asks for it."""

    def __init__(self, channel: Any, **fields: Any) -> None:
        request = renewal_pb2.WatchMyCertificatesRequest(**fields)
        self.call = renewal_pb2_grpc.RenewalServiceStub(channel).WatchMyCertificates(request, timeout=HANG)

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` at the end."""
        async with no_hang():
            return await self.call.read()

    async def until(self, seen: Callable[[Any], Any]) -> Any:
        """The first message of which `seen` says yes; others are passed over."""
        while not seen(message := await self.read()):
            assert hasattr(message, "WhichOneof"), "the call has ended"
        return message

    async def until_listening(self) -> list[Any]:
        """The news of the snapshot."""
        found = []
        while (message := await self.read()).WhichOneof("event") != "listening":
            found.append(message.news)
        return found

    async def news(self, seen: Callable[[Any], Any] = bool) -> Any:
        """The next news of which `seen` says yes."""
        message = await self.until(lambda message: message.HasField("news") and seen(message.news))
        return message.news


@asynccontextmanager
async def watching(edge: EdgeServer, identity: Leaf | None = None, **fields: Any) -> AsyncIterator[ServiceWatch]:
    """A call that has heard what there was, of a process that has a certificate of its own or this one."""
    async with edge.channel(identity or edge.ca.issue([SERVICE])) as channel:
        watch = ServiceWatch(channel, **fields)
        await watch.until_listening()
        yield watch


async def issue_to(edge: EdgeServer, identity: str = SERVICE, *, told: bool = True, **fields: Any) -> CertificateRecord:
    """A certificate of an order that this broker has finished; `told` as it tells itself of it."""
    number = next(_numbers)
    wanted = draft(**{"identity": identity, "public_key_sha256": f"{number:064x}", **fields})
    order = (await edge.stores.orders.open_order(wanted, NO_LIMITS, [])).order
    record = certificate(order, f"certificate-{number:06d}", edge.clock.now(), timedelta(days=90))
    await edge.stores.orders.finish_order(order, record, [])
    if told:
        edge.plans.note_issued(record)
    return record
