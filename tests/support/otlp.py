"""A real receiver of OpenTelemetry's traces (OTLP over gRPC), which keeps what it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from typing_extensions import override


@dataclass(frozen=True)
class ReceivedSpan:
    """One span; ids are hexadecimal, `parent` is empty for the root."""

    program: str
    name: str
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]


@dataclass
class OtlpReceiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what is sent."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    port: int = 0

    @override
    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            program = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [
                    ReceivedSpan(
                        program,
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.status.code == span.status.STATUS_CODE_ERROR,
                        _attributes(span.attributes),
                    )
                    for span in scope.spans
                ]
        return pb.ExportTraceServiceResponse()

    def named(self, name: str, program: str = "") -> list[ReceivedSpan]:
        """Those of that name, of one program if it is given."""
        return [span for span in self.spans if span.name == name and program in {"", span.program}]

    def path(self, span: ReceivedSpan) -> list[str]:
        """Program and name of all spans above it, and itself, the root first."""
        by_id = {each.id: each for each in self.spans}
        above = by_id.get(span.parent)
        return [*(self.path(above) if above else []), f"{span.program}: {span.name}"]


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}


@asynccontextmanager
async def receiving() -> AsyncIterator[OtlpReceiver]:
    """One that listens on loopback, without TLS."""
    receiver, server = OtlpReceiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    receiver.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield receiver
    finally:
        await server.stop(None)
