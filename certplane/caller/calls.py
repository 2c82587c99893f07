"""The calls of hosts and services at a broker, one method each: values in, values out.

All of them are safe to repeat, and are repeated (`connection`). What they raise is `Connection.answer`'s, and
`OperationError` where the broker's message is invalid.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.caller.connection import Connection, new_request_id
from certplane.caller.convert import certificate_of, identity_of, order_of
from certplane.caller.values import Certificate, Identity, Order, RevocationReason
from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc

_PAGE: Final = 100
"""Certificates of a page: without their PEM they fit into a message."""


class BrokerCalls:
    """Calls over one connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def identity(self) -> Identity:
        """Whom the broker takes the caller for, and what policy gives it."""
        request = enrollment_pb2.GetIdentityRequest(request_id=new_request_id())
        return identity_of(
            await self._connection.answer(
                lambda channel, seconds: enrollment_pb2_grpc.EnrollmentServiceStub(channel).GetIdentity(
                    request, timeout=seconds
                )
            )
        )

    async def issue(
        self, *, profile: str, csr_pem: str, replaces: str, wait: timedelta, timeout: timedelta | None = None
    ) -> Order:
        """Ask for a certificate; `replaces` is the id of the one that it takes the place of, empty for a first one."""
        request: Any
        if replaces:
            request = certificate_pb2.RenewCertificateRequest(
                request_id=new_request_id(), certificate_id=replaces, profile=profile, csr_pem=csr_pem
            )
        else:
            request = certificate_pb2.IssueCertificateRequest(
                request_id=new_request_id(), profile=profile, csr_pem=csr_pem
            )
        request.wait_duration.FromTimedelta(wait)

        async def ask(channel: grpc.aio.Channel, seconds: float) -> Any:
            stub: Any = _certificates(channel)
            call = stub.RenewCertificate if replaces else stub.IssueCertificate
            return await call(request, timeout=seconds)

        return _order(await self._connection.answer(ask, timeout=timeout, wait=wait))

    async def order(self, order_id: str) -> Order:
        """An order of the caller."""
        request = certificate_pb2.GetOrderRequest(request_id=new_request_id(), order_id=order_id)
        return _order(
            await self._connection.answer(
                lambda channel, seconds: _certificates(channel).GetOrder(request, timeout=seconds)
            )
        )

    async def watch_order(self, order_id: str, timeout: timedelta | None = None) -> AsyncGenerator[Order, None]:
        """An order as it is, and after each change, until it has ended or the time is over.

        A lost connection ends it with its error.
        """
        seconds = None if timeout is None else timeout.total_seconds()
        request = certificate_pb2.WatchOrderRequest(request_id=new_request_id(), order_id=order_id)
        states = self._connection.stream(lambda channel: _certificates(channel).WatchOrder(request, timeout=seconds))
        async with aclosing(states):
            async for message in states:
                yield _order(message)

    async def certificate(self, certificate_id: str) -> Certificate:
        """A certificate of the caller, with its PEM."""
        request = certificate_pb2.GetCertificateRequest(request_id=new_request_id(), certificate_id=certificate_id)
        answer = await self._connection.answer(
            lambda channel, seconds: _certificates(channel).GetCertificate(request, timeout=seconds)
        )
        return certificate_of(answer.certificate)

    async def certificates(self, *, profile: str, include_unusable: bool) -> AsyncGenerator[Certificate, None]:
        """The caller's certificates, newest first, without PEM, page by page as they are asked for."""
        request = certificate_pb2.ListCertificatesRequest(
            request_id=new_request_id(), profile=profile, include_unusable=include_unusable, page_size=_PAGE
        )
        while True:
            page = await self._connection.answer(
                lambda channel, seconds: _certificates(channel).ListCertificates(request, timeout=seconds)
            )
            for certificate in page.certificates:
                yield certificate_of(certificate)
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def revoke(self, certificate_id: str, reason: RevocationReason) -> Certificate:
        """Revoke a certificate of the caller."""
        request = certificate_pb2.RevokeCertificateRequest(
            request_id=new_request_id(),
            certificate_id=certificate_id,
            reason=certificate_pb2.RevocationReason.Value(f"REVOCATION_REASON_{reason.value}"),
        )
        answer = await self._connection.answer(
            lambda channel, seconds: _certificates(channel).RevokeCertificate(request, timeout=seconds)
        )
        return certificate_of(answer.certificate)


def _certificates(channel: grpc.aio.Channel) -> Any:
    return certificate_pb2_grpc.CertificateServiceStub(channel)


def _order(message: Any) -> Order:
    return order_of(message.order, message.certificate if message.HasField("certificate") else None)
