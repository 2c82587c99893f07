"""The audit events of issuance, built in one place so that each kind always carries the same facts.

A CSR appears as its hash, its key's hash and its names, never as itself. A denial carries what the received event would
have, so a refused request is one event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from certplane.broker.events import (
    AuditDecision,
    AuditEvent,
    AuditEventType,
    AuditSeverity,
    AuditTrail,
    EventKind,
    certificate_facts,
)
from certplane.broker.model import Caller, CertificateRecord, Order, OrderCause, Profile, RevocationReason
from certplane.broker.ports import Policy
from certplane.errors import Reason, Refusal
from certplane.pki.csr import CertificateRequest

_LONGEST_QUOTE = 100
"""Characters of what a caller sent that is part of an event though nothing checked it."""

_ALERTING = frozenset({Reason.KEY_REUSED, Reason.IDENTITY_UNKNOWN, Reason.IDENTITY_CONTESTED})
"""Refusals that no honest host meets in daily work."""


class EventFactory:
    """Makes the builders of a call's and of an order's events."""

    def __init__(self, trail: AuditTrail, directories: Mapping[str, str]) -> None:
        """`directories` are the issuers' directory URLs, by their names."""
        self._trail = trail
        self._directories = directories

    def of_call(self, caller: Caller, request_id: str, profile_name: str = "") -> CallEvents:
        """The events of one call."""
        trail = self._trail.of_caller(caller, request_id)
        trail.learn(profile_name=profile_name[:_LONGEST_QUOTE])
        return CallEvents(trail, self._directories)

    def of_rollout(self, rollout_id: str, operator: str) -> CallEvents:
        """The events of what a rollout of this operator does to one certificate."""
        return CallEvents(self._trail.carrying(rollout_id=rollout_id, identity=operator), self._directories)

    def of_left(self, identity: str) -> CallEvents:
        """The events of what the broker does by itself to a certificate of this identity."""
        return CallEvents(self._trail.carrying(identity=identity), self._directories)

    def of_order(self, order: Order) -> OrderEvents:
        """The events of one order under way."""
        return OrderEvents(self._trail.carrying(**_of_order(order)), self._directories, order.issuer)


class CallEvents:
    """The events of one call; what is learned on the way is part of those that follow."""

    __slots__ = ("_directories", "_knows_profile", "_trail")

    def __init__(self, trail: AuditTrail, directories: Mapping[str, str]) -> None:
        self._trail = trail
        self._directories = directories
        self._knows_profile = False

    def learn_csr(self, request: CertificateRequest) -> None:
        """The CSR was read."""
        self._trail.learn(
            csr_sha256=request.sha256,
            csr_public_key_sha256=request.public_key_sha256,
            csr_dns_names=request.dns_names,
        )

    def learn_unreadable_csr(self, csr_pem: str) -> None:
        """The CSR was refused: there is no DER to hash, so the hash is over the text as it was sent."""
        digest = hashlib.sha256(csr_pem.encode("utf-8", "surrogatepass")).hexdigest()
        self._trail.learn(csr_sha256=digest)

    def learn_purpose(self, why: str) -> None:
        """What an operator does it for, and to whom."""
        self._trail.learn(reason=why)

    def learn_policy(self, policy: Policy, profile: Profile | None) -> None:
        """Policy was asked; `profile` is what it has of the wanted name, granted or not."""
        self._trail.learn(policy_hash=policy.hash)
        if profile is not None:
            self._knows_profile = True
            self._trail.learn(profile_hash=profile.hash, expected_dns_names=profile.dns_names)

    def received(self) -> AuditEvent:
        """A request came and could be read."""
        return self._trail.event(AuditEventType.CERTIFICATE_REQUEST_RECEIVED)

    def authorized(self, cache_result: str, issuer: str) -> AuditEvent:
        """Policy allows an order for it; `cache_result` is miss or joined, `issuer` whose certificate it will be."""
        return self._trail.event(
            AuditEventType.CERTIFICATE_AUTHORIZED,
            decision=AuditDecision.ALLOW,
            cache_result=cache_result,
            issuer_name=issuer,
            issuer_directory=self._directories.get(issuer, ""),
        )

    def cache_hit(self, record: CertificateRecord) -> AuditEvent:
        """A request, that policy allows it, and that a stored certificate is handed out as its answer (ADR 0023)."""
        return self._trail.event(
            AuditEventType.CERTIFICATE_CACHE_HIT,
            **certificate_facts(record),
            decision=AuditDecision.CACHE_HIT,
            cache_result="hit",
            issuer_directory=self._directories.get(record.issuer, ""),
        )

    def delivered(self, record: CertificateRecord, order: Order | None) -> AuditEvent:
        """The certificate of an order is handed out, or (None) one that was asked for by its id."""
        return self._trail.of_certificate(record).event(
            AuditEventType.CERTIFICATE_DELIVERED,
            decision=AuditDecision.ALLOW,
            profile_name=record.profile,
            profile_hash=record.profile_hash,
            **(_why(order) if order is not None else {}),
        )

    def handing_out(self, record: CertificateRecord, event: AuditEvent) -> EventKind:
        """Which hand-outs are alike: those of one certificate in one way; to one address, under one policy."""
        return self._kind(event, record.certificate_id, event.policy_hash)

    def joining(self, order: Order, event: AuditEvent) -> EventKind:
        """Which calls that join an order are alike: those of one order; from one address."""
        return self._kind(event, order.order_id)

    def revoking(self, record: CertificateRecord, event: AuditEvent) -> EventKind:
        """Which wishes to revoke are alike: those of one certificate for one reason; from one address."""
        return self._kind(event, record.certificate_id, reason=event.reason_code)

    def _kind(self, event: AuditEvent, subject: str, policy_hash: str = "", *, reason: str = "") -> EventKind:
        wider = (event.event_type.value, event.identity, subject, reason)
        return EventKind(event.identity, (*wider, policy_hash, event.source_ip), wider)

    def denied(self, refusal: Refusal, *, order_id: str = "", certificate_id: str = "") -> AuditEvent:
        """The call is refused."""
        return self._trail.event(
            AuditEventType.CERTIFICATE_DENIED,
            decision=AuditDecision.DENY,
            severity=AuditSeverity.ERROR if refusal.reason in _ALERTING else AuditSeverity.WARNING,
            reason_code=refusal.reason.value,
            reason=self._cause(refusal),
            order_id=order_id[:_LONGEST_QUOTE],
            certificate_id=certificate_id[:_LONGEST_QUOTE],
        )

    def _cause(self, refusal: Refusal) -> str:
        """Why, for the operator: the caller is told one text for all that would show what policy has."""
        match refusal.reason:
            case Reason.PROFILE_NOT_ALLOWED if self._knows_profile:
                return "policy does not give this profile to this identity"
            case Reason.PROFILE_NOT_ALLOWED:
                return "policy has no profile of this name"
            case _:
                return refusal.message

    def revocation_authorized(self, record: CertificateRecord, reason: RevocationReason) -> AuditEvent:
        """The CA is about to be asked to revoke the certificate."""
        return self._of_revocation(AuditEventType.CERTIFICATE_REVOCATION_AUTHORIZED, record, reason)

    def revoked(self, record: CertificateRecord, reason: RevocationReason) -> AuditEvent:
        """The CA has revoked the certificate."""
        return self._of_revocation(AuditEventType.CERTIFICATE_REVOKED, record, reason)

    def _of_revocation(
        self, event_type: AuditEventType, record: CertificateRecord, reason: RevocationReason
    ) -> AuditEvent:
        return self._trail.revoking(record, reason).event(
            event_type, decision=AuditDecision.ALLOW, severity=AuditSeverity.WARNING
        )


class OrderEvents:
    """The events of one order under way."""

    __slots__ = ("_directories", "_trail")

    def __init__(self, trail: AuditTrail, directories: Mapping[str, str], issuer: str) -> None:
        self._directories = directories
        self._trail = trail
        self._go_on_at(issuer)

    def _go_on_at(self, issuer: str) -> None:
        self._trail = self._trail.carrying(issuer_name=issuer, issuer_directory=self._directories.get(issuer, ""))

    def failed_over(self, issuer: str, refusal: Refusal) -> AuditEvent:
        """The order goes on at another issuer, whose all later events are."""
        event = self._trail.event(
            AuditEventType.ISSUER_FAILED_OVER,
            severity=AuditSeverity.WARNING,
            reason_code=refusal.reason.value,
            reason=f"continues at {issuer}: {refusal.message}",
        )
        self._go_on_at(issuer)
        return event

    def issued(self, record: CertificateRecord, policy: Policy | None) -> AuditEvent:
        """The CA has issued, and the certificate is what was asked for."""
        return self._trail.of_certificate(record).event(
            AuditEventType.CERTIFICATE_ISSUED,
            decision=AuditDecision.ISSUE,
            policy_hash=policy.hash if policy is not None else "",
        )

    def failed(self, refusal: Refusal, acme_order_url: str, *, alarming: bool) -> AuditEvent:
        """The order ended without a certificate."""
        detail = "; ".join(filter(None, (refusal.message, *(problem.detail for problem in refusal.problems))))
        return self._trail.event(
            AuditEventType.CERTIFICATE_ISSUE_FAILED,
            decision=AuditDecision.ERROR,
            severity=AuditSeverity.ERROR if alarming else AuditSeverity.WARNING,
            reason_code=refusal.reason.value,
            reason=detail,
            acme_order_url=acme_order_url,
        )

    def abandoned(self, acme_order_url: str, why: str) -> AuditEvent:
        """An order at the CA was given up before it was finalised."""
        return self._trail.event(
            AuditEventType.ORDER_ABANDONED,
            severity=AuditSeverity.WARNING,
            reason=why,
            acme_order_url=acme_order_url,
        )


def because(order: Order, events: Sequence[AuditEvent]) -> Sequence[AuditEvent]:
    """What led to the new order, with its id and why it is wanted: only the store knows what was taken already."""
    why = _why(order)
    return [
        msgspec.structs.replace(
            event,
            order_id=event.order_id or order.order_id,
            **(why if event.event_type is AuditEventType.CERTIFICATE_AUTHORIZED else {}),
        )
        for event in events
    ]


def denied_order(order: Order, refusal: Refusal, time: datetime) -> AuditEvent:
    """The order was ended because an operator has shut its identity out.

    Named after the order, which ends once: a change that is tried again writes the same event.
    """
    return AuditEvent(
        event_id=f"{order.order_id}-denied",
        timestamp=time,
        event_type=AuditEventType.CERTIFICATE_ISSUE_FAILED,
        decision=AuditDecision.ERROR,
        severity=AuditSeverity.WARNING,
        reason_code=refusal.reason.value,
        reason=refusal.message,
        issuer_name=order.issuer,
        acme_order_url=order.acme_order_url,
        **_of_order(order),
    )


def _of_order(order: Order) -> dict[str, Any]:
    return {
        "request_id": order.request_id,
        "identity": order.identity,
        "profile_name": order.profile,
        "profile_hash": order.profile_hash,
        "csr_sha256": hashlib.sha256(order.csr_der).hexdigest(),
        "csr_public_key_sha256": order.public_key_sha256,
        "csr_dns_names": order.dns_names,
        "order_id": order.order_id,
        **_why(order),
    }


def _why(order: Order) -> dict[str, Any]:
    """Why it is wanted, and what it replaces."""
    return {
        "cause": order.cause.value,
        "replaces_certificate_id": order.replaces_certificate_id,
        "renewal_request_id": order.renewal_request_id if order.cause is OrderCause.OPERATOR else "",
        "rollout_id": order.rollout_id if order.cause in (OrderCause.OPERATOR, OrderCause.ISSUER) else "",
    }
