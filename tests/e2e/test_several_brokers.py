"""One agent and two brokers as programs: what the host does when one is killed, comes back, and the other one stops.

The brokers have a database each. What a host has at one of them the other has never seen, and it goes on all the same.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from tests.support.killing import settle_on_a_port
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.several_brokers import Broker
from tests.support.status_json import status_document
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

NAME = "web1.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["web.certplane.test"]}},
    "hosts": {"web1": {"identity": NAME, "profiles": ["web"]}},
}
WEB = {"name": "web", "profile": "web", "dns_names": ["web.certplane.test"]}


class World:
    """The servers, both brokers, and a host that knows them."""

    def __init__(self, deployment: Deployment) -> None:
        self.brokers = [Broker(deployment, number) for number in (1, 2)]
        urls = [broker.url for broker in self.brokers]
        changes = {"identity": {"cert": None, "key": None}, "broker": {"url": None, "urls": urls, "timeout": "3s"}}
        self.host: Host = deployment.add_host(NAME, [WEB], agent=changes)

    async def connected_to(self) -> Broker | None:
        """The broker that has the stream, as `status` names it, once the certificate is in use and all is told."""
        finished = await self.host.run("status", "--json")
        report = status_document(finished.stdout)
        link, (web,) = report["broker"], report["certificates"]
        connected = link["phase"] == "connected" and not link["unacknowledged_reports"] and web["state"] == "waiting"
        return next((each for each in self.brokers if connected and each.url == link["broker_url"]), None)

    async def moves_to(self, broker: Broker) -> None:
        async def moved() -> bool:
            return await self.connected_to() is broker

        await until(moved, poll=0.2, what=f"the stream at {broker.url}")

    async def check(self) -> tuple[int, dict[str, str]]:
        """The status of `check`, and how each broker is."""
        finished = await self.host.run("check", "--json")
        found = [json.loads(line) for line in finished.stdout.splitlines()]
        return finished.status, {each["subject"]: each["level"] for each in found if "broker http" in each["subject"]}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    need_part("pebble")
    options = DeploymentOptions(POLICY, dns_provider="rfc2136", broker={"rate_limits": UNLIMITED})
    async with Deployment(tmp_path, options) as deployment:
        settle_on_a_port(deployment)
        made = World(deployment)
        for broker in made.brokers:
            await broker.start()
        enrolled = await made.host.run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        try:
            yield made
        finally:
            await made.host.stop()
            for broker in made.brokers:
                await broker.process.stop()


async def begun(world: World) -> tuple[Broker, Broker]:
    """The broker that the started agent has its stream at, and the other one."""
    await world.host.start()
    found: list[Broker] = []

    async def somewhere() -> bool:
        found.extend(broker for broker in (await world.connected_to(),) if broker is not None)
        return bool(found)

    await until(somewhere, poll=0.2, what="the first stream")
    (there,) = [broker for broker in world.brokers if broker is not found[0]]
    return found[0], there


async def test_a_broker_that_stands_still_is_left(world: World) -> None:
    """SIGSTOP, or a network that swallows what is sent: one call waits in vain, and then calls and stream are elsewhere."""
    here, there = await begun(world)
    os.kill(here.process.pid, signal.SIGSTOP)
    try:
        asked = await world.host.run("renew", "web")
        assert asked.status == 1
        assert f"the broker at {here.url} didn't answer in time" in asked.stdout + asked.stderr
        await world.moves_to(there)
        renewed = await world.host.run("renew", "web")
        assert renewed.status == 0, renewed.stderr + renewed.stdout
        assert await world.check() == (0, {f"broker {here.url}": "warn", f"broker {there.url}": "ok"})
    finally:
        os.kill(here.process.pid, signal.SIGCONT)
    await world.moves_to(there)


async def test_a_host_goes_on_at_the_broker_that_is_there(world: World) -> None:
    """Killed, restarted, stopped: the stream moves each time, certificates are renewed, and `check` says which is away."""
    here, there = await begun(world)
    names = {broker: f"broker {broker.url}" for broker in world.brokers}
    assert await world.check() == (0, {names[here]: "ok", names[there]: "ok"})
    shown = await world.host.run("status")
    assert f"broker: connected to {here.url} since" in shown.stdout

    here.process.kill()
    await world.moves_to(there)
    assert await world.check() == (0, {names[here]: "warn", names[there]: "ok"})
    renewed = await world.host.run("renew", "web")
    assert renewed.status == 0, renewed.stderr + renewed.stdout

    await here.start()
    await there.process.stop()  # which says goodbye
    await world.moves_to(here)
    renewed = await world.host.run("renew", "web")
    assert renewed.status == 0, renewed.stderr + renewed.stdout
    log = (world.host.folder / "agent.log").read_text()
    assert "the broker said goodbye: the broker is shutting down" in log
    assert f"going on at {there.url}" in log
    assert "Traceback" not in log
