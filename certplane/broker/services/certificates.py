# ruff: noqa: N802 - methods bear the names of the proto file
"""`CertificateService`: orders and certificates of the caller.

A thin shell: a request is checked and turned into values, the story (`certplane.broker.issuance`) decides and acts, its
result is turned into messages. The edge has authenticated the caller and maps what is raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import grpc
from google.protobuf.duration_pb2 import Duration

from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.issuance.commands import IssueCommand, IssueResult
from certplane.broker.model import CertificateRecord, Order
from certplane.broker.ports import CertificateQuery, RenewalTimes, StoredRenewalTimes
from certplane.broker.services.calls import current_call
from certplane.broker.services.convert import (
    certificate_message,
    cursor_from_token,
    invalid_request,
    order_message,
    page_size,
    required,
    required_id,
    revocation_reason,
    token_from_cursor,
    wait_of,
)
from certplane.runtime.clock import Clock
from certplane.runtime.remembered import Remembered
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_PAGE_BYTES: Final = 48 * 1024
"""A page ends here, whatever its size: the rest of the 64 KiB of a message is room for one more certificate's names."""

_PAGE_CERTIFICATES: Final = 200
"""As many as have room in a page, at some 250 bytes each: what is read beyond that is thrown away."""

_SOURCES: Final = {
    "": pb.CERTIFICATE_SOURCE_UNSPECIFIED,
    "cache": pb.CERTIFICATE_SOURCE_CACHE,
    "order": pb.CERTIFICATE_SOURCE_ORDER,
}


_KEPT: Final = 1024
_KEPT_OCTETS: Final = 16 << 20
"""Answers from the cache that were given last, and what they take as messages: twice what is sent, about."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A message, which nobody changes, and all that it was made of."""

    order: Order
    record: CertificateRecord
    renew_time: datetime
    message: pb.IssueCertificateResponse


class CertificateServicer(certificate_pb2_grpc.CertificateServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["CertificateService"].full_name

    def __init__(self, authority: RegistrationAuthority, clock: Clock, renewals: RenewalTimes | None = None) -> None:
        self._authority = authority
        self._clock = clock
        self._renewals = renewals or StoredRenewalTimes()
        self._answers: Remembered[str, _Answer] = Remembered(
            entries=_KEPT, octets=_KEPT_OCTETS, of_one_owner=_KEPT // 8
        )

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        certificate_pb2_grpc.add_CertificateServiceServicer_to_server(self, server)

    async def IssueCertificate(
        self, request: pb.IssueCertificateRequest, context: RpcContext
    ) -> pb.IssueCertificateResponse:
        """A certificate for the CSR, from the cache or by an order."""
        caller, request_id = current_call()
        command = IssueCommand(
            request_id=request_id,
            profile=required("profile", request.profile),
            csr_pem=_csr(request.csr_pem),
            wait=wait_of(_wait_duration(request), context.time_remaining()),
        )
        result = await self._authority.issue(caller, command)
        return self._issued(result)

    async def RenewCertificate(
        self, request: pb.RenewCertificateRequest, context: RpcContext
    ) -> pb.RenewCertificateResponse:
        """A certificate that takes the place of another."""
        caller, request_id = current_call()
        command = IssueCommand(
            request_id=request_id,
            profile=required("profile", request.profile),
            csr_pem=_csr(request.csr_pem),
            wait=wait_of(_wait_duration(request), context.time_remaining()),
            replaces_certificate_id=required_id("certificate_id", request.certificate_id),
        )
        result = await self._authority.issue(caller, command)
        return pb.RenewCertificateResponse(
            order=order_message(result.order),
            certificate=self._certificate(result),
            source=_SOURCES[result.source],
        )

    async def GetOrder(self, request: pb.GetOrderRequest, _context: RpcContext) -> pb.GetOrderResponse:
        """An order as it is now."""
        caller, request_id = current_call()
        order_id = required_id("order_id", request.order_id)
        result = await self._authority.get_order(caller, request_id, order_id)
        return pb.GetOrderResponse(order=order_message(result.order), certificate=self._certificate(result))

    async def WatchOrder(
        self, request: pb.WatchOrderRequest, _context: RpcContext
    ) -> AsyncIterator[pb.WatchOrderResponse]:
        """An order, now and after each change."""
        caller, request_id = current_call()
        order_id = required_id("order_id", request.order_id)
        async for result in self._authority.watch_order(caller, request_id, order_id):
            yield pb.WatchOrderResponse(order=order_message(result.order), certificate=self._certificate(result))

    async def GetCertificate(
        self, request: pb.GetCertificateRequest, _context: RpcContext
    ) -> pb.GetCertificateResponse:
        """A certificate with its chain."""
        caller, request_id = current_call()
        certificate_id = required_id("certificate_id", request.certificate_id)
        record = await self._authority.get_certificate(caller, request_id, certificate_id)
        return pb.GetCertificateResponse(certificate=self._message(record))

    async def ListCertificates(
        self, request: pb.ListCertificatesRequest, _context: RpcContext
    ) -> pb.ListCertificatesResponse:
        """A page of the caller's certificates, newest first, cut where the message would become too large."""
        caller, _ = current_call()
        size = min(page_size(request.page_size), _PAGE_CERTIFICATES)
        query = CertificateQuery(
            identity=caller.name,
            profile=required("profile", request.profile) if request.profile else "",
            usable_at=None if request.include_unusable else self._clock.now(),
            after=cursor_from_token(request.page_token),
            limit=size + 1,  # one more tells whether there is another page
        )
        records = await self._authority.list_certificates(caller, query)
        response = pb.ListCertificatesResponse()
        room = _PAGE_BYTES
        for record in records[:size]:
            message = self._message(record, with_pem=False)
            room -= message.ByteSize()
            if room < 0 and response.certificates:
                break
            response.certificates.append(message)
        if len(response.certificates) < len(records):
            response.next_page_token = token_from_cursor(response.certificates[-1].certificate_id)
        return response

    async def RevokeCertificate(
        self, request: pb.RevokeCertificateRequest, _context: RpcContext
    ) -> pb.RevokeCertificateResponse:
        """Revoke a certificate."""
        caller, request_id = current_call()
        certificate_id = required_id("certificate_id", request.certificate_id)
        reason = revocation_reason(request.reason)
        record = await self._authority.revoke(caller, request_id, certificate_id, reason)
        return pb.RevokeCertificateResponse(certificate=self._message(record, with_pem=False))

    def _issued(self, result: IssueResult) -> pb.IssueCertificateResponse:
        """The answer; one from the cache is made once for as long as it is the same.

        Whether it is depends on values that never change in themselves, so that the same objects make the same message.
        """
        record = result.certificate
        if record is None or result.source != "cache":
            return _issue_response(result, self._certificate(result))
        renew_time = self._renewals.renew_time(record)
        kept = self._answers.get(record.certificate_id)
        if kept is None or kept.record is not record or kept.order is not result.order or kept.renew_time != renew_time:
            message = _issue_response(result, certificate_message(record, renew_time=renew_time))
            kept = _Answer(result.order, record, renew_time, message)
            self._answers.put(record.certificate_id, kept, 2 * message.ByteSize(), record.identity)
        return kept.message

    def _certificate(self, result: IssueResult) -> pb.Certificate | None:
        return None if result.certificate is None else self._message(result.certificate)

    def _message(self, record: CertificateRecord, *, with_pem: bool = True) -> pb.Certificate:
        return certificate_message(record, renew_time=self._renewals.renew_time(record), with_pem=with_pem)


def _issue_response(result: IssueResult, certificate: pb.Certificate | None) -> pb.IssueCertificateResponse:
    return pb.IssueCertificateResponse(
        order=order_message(result.order), certificate=certificate, source=_SOURCES[result.source]
    )


def _csr(pem: str) -> str:
    if not pem:
        raise invalid_request("csr_pem", "is required")
    return pem


def _wait_duration(request: pb.IssueCertificateRequest | pb.RenewCertificateRequest) -> Duration | None:
    return request.wait_duration if request.HasField("wait_duration") else None
