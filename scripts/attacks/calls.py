"""More calls than are answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc

from attacks.labels import hello
from attacks.target import Target, refusal_of, until
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc, renewal_pb2_grpc

_CONNECTIONS = 20
_AT_ONCE = 4

_MANY_CONNECTIONS = 60
_MOST_AT_ONCE = 128
"""What a connection bears."""


async def run(target: Target, seconds: float) -> Counter[str]:
    """Call as fast as answers come, on many connections."""
    return await _flood(target, seconds, _call, _CONNECTIONS, _AT_ONCE)


async def many(target: Target, seconds: float) -> Counter[str]:
    """Have as many calls waiting as that many connections bear."""
    return await _flood(target, seconds, _call, _MANY_CONNECTIONS, _MOST_AT_ONCE)


async def give_up(target: Target, seconds: float) -> Counter[str]:
    """Begin streams and give them up at once: so many come as the broker can take, and none waits for a refusal."""
    return await _flood(target, seconds, _give_up, _AT_ONCE, _AT_ONCE)


async def _flood(
    target: Target,
    seconds: float,
    call: Callable[[grpc.aio.Channel, Counter[str]], Awaitable[None]],
    connections: int,
    at_once: int,
) -> Counter[str]:
    counts: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(target.channel()) for _ in range(connections)]
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                await asyncio.gather(*(call(channel, counts) for channel in channels for _ in range(at_once)))
    return counts


async def _give_up(channel: grpc.aio.Channel, counts: Counter[str]) -> None:
    stub = renewal_pb2_grpc.RenewalServiceStub(channel)
    while True:
        stream = stub.StreamRenewalStatus()
        try:
            await stream.write(hello())
            stream.cancel()
            counts["given up"] += 1
        except grpc.aio.AioRpcError as error:
            counts[refusal_of(error)] += 1
        except (grpc.aio.UsageError, asyncio.InvalidStateError):
            counts["streams ended"] += 1
        await asyncio.sleep(0.01)


async def _call(channel: grpc.aio.Channel, counts: Counter[str]) -> None:
    stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
    while True:
        try:
            await stub.GetIdentity(enrollment_pb2.GetIdentityRequest())
            counts["answered"] += 1
        except grpc.aio.AioRpcError as error:
            counts[refusal_of(error)] += 1
