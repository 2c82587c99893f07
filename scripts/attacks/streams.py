"""Streams: as many messages as are taken, and as many streams as are left open."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from attacks.labels import hello
from attacks.target import Target, refusal_of, until
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc

__all__ = ["flood", "hoard"]

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
                    try:
                        await stream.write(hello())
                        reading = asyncio.create_task(_read_all(stream, counts))
                        while not reading.done():
                            message = pb.StreamRenewalStatusRequest()
                            message.report.sequence = next(numbers)
                            message.report.certificate.name = "web"
                            message.report.certificate.state = next(states)
                            await stream.write(message)
                            counts["reports"] += 1
                        await reading
                    except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
                        counts["streams ended"] += 1
    return counts


async def _read_all(
    stream: grpc.aio.StreamStreamCall[pb.StreamRenewalStatusRequest, pb.StreamRenewalStatusResponse],
    counts: Counter[str],
) -> None:
    try:
        while await stream.read() is not grpc.aio.EOF:
            pass
    except grpc.aio.AioRpcError as error:
        counts[refusal_of(error)] += 1


async def hoard(target: Target, seconds: float) -> Counter[str]:
    """Open streams and keep them; how many stay."""
    counts: Counter[str] = Counter()
    async with contextlib.AsyncExitStack() as stack:
        held = []
        for number in range(2 * _STREAMS // _PER_CONNECTION):
            channel = await stack.enter_async_context(target.channel())
            for _ in range(_PER_CONNECTION):
                if number % 2:
                    health = health_pb2_grpc.HealthStub(channel)
                    held.append(health.Watch(health_pb2.HealthCheckRequest()))
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
                counts["stay"] += 1
                stream.cancel()
    return counts
