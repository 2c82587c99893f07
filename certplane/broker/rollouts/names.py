"""How many hosts of one name may activate at a time. Pure but for what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from certplane.broker.rollouts.model import ItemFacts, ItemState, RolloutItem

_UNDER_WAY = frozenset({ItemState.RELEASED, ItemState.SILENT})


class NameLimits:
    """Of each name: as many hosts as a percentage of the rollout's hosts with that name is, and one at least."""

    def __init__(self, percent: int, items: Sequence[RolloutItem], facts: Mapping[str, ItemFacts]) -> None:
        """`percent` 0 is without a limit. Whoever went silent is counted: nobody knows what it serves."""
        self.none_left: list[str] = []
        """Hosts for which there was no room."""
        self._activating: dict[str, set[str]] = {}
        hosts: dict[str, set[str]] = {}
        for item in items if percent else ():
            for name in item.dns_names:
                hosts.setdefault(name, set()).add(item.host)
            if item.state in _UNDER_WAY or activates_soon(item, facts):
                self.add(item)
        self._most = {name: max(1, len(of) * percent // 100) for name, of in hosts.items()}

    def has_room(self, item: RolloutItem) -> bool:
        """Whether its host may activate now, by each of its names."""
        if not self._most:
            return True
        for name in item.dns_names:
            activating = self._activating.get(name, ())
            if item.host not in activating and len(activating) >= self._most[name]:
                self.none_left.append(item.host)
                return False
        return True

    def add(self, item: RolloutItem) -> None:
        """Its host activates."""
        for name in item.dns_names:
            self._activating.setdefault(name, set()).add(item.host)


def activates_soon(item: RolloutItem, facts: Mapping[str, ItemFacts]) -> bool:
    """Whether it activates as soon as it gets what it has asked for."""
    known = facts.get(item.certificate_id)
    asked = item.state is ItemState.REQUESTED and item.release_time is not None
    return asked and known is not None and known.is_there
