"""Runs all rollouts that haven't ended, at the one broker that has the role: asks the machine, and does what it says.

    what hosts do, operators say, and time -> `in_hand` (facts) -> `machine.step`
        -> plans, rows, activations, revocations

Rules:

- A step is written on the version that was read, with its audit events, and nothing that it releases is told before.
  Where another broker has written meanwhile, nothing of it is done, and all is read again.
- What has ended is seen to, whoever has ended it: its hosts hear that nobody releases what they hold, and plans that
  wait for it are taken back. Whoever takes the role over does that again for what has ended of late.
- Plans are written before the step that says so: a kill in between has the same plans written again. All else that a
  host is told follows from the rows (`RolloutStore.activations_of`).
- Nothing is polled but time: a rollout is looked at when one of its hosts has changed, when somebody has said
  something, when the machine wants it, and once a minute.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker.events import AuditEvent, AuditTrail
from certplane.broker.ports import Meter
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.renewal.ports import KeyBlocks
from certplane.broker.rollouts.events import RolloutEvents, happened_events, item_events
from certplane.broker.rollouts.figures import show
from certplane.broker.rollouts.in_hand import RolloutInHand, Sources
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.machine import step
from certplane.broker.rollouts.model import Happened, ItemState, Rollout, RolloutAction, RolloutItem, RolloutState, Step
from certplane.broker.rollouts.observed import Moment
from certplane.broker.rollouts.old_keys import block_old_keys
from certplane.broker.rollouts.overrule import overruled
from certplane.broker.rollouts.ports import RolloutStore
from certplane.broker.rollouts.revoking import ReplacedRevocations
from certplane.broker.rollouts.watching import RolloutWatchers
from certplane.broker.rollouts.withdrawing import Plans, withdraw
from certplane.errors import RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.failpoints import failpoint
from certplane.runtime.pool import BlockingPool

_logger = logging.getLogger("certplane.broker.rollouts")

_LOOK: Final = timedelta(seconds=1)
_ROUND: Final = timedelta(minutes=1)
"""Between looks at all hosts, for what time and policy alone have changed."""
_STEPS: Final = 100
"""Steps of one rollout in a row: each tells some hundreds of hosts at most."""
_PLANS_AT_ONCE: Final = 512
_SMALL: Final = 500
"""Certificates of a rollout up to which a step takes some milliseconds; a larger one is made on a thread."""
_JUMP: Final = timedelta(seconds=5)
"""Of the clock, beside the monotonic one: what was heard before it says nothing about what is later."""
_OVER: Final = frozenset(state for state in RolloutState if state.has_ended)
_OF_LATE: Final = timedelta(days=1)
_MOST_OF_LATE: Final = 50
_LAST_DAY: Final = timedelta(days=1)

IssuedBy = Callable[[Rollout, Sequence[RolloutItem]], Awaitable[datetime | None]]
"""When the last certificate of a rollout will be issued, as far as can be told."""


class Planning(Plans, Protocol):
    """Where renewals are planned; hosts are told of it by whoever listens."""

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        """See `RenewalPlanStore.set_plans`."""
        ...


@dataclass(frozen=True, slots=True)
class RunnerPorts:
    """What rollouts are run with.

    `activations_wanted` has hosts told what they may use of what they hold; `issued_by` forecasts; `revocations` makes
    what revokes, and is given `revoked`.
    """

    store: RolloutStore
    plans: Planning
    keys: KeyBlocks
    sources: Sources
    watchers: RolloutWatchers
    known: KnownRollouts
    revocations: Callable[..., ReplacedRevocations]
    activations_wanted: Callable[[Iterable[str]], None]
    issued_by: IssuedBy
    pool: BlockingPool
    trail: AuditTrail
    meter: Meter


class RolloutRunner:
    """Runs rollouts, while `run` runs. For the event loop's thread."""

    def __init__(self, ports: RunnerPorts) -> None:
        """None is known yet."""
        self._ports = ports
        self._store, self._clock, self._index = ports.store, ports.sources.clock, ports.sources.index
        self._in_hand: dict[str, RolloutInHand] = {}
        """Those that haven't ended, the oldest first."""
        self._overruled: Mapping[tuple[str, str], str] = {}
        """The newer rollouts that have certificates of older ones, by rollout and certificate."""
        self._touched: set[str] = set()
        self._ended: set[str] = set()
        """Those whose end is to be seen to."""
        self._is_stale = True
        self._telling = ""
        self._watched_since = self._clock.now()
        self._offset = self._offset_now()
        self._next_round = 0.0
        self._revocations = ports.revocations(revoked=self._note_revoked)
        ports.watchers.listen(self._hear)
        self._index.listen(self._host_changed)

    async def run(self) -> None:
        """Run them until cancelled."""
        self._in_hand, self._is_stale = {}, True  # another broker may have run them since
        said = ""
        async with asyncio.TaskGroup() as group:
            revoking = group.create_task(self._revocations.run(), name="rollout revocations")
            try:
                await self._settle()
                while True:
                    said = await self._look_well(said)
                    await self._clock.sleep(_LOOK)
            finally:
                revoking.cancel()
                for rollout_id in self._in_hand:
                    self._revocations.forget(rollout_id)

    async def _settle(self) -> None:
        """Wait until the fleet is known: what isn't known of a host is taken for what it did."""
        while True:
            with suppress(RefusalError):
                await self._index.settled()
                break
            await self._clock.sleep(_LOOK)
        self._watched_since, self._offset = self._clock.now(), self._offset_now()

    async def _look_well(self, said: str) -> str:
        """Look; what was said of the last fault is said once."""
        try:
            await self.look()
        except RefusalError as error:
            if str(error) != said:
                _logger.warning("could not go on with rollouts; will retry: %s", error)
            return str(error)
        except Exception as error:
            if repr(error) != said:
                _logger.exception("running rollouts failed; will retry")
            return repr(error)
        return ""

    async def look(self) -> None:
        """Take in what has changed, and do what follows.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; the next look goes on.
        """
        if abs(self._offset_now() - self._offset) > _JUMP:
            self._watched_since, self._offset = self._clock.now(), self._offset_now()
        await self._read()
        if self._clock.monotonic() >= self._next_round:
            self._next_round = self._clock.monotonic() + _ROUND.total_seconds()
            self._find_overruled()
            for one in self._in_hand.values():
                one.all_changed()
        failed: Exception | None = None
        for one in tuple(self._in_hand.values()):
            try:
                await self._go_on(one)
            except Exception as error:  # noqa: BLE001 - of one of them: the others go on, and it is told then
                one.is_due = True
                self._touched.add(one.rollout.rollout_id)  # it may be written, or not
                failed = error
        try:
            await self._see_to_the_end()
        except Exception as error:  # noqa: BLE001 - those that run go on, and it is told then
            failed = error
        show(self._ports.meter, [one.rollout for one in self._in_hand.values()], self._clock.now())
        if failed is not None:
            raise failed

    # What is read.

    async def _read(self) -> None:
        """Have those in hand that haven't ended, as they are durable."""
        if self._is_stale:
            self._is_stale = False
            try:
                rollouts = {rollout.rollout_id: rollout for rollout in await self._store.open_rollouts()}
                over, since = await self._store.list(_OVER, None, _MOST_OF_LATE), self._clock.now() - _OF_LATE
            except BaseException:
                self._is_stale = True
                raise
            for rollout_id in self._in_hand.keys() - rollouts.keys():
                self._drop(rollout_id)
            self._touched |= rollouts.keys()
            self._ended |= {each.rollout_id for each in over if each.end_time is not None and each.end_time > since}
        while self._touched:
            rollout_id = next(iter(self._touched))
            await self._read_one(rollout_id)
            self._touched.discard(rollout_id)

    async def _read_one(self, rollout_id: str) -> None:
        rollout, known = await self._store.get(rollout_id), self._in_hand.get(rollout_id)
        if rollout is None or rollout.state.has_ended:
            self._drop(rollout_id)
            if rollout is not None:
                self._ended.add(rollout_id)
            return
        if known is not None and known.rollout.version == rollout.version:
            return
        items = await self._store.items(rollout_id)
        if known is not None:
            known.take(rollout, items)
        else:
            self._in_hand[rollout_id] = RolloutInHand(rollout, items, self._ports.sources)
            self._in_hand = dict(sorted(self._in_hand.items(), key=lambda pair: _age(pair[1].rollout)))
        self._find_overruled()

    def _drop(self, rollout_id: str) -> None:
        if self._in_hand.pop(rollout_id, None) is not None:
            self._revocations.forget(rollout_id)
            self._find_overruled()

    def _find_overruled(self) -> None:
        """Of several rollouts of one certificate the newest that has begun has it."""
        before = self._overruled
        begun = [one for one in self._in_hand.values() if one.rollout.state is not RolloutState.AWAITING_APPROVAL]
        self._overruled = overruled((one.rollout, tuple(one.items.values())) for one in begun) if len(begun) > 1 else {}
        for rollout_id, certificate_id in self._overruled.keys() ^ before.keys():
            if rollout_id in self._in_hand:
                one = self._in_hand[rollout_id]
                one.host_changed(one.items[certificate_id].host)

    # What is done.

    async def _go_on(self, one: RolloutInHand) -> None:
        for _ in range(_STEPS):
            now = self._clock.now()
            if not one.is_due and (one.next_time is None or one.next_time > now):
                return
            one.is_due = False
            rollout_id = one.rollout.rollout_id
            await one.gather(self._overruled)
            if one.rollout.state.releases and not one.keys_are_blocked:
                events = RolloutEvents(self._ports.trail, rollout_id)
                await block_old_keys(one.rollout, one.items.values(), self._ports.keys, events, now)
                one.keys_are_blocked = True
            done = await self._step(one, now)
            one.next_time = done.next_time
            if done.changed:
                if not await self._carry_out(one, done):
                    self._touched.add(rollout_id)
                    return
                one.is_due = True  # what was written may have another step follow
            self._revocations.want(one.rollout, done.revoke)
            if one.rollout.state.has_ended:
                self._drop(rollout_id)
                self._ended.add(rollout_id)
                return

    async def _see_to_the_end(self) -> None:
        """Leave the certificates of what has ended to their lifetimes; what isn't done by a fault is, the next time."""
        for rollout_id in tuple(self._ended):
            rollout = await self._store.get(rollout_id)
            if rollout is not None:
                items = await self._store.items(rollout_id)
                left = [item for item in items if item.state is not ItemState.DONE]
                self._ports.activations_wanted({item.host for item in left if item.new_certificate_id})
                await withdraw(rollout, left, self._ports.plans, self._clock)
            self._ended.discard(rollout_id)

    async def _step(self, one: RolloutInHand, now: datetime) -> Step:
        items, moment = tuple(one.items.values()), Moment(now, self._watched_since)
        issued_by = await self._ports.issued_by(one.rollout, items)
        if len(items) <= _SMALL:
            return step(one.rollout, items, one.facts, moment, issued_by)
        return await self._ports.pool.run(step, one.rollout, items, dict(one.facts), moment, issued_by)

    async def _carry_out(self, one: RolloutInHand, done: Step) -> bool:
        """Write a step and tell what it releases; False, and nothing of it is, if another broker was faster."""
        before = one.rollout
        events = RolloutEvents(self._ports.trail, before.rollout_id)
        await self._plan(before, done.told)
        written = [*happened_events(events, done), *item_events(events, one.items, done.items)]
        failpoint("rollout.step.before")
        if not await self._store.save(before, done.rollout, done.items, written):
            return False
        failpoint("rollout.step.after")
        one.put(done.rollout, done.items)
        for each in done.happened:
            level = logging.WARNING if each.what is Happened.HALTED else logging.INFO
            fields = {"rollout_id": before.rollout_id, "ring": each.ring, "detail": each.detail}
            _logger.log(level, "rollout: %s", each.what.replace("_", " "), extra={"fields": fields})
        self._ports.activations_wanted({item.host for item in done.items if _may_use(item)})
        self._telling = before.rollout_id
        try:
            self._ports.known.note(done.rollout)
        finally:
            self._telling = ""
        return True

    async def _plan(self, rollout: Rollout, told: Sequence[RolloutItem]) -> None:
        """Have hosts renew, durable: before the step that says so is."""
        if not told:
            return
        now = self._clock.now()
        failpoint("rollout.plans.before")
        for start in range(0, len(told), _PLANS_AT_ONCE):
            some = told[start : start + _PLANS_AT_ONCE]
            await self._ports.plans.set_plans([plan_of(rollout, item, now) for item in some])
        failpoint("rollout.plans.after")

    # What is heard.

    def _hear(self, rollout_id: str) -> None:
        if not rollout_id:
            self._is_stale = True
        elif rollout_id != self._telling:
            self._touched.add(rollout_id)

    def _host_changed(self, host: str) -> None:
        for one in self._in_hand.values():
            one.host_changed(host)

    def note_revoked(self, certificate_id: str, time: datetime) -> None:
        """A certificate was revoked, by whomever."""
        for one in self._in_hand.values():
            one.revoked(certificate_id, time)

    def _note_revoked(self, rollout_id: str, certificate_id: str, time: datetime) -> None:
        if rollout_id in self._in_hand:
            self._in_hand[rollout_id].revoked(certificate_id, time)

    def _offset_now(self) -> timedelta:
        """The wall clock less the monotonic one, which jumps when the wall clock does."""
        return timedelta(seconds=self._clock.now().timestamp() - self._clock.monotonic())


def plan_of(rollout: Rollout, item: RolloutItem, now: datetime) -> RenewalPlan:
    """The renewal that a host is told of: held, unless it may activate as soon as it has the new certificate."""
    spec = rollout.spec
    held = item.release_time is None
    return RenewalPlan(
        item.certificate_id,
        item.host,
        now,
        RenewalCause.OPERATOR,
        reason=spec.reason,
        rollout_id=rollout.rollout_id,
        hold_activation=held,
        activate_by_time=_last_moment(item, now) if held else None,
        new_key=spec.action is RolloutAction.REKEY,
        to_issuer=spec.issuer if spec.action is RolloutAction.MOVE else "",
    )


def _last_moment(item: RolloutItem, now: datetime) -> datetime:
    """When a host activates by itself: a day before the end of what it uses, or with a tenth left of what is left."""
    return item.not_after - min(_LAST_DAY, max(item.not_after - now, timedelta()) / 10)


def _may_use(item: RolloutItem) -> bool:
    return item.release_time is not None and bool(item.new_certificate_id) and item.state is not ItemState.DONE


def _age(rollout: Rollout) -> tuple[datetime, str]:
    return rollout.create_time, rollout.rollout_id
