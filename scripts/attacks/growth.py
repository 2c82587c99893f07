"""What grows: rows on the disk, connections that are held, connections to the metrics listener that say nothing."""

import asyncio
import contextlib
import itertools
import socket
from collections import Counter

import grpc

from attacks.target import Target, refusal_of, until
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc

_IDLE = 500
_SILENT = 300


async def enrollments(target: Target, seconds: float) -> Counter[str]:
    """Report another agent version each time: every report is one that nobody made before."""
    counts: Counter[str] = Counter()
    async with target.channel() as channel:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
        with contextlib.suppress(TimeoutError):
            async with until(seconds):
                for number in itertools.count():
                    request = enrollment_pb2.ReportEnrollmentRequest(
                        agent_version=f"attack-{number}", identity_serial_number=f"{number + 1:x}"
                    )
                    try:
                        await stub.ReportEnrollment(request)
                        counts["recorded"] += 1
                    except grpc.aio.AioRpcError as error:
                        counts[refusal_of(error)] += 1
    return counts


async def idle_connections(target: Target, seconds: float) -> Counter[str]:
    """Finish the handshake of many connections and say nothing on them."""
    counts: Counter[str] = Counter()
    held: list[asyncio.StreamWriter] = []
    with contextlib.suppress(TimeoutError):
        async with until(seconds):
            for _ in range(_IDLE):
                try:
                    _, writer = await asyncio.open_connection(
                        "127.0.0.1", target.port, ssl=target.context(), server_hostname="localhost"
                    )
                except OSError:
                    counts["refused"] += 1
                else:
                    held.append(writer)
                    counts["held"] += 1
            await asyncio.sleep(seconds)
    for writer in held:
        writer.transport.abort()
    return counts


async def silent_scrapers(target: Target, seconds: float) -> Counter[str]:
    """Connect to the metrics listener and say nothing; scrape it meanwhile, as a monitoring would."""
    counts: Counter[str] = Counter()
    held: list[socket.socket] = []
    port = int((target.folder / "metrics.port").read_text())
    with contextlib.suppress(TimeoutError):
        async with until(seconds):
            while True:
                while len(held) < _SILENT:
                    connection = socket.socket()
                    connection.setblocking(False)
                    held.append(connection)
                    connection.connect_ex(("127.0.0.1", port))
                try:
                    async with asyncio.timeout(5):
                        counts["scrapes" if await _scrape(port) else "scrapes cut off"] += 1
                except (OSError, TimeoutError):
                    counts["scrapes without an answer"] += 1
                for connection in held[:100]:
                    connection.close()
                del held[:100]
                await asyncio.sleep(0.2)
    for connection in held:
        connection.close()
    return counts


async def _scrape(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        return b"certplane_orders_open" in await reader.read()
