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
from certplane.agent.install.material import Outputs, Part
from certplane.agent.model import HookResult, LineageStatus, Version
from certplane.agent.renewal.plan import Verify
from certplane.agent.renewal.status import is_well, new_status, revoked
from certplane.errors import OperationError, Reason, RefusalError
from certplane.fleet_report.model import CertificateState, RenewalStep
from certplane.runtime.pool import BlockingPool
from tests.fakes.agent_install import FakeHookRunner, FakeServiceProbe, FakeStatusFile, FakeVersionStore
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
        self.probe: FakeServiceProbe | None = None

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
            probe=self.probe,
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
        CertificateState.INSTALLING,
        CertificateState.RELOADING,
        CertificateState.WAITING,
    ]
    assert result.status == host.status()
    assert host.status().confirmed_version == 1
    assert host.status().activation_failures == 0


async def test_the_log_says_whose_reload_it_was(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """A host has several certificates, and a line alone must tell which one's command failed."""
    caplog.set_level("INFO")
    await host.activate(host.stage(), OK)
    assert "www: version 1: the reload ended with status 0" in caplog.text


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
    assert status.state is CertificateState.DEGRADED
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
    assert status.state is CertificateState.DEGRADED
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


class Service(FakeServiceProbe):
    """A service that loads what is in place with each reload, as long as it `obeys`."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.obeys = True
        self.reloads = 0
        self.result = OK

    async def reload(self, _: Version) -> HookResult:
        self.reloads += 1
        if self.obeys and self.result is OK:
            self.served = self.host.store.current()
        return self.result

    async def activate(self, version: Version) -> ActivationResult:
        return await self.host.activator(self.reload).activate(version, self.host.status())

    async def look_again(self, *, reload: timedelta | None = timedelta()) -> LineageStatus:
        version = self.host.store.current()
        assert version is not None
        step = Verify(version, None if reload is None else self.host.clock.now() + reload)
        return await self.host.activator(self.reload).verify(step, self.host.status())


@pytest.fixture
def service(host: Host) -> Service:
    host.probe = Service(host)
    return host.probe


async def test_version_that_is_seen_served_is_activated(host: Host, service: Service) -> None:
    """With a look at the service a version is confirmed only when that presents it; each step was saved before."""
    version = host.stage()
    result = await service.activate(version)
    assert result.outcome is ActivationOutcome.ACTIVATED
    assert [status.state for status in host.statuses.saved] == [
        CertificateState.INSTALLING,
        CertificateState.RELOADING,
        CertificateState.VERIFYING,
        CertificateState.SERVING,
    ]
    status = host.status()
    assert (status.confirmed_version, status.verified_version, status.installed_version) == (1, 1, 1)
    assert status.served_serial_number == version.serial_number
    assert (status.served_not_before, status.served_not_after) == (version.not_before, version.not_after)
    assert status.verify_time == host.clock.now()


async def test_service_that_goes_on_with_the_old_one(host: Host, service: Service) -> None:
    """A reload that says it is fine and changes nothing is seen: back to the version that is served, and told."""
    first, second = host.stage(), None
    await service.activate(first)
    second = host.stage()
    service.obeys = False
    host.statuses.saved.clear()
    result = await service.activate(second)
    assert result.outcome is ActivationOutcome.ROLLED_BACK
    assert host.store.shown == [1, 2, 1]
    assert [(status.state, status.installed_version) for status in host.statuses.saved] == [
        (CertificateState.INSTALLING, 1),
        (CertificateState.RELOADING, 2),
        (CertificateState.VERIFYING, 2),
        (CertificateState.DEGRADED, 2),
        (CertificateState.DEGRADED, 1),
    ]
    status = host.status()
    assert (status.failed_step, status.rejected_version) == (RenewalStep.VERIFY, 2)
    assert (status.confirmed_version, status.verified_version) == (1, 1)
    assert status.last_error == "it serves another certificate"
    assert not is_well(status)
    service.obeys = True
    assert (await service.activate(second)).outcome is ActivationOutcome.ACTIVATED
    assert (host.status().state, host.status().verified_version) == (CertificateState.SERVING, 2)


async def test_service_that_is_down_keeps_the_new_one(host: Host, service: Service) -> None:
    """When the version before isn't served either, the service is broken: the new one stays, and is reloaded last."""
    await service.activate(host.stage())
    service.obeys, service.served, service.reloads = False, None, 0
    result = await service.activate(host.stage())
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert host.store.shown == [1, 2, 1, 2]
    assert service.reloads == 3
    status = host.status()
    assert (status.failed_step, status.rejected_version, status.installed_version) == (RenewalStep.VERIFY, None, 2)
    assert status.last_error == "nobody answers; with version 1 nobody answers"
    assert (status.verified_version, status.served_serial_number) == (None, "")


async def test_service_that_falls_over_by_the_new_one_comes_back(host: Host, service: Service) -> None:
    """A reload with the new version ends the service, one with the old version brings it back: rolled back."""
    await service.activate(host.stage())
    second = host.stage()

    async def fall_over(version: Version) -> HookResult:
        service.served = None if version.number == second.number else version
        return OK

    result = await host.activator(fall_over).activate(second, host.status())
    assert result.outcome is ActivationOutcome.ROLLED_BACK
    assert host.status().verified_version == 1


async def test_revoked_version_is_nothing_to_go_back_to(host: Host, service: Service) -> None:
    """A revoked certificate is worse than one that isn't served yet."""
    await service.activate(host.stage())
    host.statuses.save(revoked(host.status(), 1, host.clock.now()))
    service.obeys = False
    result = await service.activate(host.stage())
    assert result.outcome is ActivationOutcome.KEPT_UNCONFIRMED
    assert host.current() == 2


async def test_look_that_finds_all_well_changes_nothing_but_its_time(host: Host, service: Service) -> None:
    """A later look that is well is recorded, without a reload."""
    await service.activate(host.stage())
    service.reloads = 0
    host.clock.advance(timedelta(hours=6))
    status = await service.look_again()
    assert (status.state, status.verify_time) == (CertificateState.SERVING, host.clock.now())
    assert status.next_verify_time == host.clock.now() + timedelta(hours=6)
    assert service.reloads == 0


async def test_drifted_service_is_reloaded_once(host: Host, service: Service) -> None:
    """A service that serves something else later is shown as degraded, and reloaded; that mends it here."""
    await service.activate(host.stage())
    service.served, service.reloads = host.stage(), 0
    host.statuses.saved.clear()
    status = await service.look_again()
    assert service.reloads == 1
    assert [each.state for each in host.statuses.saved] == [
        CertificateState.DEGRADED,
        CertificateState.DEGRADED,
        CertificateState.SERVING,
    ]
    assert is_well(status)
    assert host.store.shown == [1]


async def test_drifted_service_that_a_reload_does_not_mend_stays_visible(host: Host, service: Service) -> None:
    """There is one reload in a row of finds, no rollback and no request; looks go on with back-off."""
    await service.activate(host.stage())
    service.served, service.obeys, service.reloads = None, False, 0
    status = await service.look_again()
    assert (status.state, status.drift_reloaded, status.verify_error) == (
        CertificateState.DEGRADED,
        True,
        "nobody answers",
    )
    status = await service.look_again(reload=None)
    assert service.reloads == 1
    assert status.verify_failures == 3
    assert status.next_verify_time is not None
    assert status.next_verify_time > host.clock.now()
    assert (status.confirmed_version, status.activation_failures) == (1, 0)
    service.served = host.store.current()
    assert is_well(await service.look_again(reload=None))
    assert not host.status().drift_reloaded


async def test_reload_of_a_find_waits_for_its_time(host: Host, service: Service) -> None:
    """Outside of the window a find is shown, and its reload kept for later."""
    await service.activate(host.stage())
    service.served, service.reloads = None, 0
    status = await service.look_again(reload=timedelta(hours=2))
    assert service.reloads == 0
    assert (status.state, status.drift_reloaded) == (CertificateState.DEGRADED, False)


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
        assert host.status().state is CertificateState.RELOADING
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
    every = {kind: Path(f"/etc/tls/{kind}") for kind in ("key", "cert", "chain", "fullchain", "combined", "pkcs12")}
    told = hook_variables(version, name="x", outputs=Outputs(**every))
    assert {f"CERTPLANE_{kind.upper()}": str(path) for kind, path in every.items()}.items() <= told.items()
    assert set(every) == {part.setting for part in Part}
    assert hook_variables(replace(version, dns_names=("a", "b")), name="x", outputs=Outputs())[
        "CERTPLANE_DNS_NAMES"
    ] == ("a b")
