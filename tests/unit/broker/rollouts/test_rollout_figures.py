"""What metrics and notifiers say of rollouts that haven't ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.notify.model import Severity
from certplane.broker.rollout_desk import troubles
from certplane.broker.rollouts.figures import is_late, show
from certplane.broker.rollouts.model import Rollout, RolloutState
from tests.fakes.audit import FakeMeter
from tests.support.rollouts import MINUTE, START, Campaign, a_spec


def one_that_ends_by(after: timedelta | None) -> Rollout:
    """Two rings, the first of which is baked for ten minutes: fourteen in all, as is guessed at first."""
    deadline = START + after if after is not None else None
    return Campaign.of(1, 1, spec=a_spec(deadline=deadline)).rollout


@pytest.mark.parametrize(
    ("deadline", "at", "late"),
    [
        pytest.param(None, timedelta(days=9), False, id="no deadline"),
        pytest.param(timedelta(hours=1), timedelta(), False, id="in time"),
        pytest.param(timedelta(hours=1), timedelta(hours=2), True, id="the deadline has gone by"),
        pytest.param(timedelta(minutes=3), timedelta(), True, id="too little time for the rings alone"),
    ],
)
def test_late(deadline: timedelta | None, at: timedelta, late: bool) -> None:
    """By how far it is; the deadline's own cut of bake times is counted."""
    assert is_late(one_that_ends_by(deadline), START + at) is late


def test_one_whose_rings_are_done_is_not_late() -> None:
    """What it waits for then are hosts that are away."""
    campaign = Campaign.of(1, 1, spec=a_spec(deadline=START + timedelta(hours=1)))
    campaign.run()
    assert not is_late(campaign.rollout, START + timedelta(hours=2))


def test_how_long_the_slowest_has_waited_for_its_hosts() -> None:
    """From the release of the ring, while the rollout runs: one that was paused waits for a person."""
    meter, campaign = FakeMeter(), Campaign.of(1, 1)
    campaign.step()
    show(meter, [campaign.rollout], START + 90 * MINUTE)
    assert meter.levels[metrics.ROLLOUT_RING_SECONDS] == 90 * 60
    show(meter, [replace(campaign.rollout, state=RolloutState.PAUSED)], START + 90 * MINUTE)
    assert meter.levels[metrics.ROLLOUT_RING_SECONDS] == 0
    show(meter, [], START + 90 * MINUTE)
    assert meter.levels[metrics.ROLLOUTS_LATE] == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({"state": RolloutState.RUNNING}, [], id="running"),
        pytest.param({"state": RolloutState.PAUSED}, [], id="paused by an operator, who knows"),
        pytest.param({"state": RolloutState.HALTED}, [("ROLLOUT r1 HALTED", Severity.CRITICAL)], id="halted"),
        pytest.param(
            {"state": RolloutState.AWAITING_APPROVAL},
            [("ROLLOUT r1 AWAITS APPROVAL", Severity.WARNING)],
            id="waits for approval",
        ),
        pytest.param(
            {"spec": a_spec(deadline=START + timedelta(minutes=1))},
            [("ROLLOUT r1 LATE", Severity.WARNING)],
            id="late",
        ),
    ],
)
def test_what_notifiers_are_told(changes: dict[str, Any], expected: list[tuple[str, Severity]]) -> None:
    """What a person must know of, each with the command to look."""
    told = list(troubles([replace(Campaign.of(1, 1).rollout, **changes)], START + 2 * MINUTE))
    assert [(each.cause, each.severity) for each in told] == expected
    assert all(each.of_fleet and "certplanectl rollout show r1" in each.remedy for each in told)
