"""Issued is not activated: install, reload, look what is served, and back to the version before if that fails.

    installed, reloaded, served                  ACTIVATED          the version is confirmed
    not reloaded or not served, the one before   ROLLED_BACK        the new version waits on disk for the next try
      is
    neither is, or nothing to go back to         KEPT_UNCONFIRMED   the new version stays: reload or service are broken
    not installed                                NOT_INSTALLED      what was shown before still is

A version that has expired or was revoked is nothing to go back to. Every step is saved before it is taken, so that an
agent that ends in the middle takes it up again; a failed activation is tried again with back-off (`renewal.status`),
and never leads to a request for another certificate.

`Activator.verify` looks again later. A service that then serves something else is worth one reload, not a rollback:
what is in place was confirmed, and whoever changed the service since may have meant it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from certplane.agent.faults import as_error
from certplane.agent.install.material import Outputs
from certplane.agent.install.steps import step
from certplane.agent.install.versions import IMPORTED
from certplane.agent.model import HookResult, LineageStatus, ServiceView, Version
from certplane.agent.ports import HookRunner, ServiceProbe, StatusFile, VersionStore
from certplane.agent.renewal.plan import Verify
from certplane.agent.renewal.status import (
    activated,
    activating,
    activation_failed,
    going_back,
    looked,
    reloading,
    verified,
    verify_failed,
    verifying,
)
from certplane.errors import CertplaneError
from certplane.fleet_report.model import CertificateState, RenewalStep
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_LOG = logging.getLogger(__name__)

Reload = Callable[[Version], Awaitable[HookResult]]
"""Makes whoever uses the version load it: a command for services, a new channel for the agent's own identity."""

_KEPT_VERSIONS = 5
_VERIFY_INTERVAL = timedelta(hours=6)
_NOT_STARTED = 127
"""What a shell says of a command that it can't run."""
_SAID = 2000
"""Characters of a hook's output in a status; the result has all that was kept."""


class ActivationOutcome(StrEnum):
    """How an activation ended; see the module."""

    ACTIVATED = "activated"
    ROLLED_BACK = "rolled_back"
    KEPT_UNCONFIRMED = "kept_unconfirmed"
    NOT_INSTALLED = "not_installed"


_SAYS = {
    ActivationOutcome.ROLLED_BACK: "was rolled back",
    ActivationOutcome.KEPT_UNCONFIRMED: "stays in place, unconfirmed",
    ActivationOutcome.NOT_INSTALLED: "is not installed",
}
"""Outcomes that are failures, in the log."""


@dataclass(frozen=True, slots=True)
class ActivationResult:
    """What was done: `status` is saved already.

    `reload` is the new version's, `reload_again` that of the version gone back to; None where it wasn't run. `error`
    is empty exactly when the outcome is ACTIVATED.
    """

    outcome: ActivationOutcome
    version: Version
    status: LineageStatus
    error: str = ""
    reload: HookResult | None = None
    reload_again: HookResult | None = None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A version was installed; its reload and the look at the service: `error` is empty if both are well."""

    status: LineageStatus
    reload: HookResult | None
    failed: RenewalStep | None = None
    error: str = ""


class Activator:
    """Activates the versions of one lineage, one at a time."""

    def __init__(
        self,
        *,
        store: VersionStore,
        statuses: StatusFile,
        reload: Reload | None,
        pool: BlockingPool,
        clock: Clock,
        rng: random.Random,
        keep: int = _KEPT_VERSIONS,
        probe: ServiceProbe | None = None,
        verify_interval: timedelta | None = None,
    ) -> None:
        """Nothing is touched yet.

        Args:
            store: The lineage's versions.
            statuses: The lineage's status on disk.
            reload: None where nobody has to be told.
            pool: Where `store` and `statuses` may block.
            clock: For expiry and waiting times.
            rng: For their jitter.
            keep: How many versions stay on disk after a success.
            probe: Sees what the service serves; None where that isn't known.
            verify_interval: From a look that was well to the next one; 6 hours where nothing is said.
        """
        self._store = store
        self._statuses = statuses
        self._reload = reload
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._keep = keep
        self._probe = probe
        self._verify_interval = verify_interval or _VERIFY_INTERVAL

    async def activate(self, version: Version, status: LineageStatus) -> ActivationResult:
        """Install a version, reload, and look. Cancellation ends a running hook; the next start begins again.

        Args:
            version: One of the store's.
            status: The lineage's, as it is now.

        Raises:
            OperationError: the status can't be saved; nothing is installed then.
        """
        status = await self._save(activating(status, self._clock.now(), self._rng))
        failure = await self._install(version, "install")
        if failure:
            result = ActivationResult(ActivationOutcome.NOT_INSTALLED, version, status, failure)
            return await self._failed(result, RenewalStep.INSTALL)
        status = await self._save(reloading(status, version, self._clock.now()))
        attempt = await self._attempt(version, status, "reload")
        if attempt.failed is None:
            with step("confirm"):
                status = await self._save(activated(attempt.status, version, self._clock.now()))
            await self._prune()
            _LOG.info("%s: version %d is active", status.name, version.number)
            return ActivationResult(ActivationOutcome.ACTIVATED, version, status, reload=attempt.reload)
        return await self._go_back(version, attempt, attempt.failed)

    async def verify(self, plan: Verify, status: LineageStatus) -> LineageStatus:
        """Look whether the service serves what is in place, with one reload if it doesn't; the status is saved.

        Raises:
            OperationError: the status can't be saved, or the versions can't be read.
        """
        if self._probe is None:
            return status
        version = plan.version
        status, view = await self._look(self._probe, version, status)
        if view.well:
            return await self._save(verified(status))
        status = await self._drifted(plan, status, view)
        if self._reload is None or plan.reload_time is None or plan.reload_time > self._clock.now():
            return status
        _LOG.warning("%s: reloading once, since %s", status.name, view.problem)
        status = await self._save(replace(status, drift_reloaded=True))  # before the act: it is made once
        await self._run(version, status)
        status, view = await self._look(self._probe, version, status)
        if view.well:
            _LOG.info("%s: version %d is served again", status.name, version.number)
            return await self._save(verified(status))
        return await self._drifted(replace(plan, reload_time=None), status, view)

    async def _drifted(self, plan: Verify, status: LineageStatus, view: ServiceView) -> LineageStatus:
        failed = verify_failed(
            status,
            view.problem,
            self._clock.now(),
            self._rng,
            current=plan.version,
            reload_time=plan.reload_time if self._reload is not None else None,
        )
        _LOG.error("%s: version %d is in place, but %s", status.name, plan.version.number, view.problem)
        return await self._save(failed)

    async def _attempt(self, version: Version, status: LineageStatus, name: str) -> _Attempt:
        """Reload and look, for a version that is installed; on the way back the look is no state of its own."""
        with step(name):
            reload = await self._run(version, status)
        if reload is not None and not reload.succeeded:
            return _Attempt(status, reload, RenewalStep.RELOAD, f"the reload {_how(reload)}")
        if self._probe is None:
            return _Attempt(status, reload)
        if status.state is CertificateState.RELOADING:
            status = await self._save(verifying(status, self._clock.now()))
        with step(name.replace("reload", "verify")):
            status, view = await self._look(self._probe, version, status)
        if view.well:
            return _Attempt(status, reload)
        return _Attempt(status, reload, RenewalStep.VERIFY, view.problem)

    async def _look(
        self, probe: ServiceProbe, version: Version, status: LineageStatus
    ) -> tuple[LineageStatus, ServiceView]:
        """What the service serves, and the status that knows it; not saved yet."""
        view = await probe.look(version)
        versions = await self._pool.run(self._store.versions)
        return looked(status, view, versions, self._clock.now(), interval=self._verify_interval), view

    async def _go_back(self, version: Version, attempt: _Attempt, failed: RenewalStep) -> ActivationResult:
        error = attempt.error
        status = attempt.status
        previous = await self._previous(version, status)

        def result(outcome: ActivationOutcome, again: HookResult | None = None) -> ActivationResult:
            return ActivationResult(outcome, version, status, error, attempt.reload, again)

        if previous is None:
            return await self._failed(result(ActivationOutcome.KEPT_UNCONFIRMED), failed)
        _LOG.error("%s: version %d: %s; going back to %d", status.name, version.number, error, previous.number)
        status = await self._save(going_back(status, failed, error, self._clock.now()))
        failure = await self._install(previous, "rollback")
        if failure:
            error = f"{error}; going back to version {previous.number} failed: {failure}"
            return await self._failed(result(ActivationOutcome.KEPT_UNCONFIRMED), RenewalStep.ROLLBACK)
        again = await self._attempt(previous, status, "reload_again")
        status = again.status
        if again.failed is None:
            return await self._failed(result(ActivationOutcome.ROLLED_BACK, again.reload), failed)
        what = again.error.removeprefix("the reload ")
        what = f"it {what}" if again.failed is RenewalStep.RELOAD else what
        error = f"{error}; with version {previous.number} {what}"
        failure = await self._install(version, "reinstate")
        if failure:
            error = f"{error}; version {version.number} could not be put back: {failure}"
            return await self._failed(result(ActivationOutcome.ROLLED_BACK, again.reload), RenewalStep.ROLLBACK)
        if again.failed is RenewalStep.VERIFY:
            # The command works, so the service has the old version's files, or will have when it comes back.
            with step("reload_last"):
                await self._run(version, status)
        return await self._failed(result(ActivationOutcome.KEPT_UNCONFIRMED, again.reload), failed)

    async def _failed(self, result: ActivationResult, failed_step: RenewalStep) -> ActivationResult:
        """Save when the next try may be made; `result.status` is the last one of the activation."""
        rolled_back = result.outcome is ActivationOutcome.ROLLED_BACK
        failed = activation_failed(
            result.status,
            result.error,
            self._clock.now(),
            self._rng,
            step=failed_step,
            rejected_version=result.version.number if rolled_back else None,
            current=await self._pool.run(self._store.current),
        )
        _LOG.error("%s: version %d %s: %s", failed.name, result.version.number, _SAYS[result.outcome], result.error)
        with step("record"):
            return replace(result, status=await self._save(failed))

    async def _previous(self, version: Version, status: LineageStatus) -> Version | None:
        """What to go back to: the last confirmed version, or what stood there before the first."""
        wanted = IMPORTED if status.confirmed_version is None else status.confirmed_version
        now = self._clock.now()
        for candidate in await self._pool.run(self._store.versions):
            if candidate.number == wanted != version.number:
                useful = candidate.not_after > now and candidate.number not in status.revoked_versions
                return candidate if useful else None
        return None

    async def _install(self, version: Version, name: str) -> str:
        """Show a version; what failed, or nothing."""
        try:
            with step(name):
                await self._pool.run(self._store.activate, version)
        except Exception as error:  # noqa: BLE001 - one lineage's failure, and no other's
            return str(as_error(version.path.parent.parent.name, error))
        return ""

    async def _run(self, version: Version, status: LineageStatus) -> HookResult | None:
        if self._reload is None:
            return None
        try:
            result = await self._reload(version)
        except Exception as error:  # noqa: BLE001 - as above
            result = HookResult(_NOT_STARTED, str(as_error(status.name, error)))
        level = logging.INFO if result.succeeded else logging.WARNING
        _LOG.log(level, "%s: version %d: the reload %s", status.name, version.number, _how(result))
        return result

    async def _prune(self) -> None:
        """Best effort: an old version too many does no harm."""
        try:
            await self._pool.run(self._store.prune, self._keep)
        except CertplaneError as error:
            _LOG.warning("old versions can't be removed: %s", error)

    async def _save(self, status: LineageStatus) -> LineageStatus:
        await self._pool.run(self._statuses.save, status)
        return status


def command_reload(hooks: HookRunner, command: str, timeout: timedelta, *, name: str, outputs: Outputs) -> Reload:
    """The operator's `reload_command` as a `Reload`."""

    async def reload(version: Version) -> HookResult:
        return await hooks.run(command, timeout, hook_variables(version, name=name, outputs=outputs))

    return reload


def hook_variables(version: Version, *, name: str, outputs: Outputs) -> dict[str, str]:
    """What a hook learns about the certificate; a path that isn't configured has no variable."""
    return {
        "CERTPLANE_NAME": name,
        "CERTPLANE_DNS_NAMES": " ".join(version.dns_names),
        "CERTPLANE_VERSION": str(version.number),
        "CERTPLANE_SERIAL_NUMBER": version.serial_number,
        "CERTPLANE_NOT_AFTER": version.not_after.isoformat(),
        **{f"CERTPLANE_{part.setting.upper()}": str(path) for part, path in outputs.paths().items()},
    }


def _how(result: HookResult) -> str:
    """How a reload ended, with the last of what it said: for a log and for `status`."""
    how = "ended with status" if result.exit_status is not None else "was stopped at its time limit"
    text = how if result.exit_status is None else f"{how} {result.exit_status}"
    said = result.output.strip()
    return f"{text}: {said[-_SAID:]}" if said else text
