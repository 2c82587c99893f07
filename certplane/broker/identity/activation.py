"""First use activates (design, fixed decision 11), as calls meet it: hosts only, every RPC.

The rule itself is `certplane.broker.identity.first_use`. Here it is asked with the caller of the moment:

- A new call of the active certificate, nearly every one, costs one look-up in a dictionary.
- A certificate that comes into use is durable and audited before its first call goes on; whether a failed audit write
  stops it is the audit mode's, and without a durable ledger the call is refused. A host may have its internal CA make
  new ones all day: more than any agent does are refused, since each is a row that is never counted together.
- A new call with a retired certificate, its five minutes over, is refused, and makes the identity contested. The
  refusal stands whether or not the contest can be written: the next such call tries again.
- An open stream is only checked. It ends with its certificate's five minutes, and contests nothing: it may be
  the old connection of a host that is slow to notice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Final

from certplane.broker import metrics
from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.identity.authentication import AuthenticationError
from certplane.broker.identity.buckets import TokenBuckets
from certplane.broker.identity.first_use import Verdict, judge
from certplane.broker.model import Caller, IdentityKind, IdentityUse, KnownIdentity
from certplane.broker.ports import IdentityLedger, Meter, NullMeter
from certplane.errors import Reason, RefusalError, Violation
from certplane.runtime.clock import Clock

_AT_ONCE: Final = 60
_PER_SECOND: Final = 1 / 60
"""First uses of one identity's certificates: some 2 MB of audit log a day. Short-lived ones take minutes each."""

_logger = logging.getLogger(__name__)


class FirstUse:
    """Decides whether a known caller's certificate is the one in use."""

    def __init__(
        self,
        *,
        ledger: IdentityLedger,
        clock: Clock,
        trail: AuditTrail,
        meter: Meter | None = None,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._trail = trail
        self._meter = meter or NullMeter()
        self._first_uses = TokenBuckets(rate=_PER_SECOND, burst=_AT_ONCE, monotonic=clock.monotonic)

    def begin(self, caller: Caller, request_id: Callable[[], str]) -> Coroutine[None, None, None] | None:
        """What a new call has to wait for before it goes on; None if nothing. `request_id` is of its audit events.

        Raises:
            RefusalError: STORE_UNAVAILABLE: what is stored of the caller can't be read.

        Raises (the coroutine):
            AuthenticationError: IDENTITY_RETIRED.
            RefusalError: RATE_LIMITED; STORE_UNAVAILABLE or AUDIT_UNAVAILABLE: a first use can't be recorded.
        """
        if caller.kind is not IdentityKind.HOST:
            return None
        known = self._ledger.known(caller.name)
        if known is not None and _is_active(known, caller):
            return None
        return self._decide(caller, known, request_id)

    def check_open(self, caller: Caller) -> None:
        """Check the caller of a call that was let in before.

        Raises:
            AuthenticationError: IDENTITY_RETIRED.
        """
        if caller.kind is not IdentityKind.HOST:
            return
        known = self._ledger.known(caller.name)
        if known is not None and not _is_active(known, caller) and judge(known, self._use(caller)).refused:
            raise _retired(caller, known)

    async def _decide(self, caller: Caller, known: KnownIdentity | None, request_id: Callable[[], str]) -> None:
        use = self._use(caller)
        verdict = judge(known, use)
        if verdict is Verdict.ACTIVATE:
            self._count_first_use(caller.name)
            known = await self._ledger.activate(caller.name, use, [self._activated(caller, known, request_id())])
            # Another certificate may have been faster, at another broker too; then this one is judged after it.
            verdict = judge(known, use)
            if known.active == use:
                self._meter.count(metrics.IDENTITY_ACTIVATIONS)
        if known is None or not verdict.refused:
            return
        if verdict is Verdict.CONTEST:
            try:
                known = await self._ledger.contest(caller.name, use, [self._contested(caller, known, request_id())])
            except RefusalError:
                _logger.exception("a contested identity could not be recorded", extra={"fields": {"name": caller.name}})
        raise _retired(caller, known)

    def _count_first_use(self, name: str) -> None:
        wait = self._first_uses.take(name)
        if wait is not None:
            violation = Violation("identity_certificates_per_identity", f"{_AT_ONCE} at once, then one a minute")
            message = "this host keeps coming with another identity certificate; renew the identity less often"
            raise RefusalError(Reason.RATE_LIMITED, message, retry_after=wait, violations=[violation])

    def _use(self, caller: Caller) -> IdentityUse:
        return IdentityUse(caller.issuer, caller.serial_number, caller.not_before, self._clock.now(), caller.source_ip)

    def _activated(self, caller: Caller, known: KnownIdentity | None, request_id: str) -> AuditEvent:
        retired = f"; retires {known.active.serial_number}" if known is not None else ""
        reason = f"first use of identity certificate {caller.serial_number} of {caller.issuer}{retired}"
        trail = self._trail.of_caller(caller, request_id)
        return trail.event(AuditEventType.IDENTITY_ACTIVATED, decision=AuditDecision.ALLOW, reason=reason)

    def _contested(self, caller: Caller, known: KnownIdentity, request_id: str) -> AuditEvent:
        active = known.active
        reason = (
            f"identity certificate {caller.serial_number} of {caller.issuer} was used although {active.serial_number} "
            f"has taken its place at {active.time:%Y-%m-%dT%H:%M:%SZ} from {active.source_ip or 'an unknown address'}: "
            "two holders; no new orders until `certplane-broker identity allow`"
        )
        return self._trail.of_caller(caller, request_id).event(
            AuditEventType.IDENTITY_CONTESTED,
            severity=AuditSeverity.ERROR,
            decision=AuditDecision.DENY,
            reason_code=Reason.IDENTITY_CONTESTED.value,
            reason=reason,
        )


def _is_active(known: KnownIdentity, caller: Caller) -> bool:
    """Verdict.ACTIVE, for nearly every call, without making an `IdentityUse` of it."""
    active = known.active
    return active.serial_number == caller.serial_number and active.issuer == caller.issuer


def _retired(caller: Caller, known: KnownIdentity) -> AuthenticationError:
    active = known.active
    return AuthenticationError(
        Reason.IDENTITY_RETIRED,
        f"identity certificate {caller.serial_number} has given way to {active.serial_number}, in use since "
        f"{active.time:%Y-%m-%dT%H:%M:%SZ}; if this host doesn't have that one, it was restored from a copy or "
        "somebody else has its identity: ask an operator of the broker (`certplane-broker identity list`)",
    )
