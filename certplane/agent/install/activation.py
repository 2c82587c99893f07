"""Issued is not activated: install, reload, and back to the version before if the reload fails.

    installed, reloaded                          ACTIVATED          the version is confirmed
    installed, not reloaded, the one before is   ROLLED_BACK        the new version waits on disk for the next try
    neither reloads, or nothing to go back to    KEPT_UNCONFIRMED   the new version stays: the reload itself is broken
    not installed                                NOT_INSTALLED      what was shown before still is

A version that has expired is nothing to go back to. Every step is saved before it is taken, so that an agent that ends
in the middle takes it up again; a failed activation is tried again with back-off (`renewal.status`), and never leads to
a request for another certificate.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from certplane.agent.install.outputs import Outputs
from certplane.agent.install.steps import step
from certplane.agent.install.versions import IMPORTED
from certplane.agent.model import HookResult, LineageStatus, Version
from certplane.agent.ports import HookRunner, StatusFile, VersionStore
from certplane.agent.renewal.status import activated, activating, activation_failed, reloading
from certplane.errors import CertplaneError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

__all__ = ["ActivationOutcome", "ActivationResult", "Activator", "Reload", "command_reload", "hook_variables"]

_LOG = logging.getLogger(__name__)

Reload = Callable[[Version], Awaitable[HookResult]]
"""Makes whoever uses the version load it: a command for services, a new channel for the agent's own identity."""

_KEPT_VERSIONS = 5
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
        """
        self._store = store
        self._statuses = statuses
        self._reload = reload
        self._pool = pool
        self._clock = clock
        self._rng = rng
        self._keep = keep

    async def activate(self, version: Version, status: LineageStatus) -> ActivationResult:
        """Install a version and reload. Cancellation ends a running hook; the next start begins again.

        Args:
            version: One of the store's.
            status: The lineage's, as it is now.

        Raises:
            OperationError: the status can't be saved; nothing is installed then.
        """
        status = await self._save(activating(status, self._clock.now(), self._rng))
        failure = await self._install(version, "install")
        if failure:
            return await self._failed(ActivationResult(ActivationOutcome.NOT_INSTALLED, version, status, failure))
        status = await self._save(reloading(status, self._clock.now()))
        with step("reload"):
            reload = await self._run(version)
        if reload is None or reload.succeeded:
            with step("confirm"):
                status = await self._save(activated(status, version, self._clock.now()))
            await self._prune()
            _LOG.info("%s: version %d is active", status.name, version.number)
            return ActivationResult(ActivationOutcome.ACTIVATED, version, status, reload=reload)
        return await self._go_back(version, status, reload)

    async def _go_back(self, version: Version, status: LineageStatus, reload: HookResult) -> ActivationResult:
        error = f"the reload {_how(reload)}"
        previous = await self._previous(version, status)
        if previous is None:
            return await self._failed(
                ActivationResult(ActivationOutcome.KEPT_UNCONFIRMED, version, status, error, reload)
            )
        failure = await self._install(previous, "rollback")
        if failure:
            error = f"{error}; going back to version {previous.number} failed: {failure}"
            return await self._failed(
                ActivationResult(ActivationOutcome.KEPT_UNCONFIRMED, version, status, error, reload)
            )
        with step("reload_again"):
            again = await self._run(previous)
        if again is None or again.succeeded:
            return await self._failed(
                ActivationResult(ActivationOutcome.ROLLED_BACK, version, status, error, reload, again)
            )
        error = f"{error}; with version {previous.number} it {_how(again)}"
        failure = await self._install(version, "reinstate")
        if failure:
            error = f"{error}; version {version.number} could not be put back: {failure}"
            return await self._failed(
                ActivationResult(ActivationOutcome.ROLLED_BACK, version, status, error, reload, again)
            )
        return await self._failed(
            ActivationResult(ActivationOutcome.KEPT_UNCONFIRMED, version, status, error, reload, again)
        )

    async def _failed(self, result: ActivationResult) -> ActivationResult:
        """Save when the next try may be made; `result.status` is the one that the activation began with."""
        rolled_back = result.outcome is ActivationOutcome.ROLLED_BACK
        failed = activation_failed(
            result.status,
            result.error,
            self._clock.now(),
            self._rng,
            rejected_version=result.version.number if rolled_back else None,
            current=await self._pool.run(self._store.current),
        )
        _LOG.error("%s: version %d: %s: %s", failed.name, result.version.number, result.outcome, result.error)
        with step("record"):
            return replace(result, status=await self._save(failed))

    async def _previous(self, version: Version, status: LineageStatus) -> Version | None:
        """What to go back to: the last confirmed version, or what stood there before the first."""
        wanted = IMPORTED if status.confirmed_version is None else status.confirmed_version
        now = self._clock.now()
        for candidate in await self._pool.run(self._store.versions):
            if candidate.number == wanted != version.number:
                return candidate if candidate.not_after > now else None
        return None

    async def _install(self, version: Version, name: str) -> str:
        """Show a version; what failed, or nothing."""
        try:
            with step(name):
                await self._pool.run(self._store.activate, version)
        except CertplaneError as error:
            return str(error)
        return ""

    async def _run(self, version: Version) -> HookResult | None:
        if self._reload is None:
            return None
        try:
            result = await self._reload(version)
        except CertplaneError as error:
            result = HookResult(_NOT_STARTED, str(error))
        level = logging.INFO if result.succeeded else logging.WARNING
        _LOG.log(level, "version %d: the reload %s", version.number, _how(result))
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
    paths = {
        "CERTPLANE_KEY": outputs.key,
        "CERTPLANE_CERT": outputs.cert,
        "CERTPLANE_CHAIN": outputs.chain,
        "CERTPLANE_FULLCHAIN": outputs.fullchain,
        "CERTPLANE_COMBINED": outputs.combined,
    }
    return {
        "CERTPLANE_NAME": name,
        "CERTPLANE_DNS_NAMES": " ".join(version.dns_names),
        "CERTPLANE_VERSION": str(version.number),
        "CERTPLANE_SERIAL_NUMBER": version.serial_number,
        "CERTPLANE_NOT_AFTER": version.not_after.isoformat(),
        **{variable: str(path) for variable, path in paths.items() if path is not None},
    }


def _how(result: HookResult) -> str:
    """How a reload ended, with the last of what it said: for a log and for `status`."""
    how = "ended with status" if result.exit_status is not None else "was stopped at its time limit"
    text = how if result.exit_status is None else f"{how} {result.exit_status}"
    said = result.output.strip()
    return f"{text}: {said[-_SAID:]}" if said else text
