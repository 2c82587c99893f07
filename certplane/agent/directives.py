"""What the broker's directives do on this host: times are kept on disk, and the lineages that they concern are woken.

A directive for a certificate that was replaced meanwhile does nothing and is no error: the two had just crossed. One
for a certificate that is still on its way here waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

from typing_extensions import override

from certplane.agent.lineage import Lineage
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.link.answering import DirectiveTaker
from certplane.agent.model import Activation, DirectedRenewal, LineageStatus
from certplane.agent.renewal.directed import explanation, kept_directive
from certplane.agent.renewal.failures import is_refused_by_policy, is_unreached
from certplane.agent.renewal.plan import newest_version
from certplane.errors import OperationError, Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from certplane.runtime.clock import Clock
from certplane.runtime.finishing import uninterrupted
from certplane.runtime.pool import BlockingPool

logger = logging.getLogger(__name__)

T = TypeVar("T")
V = TypeVar("V")

_LOOK = timedelta(milliseconds=200)
_OF_PERSONS = frozenset({RenewalCause.OPERATOR, RenewalCause.REVOKED})
_NAMED = 5
_CHEAP = timedelta(milliseconds=50)
_REST = 9
_SPREAD = timedelta(seconds=10)
"""Over which hosts that hear of another retry epoch together ask again."""
_LOOKS = 50
"""The broker asks the CA about a certificate as soon as it has it, and may hear the answer before the host has it.
While a request is under way, a certificate that isn't there may be the one that comes. Longer than this none
waits."""


class HostDirectives(DirectiveTaker):
    """`DirectiveTaker` of a host.

    Args:
        lineages: the certificates by name.
        runners: their runners, to be woken; those of an agent that only runs once come to it by themselves.
        identity: the identity's lineage.
        identity_runner: its runner.
        disk: where files may block.
        clock: says whether a time has come.
        policy_hash: of the policy that was in force when the broker was last heard; empty if it never was.
        on_policy: told of each other one, to remember it.
        retry_epoch: the broker's when it was last heard; empty if it never was.
        on_retry_epoch: told of each other one, to remember it.
        rng: spreads what many hosts hear at once.
    """

    def __init__(
        self,
        lineages: Mapping[str, Lineage],
        runners: Mapping[str, LineageRunner],
        *,
        identity: Lineage,
        identity_runner: LineageRunner,
        disk: BlockingPool,
        clock: Clock,
        policy_hash: str,
        on_policy: Callable[[str], None],
        retry_epoch: str,
        on_retry_epoch: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self._lineages = lineages
        self._runners = runners
        self._identity = identity
        self._identity_runner = identity_runner
        self._disk = disk
        self._clock = clock
        self._policy_hash = policy_hash
        self._on_policy = on_policy
        self._retry_epoch = retry_epoch
        self._upgraded = bool(policy_hash) and not retry_epoch
        self._on_retry_epoch = on_retry_epoch
        self._rng = rng

    @override
    async def renew(self, renewals: Sequence[DirectedRenewal]) -> None:
        for directed in (each for each in renewals if each.is_of_identity):
            await uninterrupted(self._take_over_identity(directed))
        missing = [each for each in renewals if not each.is_of_identity]
        for look in range(_LOOKS):
            # Asked first: a certificate that comes in between is found.
            expected = await self._disk.run(self._is_expecting)
            unknown, fault, cost = await uninterrupted(self._take_over(missing))
            if cost > _CHEAP:  # a host with many certificates: whoever directs it much gets a tenth of a processor
                await self._clock.sleep(cost * _REST)
            if fault is not None:
                raise fault
            missing = [each for each in missing if each.certificate_id in unknown]
            if not missing or not expected or look == _LOOKS - 1:
                break
            await self._clock.sleep(_LOOK)
        if missing:
            await self._ask_instead(missing)
            named = ", ".join(each.certificate_id for each in missing[:_NAMED])
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            message = f"this host has no certificate {named}{more}"
            raise RefusalError(Reason.CERTIFICATE_NOT_FOUND, message)

    async def _take_over_identity(self, directed: DirectedRenewal) -> None:
        """Keep what is meant for the identity in force, and wake its runner.

        Once a newer one is on disk, the two have crossed: what is wanted is being done.

        Raises:
            OperationError: the disk refuses.
        """

        def keep() -> DirectedRenewal | None:
            lineage = self._identity
            current, newest = lineage.versions.current(), newest_version(tuple(lineage.versions.versions()))
            if newest is None or (current is not None and current.serial_number != newest.serial_number):
                return None
            meant = replace(directed, serial_number=newest.serial_number)
            if lineage.directive is None or lineage.directive.load() == meant:
                return None
            lineage.directive.save(replace(meant, receive_time=self._clock.now()))
            return meant

        meant = await self._disk.run(keep)
        if meant is not None:
            self._wake_for(self._identity.name, meant, self._identity_runner)

    async def _take_over(
        self, renewals: Sequence[DirectedRenewal]
    ) -> tuple[list[str], OperationError | None, timedelta]:
        """Keep what is new and wake whom it concerns; what isn't here, a fault of the disk, and the time it took.

        Both, though the stream may end meanwhile: told again by another broker it is nothing new, and wakes nobody.
        """
        (changed, left, unknown, fault), cost = await self._disk.run(_measured, self._keep, renewals)
        self._wake(changed)
        for certificate_id, name in left.items():
            self._runners[name].note_revoked(certificate_id)
        return unknown, fault, cost

    @override
    async def activate(self, activations: Sequence[Activation]) -> None:
        if not activations:
            return
        fault, cost = await uninterrupted(self._take_activations(activations))
        if cost > _CHEAP:
            await self._clock.sleep(cost * _REST)
        if fault is not None:
            raise fault

    async def _take_activations(self, activations: Sequence[Activation]) -> tuple[OperationError | None, timedelta]:
        """Keep what is new and wake whom it concerns; a fault of the disk, and the time it took. As `_take_over`."""
        (taken, fault), cost = await self._disk.run(_measured, self._keep_activations, activations)
        for name, each in taken:
            what = "was aborted: the new certificate is used once the one in use is due"
            what = what if each.abandoned else "releases the new certificate"
            logger.info("%s: rollout %s %s", name, each.rollout_id, what)
            self._runners[name].release()
        return fault, cost

    def _keep_activations(
        self, activations: Sequence[Activation]
    ) -> tuple[list[tuple[str, Activation]], OperationError | None]:
        """What was new, with the lineage whose it is; one that can't be read or written keeps no other from its own."""
        taken: list[tuple[str, Activation]] = []
        fault: OperationError | None = None
        now = self._clock.now()
        for name, lineage in self._lineages.items():
            try:
                taken += [(name, each) for each in lineage.take_activations(activations, now)]
            except OperationError as error:
                fault = error
        return taken, fault

    async def _ask_instead(self, missing: Sequence[DirectedRenewal]) -> None:
        """An operator wants what this host doesn't have: it lost its state, say, or the broker a day of its database.

        What waits here may be what is meant, and the broker's limits let it pass now.
        """
        wanted = [each.renew_time for each in missing if each.cause in _OF_PERSONS]
        if not wanted:
            return
        after = max(min(wanted) - self._clock.now(), timedelta())
        for name, status in await self._statuses():
            if status.failures:
                self._try_again(
                    name, "an operator asked to renew a certificate that this host doesn't have", after=after
                )

    def _is_expecting(self) -> bool:
        for lineage in self._lineages.values():
            with contextlib.suppress(OperationError):  # that lineage's own runner tells of it
                if lineage.keys.pending() is not None:
                    return True
        return False

    def _wake(self, changed: Mapping[str, DirectedRenewal]) -> None:
        for name, directed in changed.items():
            self._wake_for(name, directed, self._runners[name])

    def _wake_for(self, name: str, directed: DirectedRenewal, runner: LineageRunner) -> None:
        when = f"{directed.renew_time:%Y-%m-%d %H:%M:%S} UTC"
        logger.info("%s: will be renewed at %s: %s", name, when, explanation(directed))
        if directed.cause is not RenewalCause.LIFETIME and directed.renew_time <= self._clock.now():
            runner.try_again()  # somebody wants it now: our own patience isn't a reason against
        else:
            runner.wake()

    def _keep(
        self, renewals: Sequence[DirectedRenewal]
    ) -> tuple[dict[str, DirectedRenewal], dict[str, str], list[str], OperationError | None]:
        """Save what is new; returns it by lineage, what is revoked and not the newest, what isn't here, and a fault.

        What is revoked may be in use, where the newest waits for its window or couldn't be installed. A fault is the
        disk's: a lineage that can't be read or written keeps no other one from what is meant for it.
        """
        newest: dict[str, str] = {}
        known: dict[str, str] = {}
        unread: OperationError | None = None
        for name, lineage in self._lineages.items():
            try:
                versions = tuple(lineage.versions.versions())
            except OperationError as error:
                unread = error
                continue
            known |= {each.certificate_id: name for each in versions}
            version = newest_version(versions)
            if version is not None and version.certificate_id:
                newest[version.certificate_id] = name
        changed: dict[str, DirectedRenewal] = {}
        unwritten: OperationError | None = None
        for directed in renewals:
            name = newest.get(directed.certificate_id, "")
            file = self._lineages[name].directive if name else None
            before = None if file is None else file.load()
            kept = kept_directive(directed, before)
            if file is not None and before != kept:
                try:
                    file.save(replace(kept, receive_time=self._clock.now()))
                except OperationError as error:
                    unwritten = error
                else:
                    changed[name] = kept
        unknown = [each.certificate_id for each in renewals if each.certificate_id not in known]
        left = {
            each.certificate_id: known[each.certificate_id]
            for each in renewals
            if each.cause is RenewalCause.REVOKED and each.certificate_id in known.keys() - newest.keys()
        }
        return changed, left, unknown, unwritten or (unread if unknown else None)

    @override
    async def connected(self) -> None:
        for name, status in await self._statuses():
            if is_unreached(status):
                self._try_again(name, "the broker is reachable again")

    @override
    async def policy_changed(self, policy_hash: str) -> None:
        if policy_hash == self._policy_hash:
            return
        # Who hears a broker for the first time has no answer of another policy: nothing has changed for it.
        first, self._policy_hash = not self._policy_hash, policy_hash
        for name, status in await self._statuses():
            if not first and is_refused_by_policy(status):
                self._try_again(name, "the broker's policy has changed")
        self._on_policy(policy_hash)

    @override
    async def retry_epoch_changed(self, retry_epoch: str) -> None:
        if retry_epoch == self._retry_epoch:
            return
        # The same of epochs, but for a host whose broker had none to tell until now.
        first, self._retry_epoch = not (self._retry_epoch or self._upgraded), retry_epoch
        for name, status in await self._statuses():
            if not first and status.failures:
                after = _SPREAD * self._rng.random()
                self._try_again(name, "requests that failed at the broker may succeed now", after=after)
        self._on_retry_epoch(retry_epoch)

    def _try_again(self, name: str, why: str, *, after: timedelta = timedelta()) -> None:
        """Said once for each try that comes of it, however often a broker gives a reason."""
        runner = self._runners[name]
        if not runner.wants_again:
            logger.info("%s: %s; asking again", name, why)
        runner.try_again(after=after)

    async def _statuses(self) -> list[tuple[str, LineageStatus]]:
        """What can be read of the lineages; of the rest its own runner tells."""

        def load() -> list[tuple[str, LineageStatus]]:
            found = []
            for name, lineage in self._lineages.items():
                with contextlib.suppress(OperationError):
                    if (status := lineage.statuses.load()) is not None:
                        found.append((name, status))
            return found

        return await self._disk.run(load)


def _measured(work: Callable[[Sequence[V]], T], wanted: Sequence[V]) -> tuple[T, timedelta]:
    """What `work` returns, and the processor's time that it took."""
    began = time.thread_time()
    result = work(wanted)
    return result, timedelta(seconds=time.thread_time() - began)
