"""The rollouts that haven't ended, in memory at every broker: what is told of them costs no read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from typing_extensions import override

from certplane.broker.ports import ChangeFollower
from certplane.broker.rollouts.model import Rollout
from certplane.broker.rollouts.ports import RolloutStore
from certplane.broker.rollouts.watching import RolloutWatchers


class KnownRollouts(ChangeFollower):
    """Knows them: of this broker at once, of another one as the change feed tells. For the event loop's thread."""

    def __init__(self, store: RolloutStore, watchers: RolloutWatchers) -> None:
        """None is known before `reread`; `watchers` are told of what this broker has written."""
        self._store = store
        self._watchers = watchers
        self._open: dict[str, Rollout] = {}

    @property
    def open(self) -> Sequence[Rollout]:
        """Those that haven't ended."""
        return tuple(self._open.values())

    def goes_on(self, rollout_id: str) -> bool:
        """Whether a rollout runs, as far as is known: one that was paused a moment ago doesn't."""
        rollout = self._open.get(rollout_id)
        return rollout is not None and rollout.state.releases

    def note(self, rollout: Rollout) -> None:
        """This broker has just written it."""
        self._put(rollout)
        self._watchers.note(rollout.rollout_id)

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for rollout_id in keys:
            rollout = await self._store.get(rollout_id)
            if rollout is not None:
                self._put(rollout)

    @override
    async def reread(self, since: datetime) -> None:
        self._open = {rollout.rollout_id: rollout for rollout in await self._store.open_rollouts()}

    def _put(self, rollout: Rollout) -> None:
        known = self._open.get(rollout.rollout_id)
        if rollout.state.has_ended:
            self._open.pop(rollout.rollout_id, None)
        elif known is None or known.version <= rollout.version:
            self._open[rollout.rollout_id] = rollout
