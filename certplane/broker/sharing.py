"""What a broker does because others may share its database, put together for `app`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from certplane.broker.audit import SpillLock, import_spill
from certplane.broker.database import stores
from certplane.broker.members.ports import MemberStore
from certplane.broker.ports import Meter, SecretSource
from certplane.broker.settings import BrokerSettings
from certplane.broker.store import Stores
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker")


@asynccontextmanager
async def stores_of_a_broker(
    settings: BrokerSettings, secrets: SecretSource, clock: Clock, meter: Meter
) -> AsyncIterator[Stores]:
    """The database, after what the broker that ran here before has left; its spill file is this one's alone.

    Raises:
        ConfigurationError: see `database.stores`.
        OperationError: likewise, or another broker has the spill file.
        RefusalError: STORE_UNAVAILABLE.
    """
    with closing(SpillLock(settings.spill_path)) as lock:  # closed after the store, which may spill until its end
        async with stores(settings, secrets, clock, meter, exclusive=True) as opened:
            await succeed(lock, opened.members)
            if settings.audit.enabled:
                await import_spill(settings.spill_path, opened.audit, clock)
            yield opened


async def succeed(lock: SpillLock, members: MemberStore) -> None:
    """Take the place of the broker that ran here before: if it was killed, its orders can be taken at once.

    In this order, so that a start that is cut off leaves the next one to do the same: its lease ends, then the lock
    names this broker, which has no lease yet.

    Raises:
        OperationError: another broker runs here.
        RefusalError: STORE_UNAVAILABLE.
    """
    before = lock.take()
    if before and await members.end(before):
        fields = {"broker_id": before}
        _logger.info("the broker that ran here before was killed: its orders are free", extra={"fields": fields})
    lock.name(members.broker_id)
