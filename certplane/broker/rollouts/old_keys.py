"""Has no certificate issued any more for the keys that a rekey replaces: those of all its hosts, from its start.

Not of each when its host is told: one that is away for weeks, or whose agent is told in its ring's turn alone, would
get certificates for a key that may be out until then. Agents make another key by themselves when theirs is refused.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Final

from certplane.broker.renewal.ports import KeyBlocks
from certplane.broker.rollouts.events import RolloutEvents
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutAction, RolloutItem

_TOGETHER: Final = 512
"""Certificates whose keys are blocked in one transaction."""


async def block_old_keys(
    rollout: Rollout, items: Collection[RolloutItem], keys: KeyBlocks, events: RolloutEvents, now: datetime
) -> None:
    """Block them, durable, before any host is told; whoever takes the rollout over does it again, and silently.

    Raises:
        RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; do it again.
    """
    if rollout.spec.action is not RolloutAction.REKEY:
        return
    ids = sorted(item.certificate_id for item in items)
    is_first = all(item.state is ItemState.WAITING for item in items)
    for start in range(0, len(ids), _TOGETHER):
        is_last = start + _TOGETHER >= len(ids)
        told = [events.keys_blocked(len(ids))] if is_first and is_last else []
        await keys.block_keys(ids[start : start + _TOGETHER], now, told)
