"""When rollouts and incidents ask for a forecast, and when the one of before is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, cast

from certplane.broker.budget.forecast import Forecast
from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.incidents.model import Figures, Incident
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.forecasts import RolloutForecasts
from certplane.broker.rollouts.model import ItemState
from certplane.broker.services.incident_forecasts import ForecastsOfIncidents
from certplane.broker.services.incidents_convert import incident_message
from certplane.errors import Reason, RefusalError
from tests.fakes.clock import ManualClock
from tests.support.rollouts import START, a_rollout, an_item

HOUR = timedelta(hours=1)
SOME = Forecast(2, 0, START + HOUR, "orders of ca: 1 per 1h")


class Asked:
    """`Forecasts` that answers `found`; None: the database is away."""

    def __init__(self) -> None:
        self.found: Forecast | None = SOME
        self.asked: list[Any] = []

    async def of(self, items: Sequence[Any], issuer: str) -> Forecast:
        self.asked.append(([item.certificate_id for item in items], issuer))
        return self._answer()

    async def of_selection(self, selection: Selection) -> tuple[Forecast, int]:
        self.asked.append(selection)
        return self._answer(), 2

    def _answer(self) -> Forecast:
        if self.found is None:
            raise RefusalError(Reason.STORE_UNAVAILABLE, "the database is away")
        return self.found


async def test_a_running_rollout_forecasts_what_is_not_issued() -> None:
    """Once a minute, however often it steps; nothing once all is issued."""
    clock, asked = ManualClock(), Asked()
    forecasts = RolloutForecasts(cast("Forecasts", asked), clock)
    rollout, _ = a_rollout(3)
    items = [an_item(0, 0), an_item(1, 0, state=ItemState.REQUESTED), an_item(2, 0, state=ItemState.HELD)]
    for _ in range(3):
        assert await forecasts.issued_by(rollout, items) == SOME.last_order_time
    assert asked.asked == [(["c000", "c001"], "")]
    clock.advance(timedelta(seconds=61))
    await forecasts.issued_by(rollout, items)
    assert len(asked.asked) == 2
    assert await forecasts.issued_by(rollout, items[2:]) is None
    assert len(asked.asked) == 2


async def test_a_rollout_goes_on_without_a_forecast() -> None:
    """A database that is away is no reason to stop, nor to refuse a plan."""
    asked = Asked()
    asked.found = None
    forecasts = RolloutForecasts(cast("Forecasts", asked), ManualClock())
    rollout, items = a_rollout(1)
    assert await forecasts.issued_by(rollout, items) is None
    assert await forecasts.of(items, "") is None


async def test_an_incident_is_forecast_each_half_minute() -> None:
    """Of what is selected by it: certificates without a successor."""
    clock, asked = ManualClock(), Asked()
    forecasts = ForecastsOfIncidents(cast("Forecasts", asked), clock)
    for _ in range(3):
        assert await forecasts.of("i-1") == SOME
    assert asked.asked == [Selection(incident_id="i-1")]
    clock.advance(timedelta(seconds=31))
    asked.found = None
    assert await forecasts.of("i-1") is None
    for number in range(200):
        await forecasts.of(f"i-{number}")
    assert len(forecasts._recent) <= 100


def test_an_incident_says_that_it_is_late() -> None:
    """If the last is ordered after its deadline, or one never."""
    incident = Incident("i-1", "ca", START, deadline=START + 2 * HOUR, figures=Figures())
    assert not incident_message(incident, SOME).late
    assert incident_message(incident, SOME).forecast.bound_by == SOME.bound_by
    assert incident_message(incident, Forecast(1, 0, START + 3 * HOUR)).late
    assert incident_message(incident, Forecast(2, 0, START, never_count=1)).late
    assert not incident_message(incident).HasField("forecast")
