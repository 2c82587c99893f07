"""When what incidents want replaced would be ordered, found again after half a minute."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from certplane.broker.budget.forecast import Forecast
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.renewal.model import Selection
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_SHOWN_FOR: Final = timedelta(seconds=30)
_MOST: Final = 100
"""Open incidents whose forecasts are kept: each issuer has one at most."""


class ForecastsOfIncidents:
    """Forecasts the certificates of an incident that have no successor yet."""

    def __init__(self, forecasts: Forecasts, clock: Clock) -> None:
        self._forecasts = forecasts
        self._clock = clock
        self._recent: dict[str, tuple[float, Forecast | None]] = {}

    async def of(self, incident_id: str) -> Forecast | None:
        """Its forecast; None while it can't be made, which is no reason to show nothing of the incident."""
        known = self._recent.get(incident_id)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        try:
            # Selected are certificates in force: what has a successor is none of them.
            found: Forecast | None = (await self._forecasts.of_selection(Selection(incident_id=incident_id)))[0]
        except RefusalError:
            found = None
        while len(self._recent) >= _MOST:
            del self._recent[next(iter(self._recent))]
        self._recent[incident_id] = (self._clock.monotonic() + _SHOWN_FOR.total_seconds(), found)
        return found
