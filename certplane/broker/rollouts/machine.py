r"""What a rollout does next: from how it is, and what is known of its hosts, to how it is then and what is to be done.

    AWAITING_APPROVAL --approve--> RUNNING --all rings done--> FINISHING --all hosts came, all revoked--> COMPLETED
                                   |  ^ \------ failures --------> HALTED     (operators' words: `words`)
                              pause|  |resume                        |resume
                                   v  |                              v
                                  PAUSED                          RUNNING

    a ring:  WAITING --its turn--> RELEASED --all that are there are done--> BAKING --watched for long enough--> DONE

Pure, and the same for the same arguments: so brokers can take it over from each other between any two writes, and every
rule here is tested by itself. Rules it keeps:

- No host is let activate unless its ring's turn has come, and none at all while the rollout doesn't run.
- A ring's turn comes when the ring before it is done: each of its hosts that is there has the new certificate in use,
  and none has failed since for as long as it bakes.
- Nobody waits for a service, which renews when it asks, perhaps in weeks.
- A ring of which no host is there isn't passed over: nobody would have tried the new certificates. It halts; but for
  the last one, after which nobody comes.
- What has failed before an operator resumed doesn't halt it again: an operator has seen it, and gone on. What fails
  after that does, also a host whose order had failed, and that now fails with its certificate. Where all that tried
  fail again it halts again: the next ring isn't the first that succeeds.
- Nothing is revoked that is in use as far as anybody can see, nor before its ring is done, but by an operator's word.
- Time that nobody watched is no evidence: after a gap a ring is watched for as long as silence takes to show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.rollouts.counts import counted, is_unrevoked, unrevoked
from certplane.broker.rollouts.model import (
    Finish,
    Happened,
    Happening,
    ItemFacts,
    ItemState,
    RingState,
    Rollout,
    RolloutItem,
    RolloutState,
    Step,
)
from certplane.broker.rollouts.names import NameLimits, activates_soon
from certplane.broker.rollouts.observed import Moment, again, observed, silent_at
from certplane.broker.rollouts.timing import cut_bakes
from certplane.runtime import text

AT_ONCE: Final = 500
"""Items that one step tells or releases at most: what is written and told at a time stays small, and the next step
follows at once."""
_NAMED: Final = 3
"""Hosts that a halt names."""
_UNKNOWN: Final = ItemFacts()
_FAILED: Final = frozenset({ItemState.FAILED, ItemState.SILENT})
_ENDED: Final = frozenset({ItemState.DONE, ItemState.SKIPPED})
_MAY_HALT: Final = frozenset({RolloutState.RUNNING, RolloutState.FINISHING, RolloutState.PAUSED})
_WATCHED: Final = frozenset({RingState.RELEASED, RingState.BAKING, RingState.FAILED})


def step(
    rollout: Rollout,
    items: Sequence[RolloutItem],
    facts: Mapping[str, ItemFacts],
    moment: Moment,
    issued_by: datetime | None = None,
) -> Step:
    """What comes of a rollout now.

    Args:
        rollout: As it is durable.
        items: All of it, as they are durable.
        facts: What is known, by `certificate_id`; of one that isn't among them nothing is, and nothing becomes of it.
        moment: When that is.
        issued_by: When its last certificate will be issued, if that can be told.
    """
    if rollout.state.has_ended or rollout.state is RolloutState.AWAITING_APPROVAL:
        return Step(rollout)
    return _Stepping(rollout, items, facts, moment, issued_by).run()


class _Stepping:
    """One step: everything that changes while it is made."""

    def __init__(
        self,
        rollout: Rollout,
        items: Sequence[RolloutItem],
        facts: Mapping[str, ItemFacts],
        moment: Moment,
        issued_by: datetime | None,
    ) -> None:
        self._before, self._rollout, self._spec = rollout, rollout, rollout.spec
        self._items_before, self._items = items, list(items)
        self._facts = facts
        self._moment, self._now = moment, moment.now
        self._issued_by = issued_by
        self._rings = list(rollout.rings)
        self._of_ring: list[list[int]] = [[] for _ in self._rings]
        for index, item in enumerate(items):
            self._of_ring[item.ring].append(index)
        self._room = AT_ONCE
        self._told: list[int] = []
        self._released: list[int] = []
        self._happened: list[Happening] = []
        self._times: list[datetime] = []

    def run(self) -> Step:
        """Make it."""
        self._observe()
        self._names = NameLimits(self._spec.max_percent_of_name, self._items, self._facts)
        for number in range(len(self._rings)):
            if not self._is_passed(number):
                break
        if self._runs:
            self._tell_ahead()
        after, revoke = self._result()
        changed = [item for was, item in zip(self._items_before, self._items, strict=True) if item is not was]
        return Step(
            after,
            tuple(changed),
            tuple(self._items[index] for index in self._told),
            tuple(self._items[index] for index in self._released),
            revoke,
            tuple(self._happened),
            min(self._times, default=None),
            changed=bool(changed) or after is not self._before,
        )

    @property
    def _runs(self) -> bool:
        """Whether hosts are told and released."""
        return self._rollout.state.releases and self._rollout.finish is Finish.NONE

    def _fact(self, index: int) -> ItemFacts:
        return self._facts.get(self._items[index].certificate_id, _UNKNOWN)

    def _observe(self) -> None:
        """Take in what is known, and begin again what an operator had tried again."""
        watched = [ring.state in _WATCHED for ring in self._rings]
        for index, item in enumerate(self._items):
            if item.state in _FAILED and item.attempt < self._rollout.attempt and self._runs:
                item = again(item, self._rollout.attempt, self._fact(index))  # noqa: PLW2901 - what it is by now
            facts = self._facts.get(item.certificate_id)
            if facts is not None:
                had_failed = item.state in _FAILED
                item = observed(item, facts, self._spec, self._moment, watched=watched[item.ring])  # noqa: PLW2901
                if item.state in _FAILED and not had_failed:
                    # Of this attempt: nobody has seen it, and it isn't tried again before somebody resumes.
                    item = replace(item, attempt=self._rollout.attempt)  # noqa: PLW2901
                if not facts.is_there and (item.state is ItemState.RELEASED or (watched[item.ring] and _is_done(item))):
                    self._wake(silent_at(item, facts, self._spec, self._moment))
            self._items[index] = item

    def _is_passed(self, number: int) -> bool:
        """See to a ring whose earlier rings are all done; whether it is done too."""
        if self._rings[number].state is RingState.WAITING and not self._begins(number):
            return False
        # Also while it is paused: whoever resumes it goes on with what has failed, and must have seen it.
        if self._rollout.state in _MAY_HALT and self._rollout.finish is Finish.NONE and self._has_failed(number):
            return False
        if self._runs and not self._release(number):
            return False
        ring = self._rings[number]
        if ring.state is RingState.DONE:
            return True
        pending = any(self._is_pending(index) for index in self._of_ring[number])
        if ring.state is RingState.RELEASED and not pending:
            if self._rollout.state in _MAY_HALT and self._has_shown_nothing(number):
                return False
            self._bake(number)
        return self._rings[number].state is RingState.BAKING and not pending and self._is_baked(number)

    def _begins(self, number: int) -> bool:
        """Whether the turn of a ring has come; it is released then."""
        if not self._runs or self._has_failed(number):
            return False
        live = [index for index in self._of_ring[number] if self._items[index].state not in _ENDED]
        is_last = number == len(self._rings) - 1
        if live and not is_last and not any(self._is_awaited(index) for index in live):
            turn = self._rings[number - 1].bake_until if number else self._rollout.start_time
            until = self._moment.heard_until(turn) + self._spec.halt.silent_after
            if self._now >= until:
                hosts = len({self._items[index].host for index in live})
                self._halt(number, f"0 of {text.counted(hosts, 'host')} there, so that nothing was tried on any")
            self._wake(until)
            return False
        self._rings[number] = replace(self._rings[number], state=RingState.RELEASED, release_time=self._now)
        self._tell(Happened.RING_RELEASED, number, text.counted(self._rings[number].host_count, "host"))
        return True

    def _has_failed(self, number: int) -> bool:
        """Whether too many of a ring's hosts have failed; the rollout halts then."""
        failed: dict[str, str] = {}
        for index in self._of_ring[number]:
            item = self._items[index]
            if item.state in _FAILED and not item.excused:
                failed.setdefault(item.host, item.reason)
        halt, of = self._spec.halt, self._rings[number].host_count
        enough = halt.failed_hosts and len(failed) >= halt.failed_hosts
        share = halt.failed_percent and len(failed) * 100 >= halt.failed_percent * of
        if not failed or not (enough or share):
            return False
        self._halt(number, f"{len(failed)} of {text.counted(of, 'host')} failed: {_named(failed)}")
        return True

    def _has_shown_nothing(self, number: int) -> bool:
        """Whether all that tried have failed, also those who are excused, and others come after them; it halts then."""
        failed: dict[str, str] = {}
        for index in self._of_ring[number]:
            item = self._items[index]
            if item.state is ItemState.DONE:
                return False
            if item.state in _FAILED and not self._fact(index).is_final:
                failed[item.host] = item.reason
        is_last = number == len(self._rings) - 1
        if is_last or not failed:
            return False
        self._halt(number, f"none of its hosts has the new certificate in use: {_named(failed)}")
        return True

    def _halt(self, number: int, why: str) -> None:
        self._rings[number] = replace(self._rings[number], state=RingState.FAILED)
        self._go(RolloutState.HALTED, f"ring {self._rings[number].name}: {why}")
        self._tell(Happened.HALTED, number, why)

    def _release(self, number: int) -> bool:
        """Let hosts of a released ring activate: those that are there, as many as may at a time.

        It halts where silent hosts leave no room for the others of their names, and False is returned then.
        """
        for index in self._of_ring[number]:
            item, facts = self._items[index], self._fact(index)
            # Told to hold what comes, and not any more since its agent can't: it never hears of that (`HostSession`).
            unheard = item.state is ItemState.REQUESTED and item.release_time is None and not facts.can_hold
            if not (unheard or item.state in (ItemState.HELD, ItemState.WAITING)) or not facts.is_there:
                continue
            if not self._names.has_room(item) or self._is_full():
                continue
            self._names.add(item)
            if item.state is ItemState.HELD:
                self._released.append(index)
                self._items[index] = replace(item, state=ItemState.RELEASED, release_time=self._now)
            else:
                self._ask(index, self._now)
        stuck = self._names.none_left and not any(
            item.state is ItemState.RELEASED or activates_soon(item, self._facts) for item in self._items
        )
        if stuck:
            hosts = ", ".join(self._names.none_left[:_NAMED])
            self._halt(number, f"silent hosts leave no room by max_percent_of_name for others of their names: {hosts}")
        return not stuck

    def _tell_ahead(self) -> None:
        """Have certificates ordered for rings whose turn hasn't come: of hosts that can hold them back."""
        for number, ring in enumerate(self._rings):
            if ring.state is not RingState.WAITING:
                continue
            for index in self._of_ring[number]:
                facts = self._fact(index)
                waits = self._items[index].state is ItemState.WAITING and facts.is_there and facts.can_hold
                if waits and not self._is_full():
                    self._ask(index, None)

    def _ask(self, index: int, release_time: datetime | None) -> None:
        item = self._items[index]
        # What had failed there before is no failure of this.
        mark = self._fact(index).failure_mark
        self._told.append(index)
        self._items[index] = replace(
            item, state=ItemState.REQUESTED, reason="", failure_mark=mark, release_time=release_time
        )

    def _is_full(self) -> bool:
        """Whether this step does no more; the next one, at once, goes on."""
        if not self._room:
            self._wake(self._now)
            return True
        self._room -= 1
        return False

    def _is_pending(self, index: int) -> bool:
        """Whether its ring waits for it."""
        state = self._items[index].state
        if state in (ItemState.WAITING, ItemState.REQUESTED, ItemState.HELD):
            return self._is_awaited(index)
        return state is ItemState.RELEASED

    def _is_awaited(self, index: int) -> bool:
        fact = self._fact(index)
        return fact.is_there and fact.can_be_told

    def _bake(self, number: int) -> None:
        wanted = self._rollout.ring_specs[number].bake
        bakes = cut_bakes(self._rollout.ring_specs, self._rings, self._now, self._spec.deadline, self._issued_by)
        # Where nothing was activated there is nothing to watch.
        tried = any(self._items[index].state is ItemState.DONE for index in self._of_ring[number])
        bake = bakes[number] if tried else timedelta()
        cut = wanted - bake if tried else timedelta()
        self._rings[number] = replace(
            self._rings[number],
            state=RingState.BAKING,
            done_time=self._now,
            bake_until=self._now + bake,
            bake_cut=cut,
        )
        cut_text = f", {cut} less than asked for, for the deadline" if cut else ""
        self._tell(Happened.RING_BAKING, number, f"for {bake}{cut_text}")

    def _is_baked(self, number: int) -> bool:
        """Whether a ring was watched for long enough; it is done then."""
        ring = self._rings[number]
        assert ring.done_time is not None, "a ring that bakes has both"
        assert ring.bake_until is not None
        bake = ring.bake_until - ring.done_time
        done = min(ring.done_time, self._now)
        if done < ring.done_time:  # the clock was put back: it bakes anew
            ring = self._rings[number] = replace(ring, done_time=done, bake_until=done + bake)
        until = done + bake
        if self._moment.listened_since > done:
            until = max(until, self._moment.listened_since + min(bake, self._spec.halt.silent_after))
        if self._now < until:
            self._wake(until)
            return False
        self._rings[number] = replace(ring, state=RingState.DONE)
        self._tell(Happened.RING_DONE, number, "")
        return True

    def _result(self) -> tuple[Rollout, tuple[RolloutItem, ...]]:
        """The rollout as it is then, and whose certificates may be revoked."""
        rings = tuple(self._rings)
        moved = self._rollout is not self._before or rings != self._before.rings
        items = self._items
        if moved or any(item is not was for was, item in zip(self._items_before, items, strict=True)):
            self._rollout = counted(replace(self._rollout, rings=rings), items, self._now, self._issued_by)
        elif unrevoked(self._rollout, items, self._now) != self._rollout.unrevoked_count:  # one has expired
            self._rollout = counted(self._rollout, items, self._now, self._issued_by)
        self._end()
        if self._rollout is not self._before:
            self._rollout = replace(self._rollout, version=self._before.version + 1)
        return self._rollout, tuple(self._to_revoke())

    def _end(self) -> None:
        """End it, or say what it waits for, once all rings are done."""
        if not self._rollout.state.releases or any(ring.state is not RingState.DONE for ring in self._rings):
            return
        left = self._rollout.unrevoked_count
        finished = self._rollout.finish is Finish.REVOKE or all(item.state in _ENDED for item in self._items)
        if finished and not left:
            self._go(RolloutState.COMPLETED, "")
            self._rollout = replace(self._rollout, end_time=self._now)
            self._tell(Happened.COMPLETED, None, "")
        elif self._rollout.state is RolloutState.RUNNING:
            why = "all hosts that came are done; the others are away or failed, or something is to be revoked still"
            self._go(RolloutState.FINISHING, why)
            self._tell(Happened.FINISHING, None, "")
        for item in self._items if left else ():
            if is_unrevoked(item, self._now):
                self._wake(item.not_after)

    def _to_revoke(self) -> Iterator[RolloutItem]:
        rollout = self._rollout
        if not rollout.unrevoked_count or not rollout.state.releases:
            return
        for item in self._items:
            if not is_unrevoked(item, self._now):
                continue
            facts = self._facts.get(item.certificate_id)
            replaced = item.state is ItemState.DONE and facts is not None and facts.in_use and not facts.failure
            safe = replaced and self._rings[item.ring].state is RingState.DONE
            if safe or rollout.finish is Finish.REVOKE:
                yield item

    def _go(self, state: RolloutState, why: str) -> None:
        self._rollout = replace(self._rollout, state=state, state_reason=why, update_time=self._now)

    def _tell(self, what: Happened, number: int | None, detail: str) -> None:
        self._happened.append(Happening(what, "" if number is None else self._rings[number].name, detail))

    def _wake(self, time: datetime | None) -> None:
        if time is not None:
            self._times.append(time)


def _named(failed: Mapping[str, str]) -> str:
    """The first hosts that failed, each with why."""
    named = "; ".join(f"{host}: {reason}" for host, reason in list(failed.items())[:_NAMED])
    return f"{named}; and {len(failed) - _NAMED} more" if len(failed) > _NAMED else named


def _is_done(item: RolloutItem) -> bool:
    return item.state is ItemState.DONE
