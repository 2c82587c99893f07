"""The numbers of a rollout that follow from its items. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from certplane.broker.rollouts.model import ItemState, Revoke, Ring, Rollout, RolloutItem, StateCount
from certplane.broker.rollouts.timing import expected_end


def begun(rollout: Rollout, items: Sequence[RolloutItem], now: datetime, issued_by: datetime | None = None) -> Rollout:
    """A rollout that is to be created, with its rings, its counts, and when it would end."""
    rings = tuple(Ring(spec.name) for spec in rollout.ring_specs)
    return counted(replace(rollout, rings=rings), items, now, issued_by)


def counted(rollout: Rollout, items: Sequence[RolloutItem], now: datetime, issued_by: datetime | None) -> Rollout:
    """A rollout with what follows from its items as they are now."""
    counts: list[Counter[ItemState]] = [Counter() for _ in rollout.rings]
    hosts: list[set[str]] = [set() for _ in rollout.rings]
    for item in items:
        counts[item.ring][item.state] += 1
        hosts[item.ring].add(item.host)
    rings = tuple(
        replace(
            ring,
            host_count=len(of),
            counts=tuple(StateCount(state, count[state]) for state in ItemState if count[state]),
        )
        for ring, count, of in zip(rollout.rings, counts, hosts, strict=True)
    )
    revokes = rollout.spec.revoke is not Revoke.NEVER
    return replace(
        rollout,
        rings=rings,
        certificate_count=len(items),
        host_count=sum(map(len, hosts)),
        revoked_count=sum(item.revoke_time is not None for item in items) if revokes else 0,
        unrevoked_count=unrevoked(rollout, items, now),
        expected_end_time=expected_end(rollout.ring_specs, rings, now, rollout.spec.deadline, issued_by),
    )


def unrevoked(rollout: Rollout, items: Sequence[RolloutItem], now: datetime) -> int:
    """How many certificates are to be revoked still."""
    return sum(is_unrevoked(item, now) for item in items) if rollout.spec.revoke is not Revoke.NEVER else 0


def is_unrevoked(item: RolloutItem, now: datetime) -> bool:
    """Whether a certificate is to be revoked still, where its rollout revokes."""
    return item.revoke_time is None and item.not_after > now
