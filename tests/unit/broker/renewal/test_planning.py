"""From a CA's answer to a plan: every rule of the planner as a named case, and what must hold for all of them."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.broker.renewal.model import (
    InForce,
    RenewalInfo,
    RenewalInfoError,
    RenewalInfoUnsupportedError,
    RenewalPlan,
)
from certplane.broker.renewal.planning import (
    LONGEST_WAIT,
    SHORTEST_WAIT,
    has_moved,
    latest_renewal,
    move_of,
    plan_renewal,
)
from certplane.fleet_report.model import RenewalCause

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
LIFE = 90 * DAY
DEFAULT = START + 58 * DAY
WINDOW = RenewalInfo(START + 60 * DAY, START + 62 * DAY)
LATER = RenewalInfo(START + 70 * DAY, START + 72 * DAY)
PAST = RenewalInfo(START - 2 * DAY, START - DAY, "https://ca.example/incident")
DOWN = RenewalInfoError("no answer", temporary=True)
NONSENSE = RenewalInfoError("nonsense", temporary=False)
NONE = RenewalInfoUnsupportedError("no renewal information")


def in_force(plan: RenewalPlan | None = None) -> InForce:
    return InForce("certificate-1", "web1", "web", "acme", ("example.org",), START, START + LIFE, DEFAULT, plan)


def planned(
    answer: RenewalInfo | RenewalInfoError,
    plan: RenewalPlan | None = None,
    *,
    now: datetime = START,
    renew_before: timedelta | None = None,
    seed: int = 1,
) -> RenewalPlan:
    return plan_renewal(in_force(plan), answer, renew_before=renew_before, now=now, rng=random.Random(seed))


def operators(time: datetime, **values: Any) -> RenewalPlan:
    return RenewalPlan(
        "certificate-1", "web1", time, RenewalCause.OPERATOR, "an operator asked", renewal_request_id="r-7", **values
    )


def test_a_moment_is_picked_in_the_window() -> None:
    """The CA's own window, its address, and when to ask again come with it."""
    plan = planned(replace(WINDOW, explanation_url="https://ca.example/why", retry_after=2 * HOUR))
    assert WINDOW.window_start <= plan.renew_time < WINDOW.window_end
    assert (plan.window_start, plan.window_end) == (WINDOW.window_start, WINDOW.window_end)
    assert plan.cause is RenewalCause.ISSUER
    assert plan.reason == "the CA's window (ARI) 2027-01-22T12:00:00Z/2027-01-24T12:00:00Z"
    assert plan.explanation_url == "https://ca.example/why"
    assert plan.next_check_time is not None
    assert 2 * HOUR <= plan.next_check_time - START <= 2.1 * HOUR


def test_moments_are_spread_over_the_window() -> None:
    """Uniformly: a fleet that was issued together isn't renewed together."""
    shares = sorted((planned(WINDOW, seed=seed).renew_time - WINDOW.window_start) / (2 * DAY) for seed in range(1000))
    assert max(abs(share - index / 1000) for index, share in enumerate(shares)) < 0.06


def test_the_moment_stays_while_the_window_stays() -> None:
    """However often the CA is asked; the explanation may change."""
    first = planned(WINDOW)
    for seed in range(20):
        again = planned(replace(WINDOW, explanation_url="https://ca.example/new"), first, now=START + DAY, seed=seed)
        assert again.renew_time == first.renew_time
        assert again.reason == first.reason
        assert again.explanation_url == "https://ca.example/new"
        assert not has_moved(first, again)


def test_a_moved_window_is_picked_in_anew() -> None:
    """And that is a move; the first window isn't."""
    first = planned(WINDOW)
    moved = planned(LATER, first, now=START + DAY)
    assert LATER.window_start <= moved.renew_time < LATER.window_end
    assert has_moved(first, moved)
    assert not has_moved(None, first)
    assert not has_moved(planned(DOWN), planned(WINDOW, planned(DOWN)))


def test_a_window_that_is_past_means_now() -> None:
    """An incident: with the CA's explanation."""
    now = START + 5 * DAY
    plan = planned(PAST, planned(WINDOW), now=now)
    assert plan.renew_time == now
    assert plan.cause is RenewalCause.ISSUER
    assert plan.reason == "the CA asks for it now"
    assert plan.explanation_url == "https://ca.example/incident"
    later = planned(PAST, plan, now=now + DAY)
    assert later.renew_time == now, "it stays due since then"


def test_within_the_window_the_moment_may_be_past() -> None:
    """Then it is due at once (RFC 9773 4.2): the draw is over the whole window."""
    now = WINDOW.window_end - MINUTE
    times = [planned(WINDOW, now=now, seed=seed).renew_time for seed in range(50)]
    assert all(WINDOW.window_start <= time < WINDOW.window_end for time in times)
    assert any(time < now for time in times)


def test_a_policy_s_renew_before_is_never_passed() -> None:
    """The earlier of both; asked again, the plan is the same."""
    first = planned(WINDOW, renew_before=40 * DAY)
    assert first.renew_time == START + 50 * DAY
    assert first.cause is RenewalCause.LIFETIME
    again = planned(WINDOW, first, now=START + DAY, renew_before=40 * DAY, seed=9)
    assert (again.renew_time, again.cause, again.reason) == (first.renew_time, first.cause, first.reason)
    early = planned(WINDOW, renew_before=20 * DAY)
    assert early.renew_time < WINDOW.window_end
    assert early.cause is RenewalCause.ISSUER
    dropped = planned(WINDOW, first, now=START + DAY, renew_before=None)
    assert WINDOW.window_start <= dropped.renew_time < WINDOW.window_end, "the policy asks for it no longer"


def test_a_renew_before_longer_than_half_of_the_life_is_capped() -> None:
    """A fresh certificate isn't due, whatever the policy says."""
    assert latest_renewal(in_force(), 89 * DAY) == START + 45 * DAY


def test_a_ca_does_not_put_a_renewal_off_to_the_end() -> None:
    """The last eighth is left for what can go wrong."""
    plan = planned(RenewalInfo(START + 89 * DAY, START + 400 * DAY))
    assert plan.renew_time == START + LIFE * 7 / 8
    assert plan.cause is RenewalCause.LIFETIME


@pytest.mark.parametrize("answer", [DOWN, NONSENSE, NONE], ids=["down", "nonsense", "unsupported"])
def test_without_an_answer_the_lifetime_holds(answer: RenewalInfoError) -> None:
    """The fraction rule is never off."""
    plan = planned(answer)
    assert plan.renew_time == DEFAULT
    assert plan.cause is RenewalCause.LIFETIME
    assert plan.window_start is None
    assert planned(answer, plan, renew_before=45 * DAY).renew_time == START + 45 * DAY


@pytest.mark.parametrize("answer", [DOWN, NONSENSE, NONE], ids=["down", "nonsense", "unsupported"])
@pytest.mark.parametrize("before", [WINDOW, PAST], ids=["ahead", "incident"])
def test_an_error_leaves_what_was_planned(answer: RenewalInfoError, before: RenewalInfo) -> None:
    """Neither a pick nor a call back is undone by a CA that is down."""
    first = planned(before)
    then = planned(answer, first, now=START + DAY)
    assert then.told == first.told
    assert (then.window_start, then.window_end) == (first.window_start, first.window_end)


def test_temporary_errors_are_asked_about_with_backoff_and_then_every_six_hours() -> None:
    """Between a minute and an hour at first; an answer begins anew (RFC 9773 4.3.3)."""
    plan, waits = None, []
    for seed in range(10):
        plan = planned(DOWN, plan, seed=seed)
        assert plan.next_check_time is not None
        waits.append(plan.next_check_time - START)
    assert all(MINUTE <= wait <= 1.05 * HOUR for wait in waits[:6]), waits
    assert all(6 * HOUR <= wait <= 6.3 * HOUR for wait in waits[6:]), waits
    assert plan is not None
    assert plan.check_failures == 10
    assert planned(WINDOW, plan).check_failures == 0


@pytest.mark.parametrize(
    ("answer", "least", "most"),
    [
        pytest.param(WINDOW, 6 * HOUR, 6.3 * HOUR, id="nothing said"),
        pytest.param(replace(WINDOW, retry_after=timedelta()), MINUTE, 1.05 * MINUTE, id="at once is a minute"),
        pytest.param(replace(WINDOW, retry_after=7 * DAY), DAY, DAY, id="a week is a day"),
        pytest.param(replace(WINDOW, retry_after=3 * HOUR), 3 * HOUR, 3.15 * HOUR, id="as said, and a little"),
        pytest.param(RenewalInfoError("", temporary=True, retry_after=9 * HOUR), 9 * HOUR, 10 * HOUR, id="limited"),
        pytest.param(NONSENSE, 6 * HOUR, 6.3 * HOUR, id="nonsense"),
        pytest.param(RenewalInfoError("", temporary=False, retry_after=MINUTE), 6 * HOUR, 6.3 * HOUR, id="nonsense"),
        pytest.param(NONE, DAY, DAY, id="unsupported"),
    ],
)
def test_when_the_ca_is_asked_again(answer: RenewalInfo | RenewalInfoError, least: timedelta, most: timedelta) -> None:
    """Never sooner than it says, but at least once a day."""
    for seed in range(20):
        plan = planned(answer, seed=seed)
        assert plan.next_check_time is not None
        assert least <= plan.next_check_time - START <= most


def test_an_operator_s_plan_is_never_put_off() -> None:
    """The window is noted beside it; a window that is past brings it forward."""
    wanted = operators(START + 3 * HOUR)
    plan = planned(WINDOW, wanted)
    assert plan.renew_time == wanted.renew_time
    assert (plan.cause, plan.reason, plan.renewal_request_id) == (RenewalCause.OPERATOR, "an operator asked", "r-7")
    assert plan.window_start == WINDOW.window_start
    later = planned(LATER, plan, now=START + HOUR)
    assert later.renew_time == wanted.renew_time
    forward = planned(PAST, plan, now=START + HOUR)
    assert forward.renew_time == START + HOUR
    assert forward.cause is RenewalCause.OPERATOR
    assert forward.reason == "the CA asks for it now"
    assert planned(DOWN, plan).told == plan.told
    assert planned(WINDOW, forward, now=START + 2 * HOUR).renew_time == START + HOUR


def test_what_a_rollout_asks_for_stays_while_the_ca_is_asked() -> None:
    """Also where the CA's window brings the renewal forward: its host still holds the new certificate back."""
    asked = {"rollout_id": "r1", "hold_activation": True, "activate_by_time": START + DAY, "new_key": True}
    wanted = replace(operators(START + 3 * HOUR), renewal_request_id="", to_issuer="other", **asked)  # type: ignore[arg-type]
    for plan in (planned(WINDOW, wanted), planned(PAST, wanted, now=START + HOUR), planned(DOWN, wanted)):
        assert replace(plan, renew_time=wanted.renew_time).told[5:] == wanted.told[5:]
        assert plan.to_issuer == "other"


times = st.integers(-200 * 86_400, 200 * 86_400).map(lambda seconds: START + timedelta(seconds=seconds))
infos = st.builds(
    lambda start, length, wait: RenewalInfo(start, start + timedelta(seconds=length), retry_after=wait),
    times,
    st.integers(1, 100 * 86_400),
    st.none() | st.integers(0, 10**6).map(lambda seconds: timedelta(seconds=seconds)),
)
answers = infos | st.sampled_from([DOWN, NONSENSE, NONE])


@given(
    st.lists(st.tuples(answers, st.integers(0, 20 * 86_400)), min_size=1, max_size=12),
    st.none() | st.integers(1, 100 * 86_400).map(lambda seconds: timedelta(seconds=seconds)),
    st.none() | times,
    st.integers(0, 1000),
)
def test_what_holds_for_any_history(
    history: list[tuple[RenewalInfo | RenewalInfoError, int]],
    renew_before: timedelta | None,
    operator_time: datetime | None,
    seed: int,
) -> None:
    """No answers, in whatever order, put a renewal off past its bounds, or let the CA be asked too often or never."""
    rng, now = random.Random(seed), START
    plan = None if operator_time is None else operators(operator_time)
    for answer, seconds in history:
        before = plan
        plan = plan_renewal(in_force(plan), answer, renew_before=renew_before, now=now, rng=rng)
        assert plan.renew_time <= latest_renewal(in_force(), renew_before)
        assert plan.next_check_time is not None
        assert SHORTEST_WAIT <= plan.next_check_time - now <= LONGEST_WAIT
        if operator_time is not None:
            assert plan.renew_time <= operator_time
            assert plan.cause is RenewalCause.OPERATOR or plan.renew_time < operator_time
        if before is not None and not has_moved(before, plan) and before.window_start is not None:
            assert plan.told[:3] == before.told[:3]
        if isinstance(answer, RenewalInfo):
            assert (plan.window_start, plan.window_end) == (answer.window_start, answer.window_end)
        now += timedelta(seconds=seconds)


def test_a_window_that_is_past_may_wait_for_a_rollout() -> None:
    """So long, and no longer whatever the CA says next; nothing that was to come sooner is put off."""

    def patient(answer: RenewalInfo, plan: RenewalPlan | None, now: datetime) -> RenewalPlan:
        rng = random.Random(1)
        return plan_renewal(in_force(plan), answer, renew_before=None, patience=10 * MINUTE, now=now, rng=rng)

    called_back = patient(PAST, BEFORE, START)
    assert (called_back.renew_time, called_back.cause) == (START + 10 * MINUTE, RenewalCause.ISSUER)
    later = START + 4 * MINUTE
    assert patient(PAST, called_back, later).renew_time == called_back.renew_time
    more_past = replace(PAST, window_start=PAST.window_start - DAY)
    assert patient(more_past, called_back, later).renew_time == called_back.renew_time
    assert patient(more_past, called_back, START + HOUR).renew_time == START + HOUR
    assert patient(PAST, operators(START + MINUTE), START).renew_time == START + MINUTE
    assert WINDOW.window_start <= patient(WINDOW, None, START).renew_time < WINDOW.window_end


BEFORE = planned(WINDOW)
MOVES = {
    "no word": (None, DOWN, START, None),
    "the same window": (BEFORE, WINDOW, START, None),
    "a first window to come": (None, WINDOW, START, None),
    "a first window that is past, while its lifetime has it renewed later": (None, PAST, START, True),
    "a first window that is past, as its lifetime has it": (None, WINDOW, START + 63 * DAY, None),
    "shifted forward by some hours": (
        BEFORE,
        RenewalInfo(WINDOW.window_start - 6 * HOUR, WINDOW.window_end - 6 * HOUR),
        START,
        False,
    ),
    "put off": (BEFORE, LATER, START, False),
    "all of it before the old one": (BEFORE, RenewalInfo(START + DAY, START + 2 * DAY), START, True),
    "up to where the old one began": (BEFORE, RenewalInfo(START + DAY, WINDOW.window_start), START, True),
    "past": (BEFORE, PAST, START, True),
    "past, within the old one": (
        BEFORE,
        RenewalInfo(WINDOW.window_start, WINDOW.window_start + HOUR),
        WINDOW.window_start + 2 * HOUR,
        True,
    ),
    "past, as the old one was": (
        BEFORE,
        RenewalInfo(WINDOW.window_start, WINDOW.window_end + HOUR),
        WINDOW.window_end + DAY,
        False,
    ),
    "an operator's plan, past": (
        operators(START, window_start=START + 60 * DAY, window_end=START + 62 * DAY),
        PAST,
        START,
        True,
    ),
}


@pytest.mark.parametrize(("before", "answer", "now", "forward"), MOVES.values(), ids=MOVES)
def test_what_a_ca_has_done_to_a_window(
    before: RenewalPlan | None, answer: RenewalInfo | RenewalInfoError, now: datetime, forward: bool | None
) -> None:
    """Nothing, brought it forward, or put it off; and then which window it is, and what held before."""
    certificate = in_force(before)
    move = move_of(certificate, planned(answer, before, now=now), now)
    assert (None if move is None else move.forward) is forward
    if move is not None:
        assert isinstance(answer, RenewalInfo)
        assert (move.window_start, move.window_end) == (answer.window_start, answer.window_end)
        assert (move.certificate_id, move.host, move.issuer) == ("certificate-1", "web1", "acme")
        assert (move.move_time, move.due_before) == (now, certificate.renew_time)
        assert move.explanation_url == answer.explanation_url
