"""The audit of calls that are refused before the story sees them; what the story refuses the story has audited."""

from __future__ import annotations

import logging
from typing import Final

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.identity.admission import Call
from certplane.broker.identity.authentication import AuthenticationError
from certplane.broker.ports import DenialRecorder
from certplane.errors import Reason, RefusalError

_ALERTING: Final = frozenset({Reason.IDENTITY_UNKNOWN, Reason.IDENTITY_REVOKED, Reason.IDENTITY_RETIRED})
"""What a host in good standing never meets: worth a person's eye."""

_NO_DECISION: Final = frozenset({Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE})
"""A first use that can't be recorded says nothing about the caller, and couldn't be audited either."""

_logger = logging.getLogger(__name__)


class Denials:
    """Records denials. The caller is refused whether or not that can be recorded."""

    def __init__(self, recorder: DenialRecorder, trail: AuditTrail) -> None:
        self._recorder = recorder
        self._trail = trail

    async def note(self, call: Call, error: RefusalError, *, by_edge: bool) -> None:
        """Audit the refusal of a call, if nobody else has; `by_edge` says that its request was refused unread."""
        undecided = call.admitted or error.refusal.reason in _NO_DECISION
        if undecided and not by_edge and not isinstance(error, AuthenticationError):
            return
        try:
            await self._recorder.record(self._event(call, error))
        except Exception:
            # The caller is refused either way; what can't be recorded is at least in the log.
            _logger.exception("a denial could not be audited", extra={"fields": {"method": call.method}})

    def _event(self, call: Call, error: RefusalError) -> AuditEvent:
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
        return self._trail.event(
            AuditEventType.RPC_DENIED,
            request_id=call.request_id,
            severity=AuditSeverity.WARNING if error.refusal.reason in _ALERTING else AuditSeverity.INFO,
            decision=AuditDecision.DENY,
            identity=identity,
            reason_code=error.refusal.reason.value,
            reason=f"{method}: {error.refusal.message}{certificate}",
            source_ip=call.peer.source_ip,
            user_agent=call.peer.user_agent,
        )
