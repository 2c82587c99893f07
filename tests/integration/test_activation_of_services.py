"""The agent and real services: what is installed is what clients get, and when it isn't, that is seen and mended.

With nginx and HAProxy: a reload that is refused (rows 21 and 22 of the fault table; with hooks alone they are in
tests/e2e/test_faults.py), a service that is killed, one that goes on with the old certificate, and one that accepts and
never answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.inspection import Finding, Level, certificate_findings
from certplane.agent.install.material import Outputs
from certplane.agent.model import LineageStatus, Version
from certplane.agent.renewal.status import is_well
from certplane.fleet_report.model import CertificateState, RenewalStep
from certplane.runtime.clock import SystemClock
from tests.fakes.clock import ManualClock
from tests.support.agent_world import AgentWorld
from tests.support.lineages import LocalIssuer, read_leaf, standing_pair
from tests.support.parts import need_part
from tests.support.tls_services import Haproxy, Nginx, TlsService, served_serial
from tests.support.waiting import until

pytestmark = pytest.mark.integration

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
PATIENT = {"timeout": "30s", "attempts": 600, "interval": "100ms"}
"""How long a service takes to put a reload into force depends on the machine; each look ends when it is seen."""
HASTY = {"timeout": "30s", "attempts": 2, "interval": "100ms"}
"""For what never comes: an answer is waited for, a second one isn't."""
KINDS = {"nginx": Nginx, "haproxy": Haproxy}


class ShortSleeps(ManualClock):
    """A clock set by hand whose short sleeps are real: between two looks, or before a hook's time limit.

    Attributes:
        nothing_before: until this file is there nothing can come of waits between two looks, and they are none.
    """

    nothing_before: Path | None = None

    async def sleep(self, span: timedelta) -> None:
        if span < timedelta(seconds=1) and self.nothing_before is not None and not self.nothing_before.exists():
            await asyncio.sleep(0)
        elif span <= timedelta(seconds=30):
            await asyncio.sleep(max(span.total_seconds(), 0))
        else:
            await super().sleep(span)


@dataclass
class Scene:
    """A host with one certificate and the service that serves it."""

    world: AgentWorld
    service: TlsService
    clock: ShortSleeps

    def configure(self, **certificate: Any) -> None:
        """Write agent.yml; what isn't said is as an operator would have it."""
        tls = self.world.folder / "tls"
        settings = {
            "name": "web",
            "combined": str(tls / "web.combined"),
            "reload_command": self.service.reload_command,
            "verify": {"connect": f"127.0.0.1:{self.service.port}", **PATIENT},
            **certificate,
        }
        self.world.configure([settings], {})

    async def run(self) -> LineageStatus:
        """`run --once`: what is due, and a look."""
        agent = self.world.agent()
        try:
            return (await agent.run_once())["web"]
        finally:
            await agent.close()

    async def renew(self) -> LineageStatus:
        """`renew web`."""
        agent = self.world.agent()
        try:
            await agent.by_hand("renew", "web")
        finally:
            await agent.close()
        return await self.world.status("web")

    async def check(self) -> Finding:
        """What `check` says of the service."""
        host = self.world.start()
        found = [finding async for finding in certificate_findings(host, host.settings.certificates[0])]
        (finding,) = [finding for finding in found if finding.subject == "service of web"]
        return finding

    async def serves(self, version: Version) -> None:
        """Wait until clients get it: a worker from before a reload may take a last connection after the first look."""

        async def served() -> bool:
            return await served_serial(self.service.port) == version.serial_number

        await until(served, what=f"version {version.number} served")

    async def versions(self) -> list[Version]:
        return [version for version in await self.world.versions("web") if version.number]

    def installed(self) -> str:
        return read_leaf(self.world.folder / "tls" / "web.pem")


@pytest.fixture(params=KINDS)
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    """A service with another tool's pair, and a host that has its identity and its first certificate served."""
    part = need_part(request.param)
    now = SystemClock().now().replace(microsecond=0)
    clock = ShortSleeps(now)
    world = AgentWorld(tmp_path, clock=clock, lifetime=timedelta(days=365))
    tls = tmp_path / "tls"
    standing_pair(
        LocalIssuer(now=now),
        Outputs(key=tls / "web.key", fullchain=tls / "web.pem", combined=tls / "web.combined"),
        "placeholder.example",  # one of its own names would be kept until it is due
    )
    service = KINDS[request.param](part, tmp_path / "service", tls)
    await service.start()
    scene = Scene(world, service, clock)
    scene.configure()
    await world.enroll()
    status = await scene.run()
    assert status.state is CertificateState.SERVING, status
    yield scene
    await service.stop()
    world.close()


async def test_renewed_certificate_is_served(scene: Scene) -> None:
    """After a renewal clients get the new certificate, and the status knows it by its serial number."""
    status = await scene.renew()
    first, second = await scene.versions()
    assert first.serial_number != second.serial_number
    await scene.serves(second)
    assert (status.state, status.verified_version) == (CertificateState.SERVING, second.number)
    assert (status.served_serial_number, status.served_not_after) == (second.serial_number, second.not_after)
    assert await scene.check() == Finding(
        "service of web", Level.OK, text=f"127.0.0.1:{scene.service.port} serves what is in place"
    )


async def test_row_21_row_22_reload_that_is_refused(scene: Scene) -> None:
    """A service whose configuration is broken refuses the reload: clients keep the old certificate, the cause is told.

    Once it is mended, the certificate that came is activated; no other one is asked for.
    """
    scene.service.break_config()
    status = await scene.renew()
    first, second = await scene.versions()
    # The reload is refused with the old version too: the new one stays in place, for the day when it is mended.
    assert (status.state, status.failed_step) == (CertificateState.DEGRADED, RenewalStep.RELOAD)
    assert "service.conf" in status.last_error  # the service's own words
    assert await served_serial(scene.service.port) == first.serial_number
    assert scene.installed() == second.serial_number
    scene.service.mend_config()
    scene.world.broker.calls.clear()
    scene.world.clock.advance(7 * HOUR)
    assert (await scene.run()).state is CertificateState.SERVING
    await scene.serves(second)
    assert "issue" not in scene.world.broker.calls


async def test_service_that_goes_on_with_the_old_one(scene: Scene) -> None:
    """A reload command that does nothing is found out by the look: rolled back, so that disk and service agree."""
    scene.configure(reload_command="true", verify={"connect": f"127.0.0.1:{scene.service.port}", **HASTY})
    status = await scene.renew()
    first, second = await scene.versions()
    assert (status.state, status.failed_step) == (CertificateState.DEGRADED, RenewalStep.VERIFY)
    assert (status.rejected_version, status.verified_version) == (second.number, first.number)
    assert f"serves another certificate for web.example: serial {first.serial_number}" in status.last_error
    assert scene.installed() == first.serial_number == await served_serial(scene.service.port)
    assert not is_well(status)
    scene.configure()
    scene.world.clock.advance(7 * HOUR)
    assert (await scene.run()).state is CertificateState.SERVING
    assert scene.installed() == second.serial_number
    await scene.serves(second)


async def test_service_that_never_answers(scene: Scene) -> None:
    """A service that accepts and completes no handshake fails the look at its deadline; when it wakes, all is well."""
    scene.configure(verify={"connect": f"127.0.0.1:{scene.service.port}", **HASTY, "timeout": "1s"})
    scene.service.freeze()
    status = await scene.renew()
    _, second = await scene.versions()
    assert (status.state, status.failed_step) == (CertificateState.DEGRADED, RenewalStep.VERIFY)
    assert "completes no TLS handshake in 1 s" in status.last_error
    assert scene.installed() == second.serial_number
    scene.service.thaw()
    scene.configure()
    scene.world.clock.advance(7 * HOUR)
    assert (await scene.run()).state is CertificateState.SERVING
    await scene.serves(second)


async def test_service_that_was_killed(scene: Scene) -> None:
    """A dead service fails reload and look: shown, and mended by its start; its certificates are there all the time."""
    scene.service.kill()
    scene.configure(verify={"connect": f"127.0.0.1:{scene.service.port}", **HASTY})
    status = await scene.renew()
    _, second = await scene.versions()
    assert status.state is CertificateState.DEGRADED
    assert scene.installed() == second.serial_number
    await scene.service.start()
    await scene.serves(second)
    scene.configure()
    scene.world.clock.advance(7 * HOUR)
    assert (await scene.run()).state is CertificateState.SERVING


async def test_service_that_is_down_later_is_seen(scene: Scene) -> None:
    """A look hours after the activation finds a dead service; once it is back, the status says so."""
    scene.service.kill()
    scene.configure(verify={"connect": f"127.0.0.1:{scene.service.port}", **HASTY})
    status = await scene.run()
    assert (status.state, status.drift_reloaded, status.verified_version) == (CertificateState.DEGRADED, True, None)
    assert "can't be reached: Connection refused" in status.verify_error
    found = await scene.check()
    assert not found.ok
    assert "can't be reached: Connection refused" in found.text
    (only,) = await scene.versions()
    assert scene.installed() == only.serial_number
    await scene.service.start()
    scene.configure()
    status = await scene.run()
    assert (status.state, status.verify_failures) == (CertificateState.SERVING, 0)


async def test_service_that_drifted_is_reloaded_once(scene: Scene) -> None:
    """A service that came up with an older certificate is found by a later look, and one reload mends it."""
    reloaded = scene.world.folder / "reloaded"
    scene.configure(
        reload_command=f"{scene.service.reload_command} && touch {reloaded}",
        verify={"connect": f"127.0.0.1:{scene.service.port}", **PATIENT, "attempts": 100},
    )
    old = scene.world.folder / "tls" / "old"
    old.mkdir()
    for name in ("web.key", "web.pem", "web.combined"):
        (old / name).write_bytes((scene.world.folder / "tls" / name).read_bytes())
    await scene.renew()
    _, second = await scene.versions()
    current, scene.service.pair = scene.service.pair, old
    await scene.service.stop()
    await scene.service.start()
    assert await served_serial(scene.service.port) != second.serial_number
    scene.service.pair = current
    scene.service.mend_config()
    scene.world.clock.advance(7 * HOUR)
    reloaded.unlink()  # the looks before the reload all find what has drifted
    scene.clock.nothing_before = reloaded
    status = await scene.run()
    assert reloaded.exists()
    assert (status.state, status.verified_version) == (CertificateState.SERVING, second.number)
    await scene.serves(second)
