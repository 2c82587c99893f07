# ruff: noqa: N802 - methods bear the names of the proto file
"""`EnrollmentService`: how the broker sees a caller, what the caller runs; tokens, and who is shut out, for admins."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final, Protocol

import grpc

from certplane import __version__
from certplane.broker.enrolling.denying import DenyRequest, DenyScope, IdentityDenials, NotDeniedError
from certplane.broker.enrolling.tokens import BootstrapTokens, NoTokenError
from certplane.broker.events import AuditDecision, AuditEventType, AuditTrail, EventKind
from certplane.broker.model import DenyEntry, EnrollmentReport, IdentityKind, Profile
from certplane.broker.ports import EnrollmentStore, EventRecorder, IdentityLedger, PolicySource
from certplane.broker.services.calls import current_call
from certplane.broker.services.convert import identity_message, invalid_request, required
from certplane.errors import RefusalError
from certplane.rpc.times import put_time, span_of, timestamp
from certplane.runtime.clock import Clock
from certplane.v1 import enrollment_pb2 as pb
from certplane.v1 import enrollment_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_MAX_VERSION: Final = 64
_MAX_REASON: Final = 256
"""Octets of why somebody is shut out."""
_MAX_FACTS: Final = 16
_MAX_FACT_KEY: Final = 64
_MAX_FACT_VALUE: Final = 256
_MAX_GRANTED: Final = 48 * 1024
"""Octets of profiles with their names, of the 64 KiB of a message."""
_SERIAL: Final = re.compile(r"0|[1-9a-f][0-9a-f]{0,39}")
"""RFC 5280 4.1.2.2: at most 20 octets."""

_SCOPES: Final = {
    pb.DenyIdentityRequest.SCOPE_NAME: DenyScope.NAME,
    pb.DenyIdentityRequest.SCOPE_CERTIFICATES: DenyScope.CERTIFICATES,
}


class PresentedTrust(Protocol):
    """What the broker trusts and presents now, PEM."""

    @property
    def agent_ca_bundle_pem(self) -> str:
        """CA certificates that identities are verified against."""
        ...

    @property
    def server_chain_pem(self) -> str:
        """What new connections are presented, leaf first."""
        ...


class EnrollmentServicer(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["EnrollmentService"].full_name

    def __init__(
        self,
        *,
        trust: PresentedTrust,
        policy: PolicySource,
        enrollments: EnrollmentStore,
        identities: IdentityLedger,
        repeats: EventRecorder,
        tokens: BootstrapTokens,
        denials: IdentityDenials,
        clock: Clock,
        trail: AuditTrail,
    ) -> None:
        self._trust = trust
        self._policy = policy
        self._enrollments = enrollments
        self._identities = identities
        self._repeats = repeats
        self._tokens = tokens
        self._denials = denials
        self._clock = clock
        self._trail = trail

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        enrollment_pb2_grpc.add_EnrollmentServiceServicer_to_server(self, server)

    async def GetIdentity(self, _request: pb.GetIdentityRequest, _context: RpcContext) -> pb.GetIdentityResponse:
        """Who the broker takes the caller for."""
        caller, _ = current_call()
        known = self._identities.known(caller.name) if caller.kind is IdentityKind.HOST else None
        contest = known.contest if known is not None else None
        return pb.GetIdentityResponse(
            identity=identity_message(caller, contest.time if contest is not None else None),
            broker_time=timestamp(self._clock.now()),
            policy_hash=self._policy.current.hash,
            broker_version=__version__,
            granted_profiles=_granted(caller.profiles, partial(self._policy.current.granted, caller.name)),
        )

    async def GetTrustBundle(
        self, _request: pb.GetTrustBundleRequest, _context: RpcContext
    ) -> pb.GetTrustBundleResponse:
        """What the broker trusts and presents."""
        return pb.GetTrustBundleResponse(
            agent_ca_bundle_pem=self._trust.agent_ca_bundle_pem,
            server_certificate_chain_pem=self._trust.server_chain_pem,
        )

    async def ReportEnrollment(
        self, request: pb.ReportEnrollmentRequest, _context: RpcContext
    ) -> pb.ReportEnrollmentResponse:
        """Record what the caller runs; the record and its audit event are one transaction, or it is a repeated one."""
        caller, request_id = current_call()
        now = self._clock.now()
        report = EnrollmentReport(
            identity=caller.name,
            agent_version=_version(request.agent_version),
            host_facts=_facts(request.host_facts),
            identity_serial_number=_serial_number(request.identity_serial_number),
            record_time=now,
        )
        event = self._trail.of_caller(caller, request_id).event(
            AuditEventType.ENROLLMENT_REPORTED,
            decision=AuditDecision.ALLOW,
            reason=f"agent {report.agent_version}, identity certificate {report.identity_serial_number} on disk, "
            f"{caller.serial_number} in use",
        )
        wider = (event.event_type.value, caller.name)
        kind = EventKind(caller.name, (*wider, event.reason, caller.source_ip), wider)
        if not self._repeats.begin(kind, event):
            await self._repeats.record(kind, [event])
            await self._enrollments.record_report(report, ())
            return pb.ReportEnrollmentResponse(record_time=timestamp(now))
        try:
            await self._enrollments.record_report(report, [event])
        except RefusalError:
            self._repeats.withdraw(kind, event)
            raise
        return pb.ReportEnrollmentResponse(record_time=timestamp(now))

    async def CreateBootstrapToken(
        self, request: pb.CreateBootstrapTokenRequest, _context: RpcContext
    ) -> pb.CreateBootstrapTokenResponse:
        """A one-time token for a new machine."""
        caller, request_id = current_call()
        name, lifetime = required("identity", request.identity), None
        if request.HasField("lifetime") and (lifetime := span_of(request.lifetime)) is None:
            raise invalid_request("lifetime", "must be a span of time that isn't negative")
        try:
            made = await self._tokens.create(caller, request_id, name, lifetime, dry_run=request.dry_run)
        except NoTokenError as error:
            raise invalid_request(error.field, str(error)) from error
        return pb.CreateBootstrapTokenResponse(
            token=made.token,
            expire_time=timestamp(made.expire_time),
            ca_url=made.ca.url,
            ca_root_fingerprint=made.ca.root_fingerprint,
            provisioner=made.ca.provisioner,
            identity=made.grant.name,
        )

    async def DenyIdentity(self, request: pb.DenyIdentityRequest, _context: RpcContext) -> pb.DenyIdentityResponse:
        """Shut an identity out, or the certificates of it that are known."""
        caller, request_id = current_call()
        scope = _SCOPES.get(request.scope)
        if scope is None:
            raise invalid_request("scope", "must be SCOPE_NAME or SCOPE_CERTIFICATES")
        if request.active_serial_number and scope is DenyScope.NAME:
            raise invalid_request("active_serial_number", "goes with SCOPE_CERTIFICATES")
        wanted = DenyRequest(
            name=required("identity", request.identity),
            scope=scope,
            reason=_reason(request.reason),
            active_serial=request.active_serial_number
            and _serial_number(request.active_serial_number, "active_serial_number"),
            dry_run=request.dry_run,
        )
        try:
            denial = await self._denials.deny(caller, request_id, wanted)
        except NotDeniedError as error:
            raise invalid_request(error.field, str(error)) from error
        made = [_denied_message(entry, already=False) for entry in denial.made]
        standing = [_denied_message(entry, already=True) for entry in denial.standing]
        return pb.DenyIdentityResponse(
            denied=[*made, *standing],
            active_serial_number=denial.active_serial,
            active_replaces_denied=denial.replaces_denied,
            valid_certificate_count=denial.valid_certificates,
        )


def _denied_message(entry: DenyEntry, *, already: bool) -> pb.DeniedIdentity:
    message = pb.DeniedIdentity(
        name=entry.name, issuer=entry.issuer, serial_number=entry.serial_number, already_denied=already
    )
    if entry.create_time is not None:
        put_time(entry.create_time, message.deny_time)
    return message


def _granted(names: Collection[str], find: Callable[[str], Profile | None]) -> list[pb.GrantedProfile]:
    """The profiles with their names, as many as fit."""
    granted, left = [], _MAX_GRANTED
    for profile in (found for name in sorted(names) if (found := find(name)) is not None):
        message = pb.GrantedProfile(name=profile.name, dns_names=sorted(profile.dns_names))
        if message.ByteSize() <= left:
            granted.append(message)
            left -= message.ByteSize()
    return granted


def _version(text: str) -> str:
    if not text:
        raise invalid_request("agent_version", "is required")
    if len(text.encode()) > _MAX_VERSION or not text.isprintable():
        raise invalid_request("agent_version", f"must be at most {_MAX_VERSION} bytes, printable")
    return text


def _facts(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    if len(facts) > _MAX_FACTS:
        raise invalid_request("host_facts", f"has more than {_MAX_FACTS} keys")
    for key, value in facts.items():
        if not key or len(key.encode()) > _MAX_FACT_KEY or not key.isprintable():
            raise invalid_request("host_facts", f"has a key that is not 1 to {_MAX_FACT_KEY} printable bytes")
        if len(value.encode()) > _MAX_FACT_VALUE or not value.isprintable():
            raise invalid_request(f"host_facts[{key}]", f"must be at most {_MAX_FACT_VALUE} bytes, printable")
    return tuple(sorted(facts.items()))


def _serial_number(text: str, field: str = "identity_serial_number") -> str:
    if not text:
        raise invalid_request(field, "is required")
    if _SERIAL.fullmatch(text) is None:
        raise invalid_request(field, "must be lower-case hexadecimal without leading zeros")
    return text


def _reason(text: str) -> str:
    if not text.strip():
        raise invalid_request("reason", "is required")
    if len(text.encode()) > _MAX_REASON or not text.isprintable():
        raise invalid_request("reason", f"must be at most {_MAX_REASON} bytes, printable")
    return text
