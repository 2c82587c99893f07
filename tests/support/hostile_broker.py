"""A broker that isn't one of ours: it answers like a good one, and then twists what it says."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from certplane.rpc.credentials import KeyPair, ServerTls
from certplane.v1 import certificate_pb2_grpc, enrollment_pb2_grpc, renewal_pb2_grpc
from tests.support.broker_server import BrokerServer, _Certificates, _Enrollment
from tests.support.renewal_server import RenewalServer

Twist = Callable[[Any], Any]
"""Changes a message that is about to be sent, by its type; raises a `Failure` to end the call instead."""


def as_it_is(message: Any) -> Any:
    """Twists nothing."""
    return message


class Failure(Exception):  # noqa: N818 - what a twist wants, not what went wrong
    """End the call with this status and these words."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.code = code
        self.details = details


class _Twisting(grpc.aio.ServerInterceptor):
    def __init__(self, server: HostileBroker) -> None:
        self._server = server

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler.unary_unary is not None:
            return handler._replace(unary_unary=self._unary(handler.unary_unary))
        if handler.stream_stream is not None:
            return handler._replace(stream_stream=self._streaming(handler.stream_stream))
        return handler

    def _unary(self, behaviour: Any) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            message = await behaviour(request, context)
            try:
                return self._server.twist(message)
            except Failure as failure:
                await context.abort(failure.code, failure.details)

        return answer

    def _streaming(self, behaviour: Any) -> Any:
        async def answers(requests: Any, context: Any) -> AsyncIterator[Any]:
            async for message in behaviour(requests, context):
                try:
                    yield self._server.twist(message)
                except Failure as failure:
                    await context.abort(failure.code, failure.details)

        return answers


@dataclass
class HostileBroker(BrokerServer):
    """All three services of a host, on one port with mTLS."""

    twist: Twist = as_it_is
    renewals: RenewalServer = field(default_factory=RenewalServer)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[HostileBroker]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)], interceptors=[_Twisting(self)])
        certificate_pb2_grpc.add_CertificateServiceServicer_to_server(_Certificates(self), server)
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrollment(self), server)
        renewal_pb2_grpc.add_RenewalServiceServicer_to_server(self.renewals, server)
        tls = ServerTls(KeyPair(self.credential.key_pem, self.credential.chain_pem), self.agent_ca.pem)
        self.port = server.add_secure_port("127.0.0.1:0", tls.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
