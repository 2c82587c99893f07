"""What a broker does to be one of those that share its database, and what it says of itself there."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import starmap
from typing import TYPE_CHECKING

from certplane import __version__
from certplane.broker.background import running
from certplane.broker.fleet.elsewhere import BrokersElsewhere
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.members.drift import DriftWatch
from certplane.broker.members.membership import Membership
from certplane.broker.members.model import AccountKey, Member
from certplane.broker.model import ChangeKind
from certplane.broker.sharing import ask_again_once_let_in, share_accounts

if TYPE_CHECKING:  # which puts the parts together
    from certplane.broker.app import Broker


@asynccontextmanager
async def among_others(membership: Membership | None, broker: Broker, epoch: RetryEpoch) -> AsyncIterator[None]:
    """Have a lease for the length of the block and the others' accounts; hear of their orders and what they know."""
    ask_again_once_let_in(broker.stores, epoch)
    if membership is None:
        await share_accounts(broker.settings, broker.stores, broker.accounts)
        yield
        return
    broker.authority.follow_others(broker.stores.changes)
    broker.stores.changes.follow(ChangeKind.MEMBER, membership.known, what="other brokers")
    DriftWatch(membership.known, broker.meter, broker.hub.context.clock)
    BrokersElsewhere(membership.known, broker.hub.watchers, broker.hub.context.clock)
    await epoch.share(broker.stores.retry_epoch)
    broker.stores.changes.follow(ChangeKind.RETRY_EPOCH, epoch, what="the retry epoch")
    broker.stores.changes.follow(ChangeKind.BROKER_REQUEST, broker.desk.requests, what="what operators ask of brokers")
    await membership.join()
    try:
        await membership.known.read()
        async with running(membership.run(), "lease"), running(epoch.run(), "retry epoch"):
            await share_accounts(broker.settings, broker.stores, broker.accounts)
            yield
    finally:
        await broker.desk.requests.end()
        await membership.leave()


def member_of(broker: Broker) -> Member:
    """What the broker says of itself to others."""
    return Member(
        broker_id=broker.stores.members.broker_id,
        name=socket.gethostname(),
        address=str(broker.settings.server.address),
        version=__version__,
        start_time=broker.start_time,
        policy_hash=broker.policy.current.hash,
        trust_hash=broker.trust.current.bundle.hash,
        configuration_hash=broker.reloader.settings.common_hash,
        stream_count=len(broker.hub.registry),
        audit_mode=broker.settings.audit.mode,
        account_keys=tuple(starmap(AccountKey, sorted(broker.accounts.keys.items()))),
        reuse_port=broker.settings.server.reuse_port,
        draining=broker.desk.service.draining,
    )
