# ruff: noqa: N802 - methods bear the names of the proto file
"""`FleetService`: which hosts there are, what they hold, renewals for many of them, and which brokers there are."""

from __future__ import annotations

from typing import Any

import grpc

from certplane.broker.fleet.followed import FollowedRequests
from certplane.broker.fleet.forgetting import HostForgetting, HostStaysError
from certplane.broker.fleet.requests import RenewalRequest, RenewalRequests
from certplane.broker.fleet.summaries import FleetSummaries
from certplane.broker.fleet.view import FleetView
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.members.view import BrokersView
from certplane.broker.services.brokers_convert import brokers_page
from certplane.broker.services.calls import current_call
from certplane.broker.services.convert import (
    certificate_message,
    cursor_from_token,
    invalid_request,
    page_size,
    required,
    required_id,
    revocation_reason,
    token_from_cursor,
)
from certplane.broker.services.filter_convert import filter_of
from certplane.broker.services.fleet_convert import (
    add_certificates,
    add_worst,
    held_up_message,
    host_message,
    selection_of,
    spread_of,
    text_of,
)
from certplane.broker.services.fleet_lists import FleetLists
from certplane.broker.services.progress_convert import place_from_token, progress_response
from certplane.broker.services.summary_convert import period_of, summary_message
from certplane.rpc.times import timestamp
from certplane.v1 import fleet_pb2 as pb
from certplane.v1 import fleet_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(fleet_pb2_grpc.FleetServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["FleetService"].full_name

    def __init__(
        self,
        view: FleetView,
        requests: RenewalRequests,
        brokers: BrokersView,
        *,
        authority: RegistrationAuthority,
        followed: FollowedRequests,
        forgetting: HostForgetting,
        summaries: FleetSummaries,
        lists: FleetLists,
    ) -> None:
        self._view = view
        self._followed = followed
        self._forgetting = forgetting
        self._summaries = summaries
        self._lists = lists
        self._authority = authority
        self._brokers = brokers
        self._requests = requests

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(self, server)

    async def ListHosts(self, request: pb.ListHostsRequest, _context: RpcContext) -> pb.ListHostsResponse:
        """A page of hosts and services."""
        return await self._lists.hosts(request)

    async def GetHost(self, request: pb.GetHostRequest, _context: RpcContext) -> pb.GetHostResponse:
        """One host, with a page of its certificates."""
        after = cursor_from_token(request.page_token)
        view = await self._view.host(required("host", request.host))
        message = host_message(view)
        certificates = [status for status in view.record.certificates if status.name > after]
        count = add_certificates(message, certificates, view.health)
        more = certificates[count - 1].name if 0 < count < len(certificates) else ""
        return pb.GetHostResponse(host=message, next_page_token=token_from_cursor(more))

    async def RequestRenewal(
        self, request: pb.RequestRenewalRequest, _context: RpcContext
    ) -> pb.RequestRenewalResponse:
        """Plan earlier renewals for a selection; durable when it is answered."""
        caller, request_id = current_call()
        if not request.HasField("selection"):
            raise invalid_request("selection", "is required")
        order = RenewalRequest(
            selection=selection_of(request.selection, self._view),
            reason=text_of("reason", request.reason),
            request_id=request_id,
            chosen_id=bool(request.request_id),
            spread=spread_of(request.spread_duration if request.HasField("spread_duration") else None),
            dry_run=request.dry_run,
        )
        requested, hosts = await self._requests.request(caller, order)
        last = requested.last_renew_time
        return pb.RequestRenewalResponse(
            held_up=map(held_up_message, requested.held_up),
            held_up_count=requested.held_up_count,
            certificate_count=requested.certificate_count,
            changed_count=requested.changed_count,
            connected_host_count=await self._view.count_connected(hosts),
            connected_service_count=await self._view.count_watching(hosts),
            last_renew_time=None if last is None else timestamp(last),
            renewal_request_id=requested.request_id,
        )

    async def ListBrokers(self, request: pb.ListBrokersRequest, _context: RpcContext) -> pb.ListBrokersResponse:
        """A page of brokers; it ends where another one would be too much for a message."""
        after, most = cursor_from_token(request.page_token), page_size(request.page_size)
        response, last = brokers_page(await self._brokers.read(), after=after, most=most)
        response.next_page_token = token_from_cursor(last)
        return response

    async def SummarizeFleet(
        self, request: pb.SummarizeFleetRequest, _context: RpcContext
    ) -> pb.SummarizeFleetResponse:
        """The five questions of a night."""
        wanted = filter_of(request.filter)
        period = period_of(request.period if request.HasField("period") else None)
        return summary_message(await self._summaries.read(wanted, period))

    async def ListFleetCertificates(
        self, request: pb.ListFleetCertificatesRequest, _context: RpcContext
    ) -> pb.ListFleetCertificatesResponse:
        """A page of certificates."""
        return await self._lists.certificates(request)

    async def GetRenewalRequest(
        self, request: pb.GetRenewalRequestRequest, _context: RpcContext
    ) -> pb.GetRenewalRequestResponse:
        """How far a renewal has come, with a page of what it was for."""
        caller, _ = current_call()
        renewal_request_id = required_id("renewal_request_id", request.renewal_request_id)
        after, most = place_from_token(request.page_token), page_size(request.page_size)
        progress = await self._followed.follow(renewal_request_id, caller.name)
        return progress_response(progress, after=after, most=most)

    async def ForgetHost(self, request: pb.ForgetHostRequest, _context: RpcContext) -> pb.ForgetHostResponse:
        """Remove what is known of a host that is gone."""
        caller, request_id = current_call()
        name, why = required("host", request.host), text_of("reason", request.reason)
        try:
            forgotten = await self._forgetting.forget(caller, request_id, name, why)
        except HostStaysError as error:
            raise invalid_request("host", f"can't be forgotten: {error}") from error
        message = host_message(forgotten.view)
        add_worst(message, forgotten.view)
        return pb.ForgetHostResponse(host=message, valid_certificate_count=forgotten.valid_certificates)

    async def RevokeCertificate(
        self, request: pb.FleetServiceRevokeCertificateRequest, _context: RpcContext
    ) -> pb.FleetServiceRevokeCertificateResponse:
        """Revoke a certificate of any holder."""
        caller, request_id = current_call()
        certificate_id = required_id("certificate_id", request.certificate_id)
        reason = revocation_reason(request.revocation_reason, field="revocation_reason")
        why = text_of("reason", request.reason)
        revoked = await self._authority.revoke_of_anybody(caller, request_id, certificate_id, reason, why)
        record = revoked.certificate
        return pb.FleetServiceRevokeCertificateResponse(
            certificate=certificate_message(record, with_pem=False),
            identity=record.identity,
            already_revoked=revoked.was_revoked,
            holder_told=not self._view.why_none(record.identity),
        )
