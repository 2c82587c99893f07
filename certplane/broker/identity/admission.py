"""Lets calls in: who is this, may it call, and how much. Everything about one call that isn't gRPC's.

A new call (`Call.enter`) is authenticated, takes from its caller's allowance, is counted while it is in flight, has its
certificate checked against the one in use, then the access table. Nothing that costs is done for anybody before a
bucket was asked: for a caller that is refused it is the bucket of its certificate and address, for a message of a
stream it is asked before the message is read. When a call ends, its caller pays for its work (docs/adr/0013).

For the event loop's thread.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from certplane.broker.identity.access import Access, check_access
from certplane.broker.identity.activation import FirstUse
from certplane.broker.identity.allowances import Allowances
from certplane.broker.identity.authentication import Admission, AuthenticationError, Authenticator, Peer
from certplane.broker.identity.work import Work
from certplane.broker.model import Caller
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock


@dataclass(slots=True, eq=False)
class AdmissionControl:
    """What decides about the calls of one broker."""

    authenticator: Authenticator
    first_use: FirstUse
    allowances: Allowances
    clock: Clock
    draining: timedelta | None = None
    """Set while the broker drains, to when to try again: calls that may start an order are refused."""


@dataclass(slots=True, eq=False)
class Call:
    """One RPC, from its arrival to its end.

    Attributes:
        method: Its full name; `_access` is its row, None if there is none.
        peer: Who is at the other end of its connection.
        request_id: Empty until it has one: `named` makes one.
        is_stream: Whether it has more than one message each way.
        caller: None until it is authenticated, which a servicer never sees.
        admitted: Whether it passed all checks: what refuses it later has audited that itself.
        reason: Of its refusal, else empty.
        work: What it has cost so far.
    """

    _control: AdmissionControl
    method: str
    _access: Access | None
    peer: Peer
    request_id: str
    is_stream: bool
    caller: Caller | None = None
    admitted: bool = False
    reason: str = ""
    work: Work[Any] = field(init=False)
    _cost: int = field(init=False)
    _admission: Admission | None = None
    _stranger: str = ""
    _in_flight: bool = False

    def __post_init__(self) -> None:
        self.work = Work(self._control.clock.thread_time)
        self._cost = 1 if self._access is None else self._access.cost

    def named(self) -> str:
        """Its id, made now if it brought none."""
        if not self.request_id:
            # A name, not a secret. The system's randomness would give up the interpreter's lock for a moment, and under
            # load that moment was a twentieth of a call from the cache.
            self.request_id = f"{random.getrandbits(64):016x}"
        return self.request_id

    async def enter(self) -> Caller:
        """Let the call in.

        Raises:
            AuthenticationError: IDENTITY_UNKNOWN, IDENTITY_EXPIRED, IDENTITY_REVOKED or IDENTITY_RETIRED.
            RefusalError: RATE_LIMITED, ROLE_REQUIRED, DRAINING, POLICY_UNAVAILABLE; STORE_UNAVAILABLE or
                AUDIT_UNAVAILABLE, a first use can't be recorded.
        """
        control = self._control
        caller = self._authenticate()
        control.allowances.take_call(caller.name, self._cost)
        control.allowances.begin(caller.name, stream=self.is_stream)
        self._in_flight = True
        using = control.first_use.begin(caller, self.named)
        if using is not None:
            await using
        access = check_access(self._access, caller)
        if access.issuing and control.draining is not None:
            raise RefusalError(
                Reason.DRAINING, "the broker is shutting down; ask again shortly", retry_after=control.draining
            )
        self.admitted = True
        return caller

    def check_again(self) -> None:
        """Check what has changed since the call was let in. A few microseconds.

        Raises:
            AuthenticationError: IDENTITY_UNKNOWN, IDENTITY_EXPIRED, IDENTITY_REVOKED or IDENTITY_RETIRED.
            RefusalError: ROLE_REQUIRED, RATE_LIMITED or POLICY_UNAVAILABLE.
        """
        control, admission = self._control, self._admission
        if admission is None or self.caller is None:
            raise RuntimeError("the call wasn't let in")
        if not control.authenticator.stands(admission):
            admission = control.authenticator.admit(self.peer)
            if admission.caller.name != self.caller.name:
                message = "this certificate now maps to another identity; retry the call"
                raise AuthenticationError(Reason.IDENTITY_UNKNOWN, message)
            check_access(self._access, admission.caller)
            self._admission = admission
        control.first_use.check_open(admission.caller)

    def take_messages(self, count: int) -> timedelta:
        """Count a message as so many; how long to wait before it is read.

        Raises:
            RefusalError: RATE_LIMITED.
        """
        if self.caller is None:
            raise RuntimeError("the call wasn't let in")
        return self._control.allowances.take_message(self.caller.name, self.work.since_asked(), count)

    async def admit_message(self) -> None:
        """Let a message of a stream in, before it is read.

        Raises:
            RefusalError: RATE_LIMITED.
        """
        wait = self.take_messages(1)
        if wait:
            await self._control.clock.sleep(wait)

    async def hold_back(self, error: RefusalError, time_remaining: float | None) -> None:
        """Wait before the caller is told that it calls too often; `time_remaining` is of its deadline, in seconds."""
        if not self.admitted and error.refusal.reason is Reason.RATE_LIMITED:
            name = self.caller.name if self.caller is not None else self._stranger
            await self._control.allowances.hold_back(name, time_remaining)

    def end(self, *, open_for: float = 0.0) -> None:
        """The call has ended, and is paid for; a stream of answers was `open_for` seconds open."""
        # Tasks that it has begun, such as an order's, have the call in their context for hours, and with it the policy.
        self._admission = None
        allowances, caller = self._control.allowances, self.caller
        if caller is not None:
            if self._in_flight:
                allowances.end(caller.name, stream=self.is_stream)
            allowances.pay_call(caller, self._cost, self.work.since_asked(), open_for=open_for)
        elif self._stranger:
            allowances.pay_refusal(self._stranger, self.work.seconds)

    def _authenticate(self) -> Caller:
        peer = self.peer
        try:
            admission = self._control.authenticator.admit(peer)
        except AuthenticationError as error:
            names = error.certificate.names if error.certificate is not None else ()
            self._stranger = " ".join(names[:4]) or _leaf_hash(peer)
            self._control.allowances.take_refusal(self._stranger, "" if names else peer.source_ip)
            raise
        except RefusalError:
            self._stranger = _leaf_hash(peer)
            raise
        self._admission = admission
        self.caller = admission.caller
        return admission.caller


def _leaf_hash(peer: Peer) -> str:
    return hashlib.sha256(peer.leaf_pem).hexdigest()
