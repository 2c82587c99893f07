"""The broker's operator calls, one method each. Messages go in and out as they are: `certplane.ctl.show` shows them.

Those about rollouts, incidents and budgets are in `campaign_calls`, and what all have in common in `calls`. Lists come
page by page, so that a long one is shown as it comes and a page has its totals. All that a method raises is
`Connection`'s.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import grpc

from certplane.ctl.calls import request_id
from certplane.ctl.campaign_calls import CampaignCalls
from certplane.errors import OperationError, Reason, RefusalError
from certplane.v1 import (
    audit_pb2,
    audit_pb2_grpc,
    broker_pb2,
    broker_pb2_grpc,
    enrollment_pb2,
    enrollment_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    order_pb2,
    order_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    renewal_pb2,
    renewal_pb2_grpc,
)

_PIECE: Final = 12_000
"""Characters of a policy's text in a message, which has room for as many of four octets each."""
_LONG_SECONDS: Final = 180.0
"""A large policy takes some seconds to be read, and others may be planning theirs; a reload reads many files."""


_Fleet: Final = fleet_pb2_grpc.FleetServiceStub
_Renewal: Final = renewal_pb2_grpc.RenewalServiceStub
_Order: Final = order_pb2_grpc.OrderServiceStub
_Audit: Final = audit_pb2_grpc.AuditServiceStub
_Policy: Final = policy_pb2_grpc.PolicyServiceStub
_Broker: Final = broker_pb2_grpc.BrokerServiceStub
_Enrollment: Final = enrollment_pb2_grpc.EnrollmentServiceStub


class Client(CampaignCalls):
    """Calls of one identity at the brokers of one context. An async context manager; on one event loop."""

    # The fleet.

    async def hosts(self, request: fleet_pb2.ListHostsRequest) -> AsyncGenerator[fleet_pb2.ListHostsResponse, None]:
        """The hosts that match, page by page."""
        async for page in self._pages(request, lambda channel: _Fleet(channel).ListHosts):
            yield page

    async def require_hosts(self, names: Iterable[str]) -> None:
        """Whether the fleet has all of these; else a monitor of a host that was mistyped, or is gone, would be content.

        Raises:
            RefusalError: HOST_NOT_FOUND.
        """
        for name in names:
            try:
                await self.host(name)
            except RefusalError as error:
                if error.refusal.reason is not Reason.HOST_NOT_FOUND:
                    raise
                remedy = "compare with `certplanectl fleet`"
                raise OperationError(
                    f"--check: there is no host or service {name} in the fleet", remedy=remedy
                ) from error

    async def host(self, name: str) -> renewal_pb2.Host:
        """One host by its identity's name or its label in the policy, with all its certificates."""
        request = fleet_pb2.GetHostRequest(request_id=request_id(), host=name)
        host: renewal_pb2.Host | None = None
        while True:
            answer = await self._one(request, lambda channel: _Fleet(channel).GetHost)
            if host is None:
                host = answer.host
            else:
                host.certificates.extend(answer.host.certificates)
            if not answer.next_page_token:
                return host
            request.page_token = answer.next_page_token

    async def summarize(self, request: fleet_pb2.SummarizeFleetRequest) -> fleet_pb2.SummarizeFleetResponse:
        """What an operator asks at night."""
        return await self._one(request, lambda channel: _Fleet(channel).SummarizeFleet)

    async def certificates(
        self, request: fleet_pb2.ListFleetCertificatesRequest
    ) -> AsyncGenerator[fleet_pb2.ListFleetCertificatesResponse, None]:
        """Certificates of hosts and services, page by page."""
        async for page in self._pages(request, lambda channel: _Fleet(channel).ListFleetCertificates):
            yield page

    async def request_renewal(self, request: fleet_pb2.RequestRenewalRequest) -> fleet_pb2.RequestRenewalResponse:
        """Ask for renewals. Safe to repeat with the same `request_id`."""
        return await self._one(request, lambda channel: _Fleet(channel).RequestRenewal)

    async def renewal_request(self, renewal_request_id: str) -> fleet_pb2.GetRenewalRequestResponse:
        """How far a renewal has come, with all its certificates."""
        request = fleet_pb2.GetRenewalRequestRequest(renewal_request_id=renewal_request_id)
        whole: fleet_pb2.GetRenewalRequestResponse | None = None
        async for page in self._pages(request, lambda channel: _Fleet(channel).GetRenewalRequest):
            if whole is None:
                whole = page
            else:
                whole.items.extend(page.items)
        assert whole is not None
        return whole

    async def forget(self, host: str, reason: str) -> fleet_pb2.ForgetHostResponse:
        """Have the broker forget a host that is gone."""
        request = fleet_pb2.ForgetHostRequest(host=host, reason=reason)
        return await self._one(request, lambda channel: _Fleet(channel).ForgetHost)

    async def revoke(
        self, request: fleet_pb2.FleetServiceRevokeCertificateRequest
    ) -> fleet_pb2.FleetServiceRevokeCertificateResponse:
        """Revoke a certificate. Safe to repeat."""
        return await self._one(request, lambda channel: _Fleet(channel).RevokeCertificate)

    async def watch(self, hosts: Sequence[str]) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        """The fleet as it is, and each change, until the broker ends it: the first failure is raised."""
        request = renewal_pb2.WatchRenewalsRequest(request_id=request_id(), hosts=hosts)
        async for message in self._connection.stream(lambda channel: _Renewal(channel).WatchRenewals(request)):
            yield message

    # Orders and audit events.

    async def orders(self, request: order_pb2.ListOrdersRequest) -> AsyncGenerator[order_pb2.ListOrdersResponse, None]:
        """Orders, open ones first, page by page."""
        async for page in self._pages(request, lambda channel: _Order(channel).ListOrders):
            yield page

    async def watch_orders(self, wanted: order_pb2.OrderFilter) -> AsyncGenerator[order_pb2.WatchOrdersResponse, None]:
        """Open orders and then each change of any, until the broker ends it."""
        request = order_pb2.WatchOrdersRequest(request_id=request_id(), filter=wanted)
        async for message in self._connection.stream(lambda channel: _Order(channel).WatchOrders(request)):
            yield message

    async def audit_events(
        self, request: audit_pb2.ListAuditEventsRequest
    ) -> AsyncGenerator[audit_pb2.ListAuditEventsResponse, None]:
        """Audit events, page by page; a page may be empty without being the last."""
        async for page in self._pages(request, lambda channel: _Audit(channel).ListAuditEvents):
            yield page

    async def tail_audit(self, wanted: audit_pb2.AuditFilter, past: int) -> AsyncGenerator[audit_pb2.AuditEvent, None]:
        """The last events and then each new one, until the broker ends it; `past` -1 is none of the past."""
        request = audit_pb2.TailAuditEventsRequest(request_id=request_id(), filter=wanted, past_count=past)
        async for message in self._connection.stream(lambda channel: _Audit(channel).TailAuditEvents(request)):
            yield message.event

    async def verify_audit(self) -> AsyncGenerator[audit_pb2.VerifyAuditLogResponse, None]:
        """Progress, findings and the result of a check of the whole log."""
        request = audit_pb2.VerifyAuditLogRequest(request_id=request_id())
        async for message in self._connection.stream(lambda channel: _Audit(channel).VerifyAuditLog(request)):
            yield message

    async def export_audit(self, request: audit_pb2.ExportAuditLogRequest) -> AsyncGenerator[str, None]:
        """Whole lines of the audit log."""
        request.request_id = request_id()
        async for message in self._connection.stream(lambda channel: _Audit(channel).ExportAuditLog(request)):
            yield message.lines

    # The policy.

    async def policy(self, *, with_text: bool, policy_hash: str = "") -> tuple[policy_pb2.LoadedPolicy, str]:
        """What is known of the policy in force, or of an earlier one, and its text if it is wanted."""
        request = policy_pb2.GetPolicyRequest(
            request_id=request_id(), without_text=not with_text, policy_hash=policy_hash
        )
        loaded, pieces = policy_pb2.LoadedPolicy(), []
        async for message in self._connection.stream(
            lambda channel: _Policy(channel).GetPolicy(request, timeout=self._seconds)
        ):
            loaded.MergeFrom(message.policy)
            pieces.append(message.policy_text)
        return loaded, "".join(pieces)

    async def plan_policy(self, content: bytes) -> policy_pb2.PlanPolicyResponse:
        """What would come of a text, the answer's messages put together."""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            problem = policy_pb2.PolicyProblem(message=f"is not UTF-8: {error.reason}", remedy="save it as UTF-8")
            return policy_pb2.PlanPolicyResponse(problems=[problem])
        return await self._connection.answer(lambda channel: _plan(channel, text))

    async def reload_policy(self, *, confirm: bool) -> policy_pb2.ReloadPolicyResponse:
        """Have the policy file read again. Safe to repeat."""
        request = policy_pb2.ReloadPolicyRequest(confirm=confirm)
        return await self._one(request, lambda channel: _Policy(channel).ReloadPolicy, seconds=_LONG_SECONDS)

    async def policy_versions(self) -> list[policy_pb2.PolicyVersion]:
        """The policies that were in force, the newest first."""
        versions: list[policy_pb2.PolicyVersion] = []
        request = policy_pb2.ListPolicyVersionsRequest(page_size=100)
        async for page in self._pages(request, lambda channel: _Policy(channel).ListPolicyVersions):
            versions += page.versions
        return versions

    # The brokers.

    async def brokers(self) -> fleet_pb2.ListBrokersResponse:
        """All brokers, by their start, and in what they differ."""
        brokers: list[fleet_pb2.Broker] = []
        async for page in self._pages(fleet_pb2.ListBrokersRequest(), lambda channel: _Fleet(channel).ListBrokers):
            brokers += page.brokers
            answer = page
        del answer.brokers[:]
        answer.brokers.extend(brokers)
        return answer

    async def reload_brokers(
        self, broker_ids: Sequence[str], *, everywhere: bool, confirm: bool
    ) -> broker_pb2.ReloadBrokersResponse:
        """Have brokers read their files again. Safe to repeat."""
        request = broker_pb2.ReloadBrokersRequest(broker_ids=broker_ids, all=everywhere, confirm=confirm)
        return await self._one(request, lambda channel: _Broker(channel).ReloadBrokers, seconds=_LONG_SECONDS)

    async def drain_broker(self, broker_id: str, reason: str, *, undo: bool) -> broker_pb2.DrainBrokerResponse:
        """Take a broker out of service, or back. Safe to repeat."""
        request = broker_pb2.DrainBrokerRequest(broker_id=broker_id, reason=reason, undo=undo)
        return await self._one(request, lambda channel: _Broker(channel).DrainBroker)

    async def plan_trust_bundle(self, bundle_pem: str) -> broker_pb2.PlanTrustBundleResponse:
        """What would come of an agent CA bundle."""
        request = broker_pb2.PlanTrustBundleRequest(bundle_pem=bundle_pem)
        return await self._one(request, lambda channel: _Broker(channel).PlanTrustBundle, seconds=_LONG_SECONDS)

    async def identity(self) -> enrollment_pb2.GetIdentityResponse:
        """Who the broker takes this caller for."""
        request = enrollment_pb2.GetIdentityRequest()
        return await self._one(request, lambda channel: _Enrollment(channel).GetIdentity)

    async def bootstrap_token(
        self, request: enrollment_pb2.CreateBootstrapTokenRequest
    ) -> enrollment_pb2.CreateBootstrapTokenResponse:
        """Another one-time token."""
        return await self._one(request, lambda channel: _Enrollment(channel).CreateBootstrapToken)

    async def deny(self, request: enrollment_pb2.DenyIdentityRequest) -> enrollment_pb2.DenyIdentityResponse:
        """Shut an identity out. Safe to repeat."""
        return await self._one(request, lambda channel: _Enrollment(channel).DenyIdentity)

    async def is_serving(self) -> bool:
        """Whether the broker's own word is that it serves (grpc.health.v1, of the whole server)."""

        # By hand: the message is a number, and operators' machines need no package for it.
        def check(channel: grpc.aio.Channel) -> Awaitable[bytes]:
            ask: Callable[..., Awaitable[bytes]] = channel.unary_unary("/grpc.health.v1.Health/Check")
            return ask(b"", timeout=self._seconds)

        answer = await self._connection.answer(check)
        return answer == b"\x08\x01"  # HealthCheckResponse.status = SERVING


async def _plan(channel: grpc.aio.Channel, text: str) -> policy_pb2.PlanPolicyResponse:
    whole = policy_pb2.PlanPolicyResponse()
    stub: Any = _Policy(channel)
    call = stub.PlanPolicy(timeout=_LONG_SECONDS)
    hello = policy_pb2.PlanPolicyRequest.Hello(request_id=request_id())
    await call.write(policy_pb2.PlanPolicyRequest(hello=hello))
    await call.initial_metadata()  # sent when it is this call's turn, or when it is refused
    for start in range(0, len(text), _PIECE):
        if call.done():  # refused: to write on would hide why
            break
        await call.write(policy_pb2.PlanPolicyRequest(policy_text=text[start : start + _PIECE]))
    if not call.done():
        await call.done_writing()
    async for message in call:
        whole.MergeFrom(message)
    return whole
