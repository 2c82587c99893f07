"""The broker's gRPC interface over a `FakeBroker`, with mTLS on loopback: for the agent's side of the link."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import grpc
from cryptography import x509

from certplane.agent.model import OrderView
from certplane.errors import RefusalError
from certplane.rpc.credentials import KeyPair, ServerTls
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.sandbox.certificates import CertificateAuthority, Credential
from certplane.v1 import certificate_pb2 as certificate
from certplane.v1 import certificate_pb2_grpc, enrollment_pb2_grpc
from certplane.v1 import enrollment_pb2 as enrollment
from tests.fakes.agent_broker import FakeBroker

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class BrokerServer:
    """A running server: `calls` has each call's method, request and the serial of the certificate it came with."""

    broker: FakeBroker
    agent_ca: CertificateAuthority
    credential: Credential
    port: int = 0
    calls: list[tuple[str, Any, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BrokerServer]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        certificate_pb2_grpc.add_CertificateServiceServicer_to_server(_Certificates(self), server)
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(_Enrollment(self), server)
        tls = ServerTls(KeyPair(self.credential.key_pem, self.credential.chain_pem), self.agent_ca.pem)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", tls.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)

    async def answer(self, method: str, request: Any, context: Context, work: Callable[[], Awaitable[T]]) -> T:
        pem = context.auth_context()["x509_pem_cert"][0]
        self.calls.append((method, request, format(x509.load_pem_x509_certificate(pem).serial_number, "x")))
        try:
            return await work()
        except RefusalError as error:
            status = status_from_refusal(error.refusal, request_id=request.request_id)
            await context.abort_with_status(grpc_status(status))
            raise AssertionError("abort raises") from error


class _Certificates(certificate_pb2_grpc.CertificateServiceServicer):
    def __init__(self, server: BrokerServer) -> None:
        self._server = server

    async def IssueCertificate(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        view = await self._issue("IssueCertificate", request, context, replaces="")
        return certificate.IssueCertificateResponse(order=_order(view), certificate=_certificate(view))

    async def RenewCertificate(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        view = await self._issue("RenewCertificate", request, context, replaces=request.certificate_id)
        return certificate.RenewCertificateResponse(order=_order(view), certificate=_certificate(view))

    async def _issue(self, method: str, request: Any, context: Context, *, replaces: str) -> OrderView:
        return await self._server.answer(
            method,
            request,
            context,
            lambda: self._server.broker.issue(
                profile=request.profile,
                csr_pem=request.csr_pem,
                replaces_certificate_id=replaces,
                wait=request.wait_duration.ToTimedelta(),
            ),
        )

    async def GetCertificate(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        broker, wanted = self._server.broker, request.certificate_id
        revoke_time = await self._server.answer("GetCertificate", request, context, lambda: broker.revoke_time(wanted))
        found = certificate.Certificate(certificate_id=wanted, revoke_time=revoke_time)
        return certificate.GetCertificateResponse(certificate=found)

    async def WatchOrder(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        states = self._server.broker.watch_order(request.order_id, timedelta(days=1))
        while True:
            view = await self._server.answer("WatchOrder", request, context, lambda: anext(states, None))
            if view is None:
                return
            yield certificate.WatchOrderResponse(order=_order(view), certificate=_certificate(view))


class _Enrollment(enrollment_pb2_grpc.EnrollmentServiceServicer):
    def __init__(self, server: BrokerServer) -> None:
        self._server = server

    async def GetIdentity(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        view = await self._server.answer("GetIdentity", request, context, self._server.broker.get_identity)
        identity = enrollment.Identity(
            name=view.name,
            kind=enrollment.Identity.KIND_HOST,
            label=view.label,
            serial_number=view.serial_number,
            expire_time=view.expire_time,
            profiles=view.profiles,
            contest_time=view.contest_time,
        )
        return enrollment.GetIdentityResponse(
            identity=identity,
            broker_time=view.broker_time,
            broker_version=view.broker_version,
            granted_profiles=[
                enrollment.GrantedProfile(name=name, dns_names=names) for name, names in view.profile_names.items()
            ],
        )

    async def ReportEnrollment(self, request: Any, context: Context) -> Any:  # noqa: N802 - the proto's name
        broker = self._server.broker
        await self._server.answer(
            "ReportEnrollment", request, context, lambda: broker.report_enrollment(request.identity_serial_number)
        )
        return enrollment.ReportEnrollmentResponse()


def _order(view: OrderView) -> certificate.Order:
    order = certificate.Order(
        order_id=view.order_id, state=certificate.Order.State.Value(f"STATE_{view.state}"), retry_time=view.retry_time
    )
    if view.error is not None:
        order.error.CopyFrom(status_from_refusal(view.error))
    return order


def _certificate(view: OrderView) -> certificate.Certificate | None:
    issued = view.certificate
    if issued is None:
        return None
    return certificate.Certificate(
        certificate_id=issued.certificate_id,
        certificate_pem=issued.certificate_pem,
        chain_pem=issued.chain_pem,
        renew_time=issued.renew_time,
    )
