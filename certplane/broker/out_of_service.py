"""Taking this broker out of service, and back, at an operator's word: before it is stopped, or looked at.

Hosts hear goodbye and find another broker, calls that would start an order are told to come back elsewhere, orders
that wait for their turn are given to others; what has begun ends here. Everything else is served. It is this process's
state: a start serves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from certplane.broker.events import AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.members.membership import Membership
from certplane.broker.members.ports import MemberStore
from certplane.broker.members.requests import BrokerAnswer, BrokerRequest
from certplane.broker.ports import AuditLog
from certplane.broker.services.server import BrokerServer
from certplane.errors import RefusalError

_logger = logging.getLogger("certplane.broker")

_ELSEWHERE: Final = timedelta(seconds=10)
"""What a caller is told: another broker answers at once."""
_LAST: Final = "is the last broker that serves, so that hosts would have none: start another one first, or stop it"


class OutOfService:
    """Whether this broker is, and the way there and back. For the event loop's thread."""

    def __init__(
        self,
        *,
        server: Callable[[], BrokerServer],
        authority: RegistrationAuthority,
        hub: FleetHub,
        membership: Membership | None,
        members: MemberStore,
        audit: AuditLog,
        trail: AuditTrail,
        called: str,
    ) -> None:
        """It serves; `server` is there once it is asked, and `called` is what the audit log calls the broker."""
        self._server = server
        self._authority = authority
        self._hub = hub
        self._membership = membership
        self._members = members
        self._audit = audit
        self._trail = trail
        self._called = called
        self.draining = False

    async def drain(self, asked: BrokerRequest) -> BrokerAnswer:
        """Go out of service, unless no other broker would serve; the answer says so then."""
        if self.draining:
            return self._answer()
        if self._membership is None or not await self._serves_another(self._membership):
            return self._answer(_LAST, done=False)
        await self._record(AuditEventType.BROKER_DRAINED, asked)
        await self._server().rest(_ELSEWHERE)
        self._hub.send_away("the broker is being taken out of service")
        await self._authority.rest()
        fields = {"by": asked.asked_by, "reason": asked.reason}
        _logger.warning("taken out of service: hosts are sent to other brokers", extra={"fields": fields})
        return self._answer()

    async def serve(self, asked: BrokerRequest) -> BrokerAnswer:
        """Serve again."""
        if self.draining:
            self.draining = False
            await self._record(AuditEventType.BROKER_RESUMED, asked)
            await self._server().resume()
            self._hub.stay()
            self._authority.resume()
            await self._announce()
            fields = {"by": asked.asked_by, "reason": asked.reason}
            _logger.warning("taken back into service", extra={"fields": fields})
        return self._answer()

    async def _serves_another(self, membership: Membership) -> bool:
        """Say that this one doesn't any more, and then look: of two that ask at once one at least sees the other."""
        self.draining = True
        try:
            await membership.join()
            if any(not member.draining for member in await self._members.living()):
                return True
        except RefusalError as error:
            _logger.warning("the other brokers can't be read, so this one isn't taken out of service: %s", error)
        self.draining = False
        await self._announce()
        return False

    async def _announce(self) -> None:
        try:
            if self._membership is not None:
                await self._membership.join()
        except RefusalError:
            pass  # the next renewal of the lease says it

    async def _record(self, kind: AuditEventType, asked: BrokerRequest) -> None:
        trail = self._trail.carrying(identity=asked.identity, request_id=asked.request_id)
        text = f"{self._called}, by {asked.asked_by}: {asked.reason}"
        try:
            await self._audit.append([trail.event(kind, severity=AuditSeverity.WARNING, reason=text)])
        except RefusalError:
            _logger.exception("that the broker goes out of service, or back, could not be audited")

    def _answer(self, line: str = "", *, done: bool = True) -> BrokerAnswer:
        return BrokerAnswer(
            done,
            (line,) if line else (),
            streams=len(self._hub.registry),
            orders=self._authority.running_count,
            draining=self.draining,
        )
