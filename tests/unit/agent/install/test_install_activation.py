"""Activation: installed, reloaded, or back to the version before; and what a restart finds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent.install.activation import (
    ActivationOutcome,
    ActivationResult,
    Activator,
    command_reload,
    hook_variables,
)
from certplane.agent.install.outputs import Outputs
from certplane.agent.model import HookResult, LineageState, LineageStatus, Version
from certplane.agent.renewal.status import new_status
from certplane.errors import OperationError, Reason, RefusalError
from certplane.runtime.pool import BlockingPool
from tests.fakes.agent_install import FakeHookRunner, FakeStatusFile, FakeVersionStore
from tests.fakes.agent_keystore import FakePendingKeys
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer

ISSUER = LocalIssuer()
OK, BROKEN, HUNG = HookResult(0, ""), HookResult(1, "nginx: [emerg] bad key\n"), HookResult(None, "")
TIMEOUT = timedelta(seconds=30)
OUTPUTS = Outputs(key=Path("/etc/tls/key.pem"), fullchain=Path("/etc/tls/full.pem"))


class Host:
    """One lineage in memory with a scripted reload."""

    def __init__(self, pool: BlockingPool) -> None:
        self.clock = ManualClock()
        self.keys = FakePendingKeys(clock=self.clock)
        self.store = FakeVersionStore(self.keys)
        self.statuses = FakeStatusFile(new_status("www", self.clock.now()))
        self.hooks = FakeHookRunner()
        self.pool = pool

    def stage(self, lifetime: timedelta = timedelta(days=90)) -> Version:
        request = self.keys.begin(common_name="", sans=["www.example.org"], replaces_certificate_id="", reuse_key=False)
        return self.store.stage(ISSUER.issue(request.csr_pem, lifetime=lifetime))

    async def activate(self, version: Version, *results: HookResult, keep: int = 5) -> ActivationResult:
        self.hooks.results = list(results)
        return await self.activator(
            command_reload(self.hooks, "systemctl reload nginx", TIMEOUT, name="www", outputs=OUTPUTS), keep=keep
        ).activate(version, self.status())

    def activator(self, reload: Callable[[Version], Awaitable[HookResult]] | None, *, keep: int = 5) -> Activator:
        return Activator(
            store=self.store,
            statuses=self.statuses,
            reload=reload,
            pool=self.pool,
            clock=self.clock,
            rng=random.Random(7),
            keep=keep,
        )

    def status(self) -> LineageStatus:
        status = self.statuses.load()
        assert status is not None
        return status

    def current(self) -> int:
        version = self.store.current()
        assert version is not None
        return version.number


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    pool = BlockingPool("files", 1)
    yield Host(pool)
    pool.close()


async def test_installed_and_reloaded_is_activated(host: Host) -> None:
    """A version whose reload succeeds is confirmed; each step was saved before it was taken."""
    result = await host.activate(host.stage(), OK)
    assert result.outcome is ActivationOutcome.ACTIVATED
    assert result.error == ""
    assert host.current() == 1
    assert [status.state for status in host.statuses.saved] == [
        LineageState.INSTALLING,
        LineageState.RELOADING,
        LineageState.WAITING,
    ]
    assert result.status == host.status()
    assert host.status().confirmed_version == 1
    assert host.status().activation_failures == 0


async def test_without_a_command_installing_is_all(host: Host) -> None:
    """Where nobody has to be told, an installed version is active."""
    result = await host.activator(None).activate(host.stage(), host.status())
    assert result.outcome is ActivationOutcome.ACTIVATED
    assert result.reload is None


@pytest.mark.parametrize("failure", [pytest.param(BROKEN, id="failed"), pytest.param(HUNG, id="timed out")])
async def test_failed_reload_goes_back(host: Host, failure: HookResult) -> None:
    """When the reload fails, the version before is shown and loaded again; the new one waits for another try."""
    await host.activate(host.stage(), OK)
    result = await host.activate(host.stage(), failure, OK)
    assert result.outcome is ActivationOutcome.ROLLED_BACK
    assert host.store.shown == [1, 2, 1]
    assert (result.reload, result.reload_again) == (failure, OK)
    status = host.status()
    assert status.state is LineageState.DEGRADED
    assert (status.confirmed_version, status.rejected_version) == (1, 2)
    assert status.next_activation_time is not None
    assert status.next_activation_time > host.clock.now()
    assert ("nginx" in status.last_error) == (failure is BROKEN)
    assert ("time limit" in status.last_error) == (failure is HUNG)


async def test_later_try_succeeds(host: Host) -> None:
    """A version that was rolled back is activated by a later try, which forgets the failure."""
    await host.activate(host.stage(), OK)
    second = host.stage()
    await host.activate(second, BROKEN, OK)
    result = await host.activate(second, OK)
    assert result.outcome is ActivationOutcome.ACTIVATED
    assert host.current() == 2
    status = host.status()
    assert (status.confirmed_version, status.rejected_version) == (2, None)
    assert (status.activation_failures, status.next_activation_time, status.last_error) == (0, None, "")


async def test_reload_that_fails_with_both_keeps_the_new_one(host: Host) -> None:
    """When the version before doesn't reload either, the reload is broken: the new version stays."""
    await host.activate(host.stage(), OK)
    result = await host.activate(host.stage(), BROKEN, HUNG)
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert host.store.shown == [1, 2, 1, 2]
    status = host.status()
    assert (status.confirmed_version, status.rejected_version) == (1, None)
    assert status.state is LineageState.DEGRADED
    assert "with version 1 it was stopped" in status.last_error


async def test_first_version_has_nothing_to_go_back_to(host: Host) -> None:
    """A first version whose reload fails stays: it is better than nothing."""
    result = await host.activate(host.stage(), BROKEN)
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert host.store.shown == [1]
    assert len(host.hooks.runs) == 1


async def test_expired_version_is_nothing_to_go_back_to(host: Host) -> None:
    """An expired certificate is worse than one whose reload failed."""
    await host.activate(host.stage(timedelta(days=1)), OK)
    second = host.stage()
    host.clock.advance(timedelta(days=1))
    result = await host.activate(second, BROKEN)
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert host.current() == 2


async def test_goes_back_to_the_last_confirmed_version(host: Host) -> None:
    """A version that was never confirmed is nothing to go back to, though it is the one before."""
    await host.activate(host.stage(), OK)
    await host.activate(host.stage(), BROKEN, OK)
    result = await host.activate(host.stage(), BROKEN, OK)
    assert result.outcome is ActivationOutcome.ROLLED_BACK
    assert host.current() == 1


async def test_installation_that_fails_changes_nothing(host: Host) -> None:
    """When the disk refuses, no command is run and the version before stays."""
    await host.activate(host.stage(), OK)
    second = host.stage()
    host.hooks.runs.clear()
    host.store.failures = [OperationError("no room", remedy="make some")]
    result = await host.activate(second)
    assert result.outcome is ActivationOutcome.NOT_INSTALLED
    assert result.error == "no room; make some"
    assert host.hooks.runs == []
    assert host.current() == 1
    assert host.status().next_activation_time is not None


async def test_going_back_that_fails_keeps_the_new_one(host: Host) -> None:
    """When the disk refuses the way back, the new version stays, and both causes are told."""
    await host.activate(host.stage(), OK)
    second = host.stage()
    shown = host.store.activate

    def refuse_going_back(version: Version) -> None:
        if version.number == 1:
            raise OperationError("read-only file system")
        shown(version)

    host.store.activate = refuse_going_back  # type: ignore[method-assign]  # a disk that fails in the middle
    result = await host.activate(second, BROKEN)
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert "nginx" in result.error
    assert "read-only" in result.error
    assert host.current() == 2


async def test_reload_that_raises_is_a_failed_reload(host: Host) -> None:
    """The identity's reload opens a channel: a broker that refuses the new one sends the agent back to the old."""
    await host.activate(host.stage(), OK)
    refusals = iter([RefusalError(Reason.IDENTITY_UNKNOWN, "unknown identity")])

    async def reload(version: Version) -> HookResult:
        for refusal in refusals:
            raise refusal
        return OK

    result = await host.activator(reload).activate(host.stage(), host.status())
    assert result.outcome is ActivationOutcome.ROLLED_BACK
    assert "IDENTITY_UNKNOWN" in result.error


async def test_waits_grow_with_failures(host: Host) -> None:
    """Each failed activation in a row may wait longer than the one before, never beyond its ceiling."""
    await host.activate(host.stage(), OK)
    second = host.stage()
    waits = []
    for _ in range(12):
        result = await host.activate(second, BROKEN, OK)
        assert result.status.next_activation_time is not None
        waits.append(result.status.next_activation_time - host.clock.now())
    assert all(timedelta(seconds=20) <= wait <= timedelta(hours=6) for wait in waits)
    assert max(waits[6:]) > timedelta(minutes=30) > max(waits[:3])
    assert host.status().activation_failures == 12


async def test_agent_that_its_own_hook_ends_waits_in_time(host: Host) -> None:
    """A reload that restarts the agent is taken up at once twice, then with back-off: no loop of restarts."""
    version = host.stage()

    async def restart_the_agent(version: Version) -> HookResult:
        raise asyncio.CancelledError

    activator = host.activator(restart_the_agent)
    waits = []
    for _ in range(3):
        with pytest.raises(asyncio.CancelledError):
            await activator.activate(version, host.status())
        assert host.status().state is LineageState.RELOADING
        waits.append(host.status().next_activation_time)
    assert waits[:2] == [None, None]
    assert waits[2] is not None
    assert waits[2] > host.clock.now()


async def test_old_versions_are_removed_after_a_success_only(host: Host) -> None:
    """A success prunes; a failure keeps everything that one could go back to."""
    await host.activate(host.stage(), OK)
    for _ in range(3):
        await host.activate(host.stage(), BROKEN, OK, keep=2)
    assert [version.number for version in host.store.versions()] == [1, 2, 3, 4]
    await host.activate(host.stage(), OK, keep=2)
    assert [version.number for version in host.store.versions()] == [4, 5]


async def test_hook_learns_about_its_certificate(host: Host) -> None:
    """The command runs with the names, dates and configured paths of the version that it is to load."""
    version = host.stage()
    await host.activate(version, OK)
    command, timeout, variables = host.hooks.runs[0]
    assert (command, timeout) == ("systemctl reload nginx", TIMEOUT)
    assert variables == {
        "CERTPLANE_NAME": "www",
        "CERTPLANE_DNS_NAMES": "www.example.org",
        "CERTPLANE_VERSION": "1",
        "CERTPLANE_SERIAL_NUMBER": version.serial_number,
        "CERTPLANE_NOT_AFTER": version.not_after.isoformat(),
        "CERTPLANE_KEY": "/etc/tls/key.pem",
        "CERTPLANE_FULLCHAIN": "/etc/tls/full.pem",
    }
    assert hook_variables(replace(version, dns_names=("a", "b")), name="x", outputs=Outputs())[
        "CERTPLANE_DNS_NAMES"
    ] == ("a b")
