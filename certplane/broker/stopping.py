"""An orderly stop: callers are told to come back, orders end or are parked, hosts hear goodbye, and it is audited."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.announced import stop_event
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.ports import AuditLog
from certplane.broker.rollouts.watching import RolloutWatchers
from certplane.broker.services.server import BrokerServer
from certplane.errors import RefusalError

_logger = logging.getLogger("certplane.broker")

_COME_BACK: Final = timedelta(seconds=10)
"""What a caller is told while the broker drains: a restarted one is usually back by then."""

_STOP_GRACE: Final = timedelta(seconds=5)
"""What calls get to end after the orders have: their answers are on the way."""


@dataclass(frozen=True, slots=True)
class Stopping:
    """Stops a broker that is `called` so; running orders get `drain_timeout`."""

    server: BrokerServer
    authority: RegistrationAuthority
    hub: FleetHub
    rollout_watchers: RolloutWatchers
    audit: AuditLog
    trail: AuditTrail
    called: str
    drain_timeout: timedelta

    async def stop(self) -> None:
        """Stop it; what can't be audited is logged."""
        await self.server.drain(_COME_BACK)
        await self.authority.drain(self.drain_timeout)
        self.rollout_watchers.close()
        await self.hub.drain()
        await self.server.stop(_STOP_GRACE)
        try:
            await self.audit.append([stop_event(self.trail, self.called)])
        except RefusalError:
            _logger.exception("the stop could not be audited")
        _logger.info("stopped")
