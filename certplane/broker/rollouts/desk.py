"""What people ask of rollouts, at whichever broker: a plan, a new one, a word about one. Durable when it is answered.

The broker that runs rollouts hears of it by the change of the row (`runner`). Who may say what: the access table asks
for the role operator; here, for admin where a rollout revokes or selects all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from certplane.broker.events import AuditTrail
from certplane.broker.fleet.index import FleetIndex
from certplane.broker.model import Caller, IdentityKind
from certplane.broker.ports import PolicySource
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts import words
from certplane.broker.rollouts.counts import begun
from certplane.broker.rollouts.events import RolloutEvents
from certplane.broker.rollouts.freezing import Freezing, Frozen, all_warnings, check_issuer
from certplane.broker.rollouts.known import KnownRollouts
from certplane.broker.rollouts.model import ItemState, Revoke, Rollout, RolloutSpec, RolloutState
from certplane.broker.rollouts.ports import RolloutStore
from certplane.broker.rollouts.spec import check, check_assignment, standing_rings, without_empty
from certplane.broker.standing_rules import Approval, RolloutRules
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.failpoints import failpoint
from certplane.runtime.text import counted

_LETTERS: Final = "abcdefghjkmnpqrstuvwxyz23456789"
"""Of ids, that people read to each other: none that looks like another."""
_TRIES: Final = 8
"""At a word while the runner writes: each of its steps is another version."""


class Word(StrEnum):
    """What an operator says of a rollout; values are the methods' names."""

    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    FINISH = "finish"


@dataclass(frozen=True, slots=True)
class PlannedRollout:
    """What a rollout would be.

    Attributes:
        frozen: Its certificates and rings; None where nothing can be picked.
        rollout: As it would begin; None likewise.
        warnings: What an operator should know before.
        approval: Why it would wait for approval; empty if it wouldn't.
        refusal: Why it would be refused; None if it wouldn't be.
        disconnected_count: Hosts without a stream.
        unable_count: Hosts whose agents can't hold a certificate back.
    """

    frozen: Frozen | None = None
    rollout: Rollout | None = None
    warnings: Sequence[str] = ()
    approval: str = ""
    refusal: RefusalError | None = None
    disconnected_count: int = 0
    unable_count: int = 0


class RolloutDesk:
    """Takes what people ask."""

    def __init__(
        self,
        *,
        store: RolloutStore,
        freezing: Freezing,
        index: FleetIndex,
        policy: PolicySource,
        issuers: Sequence[str],
        known: KnownRollouts,
        trail: AuditTrail,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        """Take what rollouts are kept and made with; `issuers` are those of the configuration."""
        self._store = store
        self._freezing = freezing
        self._index = index
        self._policy = policy
        self._issuers = issuers
        self._known = known
        self._trail = trail
        self._clock = clock
        self._rng = rng

    async def get(self, rollout_id: str) -> Rollout:
        """The rollout of this id.

        Raises:
            RefusalError: ORDER_NOT_FOUND, there is none; STORE_UNAVAILABLE.
        """
        rollout = await self._store.get(rollout_id)
        if rollout is None:
            raise not_found()
        return rollout

    async def plan(self, caller: Caller, spec: RolloutSpec) -> PlannedRollout:
        """What it would be. Nothing is kept.

        Raises:
            RefusalError: STORE_UNAVAILABLE. All that `create` would refuse it for is in the answer.
        """
        now, policy = self._clock.now(), self._policy.current
        frozen: Frozen | None = None
        refusal: RefusalError | None = None
        try:
            check(spec, now)
            frozen = await self._freezing.freeze(spec, policy, now)
            check_issuer(frozen, policy, self._issuers)
            check_assignment(spec, frozen.found)
            check_role(caller.roles, spec)
            _check_operator(caller.roles)
        except RefusalError as error:
            if error.refusal.reason not in (Reason.REQUEST_INVALID, Reason.ROLE_REQUIRED):
                raise
            refusal = error
        if frozen is None:
            return PlannedRollout(refusal=refusal)
        hosts = [self._index.hosts[name] for name in frozen.hosts if name in self._index.hosts]
        others = Counter(
            item.rollout_id for item in await self._store.open_items_of([item.certificate_id for item in frozen.items])
        )
        approval = why_approval(spec, len(frozen.hosts), policy.rollouts)
        of_hosts = [host for host in hosts if host.kind is IdentityKind.HOST]
        return PlannedRollout(
            frozen,
            self._new(frozen, "", "", now, approval=approval),
            all_warnings(frozen, policy, hosts, others),
            approval,
            refusal,
            disconnected_count=sum(not host.connected for host in of_hosts),
            unable_count=sum(host.connect_time is not None and not host.can_hold for host in of_hosts),
        )

    async def create(self, caller: Caller, request_id: str, spec: RolloutSpec, *, chosen_id: bool = False) -> Rollout:
        """Begin one, durable. Asked again with an id that the caller chose, it answers with the one that there is.

        Raises:
            RefusalError: REQUEST_INVALID, all that is wrong; ROLE_REQUIRED, it revokes or selects all;
                STORE_UNAVAILABLE, AUDIT_UNAVAILABLE: nothing is there then, or all of it.
        """
        if chosen_id and (first := await self._store.find(caller.name, request_id)) is not None:
            return first
        now, policy = self._clock.now(), self._policy.current
        check(spec, now)
        check_role(caller.roles, spec)
        frozen = await self._freezing.freeze(spec, policy, now)
        check_issuer(frozen, policy, self._issuers)
        check_assignment(spec, frozen.found)
        approval = why_approval(spec, len(frozen.hosts), policy.rollouts)
        rollout = self._new(frozen, caller.name, request_id, now, approval=approval)
        return await self._keep(rollout, frozen, caller, request_id)

    async def start_for_incident(
        self, incident_id: str, certificate_ids: Sequence[str], request_id: str, reason: str, deadline: datetime | None
    ) -> tuple[Rollout, Collection[str]]:
        """Begin the rollout that answers an incident, in the policy's standing rings, or find the one that there is.

        It waits for nobody's approval: who wrote the policy has decided, and while it waited its hosts would renew by
        themselves, in no ring.

        Returns:
            It, and which of the certificates it was begun for: not those of a repeated request that came later.

        Raises:
            RefusalError: REQUEST_INVALID, none of its certificates is in force; STORE_UNAVAILABLE, AUDIT_UNAVAILABLE.
        """
        created_by = f"incident {incident_id}"
        if (first := await self._store.find(created_by, request_id)) is not None:
            begun_for = {item.certificate_id for item in await self._store.items(first.rollout_id)}
            return first, begun_for.intersection(certificate_ids)
        now, policy = self._clock.now(), self._policy.current
        rings = standing_rings(policy.rollouts.rings)
        selection = Selection(certificate_ids=tuple(certificate_ids))
        if deadline is not None and deadline <= now:
            deadline = None  # it is late already: no bake time is cut for what can't be kept
        spec = RolloutSpec(selection, reason, rings=rings, deadline=deadline)
        frozen = await self._freezing.freeze(spec, policy, now)
        # As it is kept: the incident names its certificates, and a row of ten thousand ids is written with each step.
        spec = replace(spec, selection=Selection(incident_id=incident_id))
        spec = replace(spec, rings=without_empty(rings, frozen.found))
        frozen = await self._freezing.in_rings(spec, frozen.items, policy)
        rollout = self._new(frozen, created_by, request_id, now, approval="")
        return await self._keep(replace(rollout, incident_id=incident_id), frozen, None, request_id), certificate_ids

    async def under_way(self, certificate_ids: Collection[str]) -> Mapping[str, str]:
        """Which of these certificates a rollout has that has begun, running or not, and the newest such.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        begun = [each for each in await self._store.open_rollouts() if each.start_time is not None]
        if not begun:
            return {}
        places = {each.rollout_id: (each.create_time, each.rollout_id) for each in begun}
        items = [item for item in await self._store.open_items_of(certificate_ids) if item.rollout_id in places]
        items.sort(key=lambda item: places[item.rollout_id])
        return {item.certificate_id: item.rollout_id for item in items if item.state is not ItemState.SKIPPED}

    async def say(
        self,
        word: Word,
        caller: Caller,
        request_id: str,
        rollout_id: str,
        reason: str,
        *,
        revoke_remaining: bool = False,
    ) -> Rollout:
        """Take an operator's word, durable; the rollout as it is then.

        Raises:
            RefusalError: ORDER_NOT_FOUND; ROLE_REQUIRED; REQUEST_INVALID, it can't be said of a rollout in this state;
                STORE_UNAVAILABLE, AUDIT_UNAVAILABLE: it was written or not, and may be said again.
        """
        for _ in range(_TRIES):
            before = await self.get(rollout_id)
            after = self._after(word, caller, before, reason, revoke_remaining=revoke_remaining)
            if after == before:
                return before
            events = RolloutEvents(self._trail, rollout_id)
            written = [events.said(word, caller, request_id, reason)]
            if word is Word.APPROVE:
                written.append(events.started(f"approved by {caller.name}", after.certificate_count))
            failpoint("rollout.word.before")
            if await self._store.save(before, after, (), written):
                failpoint("rollout.word.after")
                self._known.note(after)
                return after
        raise RefusalError(Reason.STORE_UNAVAILABLE, "the rollout changes all the time; say it again")

    def _after(self, word: Word, caller: Caller, before: Rollout, reason: str, *, revoke_remaining: bool) -> Rollout:
        now, who = self._clock.now(), caller.name
        match word:
            case Word.APPROVE:
                check_role(caller.roles, before.spec)
                after = words.approve(before, who, now)
                if after != before:
                    self._check_creator(before)
                return after
            case Word.PAUSE:
                return words.pause(before, who, reason, now)
            case Word.RESUME:
                return words.resume(before, who, reason, now)
            case Word.ABORT:
                return words.abort(before, who, reason, now)
            case Word.FINISH:
                if revoke_remaining:
                    _require_admin(caller.roles, "to revoke what is in use")
                return words.finish(before, who, reason, now, revoke_remaining=revoke_remaining)

    def _check_creator(self, rollout: Rollout) -> None:
        """Whoever created it must still be allowed to: a role that was taken away meanwhile is a decision too."""
        if rollout.incident_id:
            return
        grant = self._policy.current.find_grant(rollout.created_by)
        needed = {"admin"} if why_admin(rollout.spec) else {"operator", "admin"}
        if grant is None or needed.isdisjoint(grant.roles):
            message = (
                f"{rollout.created_by}, who created the rollout {rollout.rollout_id}, no longer has the role that it "
                "needs: abort it, and create another one"
            )
            raise RefusalError(Reason.ROLE_REQUIRED, message)

    async def _keep(self, rollout: Rollout, frozen: Frozen, caller: Caller | None, request_id: str) -> Rollout:
        while await self._store.get(rollout.rollout_id) is not None:
            rollout = replace(rollout, rollout_id=self._new_id(rollout.create_time))
        items = [replace(item, rollout_id=rollout.rollout_id) for item in frozen.items]
        events = RolloutEvents(self._trail, rollout.rollout_id)
        what = _described(rollout)
        written = [events.created(caller, request_id, what, str(rollout.spec.selection), len(items))]
        if rollout.state is RolloutState.RUNNING:
            written.append(events.started("no approval is needed", len(items)))
        failpoint("rollout.create.before")
        kept = await self._store.create(rollout, items, written)
        failpoint("rollout.create.after")
        self._known.note(kept)
        return kept

    def _new(self, frozen: Frozen, who: str, request_id: str, now: datetime, *, approval: str) -> Rollout:
        forecast = frozen.forecast
        rollout = Rollout(
            self._new_id(now),
            who,
            request_id,
            frozen.spec,
            now,
            now,
            state=RolloutState.AWAITING_APPROVAL if approval else RolloutState.RUNNING,
            state_reason=approval,
            start_time=None if approval else now,
        )
        return begun(rollout, frozen.items, now, None if forecast is None else forecast.last_order_time)

    def _new_id(self, now: datetime) -> str:
        return f"r{now:%y%m%d}-{''.join(self._rng.choices(_LETTERS, k=4))}"


def check_role(roles: Collection[str], spec: RolloutSpec) -> None:
    """Whether these roles are enough to create, or approve, a rollout that does this.

    Raises:
        RefusalError: ROLE_REQUIRED.
    """
    if why := why_admin(spec):
        _require_admin(roles, why)


def _check_operator(roles: Collection[str]) -> None:
    if {"operator", "admin"}.isdisjoint(roles):
        message = "the role operator is needed to create a rollout, and the policy doesn't give it to the caller"
        raise RefusalError(Reason.ROLE_REQUIRED, message)


def why_admin(spec: RolloutSpec) -> str:
    """Why it takes an admin; empty if it doesn't."""
    if spec.revoke is not Revoke.NEVER:
        return "for a rollout that revokes"
    return "for a rollout of all certificates" if selects_all(spec.selection) else ""


def selects_all(selection: Selection) -> bool:
    """Whether it is all certificates in force."""
    return selection.all and replace(selection, all=False) == Selection()


def why_approval(spec: RolloutSpec, hosts: int, rules: RolloutRules) -> str:
    """Why another operator has to approve it, for people; empty if nobody has to."""
    if rules.approval is not Approval.REQUIRED:
        return ""
    if spec.revoke is not Revoke.NEVER:
        return "the policy wants approval by another operator: it revokes"
    if selects_all(spec.selection):
        return "the policy wants approval by another operator: it is of all certificates"
    above = rules.approval_above_hosts
    if above is not None and hosts > above:
        return f"the policy wants approval by another operator above {counted(above, 'host')}"
    return ""


def not_found() -> RefusalError:
    """There is no such rollout."""
    message = "there is no such rollout; ListRollouts, `certplanectl rollout list`, has those there are"
    return RefusalError(Reason.ORDER_NOT_FOUND, message)


def _require_admin(roles: Collection[str], why: str) -> None:
    if "admin" not in roles:
        message = f"the role admin is needed {why}, and the policy doesn't give it to the caller"
        raise RefusalError(Reason.ROLE_REQUIRED, message)


def _described(rollout: Rollout) -> str:
    """What it does and why, for the audit log."""
    spec = rollout.spec
    to = f" to {spec.issuer}" if spec.issuer else ""
    rings = ", ".join(ring.name for ring in rollout.rings)
    revokes = "" if spec.revoke is Revoke.NEVER else ", revokes what is replaced"
    return (
        f"{spec.action}{to}: {counted(rollout.certificate_count, 'certificate')} of "
        f"{counted(rollout.host_count, 'host')}, rings {rings}{revokes}: {spec.reason}"
    )
