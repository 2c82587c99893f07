"""Rollouts, put together for `app`; and what notifiers are told of them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from certplane.broker.events import AuditTrail
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.fleet.hub import FleetHub
from certplane.broker.issuance.authority import RegistrationAuthority
from certplane.broker.members.ports import Lease
from certplane.broker.model import CertificateRecord, ChangeKind
from certplane.broker.notify.model import OwnTrouble
from certplane.broker.notify.watch import LookAtSelf
from certplane.broker.ports import Meter, PolicySource
from certplane.broker.renewal.plans import RenewalPlans
from certplane.broker.rollouts.desk import RolloutDesk
from certplane.broker.rollouts.figures import is_late
from certplane.broker.rollouts.forecasts import RolloutForecasts
from certplane.broker.rollouts.freezing import Freezing
from certplane.broker.rollouts.in_hand import Sources
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.model import Rollout, RolloutState
from certplane.broker.rollouts.revoking import ReplacedRevocations
from certplane.broker.rollouts.runner import RolloutRunner, RunnerPorts
from certplane.broker.rollouts.watching import RolloutWatchers
from certplane.broker.services.budget_convert import forecast_message
from certplane.broker.services.rollouts import RolloutServicer
from certplane.broker.store import Stores
from certplane.broker.wiring import FleetParts
from certplane.runtime.clock import Clock
from certplane.runtime.health import Severity, moment_text
from certplane.runtime.pool import BlockingPool


@dataclass(frozen=True, slots=True)
class RolloutParts:
    """What a broker has of rollouts: who takes words, who runs them, who is told."""

    desk: RolloutDesk
    runner: RolloutRunner
    servicer: RolloutServicer
    watchers: RolloutWatchers
    known: KnownRollouts

    def also(self, look: LookAtSelf, clock: Clock) -> LookAtSelf:
        """What `look` finds, and what is wrong with rollouts: for those who are notified."""

        def look_at_all() -> Sequence[OwnTrouble]:
            return [*look(), *troubles(self.known.open, clock.now())]

        return look_at_all


def rollout_parts(
    stores: Stores,
    plans: RenewalPlans,
    hub: FleetHub,
    fleet: FleetParts,
    authority: RegistrationAuthority,
    *,
    forecasts: Forecasts,
    policy: PolicySource,
    issuers: Sequence[str],
    lease: Lease,
    pool: BlockingPool,
    clock: Clock,
    rng: random.Random,
    trail: AuditTrail,
    meter: Meter,
) -> RolloutParts:
    """All of them, hearing of other brokers' rollouts."""
    forecast = RolloutForecasts(forecasts, clock)
    watchers = RolloutWatchers()
    known = KnownRollouts(stores.rollouts, watchers)
    stores.changes.follow(ChangeKind.ROLLOUT, known, what="rollouts, for those who are notified")
    stores.changes.follow(ChangeKind.ROLLOUT, watchers, what="rollouts")
    runner = RolloutRunner(
        RunnerPorts(
            store=stores.rollouts,
            plans=plans,
            keys=stores.certificates,
            sources=Sources(fleet.index, stores.fleet, stores.successors, stores.certificates, policy, clock),
            watchers=watchers,
            known=known,
            revocations=partial(
                ReplacedRevocations,
                revokes=authority,
                certificates=stores.certificates,
                index=fleet.index,
                lease=lease,
                known=known,
                clock=clock,
                rng=rng,
            ),
            activations_wanted=hub.activations_wanted,
            issued_by=forecast.issued_by,
            pool=pool,
            trail=trail,
            meter=meter,
        )
    )

    def note_revoked(certificate: CertificateRecord) -> None:
        if certificate.revoke_time is not None:
            runner.note_revoked(certificate.certificate_id, certificate.revoke_time)

    plans.subscribe_revoked(note_revoked)
    desk = RolloutDesk(
        store=stores.rollouts,
        freezing=Freezing(plans, fleet.index, forecast.of),
        index=fleet.index,
        policy=policy,
        issuers=issuers,
        known=known,
        trail=trail,
        clock=clock,
        rng=rng,
    )
    servicer = RolloutServicer(
        desk,
        stores.rollouts,
        watchers,
        named=fleet.view,
        index=fleet.index,
        forecast=forecast.of,
        forecast_message=forecast_message,
        clock=clock,
    )
    return RolloutParts(desk, runner, servicer, watchers, known)


def troubles(rollouts: Sequence[Rollout], now: datetime) -> Iterator[OwnTrouble]:
    """What a notifier is told of rollouts: one that waits for a person, and one that is late."""
    for rollout in rollouts:
        named, deadline = f"ROLLOUT {rollout.rollout_id}", rollout.spec.deadline
        if rollout.state is RolloutState.HALTED:
            yield OwnTrouble(
                f"{named} HALTED",
                Severity.CRITICAL,
                f"the rollout {rollout.rollout_id} ({rollout.spec.reason}) has halted: {rollout.state_reason}",
                f"certplanectl rollout show {rollout.rollout_id} names the hosts; then rollout resume, or abort",
                of_fleet=True,
            )
        elif rollout.state is RolloutState.AWAITING_APPROVAL:
            yield OwnTrouble(
                f"{named} AWAITS APPROVAL",
                Severity.WARNING,
                f"the rollout {rollout.rollout_id} ({rollout.spec.reason}) of {rollout.created_by} waits for approval",
                f"certplanectl rollout show {rollout.rollout_id}; then rollout approve, by another operator, or abort",
                of_fleet=True,
            )
        elif deadline is not None and is_late(rollout, now):
            yield OwnTrouble(
                f"{named} LATE",
                Severity.WARNING,
                f"the rollout {rollout.rollout_id} ({rollout.spec.reason}) won't be done by {moment_text(deadline)}",
                f"certplanectl rollout show {rollout.rollout_id} says what it waits for",
                of_fleet=True,
            )
