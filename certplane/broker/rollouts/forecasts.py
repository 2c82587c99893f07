"""When the certificates of rollouts would be issued, by the CAs' limits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.budget.forecast import Forecast
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutAction, RolloutItem
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_HOLDS_FOR: Final = timedelta(seconds=60)
"""How long a running rollout's forecast is taken: a step for each report of a host would read the fleet each time."""
_TO_ISSUE: Final = frozenset({ItemState.WAITING, ItemState.REQUESTED})


class RolloutForecasts:
    """Forecasts for those who plan rollouts, and who run them."""

    def __init__(self, forecasts: Forecasts, clock: Clock) -> None:
        self._forecasts = forecasts
        self._clock = clock
        self._recent: dict[str, tuple[float, datetime | None]] = {}

    async def of(self, items: Sequence[RolloutItem], issuer: str) -> Forecast | None:
        """When these would be issued, at `issuer` or at their profiles' own; None while that can't be told."""
        try:
            return await self._forecasts.of(items, issuer)
        except RefusalError:  # what depends on it, a plan's end say, is then told without
            return None

    async def issued_by(self, rollout: Rollout, items: Sequence[RolloutItem]) -> datetime | None:
        """When the last of a rollout's items is issued that isn't; None: none is left, or that can't be told."""
        waiting = [item for item in items if item.state in _TO_ISSUE]
        if not waiting:
            self._recent.pop(rollout.rollout_id, None)
            return None
        known = self._recent.get(rollout.rollout_id)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        forecast = await self.of(waiting, rollout.spec.issuer if rollout.spec.action is RolloutAction.MOVE else "")
        last = None if forecast is None else forecast.last_order_time
        self._recent[rollout.rollout_id] = (self._clock.monotonic() + _HOLDS_FOR.total_seconds(), last)
        return last
