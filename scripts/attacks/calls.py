"""More calls than are answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter

import grpc

from attacks.target import Target, refusal_of, until
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc

__all__ = ["run"]

_CONNECTIONS = 20
_AT_ONCE = 4


async def run(target: Target, seconds: float) -> Counter[str]:
    """Call as fast as answers come, on many connections."""
    counts: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(target.channel()) for _ in range(_CONNECTIONS)]
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                await asyncio.gather(*(_call(channel, counts) for channel in channels for _ in range(_AT_ONCE)))
    return counts


async def _call(channel: grpc.aio.Channel, counts: Counter[str]) -> None:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    while True:
        try:
            await stub.GetIdentity(enrollment_pb2.GetIdentityRequest())
            counts["answered"] += 1
        except grpc.aio.AioRpcError as error:
            counts[refusal_of(error)] += 1
