"""Streams: as many messages as are taken, and as many streams as are left open."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from attacks.labels import hello
from attacks.target import Target, refusal_of, until
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc

_STREAMS = 600
_PER_CONNECTION = 100


async def flood(target: Target, seconds: float) -> Counter[str]:
    """Report a failure, then none, as fast as that is taken; after each refusal on a new stream."""
    counts: Counter[str] = Counter()
    numbers = itertools.count(1)
    states = itertools.cycle((pb.CertificateStatus.STATE_FAILED, pb.CertificateStatus.STATE_WAITING))
    async with target.channel() as channel:
        stub = renewal_pb2_grpc.RenewalServiceStub(channel)
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                while True:
                    stream = stub.StreamRenewalStatus()
                    reading = asyncio.create_task(_read_all(stream, counts))
                    try:
                        await stream.write(hello())
                        while not reading.done():
                            message = pb.StreamRenewalStatusRequest()
                            message.report.sequence = next(numbers)
                            message.report.certificate.name = "web"
                            message.report.certificate.state = next(states)
                            await stream.write(message)
                            counts["reports"] += 1
                        await reading
                    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                        await reading  # it knows why
    return counts


async def _read_all(
    stream: grpc.aio.StreamStreamCall[pb.StreamRenewalStatusRequest, pb.StreamRenewalStatusResponse],
    counts: Counter[str],
) -> None:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
        counts[(await stream.code()).name] += 1
    except grpc.aio.AioRpcError as error:
        counts[refusal_of(error)] += 1
    except (grpc.aio.UsageError, asyncio.InvalidStateError):
        counts["streams ended"] += 1


async def hoard(target: Target, seconds: float) -> Counter[str]:
    """Open streams and keep them; how many stay, and how many wait to be told that they are too many."""
    counts: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        held = []
        for number in range(2 * _STREAMS // _PER_CONNECTION):
            channel = await stack.enter_async_context(target.channel())
            for _ in range(_PER_CONNECTION):
                if number % 2:
                    health = health_pb2_grpc.HealthStub(channel)
                    held.append(health.Watch(health_pb2.HealthCheckRequest()))  # type: ignore[attr-defined] # its stubs leave it out
                else:
                    stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
                    held.append(stream)
                    with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await asyncio.sleep(0.5)
        await asyncio.sleep(seconds)
        for stream in held:
            if stream.done():
                counts["ended"] += 1
            else:
                counts["stay" if await _is_served(stream) else "wait for a refusal"] += 1
                stream.cancel()
    return counts


async def _is_served(stream: grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]) -> bool:
    """Whether the broker answers it: the first answer of either service comes at once."""
    with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError):
        async with asyncio.timeout(0.01):
            return await stream.read() is not grpc.aio.EOF
    return False
