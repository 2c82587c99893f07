"""The operators' half of a broker, scripted: every RPC of every service answers what a test said, over real mTLS."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from certplane.errors import Refusal
from certplane.rpc.credentials import KeyPair, ServerTls
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.sandbox.certificates import CertificateAuthority
from certplane.v1 import (
    audit_pb2,
    broker_pb2,
    budget_pb2,
    enrollment_pb2,
    fleet_pb2,
    incident_pb2,
    order_pb2,
    policy_pb2,
    renewal_pb2,
    rollout_pb2,
)

Context = grpc.aio.ServicerContext[Any, Any]
Said = Message | Refusal | grpc.StatusCode
Answer = Said | list[Any] | Callable[[Any], Any]
_FILES = (
    audit_pb2, broker_pb2, budget_pb2, enrollment_pb2, fleet_pb2, incident_pb2, order_pb2, policy_pb2, renewal_pb2,
    rollout_pb2,
)  # fmt: skip


@dataclass
class OperatorsBroker:
    """A broker with these answers by method: a message, a list of them for a stream, what refuses, or a function of the request.

    `calls` has each call's method and request, of a stream of requests the list of them.
    """

    answers: dict[str, Answer] = field(default_factory=dict)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    serving: bool = True
    port: int = 0
    ca: CertificateAuthority = field(default_factory=lambda: CertificateAuthority.root("Internal"))

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[OperatorsBroker]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers([*self._services(), self._health()])
        credential = self.ca.issue("broker", ["localhost"])
        tls = ServerTls(KeyPair(credential.key_pem, credential.chain_pem), self.ca.pem)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", tls.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    def settings(self, folder: Path, *urls: str) -> dict[str, Any]:
        """What a context for it says, with its files in `folder`; the brokers at `urls` too."""
        self.ca.issue("alice", ["alice.example"]).write(folder, "operator")
        (folder / "root.pem").write_bytes(self.ca.pem)
        where = {"urls": [self.url, *urls]} if urls else {"url": self.url}
        return {
            "broker": {**where, "server_ca_bundle": "root.pem"},
            "identity": {"cert": "operator.crt", "key": "operator.key"},
        }

    def write_config(self, folder: Path, *urls: str) -> Path:
        """A ctl.yml for it."""
        path = folder / "ctl.yml"
        path.write_text(yaml.safe_dump(self.settings(folder, *urls)))
        return path

    def _services(self) -> Iterable[grpc.GenericRpcHandler]:
        for file in _FILES:
            for service in file.DESCRIPTOR.services_by_name.values():
                handlers = {method.name: self._handler(method) for method in service.methods}
                yield grpc.method_handlers_generic_handler(service.full_name, handlers)

    def _handler(self, method: Any) -> Any:
        request = GetMessageClass(method.input_type)

        async def single(given: Any, context: Context) -> Any:
            (answer,) = [each async for each in self._said(method.name, given, context)]
            return answer

        async def stream(given: Any, context: Context) -> AsyncIterator[Any]:
            if method.client_streaming:
                await context.send_initial_metadata(())
                given = [each async for each in given]
            async for each in self._said(method.name, given, context):
                yield each

        kind = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        return kind(
            stream if method.server_streaming else single,
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    async def _said(self, name: str, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls.append((name, request))
        answer = self.answers.get(name, grpc.StatusCode.UNIMPLEMENTED)
        if callable(answer) and not isinstance(answer, grpc.StatusCode):
            answer = answer(request)
        for each in answer if isinstance(answer, list) else [answer]:
            if isinstance(each, Refusal):
                await context.abort_with_status(grpc_status(status_from_refusal(each)))
            if isinstance(each, grpc.StatusCode):
                await context.abort(each, "by the script")
            yield each

    def _health(self) -> grpc.GenericRpcHandler:
        async def check(_: bytes, __: Context) -> bytes:
            return b"\x08\x01" if self.serving else b"\x08\x02"

        handler = grpc.unary_unary_rpc_method_handler(check)
        return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})
