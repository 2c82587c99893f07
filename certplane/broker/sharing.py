"""What a broker does because others may share its database, put together for `app`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from functools import partial
from typing import Final

from certplane.broker import metrics
from certplane.broker.accounts.in_use import AccountPlace, AccountsInUse
from certplane.broker.audit import SpillLock, import_spill
from certplane.broker.background import running
from certplane.broker.configured import located
from certplane.broker.database import stores
from certplane.broker.fleet.figures import SHOWN
from certplane.broker.fleet.health_watch import HealthWatch
from certplane.broker.incidents.watch import IncidentWatch
from certplane.broker.issuance.budget import SHOWN_OF_BUDGETS, BudgetWatch
from certplane.broker.issuance.compromised import CompromisedKeys
from certplane.broker.issuance.epoch import RetryEpoch
from certplane.broker.issuing.remote import RemoteIssuer
from certplane.broker.issuing.supervision import IssuingProcess
from certplane.broker.members.membership import Membership
from certplane.broker.members.model import Member
from certplane.broker.members.ports import LastingLease, MemberStore
from certplane.broker.members.roles import (
    AUDIT_SINKS,
    COMPROMISED_KEYS,
    FLEET_HEALTH,
    INCIDENTS,
    NOTIFICATIONS,
    ROLLOUTS,
    SOUNDNESS,
    UPKEEP,
    Roles,
    SoleRoleStore,
    renewal_information,
)
from certplane.broker.members.skew import check_clock
from certplane.broker.model import ChangeKind
from certplane.broker.notify.watch import NotificationWatch
from certplane.broker.ports import ChangeFeed, Meter, RepeatCounts, SecretSource
from certplane.broker.proof.sealing import Sealing
from certplane.broker.renewal.planner import RenewalPlanner
from certplane.broker.retention import Retention
from certplane.broker.rollouts.figures import SHOWN as SHOWN_OF_ROLLOUTS
from certplane.broker.rollouts.runner import RolloutRunner
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.sinks.forwarding import Forwarding
from certplane.broker.soundness import SoundnessWatch
from certplane.broker.store import Stores
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker")

_LOOK: Final = timedelta(minutes=1)
"""Between looks at the counts that killed brokers have left."""

_KEY_LOOK: Final = timedelta(seconds=10)
"""For the issuing process to read an account's key again: from a file, a vault, or the database."""


@asynccontextmanager
async def stores_of_a_broker(
    settings: BrokerSettings, secrets: SecretSource, clock: Clock, meter: Meter
) -> AsyncIterator[Stores]:
    """The database, after what the broker that ran here before has left; its spill file is this one's alone.

    Raises:
        ConfigurationError: see `database.stores`.
        OperationError: likewise, another broker has the spill file, or this machine's clock is wrong.
        RefusalError: STORE_UNAVAILABLE.
    """
    with closing(SpillLock(settings.spill_path)) as lock:  # closed after the store, which may spill until its end
        async with stores(settings, secrets, clock, meter, exclusive=True) as opened:
            if settings.store.driver is not StoreDriver.SQLITE:  # which has no clock of its own
                await check_clock(opened.members, clock)
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


def membership_of(
    settings: BrokerSettings, stores: Stores, me: Callable[[], Member], *, clock: Clock, meter: Meter
) -> Membership | None:
    """This broker's, where others can open the same database."""
    if settings.store.driver is StoreDriver.SQLITE:
        meter.level(metrics.LEASE, 1)  # the file's lock is its lease
        meter.level(metrics.BROKERS, 1)
        return None
    return Membership(stores.members, me, clock, meter)


def roles_of(
    stores: Stores,
    membership: Membership | None,
    *,
    planner: RenewalPlanner,
    health: HealthWatch,
    incidents: IncidentWatch,
    rollouts: RolloutRunner,
    compromised: CompromisedKeys,
    retention: Retention,
    soundness: SoundnessWatch,
    notifications: NotificationWatch | None,
    seals: Sealing,
    forwarding: Forwarding | None,
    budget: BudgetWatch,
    clock: Clock,
    meter: Meter,
) -> Roles:
    """What of this broker's work one broker does for all; without `membership` this one has its database alone."""
    if membership is None:
        roles = Roles(SoleRoleStore(), LastingLease(), clock, meter)
    else:
        roles = Roles(stores.roles, membership, clock, meter)
        follow_members(roles, stores.changes, membership)

    async def upkeep() -> None:
        async with (
            running(retention.prune(), "retention"),
            running(planner.tidy(), "plans of what is gone"),
            running(seals.run_for_others(), "audit checkpoints of others"),
        ):
            if membership is None:
                await asyncio.Event().wait()  # what it had counted itself, its next start looks at
            await _recover_counts(stores.repeats, clock)

    stores.changes.removes = lambda: roles.holds(UPKEEP)
    roles.add(UPKEEP, upkeep)
    roles.add(SOUNDNESS, soundness.run, (metrics.STORE_CHECKED, metrics.STORE_DAMAGED))

    async def measure() -> None:
        async with running(budget.run(), "what limits leave"):
            await health.lead()

    roles.add(FLEET_HEALTH, measure, (*SHOWN, *SHOWN_OF_BUDGETS))
    figures = (metrics.INCIDENTS, metrics.INCIDENT_CERTIFICATES, metrics.INCIDENT_DEADLINE)
    roles.add(INCIDENTS, incidents.run, figures)
    roles.add(COMPROMISED_KEYS, compromised.run)
    roles.add(ROLLOUTS, rollouts.run, SHOWN_OF_ROLLOUTS)
    if notifications is not None:
        roles.add(NOTIFICATIONS, notifications.run, (metrics.NOTIFICATIONS_WAITING,))
    if forwarding is not None:
        roles.add(AUDIT_SINKS, forwarding.run, (metrics.SINK_LAG,))
    for issuer in planner.issuers:
        roles.add(renewal_information(issuer), partial(planner.watch, issuer))
    return roles


def follow_members(roles: Roles, feed: ChangeFeed, membership: Membership) -> None:
    """Let `roles` hear of brokers that leave or give roles back, and of those whose lease has ended."""
    known = membership.known
    feed.follow(ChangeKind.MEMBER, roles, what="roles that other brokers have left")
    # Beside it, since this broker hears nothing from the feed of those whose end it has found itself.
    known.subscribe(lambda: roles.heard([member.broker_id for member in known.members]))


async def _recover_counts(repeats: RepeatCounts, clock: Clock) -> None:
    """Make events of what brokers had counted that were killed, and weren't started again where they were."""
    while True:
        try:
            await repeats.recover()
        except RefusalError as error:
            _logger.warning("counts of repeated events of other brokers could not be closed; will retry: %s", error)
        await clock.sleep(_LOOK)


def ask_again_once_let_in(stores: Stores, epoch: RetryEpoch) -> None:
    """Let hosts ask again whose identity an operator has allowed: what was refused was refused for that."""
    stores.deny_list.on_allowed = lambda: epoch.ask_again("an identity was taken off the deny-list")
    stores.identities.on_settled = lambda: epoch.ask_again("an operator has settled who holds a contested identity")


async def accounts_in_use(
    settings: BrokerSettings,
    stores: Stores,
    issuers: Mapping[str, RemoteIssuer],
    issuing: IssuingProcess,
    started: Awaitable[object],
    *,
    clock: Clock,
) -> AccountsInUse:
    """The keys of the accounts, as the issuing process has found them when it has `started`.

    Raises:
        ConfigurationError: see `IssuingProcess.running`.
        OperationError: likewise.
    """
    places = {
        name: AccountPlace(ca.directory_url, f"{settings.ca_section(name)}.account_key", in_store=ca.account_key.store)
        for name, ca in settings.cas.items()
    }
    accounts = AccountsInUse(stores.accounts, places, lambda name: issuers[name].look_at_account_key(_KEY_LOOK), clock)
    issuing.accounts.open(stores.accounts, accounts.note)
    await started
    return accounts


async def share_accounts(settings: BrokerSettings, stores: Stores, accounts: AccountsInUse) -> None:
    """See that this broker, a member already, orders with the accounts that the others have, and hear of changes.

    Raises:
        ConfigurationError: others order with another account.
        RefusalError: STORE_UNAVAILABLE.
    """
    with located(settings):
        await accounts.claim(stores.members.broker_id, stores.members.living)
    stores.changes.follow(ChangeKind.ACCOUNT, accounts, what="the accounts at the CAs")
