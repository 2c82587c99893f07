"""What holds of a rollout whatever hosts, CAs, operators, brokers and clocks do: by random campaigns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from certplane.broker.rollouts import words
from certplane.broker.rollouts.machine import step
from certplane.broker.rollouts.model import (
    Finish,
    Halt,
    ItemState,
    Revoke,
    RingSpec,
    RingState,
    Rollout,
    RolloutState,
    Step,
)
from certplane.broker.rollouts.observed import Moment
from certplane.errors import RefusalError
from tests.support.rollouts import MINUTE, NOT_AFTER, START, Campaign, a_spec

BAKE = 10 * MINUTE
RINGS = (RingSpec("one", ("ring=one",), bake=BAKE), RingSpec("two", percent=50, bake=BAKE), RingSpec("rest", rest=True))
SIZES = (2, 2, 3)
COUNT = sum(SIZES)
WORDS: dict[str, Callable[[Rollout, datetime], Rollout]] = {
    "pause": lambda rollout, now: words.pause(rollout, "op", "x", now),
    "resume": lambda rollout, now: words.resume(rollout, "op", "x", now),
    "abort": lambda rollout, now: words.abort(rollout, "op", "x", now),
    "finish": lambda rollout, now: words.finish(rollout, "op", "x", now, revoke_remaining=False),
    "revoke": lambda rollout, now: words.finish(rollout, "op", "x", now, revoke_remaining=True),
}
_KNOWN: dict[str, dict[str, Any]] = {
    "recover": {"failure": "", "failure_mark": ""},
    "leave": {"is_there": False},
    "come": {"is_there": True},
    "roll back": {"installed": False, "served": False},
    "forget": {"gone": "its host was forgotten"},
    "unread": {"is_there": False, "heard_time": None},
}
_HEARD = frozenset({"leave", "come"})
HOST_ACTIONS = ("issue", "activate", "fail", "revoked", *_KNOWN)


@dataclass
class Watched:
    """A campaign in which each step is held against the rules; `real` is time as it goes by, whatever clocks say."""

    campaign: Campaign
    real: timedelta = timedelta()
    done_at: timedelta | None = None
    failures: int = 0

    def act(self, action: str, number: int) -> None:
        """A host, or its CA, does something."""
        campaign = self.campaign
        if action in ("issue", "activate"):
            (campaign.issue if action == "issue" else campaign.activate)(number)
        elif action == "fail":
            self.failures += 1
            campaign.know(number, failure="it failed", failure_mark=str(self.failures))
        elif action != "revoked":
            campaign.know(number, **_KNOWN[action], **({"heard_time": campaign.now} if action in _HEARD else {}))
        elif campaign.items[f"c{number:03}"].state is ItemState.DONE:
            campaign.know(number, revoke_time=campaign.now)

    def say(self, word: str) -> None:
        """An operator says something, if it can be said."""
        before = self.campaign.rollout
        try:
            after = WORDS[word](before, self.campaign.now)
        except RefusalError:
            return
        assert after is before or after.version == before.version + 1
        assert not before.state.has_ended or after is before
        self.campaign.rollout = after

    def jump(self, span: timedelta) -> None:
        """The clock jumps; whoever looks notices."""
        self.campaign.now += span
        self.campaign.watched_since = self.campaign.now

    def step(self, after: timedelta) -> Step:
        """Make a step, and hold it against the rules."""
        self.real += after
        before = replace(self.campaign, items=dict(self.campaign.items), steps=[])
        moment = Moment(self.campaign.now + after, self.campaign.watched_since)
        again = step(before.rollout, [*before.items.values()], before.facts, moment)
        made = self.campaign.step(after)
        assert made == again, "a broker that takes over before the write does the same"
        self._check(before, made)
        return made

    def _check(self, before: Campaign, made: Step) -> None:
        after = made.rollout
        assert made.changed is (after is not before.rollout)
        assert after.version == before.rollout.version + made.changed
        if not before.rollout.state.releases or before.rollout.finish is not Finish.NONE:
            assert (made.told, made.released) == ((), ()), "nobody is touched while it doesn't run"
        if not (before.rollout.state.releases and after.state.releases):
            assert made.revoke == (), "nor is anything revoked"
        for item in made.released:
            self._check_turn(after, item.ring)
            assert before.facts[item.certificate_id].is_there
        if made.released and after.spec.max_percent_of_name:
            activating = self.campaign.in_state(ItemState.RELEASED) + self.campaign.in_state(ItemState.SILENT)
            assert len(activating) <= COUNT * after.spec.max_percent_of_name // 100
        for item in made.told:
            assert before.facts[item.certificate_id].is_there
            if item.release_time is not None:
                self._check_turn(after, item.ring)
        for item in made.revoke:
            facts = before.facts[item.certificate_id]
            safe = item.state is ItemState.DONE and facts.in_use and after.rings[item.ring].state is RingState.DONE
            assert safe or after.finish is Finish.REVOKE, "what is served is never revoked by itself"
            assert item.revoke_time is None
        assert sum(count.count for ring in after.rings for count in ring.counts) == COUNT
        self._check_watching(before.rollout, after)

    @staticmethod
    def _check_turn(after: Rollout, number: int) -> None:
        assert after.rings[number].state is not RingState.WAITING
        assert all(ring.state in (RingState.DONE, RingState.FAILED) for ring in after.rings[:number])

    def _check_watching(self, before: Rollout, after: Rollout) -> None:
        """A ring in which something was tried is watched for as long as it should be, by whatever clock."""
        for was, ring in zip(before.rings, after.rings, strict=True):
            if was.state is not RingState.BAKING and ring.state is RingState.BAKING:
                self.done_at = self.real
            if was.state is RingState.BAKING and ring.state is RingState.DONE:
                assert self.done_at is not None
                assert was.done_time is not None
                assert was.bake_until is not None
                assert self.real - self.done_at >= was.bake_until - was.done_time


def a_watched(revoke: Revoke, failed_hosts: int, percent_of_name: int) -> Watched:
    """A campaign of seven hosts in three rings."""
    halt = Halt(failed_hosts=failed_hosts)
    spec = a_spec(rings=RINGS, revoke=revoke, halt=halt, max_percent_of_name=percent_of_name)
    return Watched(Campaign.of(*SIZES, spec=spec))


ACTIONS: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.sampled_from(HOST_ACTIONS), st.integers(0, COUNT - 1)),
    st.tuples(st.just("all issue"), st.none()),
    st.tuples(st.just("all activate"), st.none()),
    st.tuples(st.just("wait"), st.integers(0, 40)),
    st.tuples(st.just("say"), st.sampled_from([*WORDS])),
    st.tuples(st.just("jump"), st.integers(-300, 300)),
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*Revoke]), st.integers(1, 3), st.sampled_from([0, 30]), st.lists(ACTIONS, min_size=5, max_size=60)
)
def test_the_rules_hold(revoke: Revoke, failed_hosts: int, percent: int, actions: Sequence[tuple[str, Any]]) -> None:
    """Whatever happens, in whatever order."""
    watched = a_watched(revoke, failed_hosts, percent)
    watched.step(timedelta())
    for action, what in actions:
        match action:
            case "all issue":
                watched.campaign.issue()
            case "all activate":
                watched.campaign.activate()
            case "say":
                watched.say(what)
            case "jump":
                watched.jump(what * MINUTE)
            case "wait":
                watched.step(what * MINUTE)
            case _:
                watched.act(action, what)
        watched.step(timedelta())


@settings(max_examples=50, deadline=None)
@given(st.lists(ACTIONS.filter(lambda action: action[0] not in ("jump", "say")), max_size=40))
def test_it_comes_to_rest(actions: Sequence[tuple[str, Any]]) -> None:
    """When nothing happens any more it changes no more: no write follows a write for ever."""
    watched = a_watched(Revoke.NEVER, 2, 0)
    for action, what in actions:
        if action == "wait":
            watched.step(what * MINUTE)
        elif action.startswith("all"):
            (watched.campaign.issue if action == "all issue" else watched.campaign.activate)()
        else:
            watched.act(action, what)
        for _ in range(8):
            if not watched.step(timedelta()).changed:
                break
        else:
            raise AssertionError("it goes on changing")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=40), st.sampled_from([*Revoke]))
def test_writes_that_are_lost_change_no_end(lost: Sequence[bool], revoke: Revoke) -> None:
    """A broker is killed after hosts were told and before the step was written, again and again; then no more."""
    campaign = Campaign.of(*SIZES, spec=a_spec(rings=RINGS, revoke=revoke))
    for is_lost in [*lost, *[False] * 60]:
        campaign.now += MINUTE
        moment = Moment(campaign.now, campaign.watched_since)
        made = step(campaign.rollout, [*campaign.items.values()], campaign.facts, moment)
        # Plans are durable before the step is: hosts order what they were told of, whether it was written or not.
        for item in made.told:
            campaign.facts[item.certificate_id] = replace(
                campaign.facts[item.certificate_id], new_certificate_id=f"n-{item.certificate_id}"
            )
        for item in made.revoke:
            campaign.facts[item.certificate_id] = replace(campaign.facts[item.certificate_id], revoke_time=campaign.now)
        if is_lost:
            campaign.watched_since = campaign.now
        else:
            campaign.keep(made)
        campaign.activate()
        if campaign.rollout.state.has_ended:
            break
    assert campaign.is_in(RolloutState.COMPLETED)
    assert campaign.in_state(ItemState.DONE) == [*range(COUNT)]


def test_what_is_left_of_a_life_ends_it() -> None:
    """One that nobody finishes ends when there is nothing to be revoked any more, as far as hosts are concerned."""
    watched = a_watched(Revoke.AFTER_SERVED, 1, 0)
    for _ in range(60):
        watched.step(MINUTE)
        watched.campaign.issue()
        watched.campaign.activate()
    assert watched.campaign.is_in(RolloutState.FINISHING)
    watched.campaign.now = NOT_AFTER
    watched.step(timedelta())
    assert watched.campaign.is_in(RolloutState.COMPLETED)
    assert watched.campaign.rollout.create_time == START
