"""Audit events: what they say, how they are written, and the trail that makes them.

An event is one JSON object of the public format: the store keeps it, the log mirrors it, and the spill file holds it
when the store can't. CSRs appear as hashes only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Concatenate, Final, ParamSpec, cast

import msgspec

from certplane.broker.model import Caller, CertificateRecord, RevocationReason
from certplane.runtime.clock import Clock
from certplane.runtime.ids import TimeOrderedIds
from certplane.runtime.json_state import plain_text

_P = ParamSpec("_P")


class AuditDecision(StrEnum):
    """What an event says was decided."""

    ALLOW = "allow"
    DENY = "deny"
    ISSUE = "issue"
    CACHE_HIT = "cache_hit"
    ERROR = "error"
    NONE = ""


class AuditSeverity(StrEnum):
    """How much an event wants a person's eye."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class AuditEventType(StrEnum):
    """Names of the public format first; those that Certplane adds after them."""

    BROKER_STARTED = "broker_started"
    POLICY_LOADED = "policy_loaded"
    POLICY_REJECTED = "policy_rejected"
    CERTIFICATE_REQUEST_RECEIVED = "certificate_request_received"
    CERTIFICATE_AUTHORIZED = "certificate_authorized"
    CERTIFICATE_DENIED = "certificate_denied"
    CERTIFICATE_CACHE_HIT = "certificate_cache_hit"
    CERTIFICATE_ISSUED = "certificate_issued"
    CERTIFICATE_ISSUE_FAILED = "certificate_issue_failed"
    ACCOUNT_KEY_CHANGED = "account_key_changed"
    BOOTSTRAP_TOKEN_CREATED = "bootstrap_token_created"  # noqa: S105 - an event
    BROKER_DRAINED = "broker_drained"
    BROKER_RESUMED = "broker_resumed"
    BROKER_STOPPED = "broker_stopped"
    CERTIFICATE_DELIVERED = "certificate_delivered"
    CERTIFICATE_REVOKED = "certificate_revoked"
    CERTIFICATE_REVOCATION_AUTHORIZED = "certificate_revocation_authorized"
    DENIALS_COALESCED = "denials_coalesced"
    ENROLLMENT_REPORTED = "enrollment_reported"
    EVENTS_COALESCED = "events_coalesced"
    HOST_FORGOTTEN = "host_forgotten"
    IDENTITY_ACTIVATED = "identity_activated"
    IDENTITY_ALLOWED = "identity_allowed"
    IDENTITY_CONTESTED = "identity_contested"
    IDENTITY_DENIED = "identity_denied"
    INCIDENT_CLOSED = "incident_closed"
    INCIDENT_OPENED = "incident_opened"
    ISSUER_FAILED_OVER = "issuer_failed_over"
    ORDER_ABANDONED = "order_abandoned"
    RENEWAL_REPORTED = "renewal_reported"
    RENEWAL_REQUESTED = "renewal_requested"
    RENEWAL_WINDOW_MOVED = "renewal_window_moved"
    ROLLOUT_ABORTED = "rollout_aborted"
    ROLLOUT_APPROVED = "rollout_approved"
    ROLLOUT_CERTIFICATE_FAILED = "rollout_certificate_failed"
    ROLLOUT_CERTIFICATE_SKIPPED = "rollout_certificate_skipped"
    ROLLOUT_COMPLETED = "rollout_completed"
    ROLLOUT_CREATED = "rollout_created"
    ROLLOUT_FINISHED = "rollout_finished"
    ROLLOUT_FINISHING = "rollout_finishing"
    ROLLOUT_HALTED = "rollout_halted"
    ROLLOUT_KEYS_BLOCKED = "rollout_keys_blocked"
    ROLLOUT_PAUSED = "rollout_paused"
    ROLLOUT_RESUMED = "rollout_resumed"
    ROLLOUT_RING_BAKING = "rollout_ring_baking"
    ROLLOUT_RING_DONE = "rollout_ring_done"
    ROLLOUT_RING_RELEASED = "rollout_ring_released"
    ROLLOUT_STARTED = "rollout_started"
    RPC_DENIED = "rpc_denied"
    STORE_COPIED = "store_copied"
    STORE_DAMAGED = "store_damaged"
    TRUST_RELOADED = "trust_reloaded"
    TRUST_REJECTED = "trust_rejected"


CHANGE_EVENTS: Final = frozenset(
    {
        AuditEventType.ACCOUNT_KEY_CHANGED,
        AuditEventType.BOOTSTRAP_TOKEN_CREATED,
        AuditEventType.BROKER_DRAINED,
        AuditEventType.BROKER_RESUMED,
        AuditEventType.BROKER_STARTED,
        AuditEventType.BROKER_STOPPED,
        AuditEventType.CERTIFICATE_REVOKED,
        AuditEventType.HOST_FORGOTTEN,
        AuditEventType.IDENTITY_ALLOWED,
        AuditEventType.IDENTITY_CONTESTED,
        AuditEventType.IDENTITY_DENIED,
        AuditEventType.INCIDENT_CLOSED,
        AuditEventType.INCIDENT_OPENED,
        AuditEventType.ISSUER_FAILED_OVER,
        AuditEventType.POLICY_LOADED,
        AuditEventType.POLICY_REJECTED,
        AuditEventType.RENEWAL_REQUESTED,
        AuditEventType.RENEWAL_WINDOW_MOVED,
        AuditEventType.ROLLOUT_ABORTED,
        AuditEventType.ROLLOUT_APPROVED,
        AuditEventType.ROLLOUT_COMPLETED,
        AuditEventType.ROLLOUT_CREATED,
        AuditEventType.ROLLOUT_FINISHED,
        AuditEventType.ROLLOUT_HALTED,
        AuditEventType.ROLLOUT_PAUSED,
        AuditEventType.ROLLOUT_RESUMED,
        AuditEventType.ROLLOUT_RING_RELEASED,
        AuditEventType.ROLLOUT_STARTED,
        AuditEventType.STORE_COPIED,
        AuditEventType.STORE_DAMAGED,
        AuditEventType.TRUST_REJECTED,
        AuditEventType.TRUST_RELOADED,
    }
)
"""What changes for many: few among all events, and found without reading those (`AuditReader.recent`)."""


_TIMES: Final = tuple(f'"{name}":"' for name in ("timestamp", "cert_not_before", "cert_not_after"))
_SECONDS: Final = len("2026-11-23T12:00:00")

_encode_struct: Final = msgspec.json.Encoder(enc_hook=plain_text).encode
# ASCII only: nothing that a client put into a header can then be text that a database or a log refuses.
_escape: Final = json.JSONEncoder(separators=(",", ":")).encode


class AuditEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One audited fact; `encode` is the JSON object that is stored, mirrored and spilled."""

    event_id: str
    timestamp: datetime
    event_type: AuditEventType
    request_id: str = ""
    # A factory, since `omit_defaults` leaves out what is the default value; every record has a severity.
    severity: AuditSeverity = msgspec.field(default_factory=lambda: AuditSeverity.INFO)
    decision: AuditDecision = AuditDecision.NONE
    identity: str = ""
    profile_name: str = ""
    profile_hash: str = ""
    policy_hash: str = ""
    reason_code: str = ""
    reason: str = ""
    source_ip: str = ""
    user_agent: str = ""
    csr_sha256: str = ""
    csr_public_key_sha256: str = ""
    csr_dns_names: tuple[str, ...] = ()
    expected_dns_names: tuple[str, ...] = ()
    issuer_name: str = ""
    issuer_directory: str = ""
    acme_order_url: str = ""
    order_id: str = ""
    certificate_id: str = ""
    cert_serial_number: str = ""
    cert_not_before: datetime | None = None
    cert_not_after: datetime | None = None
    cache_result: str = ""
    cause: str = ""
    """Of an order: `OrderCause`."""
    replaces_certificate_id: str = ""
    count: int = 0
    renewal_request_id: str = ""
    """Of the operators' request for renewals that it is, or follows from."""
    selection: str = ""
    """Of a request for renewals or a rollout: what it is for, as the set fields of `renewal.model.Selection`."""
    rollout_id: str = ""
    """Of the rollout that it is a step of, or follows from."""

    def encode(self) -> str:
        """The event as JSON in ASCII: RFC 3339 times with microseconds and `Z`, empty fields left out."""
        try:
            text = _encode_struct(self).decode("ascii")
        except UnicodeError:  # other letters, or a lone surrogate of an undecodable file name: written all the same
            text = _escape(msgspec.to_builtins(self, enc_hook=plain_text))
        for key in _TIMES:
            # msgspec leaves out a fraction of zero. A quote inside a text is escaped, so that what is found is the key.
            start = text.rfind(key)
            end = start + len(key) + _SECONDS
            if start >= 0 and text[end] == "Z":
                text = f"{text[:end]}.000000{text[end:]}"
        return text

    def record(self) -> dict[str, Any]:
        """The JSON object of `encode`."""
        return cast("dict[str, Any]", json.loads(self.encode()))


@dataclass(frozen=True, slots=True)
class EventKind:
    """Which audit events are equal, so that repeats may be counted together instead of written each.

    Events of one `key` are. `wider` is the key of those that are still alike in what their `identity` can't choose:
    it takes the place of `key` when the identity has made too many kinds.
    """

    identity: str
    key: tuple[str, ...]
    wider: tuple[str, ...]


def _typed_as(
    _make: Callable[Concatenate[str, datetime, _P], AuditEvent],
) -> Callable[[Callable[..., AuditEvent]], Callable[Concatenate[AuditTrail, _P], AuditEvent]]:
    """Gives a method the parameters of `_make` after id and time, so that the fields of events are listed once."""
    return lambda method: cast("Callable[Concatenate[AuditTrail, _P], AuditEvent]", method)


def certificate_facts(record: CertificateRecord) -> dict[str, Any]:
    """What events say of a stored certificate."""
    return {
        "certificate_id": record.certificate_id,
        "order_id": record.order_id,
        "issuer_name": record.issuer,
        "acme_order_url": record.acme_order_url,
        "cert_serial_number": record.serial_number,
        "cert_not_before": record.not_before,
        "cert_not_after": record.not_after,
    }


class AuditTrail:
    """Makes events, each with an id and the time; all of them carry the facts that the trail has."""

    __slots__ = ("_clock", "_facts", "_new_id")

    def __init__(self, clock: Clock, new_id: Callable[[], str] | None = None, /, **facts: Any) -> None:
        """`new_id` names events; ids that sort by time unless a caller shares its own source of them."""
        self._clock = clock
        self._new_id = new_id or TimeOrderedIds(clock)
        self._facts = facts

    def carrying(self, **facts: Any) -> AuditTrail:
        """A trail whose events have these fields too."""
        return AuditTrail(self._clock, self._new_id, **{**self._facts, **facts})

    def learn(self, **facts: Any) -> None:
        """Have the events that this trail makes from now on carry these too."""
        self._facts.update(facts)

    def of_caller(self, caller: Caller, request_id: str) -> AuditTrail:
        """The trail of one call."""
        return self.carrying(
            request_id=request_id, identity=caller.name, source_ip=caller.source_ip, user_agent=caller.user_agent
        )

    def of_certificate(self, record: CertificateRecord) -> AuditTrail:
        """The trail of what is done with a stored certificate."""
        return self.carrying(**certificate_facts(record))

    def revoking(self, record: CertificateRecord, reason: RevocationReason) -> AuditTrail:
        """The trail of a certificate's revocation."""
        return self.of_certificate(record).carrying(
            profile_name=record.profile,
            profile_hash=record.profile_hash,
            csr_public_key_sha256=record.public_key_sha256,
            reason_code=reason.value,
        )

    @_typed_as(AuditEvent)
    def event(self, event_type: AuditEventType, **facts: Any) -> AuditEvent:
        """An event of now; a field that is given here goes before the trail's."""
        return AuditEvent(self._new_id(), self._clock.now(), event_type, **{**self._facts, **facts})
