"""Both programs and their stream: what a host reports, what the broker wants of it, and either of them killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane.agent.reporting.spool import FAILPOINTS
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.operator import Operator
from tests.support.killing import KILLED, events, killing_at, settle_on_a_port
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.status_json import status_document
from tests.support.waiting import HANG, no_hang, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAME, ADMIN = "web1.certplane.test", "admin.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["web.certplane.test"]}},
    "hosts": {"web1": {"identity": NAME, "profiles": ["web"]}},
    "operators": {"admin": {"identity": ADMIN, "roles": ["operator"]}},
}
WEB = {"name": "web", "profile": "web", "dns_names": ["web.certplane.test"]}


class World:
    """The deployment, its one host, and an operator who looks at it."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.host: Host = deployment.add_host(NAME, [WEB], agent={"identity": {"cert": None, "key": None}})
        self.operator = Operator(deployment, ADMIN)

    async def fleet_says(self) -> dict[str, Any]:
        """The host as the broker knows it."""
        finished = await self.operator.run("host", NAME, "--json")
        assert finished.status == 0, finished.stderr
        known: dict[str, Any] = json.loads(finished.stdout)
        return known

    async def web(self) -> dict[str, Any]:
        """The certificate as the broker knows it; empty before it has heard of it."""
        found = [each for each in (await self.fleet_says()).get("certificates", []) if each["name"] == "web"]
        return found[0] if found else {}

    async def status(self) -> dict[str, Any]:
        """The certificate as the host shows it."""
        finished = await self.host.run("status", "--json")
        assert finished.status in {0, 1}, finished.stderr  # 1: it is hurt, or will be
        (web,) = status_document(finished.stdout)["certificates"]
        return dict(web)

    async def link(self) -> dict[str, Any]:
        """The link as the host shows it."""
        finished = await self.host.run("status", "--json")
        return dict(status_document(finished.stdout)["broker"])

    async def agree_on(self, version: int) -> None:
        """Wait until host and broker say the same: this version is in use and all is well."""

        async def agreed() -> bool:
            status, known = await self.status(), await self.web()
            return (
                status["version"] == version
                and status["state"] == "waiting"
                and known["state"] == "STATE_WAITING"
                and int(known["installed"]["version"]) == version
                and known["installed"]["certificateId"] == status["certificate_id"]
            )

        await until(agreed, poll=0.2, what=f"version {version} in use, here and there")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    need_part("pebble")
    options = DeploymentOptions(POLICY, dns_provider="rfc2136", broker={"rate_limits": UNLIMITED})
    async with Deployment(tmp_path_factory.mktemp("stream"), options) as deployment:
        settle_on_a_port(deployment)
        await deployment.start_broker()
        made = World(deployment)
        for enrolled in (await made.operator.enroll(), await made.host.run("enroll")):
            assert enrolled.status == 0, enrolled.stderr
        yield made


@pytest.fixture(autouse=True)
async def stopped(world: World) -> AsyncIterator[None]:
    yield
    await world.host.stop()


async def next_version(world: World) -> int:
    return int((await world.status())["version"] or 0) + 1


@pytest.mark.asyncio(loop_scope="module")
async def test_an_operators_word_renews_within_seconds(world: World) -> None:
    """The daemon's report arrives; `certplanectl renew` replaces the certificate, and both sides say why and what."""
    version = int((await world.status())["version"] or 1)  # another test may have made it
    await world.host.start()
    await world.agree_on(version)
    await until(lambda: _is_connected(world), what="the stream")
    await until(lambda: _all_told(world), what="the last acknowledgement")
    assert (await world.fleet_says())["connected"]
    assert abs((await world.link())["clock_skew_seconds"]) < HANG
    asked = await world.operator.run("renew", "--host", NAME, "--reason", "keys leaked", "--yes")
    assert asked.status == 0, asked.stderr
    await world.agree_on(version + 1)
    assert "an operator asked: keys leaked" in (world.host.folder / "agent.log").read_text()


@pytest.mark.asyncio(loop_scope="module")
async def test_what_happened_while_the_broker_was_dead_is_told_when_it_lives(world: World) -> None:
    """Killed, it is missed: the failed request is on disk, and the next stream has it; then all goes on."""
    await world.host.start()
    await until(lambda: _is_connected(world), what="the stream")
    version, failures = await next_version(world), len(await _failures_told(world))
    broker = world.deployment.broker_process
    broker.kill()
    await until(lambda: not broker.running, what="the broker's end")
    assert (await world.host.run("renew", "web")).status == 1
    link = await world.link()
    assert link["phase"] in {"waiting", "connecting"}
    assert link["unacknowledged_reports"] > 0
    await world.deployment.start_broker()

    await until(lambda: _is_told(world, failures + 1), poll=0.5, what="the failure, at the broker")
    await world.agree_on(version)  # what failed for want of a broker is made as soon as it is back
    await until(lambda: _all_told(world), what="the last acknowledgement")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_broker_that_stops_says_when_to_come_back(world: World) -> None:
    """Goodbye isn't a failure: the host comes back to the next broker by itself."""
    await world.host.start()
    await until(lambda: _is_connected(world), what="the stream")
    await world.deployment.stop_broker()
    await until(lambda: _has_left(world), what="the end of the stream")
    await world.deployment.start_broker()
    await until(lambda: _is_connected(world), poll=0.2, what="the next stream")
    assert "the broker said goodbye" in (world.host.folder / "agent.log").read_text()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("failpoint", FAILPOINTS)
async def test_an_agent_that_is_killed_in_its_reports_loses_none(world: World, failpoint: str) -> None:
    """At each step of the spool: the next run tells the broker how it is, and certificates are renewed as ever."""
    finished = await world.host.run("renew", "web", environment=killing_at(failpoint))
    assert finished.status == KILLED, f"{failpoint} was not passed: {finished.stderr}"
    finished = await world.host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    await world.agree_on(int((await world.status())["version"]))
    assert (await world.link())["unacknowledged_reports"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_both_programs_tell_systemd_what_they_do(world: World, tmp_path: Path) -> None:
    """READY when the port answers and when the agent is at work, beats, a reload, and the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}

        async def hear(words: str) -> list[str]:
            return await _hear(manager, words)

        starting = asyncio.create_task(world.deployment.start_broker(environment))
        await hear("READY=1\nSTATUS=serving on port")
        with socket.create_connection((LOOPBACK, world.deployment.broker_port), timeout=HANG):
            pass  # it answers by then
        await starting
        await hear("WATCHDOG=1")
        os.kill(world.deployment.broker_process.pid, signal.SIGHUP)
        await hear("RELOADING=1\nMONOTONIC_USEC=")
        await hear("READY=1")
        agent = await world.host.start({"NOTIFY_SOCKET": environment["NOTIFY_SOCKET"]})
        await hear("READY=1\nSTATUS=certificates: 1")
        await hear("STATUS=certificates: 1; connected to https://")
        os.kill(agent.pid, signal.SIGTERM)
        await hear("STOPPING=1")
        await world.deployment.stop_broker()
        await hear("STOPPING=1")
    await world.deployment.start_broker()


async def _hear(manager: socket.socket, words: str) -> list[str]:
    loop, heard = asyncio.get_running_loop(), []
    async with no_hang():
        while not heard or not heard[-1].startswith(words):
            heard.append((await loop.sock_recv(manager, 4096)).decode())
    return heard


async def _failures_told(world: World) -> list[dict[str, Any]]:
    """What the broker has heard of requests that failed, in this test and those before it."""
    told = await events(world.deployment, event_type="renewal_reported", identity=NAME)
    return [event for event in told if event["reason"].startswith("web: failed at request")]


async def _is_told(world: World, failures: int) -> bool:
    return len(await _failures_told(world)) >= failures


async def _all_told(world: World) -> bool:
    link = await world.link()
    return (link["phase"], link["unacknowledged_reports"]) == ("connected", 0)


async def _is_connected(world: World) -> bool:
    return bool((await world.link())["phase"] == "connected")


async def _has_left(world: World) -> bool:
    return not await _is_connected(world)
