"""The figures of rollouts that haven't ended, for metrics."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from certplane.broker import metrics
from certplane.broker.ports import Meter
from certplane.broker.rollouts.model import ItemState, RingState, Rollout, RolloutState

SHOWN: Final = (
    metrics.ROLLOUTS,
    metrics.ROLLOUT_CERTIFICATES,
    metrics.ROLLOUT_UNREVOKED,
    metrics.ROLLOUTS_LATE,
    metrics.ROLLOUT_RING_SECONDS,
)
"""Those that the broker with the role shows."""


def show(meter: Meter, rollouts: Collection[Rollout], now: datetime) -> None:
    """Show them as they are now."""
    states = dict.fromkeys((state for state in RolloutState if not state.has_ended), 0)
    items = dict.fromkeys(ItemState, 0)
    for rollout in rollouts:
        states[rollout.state] += 1
        for ring in rollout.rings:
            for each in ring.counts:
                items[each.state] += each.count
    for state, count in states.items():
        meter.level(metrics.ROLLOUTS, count, state=state.value)
    for item_state, count in items.items():
        meter.level(metrics.ROLLOUT_CERTIFICATES, count, state=item_state.value)
    meter.level(metrics.ROLLOUT_UNREVOKED, sum(rollout.unrevoked_count for rollout in rollouts))
    meter.level(metrics.ROLLOUTS_LATE, sum(is_late(rollout, now) for rollout in rollouts))
    meter.level(metrics.ROLLOUT_RING_SECONDS, max((_waited(rollout, now) for rollout in rollouts), default=0.0))


def is_late(rollout: Rollout, now: datetime) -> bool:
    """Whether its last ring is done after its deadline, as far as can be told."""
    deadline = rollout.spec.deadline
    if deadline is None or all(ring.state is RingState.DONE for ring in rollout.rings):
        return False
    return max(now, rollout.expected_end_time or now) > deadline


def _waited(rollout: Rollout, now: datetime) -> float:
    """For how long it has waited for hosts of a ring that were let activate, in seconds."""
    if rollout.state is not RolloutState.RUNNING:
        return 0.0
    since = [ring.release_time for ring in rollout.rings if ring.state is RingState.RELEASED and ring.release_time]
    return max(0.0, (now - min(since)).total_seconds()) if since else 0.0
