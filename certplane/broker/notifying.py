"""Telling people what is wrong with the fleet, put together for `app`."""

from __future__ import annotations

import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from certplane.broker.configured import located
from certplane.broker.fleet.view import FleetView
from certplane.broker.notifiers.making import open_notifiers
from certplane.broker.notify.delivery import Delivery
from certplane.broker.notify.ports import Outbox
from certplane.broker.notify.watch import Explain, LookAtSelf, NotificationWatch
from certplane.broker.ports import Meter, SecretSource
from certplane.broker.settings import BrokerSettings
from certplane.broker.wiring import FleetParts
from certplane.runtime.clock import Clock
from certplane.runtime.health import Health
from certplane.runtime.ids import TimeOrderedIds


@asynccontextmanager
async def notifying(
    settings: BrokerSettings,
    secrets: SecretSource,
    outbox: Outbox,
    fleet: FleetParts,
    look_at_self: LookAtSelf,
    *,
    clock: Clock,
    meter: Meter,
) -> AsyncIterator[NotificationWatch | None]:
    """What tells people while it runs, in the block; None where the configuration has no `notifications`.

    Raises:
        ConfigurationError: see `open_notifiers`.
    """
    if not settings.notifications:
        yield None
        return
    async with AsyncExitStack() as stack:
        with located(settings):
            opening = open_notifiers(settings.notifications, secrets, clock)
            notifiers = await stack.enter_async_context(opening)
        yield NotificationWatch(
            index=fleet.index,
            outbox=outbox,
            delivery=Delivery(outbox, notifiers, clock=clock, rng=random.SystemRandom(), meter=meter),
            notifiers=settings.notifications,
            explain=explaining(fleet.view),
            look_at_self=look_at_self,
            called=socket.gethostname(),
            clock=clock,
            new_id=TimeOrderedIds(clock),
        )


def explaining(view: FleetView) -> Explain:
    """The texts of one certificate of a host or a service, as operators are shown them elsewhere."""

    async def explain(host: str, certificate: str) -> Health | None:
        known = (await view.read([host])).get(host)  # services too, which have no record of a host
        return None if known is None else known.health.get(certificate)

    return explain
