"""What becomes of one certificate of a rollout by what is known of it and its host. Pure.

| state | becomes | when |
|---|---|---|
| all but DONE | DONE | the new certificate is in use as the success criterion asks |
| all but DONE, SKIPPED | SKIPPED | there is nothing to do any more |
| REQUESTED, HELD, RELEASED, SILENT | FAILED | a failure that wasn't there when its host was told |
| WAITING, REQUESTED, FAILED | HELD, or RELEASED where it may activate | the new certificate is issued |
| RELEASED; DONE while its ring is watched | SILENT | its host isn't heard for too long |
| DONE while its ring is watched | FAILED | a new failure, or something else is in use |

It doesn't matter here how the rollout is: what happens on hosts happens. What is done *to* hosts is `machine`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from certplane.broker.budget.model import span_text
from certplane.broker.rollouts.model import ItemFacts, ItemState, RolloutItem, RolloutSpec, Success

INTERVALS: Final = 2
"""A host that comes once in a while may miss one of its times."""

_CAN_FAIL: Final = frozenset({ItemState.REQUESTED, ItemState.HELD, ItemState.RELEASED, ItemState.SILENT})
_BEFORE_ISSUE: Final = frozenset({ItemState.WAITING, ItemState.REQUESTED, ItemState.FAILED})


@dataclass(frozen=True, slots=True)
class Moment:
    """When facts are looked at.

    Attributes:
        now: The time.
        watched_since: Since when whoever looks has heard all hosts that speak, without a gap and by one clock: silence
            before that proves nothing. Whoever sees its clock jump begins anew.
    """

    now: datetime
    watched_since: datetime

    def heard_until(self, *times: datetime | None) -> datetime:
        """The newest of these times and of `watched_since`; what a clock that was put back left ahead isn't a time."""
        return max([self.listened_since, *(time for time in times if time is not None and time <= self.now)])

    @property
    def listened_since(self) -> datetime:
        """`watched_since`, and not in the future."""
        return min(self.watched_since, self.now)


def again(item: RolloutItem, attempt: int, facts: ItemFacts) -> RolloutItem:
    """An item that has failed, as if its turn had not come yet: what was issued is used, else it is asked for anew.

    One that can't be asked for any more stays as it is: nobody is to wait for it.
    """
    if facts.is_final:
        return replace(item, attempt=attempt, excused=True)
    state = ItemState.HELD if item.new_certificate_id else ItemState.WAITING
    return replace(item, state=state, reason="", attempt=attempt, excused=True, release_time=None, done_time=None)


def observed(item: RolloutItem, facts: ItemFacts, spec: RolloutSpec, moment: Moment, *, watched: bool) -> RolloutItem:
    """The item as it is by what is known; the same object if nothing of it changed.

    Args:
        item: As it was.
        facts: What is known.
        spec: The rollout's.
        moment: When that is.
        watched: Whether the item's ring is released and still to be watched.
    """
    if facts.revoke_time is not None and item.revoke_time is None:
        item = replace(item, revoke_time=facts.revoke_time)
    if item.state is ItemState.DONE:
        return _still_done(item, facts, spec, moment) if watched else item
    if facts.new_certificate_id and is_done(facts, spec):
        return replace(
            item,
            state=ItemState.DONE,
            reason="",
            new_certificate_id=facts.new_certificate_id,
            release_time=item.release_time or moment.now,
            done_time=moment.now,
        )
    if item.state is ItemState.SKIPPED:
        return item
    if facts.gone:
        return replace(item, state=ItemState.SKIPPED, reason=facts.gone)
    return _under_way(item, facts, spec, moment)


def is_done(facts: ItemFacts, spec: RolloutSpec) -> bool:
    """Whether the new certificate is in use as the success criterion asks."""
    return facts.installed if spec.success is Success.INSTALLED else facts.in_use


def silent_at(item: RolloutItem, facts: ItemFacts, spec: RolloutSpec, moment: Moment) -> datetime | None:
    """When its host counts as silent if it isn't heard before; None of one that is there."""
    if facts.is_there:
        return None
    heard = moment.heard_until(facts.heard_time, item.release_time)
    return heard + spec.halt.silent_after + facts.interval * INTERVALS


def _under_way(item: RolloutItem, facts: ItemFacts, spec: RolloutSpec, moment: Moment) -> RolloutItem:
    if facts.new_certificate_id and facts.new_certificate_id != item.new_certificate_id:
        # Issued: one whose request had failed is on its way again.
        item = replace(item, new_certificate_id=facts.new_certificate_id)
        if item.state in _BEFORE_ISSUE:
            state = ItemState.HELD if item.release_time is None else ItemState.RELEASED
            # What was excused was its order, which has come through.
            item = replace(item, state=state, reason="", excused=False)
    if _is_new_failure(item, facts) and (item.state in _CAN_FAIL or item.state is ItemState.FAILED):
        return _failed(item, facts.failure, facts)
    return _silent(item, facts, spec, moment) if item.state is ItemState.RELEASED else item


def _still_done(item: RolloutItem, facts: ItemFacts, spec: RolloutSpec, moment: Moment) -> RolloutItem:
    if _is_new_failure(item, facts):
        return _failed(item, facts.failure, facts)
    if not is_done(facts, spec):
        return _failed(item, "another certificate is in use there than the new one, which had been", facts)
    return _silent(item, facts, spec, moment)


def _silent(item: RolloutItem, facts: ItemFacts, spec: RolloutSpec, moment: Moment) -> RolloutItem:
    at = silent_at(item, facts, spec, moment)
    if at is None or moment.now < at:
        return item
    span = span_text(spec.halt.silent_after + facts.interval * INTERVALS)
    return replace(item, state=ItemState.SILENT, reason=f"not heard for {span} since it was let activate")


def _is_new_failure(item: RolloutItem, facts: ItemFacts) -> bool:
    return bool(facts.failure) and facts.failure_mark != item.failure_mark


def _failed(item: RolloutItem, reason: str, facts: ItemFacts) -> RolloutItem:
    return replace(item, state=ItemState.FAILED, reason=reason, failure_mark=facts.failure_mark)
