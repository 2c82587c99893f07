"""The audit events of what the edge refuses, before the story sees it."""

from __future__ import annotations

from collections.abc import Callable

from certplane.broker.model import AuditDecision, AuditEvent, AuditEventType, AuditSeverity
from certplane.broker.services.calls import Call
from certplane.broker.services.interceptors.authentication import AuthenticationError, Peer
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_ALERTING = frozenset({Reason.IDENTITY_UNKNOWN, Reason.IDENTITY_REVOKED, Reason.IDENTITY_RETIRED})
"""What a host in good standing never meets: worth a person's eye."""


def denial_event(call: Call, peer: Peer, error: RefusalError, *, clock: Clock, new_id: Callable[[], str]) -> AuditEvent:
    """The event of one refused call. Its identity is the caller, or else what a verified certificate says."""
    identity = serial_number = ""
    if call.caller is not None:
        identity, serial_number = call.caller.name, call.caller.serial_number
    elif isinstance(error, AuthenticationError) and error.certificate is not None:
        identity, serial_number = ",".join(error.certificate.names[:4]), error.certificate.serial_number
    elif isinstance(error, AuthenticationError):
        serial_number = error.serial_number
    method = call.method.rpartition("/")[2]
    certificate = f" (identity certificate {serial_number})" if serial_number else ""
    return AuditEvent(
        event_id=new_id(),
        timestamp=clock.now(),
        event_type=AuditEventType.RPC_DENIED,
        request_id=call.request_id,
        severity=AuditSeverity.WARNING if error.refusal.reason in _ALERTING else AuditSeverity.INFO,
        decision=AuditDecision.DENY,
        identity=identity,
        reason_code=error.refusal.reason.value,
        reason=f"{method}: {error.refusal.message}{certificate}",
        source_ip=peer.source_ip,
        user_agent=peer.user_agent,
    )
