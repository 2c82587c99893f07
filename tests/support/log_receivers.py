"""Receivers of logs on loopback: a syslog server over TLS, and an OpenTelemetry collector's gRPC endpoint."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc


@dataclass
class SyslogServer:
    """RFC 5425: reads frames by their length; use it as an async context manager.

    Attributes:
        context: Of the server.
        messages: What came, whole frames.
        reading: Cleared, it reads nothing.
    """

    context: ssl.SSLContext
    messages: list[bytes] = field(default_factory=list)
    peers: list[Any] = field(default_factory=list)
    reading: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def __aenter__(self) -> Self:
        self.reading.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        # A small buffer, so that one who sends to a server that doesn't read notices within some kilobytes.
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self.context, limit=4096, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close all connections."""
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.peers.append(writer.get_extra_info("peercert"))
        self._writers.append(writer)
        try:
            while True:
                await self.reading.wait()
                length = await reader.readuntil(b" ")
                self.messages.append(await reader.readexactly(int(length)))
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, ssl.SSLError):
            pass  # cancelled by `__aexit__` alone
        finally:
            writer.close()
            self._tasks.discard(task)


@dataclass
class Collector(logs_service_pb2_grpc.LogsServiceServicer):
    """`LogsService`; use it as an async context manager.

    Attributes:
        credentials: Of a TLS server; None: plain.
        requests: What came.
        metadata: With it.
        code: What it answers with instead of success.
        rejected: How many records it says to reject of the next batches, one number each.
    """

    credentials: grpc.ServerCredentials | None = None
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    rejected: list[int] = field(default_factory=list)
    hanging: bool = False

    async def __aenter__(self) -> Self:
        self._server = grpc.aio.server()
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(self, self._server)
        if self.credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", self.credentials)
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    @property
    def records(self) -> list[Any]:
        """All records that came, in order."""
        scopes = (scope for request in self.requests for logs in request.resource_logs for scope in logs.scope_logs)
        return [record for scope in scopes for record in scope.log_records]

    async def Export(self, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:  # noqa: N802 - the service's name
        if self.hanging:
            await asyncio.Event().wait()
        if self.code is not None:
            await context.abort(self.code, "not\nnow")
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        response = logs_service_pb2.ExportLogsServiceResponse()
        if self.rejected:
            response.partial_success.rejected_log_records = self.rejected.pop()
            response.partial_success.error_message = "too old"
        return response
