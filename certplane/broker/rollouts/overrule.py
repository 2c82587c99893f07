"""Where two rollouts have one certificate the newer one has it, and the older one passes it over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from certplane.broker.rollouts.model import Rollout, RolloutItem


def overruled(rollouts: Iterable[tuple[Rollout, Sequence[RolloutItem]]]) -> Mapping[tuple[str, str], str]:
    """Which items a newer rollout has taken over: its id, by the `rollout_id` and `certificate_id` of the older one's.

    A newer one also has what an older one has had issued and not brought into use: it replaces that.

    Args:
        rollouts: Those that are under way, with their items.
    """
    newest_first = sorted(rollouts, key=lambda one: (one[0].create_time, one[0].rollout_id), reverse=True)
    taken: dict[str, str] = {}
    found: dict[tuple[str, str], str] = {}
    for rollout, items in newest_first:
        for item in items:
            by = taken.get(item.certificate_id) or taken.get(item.new_certificate_id)
            if by is not None:
                found[rollout.rollout_id, item.certificate_id] = by
        for item in items:
            taken.setdefault(item.certificate_id, rollout.rollout_id)
    return found


def overruled_text(rollout_id: str) -> str:
    """Why an item has nothing to do any more (`ItemFacts.gone`)."""
    return f"the newer rollout {rollout_id} has it"
