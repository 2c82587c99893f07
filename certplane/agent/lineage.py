"""One lineage, a certificate's or the identity's: what is wanted of it, and where on disk it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from certplane.agent.model import Activation, ActivationHold, IssuedCertificate, LineageStatus, Version
from certplane.agent.ports import ActivationFile, DirectiveFile, InstallTrial, PendingKeys, StatusFile, VersionStore
from certplane.agent.renewal.directed import inherited_hold, kept_activations, laid_over, released
from certplane.agent.renewal.due import LineageSpec, is_unwanted
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.plan import newest_version
from certplane.agent.renewal.status import (
    new_status,
    request_waits,
    settle_clock,
    settle_jump,
)
from certplane.errors import OperationError, RefusalError
from certplane.runtime.failpoints import failpoint
from certplane.runtime.pool import BlockingPool

FAILPOINTS = ("activation.keep.before", "activation.keep.after")


class OrderFailedError(RefusalError):
    """The broker's order ended without a certificate; before `retry_time` asking again brings the same order."""

    def __init__(self, error: RefusalError, retry_time: datetime | None) -> None:
        super().__init__(error.refusal.reason, error.refusal.message)
        self.refusal = error.refusal
        self.retry_time = retry_time


class OrderUnderWayError(OperationError):
    """The order hasn't ended in the time that a step has; the request stays pending and is taken up again.

    `expected` says that it waits for its CA's limits, which may take days and is nothing to be warned of.
    """

    def __init__(self, message: str, *, expected: bool = False) -> None:
        super().__init__(message)
        self.expected = expected


class Lineage:
    """What belongs to one lineage: what is wanted of it, and where it is kept.

    `directive` and `activations` are None where no broker can say anything. `trial` says beforehand whether a
    certificate could be installed; None where one is wanted in any case.
    """

    def __init__(
        self,
        spec: LineageSpec,
        *,
        keys: PendingKeys,
        versions: VersionStore,
        statuses: StatusFile,
        disk: BlockingPool,
        directive: DirectiveFile | None = None,
        activations: ActivationFile | None = None,
        trial: InstallTrial | None = None,
    ) -> None:
        self.spec = spec
        self.keys = keys
        self.versions = versions
        self.statuses = statuses
        self.disk = disk
        self.directive = directive
        self.activations = activations
        self.trial = trial

    @property
    def name(self) -> str:
        """The lineage's name."""
        return self.spec.name

    async def facts(self, now: datetime) -> LineageFacts:
        """What is on disk now.

        Raises:
            OperationError: the disk refuses.
        """
        return await self.disk.run(self.read_facts, now)

    def read_facts(self, now: datetime) -> LineageFacts:
        """`facts` for who may block."""
        status = self.statuses.load() or new_status(self.name, now)
        facts = LineageFacts(
            versions=tuple(self.versions.versions()),
            current=self.versions.current(),
            pending=self.keys.pending(),
            status=settle_clock(status, now),
        )
        return laid_over(
            facts,
            None if self.directive is None else self.directive.load(),
            () if self.activations is None else self.activations.load(),
        )

    def take_activations(self, told: Sequence[Activation], now: datetime) -> list[Activation]:
        """Keep what the broker, or a person, says of certificates that are held back; what was new. Blocks.

        Raises:
            OperationError: the disk refuses; nothing is kept then.
        """
        if self.activations is None:
            return []
        known = self.activations.load()
        kept = kept_activations(told, known, self.read_facts(now))
        new = [each for each in told if each in kept and each not in known]
        if new:
            failpoint("activation.keep.before")
            self.activations.save(kept)
            failpoint("activation.keep.after")
        return new

    def release(self, now: datetime) -> None:
        """A person of this host wants the newest version used, whatever a rollout says. Blocks.

        Raises:
            OperationError: the disk refuses.
        """
        newest = newest_version(self.read_facts(now).versions)
        if newest is not None and newest.hold is not None:
            self.take_activations([Activation(newest.certificate_id, newest.hold.rollout_id)], now)

    def stage(self, issued: IssuedCertificate, replaced_id: str) -> Version:
        """Put on disk what was issued in the place of a certificate, held back where a rollout wants that. Blocks.

        Raises:
            OperationError: see `VersionStore.stage`.
        """
        return self.versions.stage(issued, self._hold_after(replaced_id))

    def _hold_after(self, replaced_id: str) -> ActivationHold | None:
        """What holds back what replaces a certificate: the word of a rollout about that one, else what holds it."""
        directed = None if self.directive is None else self.directive.load()
        if directed is not None and directed.certificate_id == replaced_id and directed.rollout_id:
            return directed.hold_on(replaced_id)
        activations = () if self.activations is None else self.activations.load()
        found = (each for each in self.versions.versions() if replaced_id and each.certificate_id == replaced_id)
        replaced = next(found, None)
        if replaced is None or is_unwanted(self.spec, replaced):  # other names: who keeps the host wants them in use
            return None
        return inherited_hold(released(replaced, activations), self.versions.current())

    def settle_waits(self, now: datetime, jump: timedelta) -> None:
        """Move the waits on disk along with a clock that was set. Blocks; see `settle_jump` and `settle_clock`.

        Saved, since a record from the future that is only read moves on with every reading, and its waits never end.
        """
        status = self.statuses.load()
        if status is None:
            return
        settled = settle_clock(settle_jump(status, jump) if jump else status, now)
        if settled is not status:
            self.statuses.save(settled)

    async def save(self, status: LineageStatus) -> LineageStatus:
        """Keep the status."""
        await self.disk.run(self.statuses.save, status)
        return status

    async def note_trouble(self, trouble: str, now: datetime) -> None:
        """Show in the status what the request under way waits for; empty when that is over."""

        def note() -> None:
            status = self.statuses.load()
            if status is not None:
                self.statuses.save(request_waits(status, trouble, now))

        await self.disk.run(note)
