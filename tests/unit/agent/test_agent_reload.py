"""Another agent.yml for an agent that runs: taken whole or refused whole, told either way, and the process stays."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.agent import cli
from certplane.agent.app import Agent
from certplane.agent.control import ask
from certplane.agent.daemon import Daemon
from certplane.errors import OperationError
from certplane.runtime.progress import SilentProgress
from tests.support.agent_world import AgentWorld
from tests.support.waiting import HANG, until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    made = AgentWorld(tmp_path, [{"name": "web"}])
    yield made
    made.close()


class Shown:
    """What a service manager is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def ready(self, status: str) -> None:
        self.begun.append(status)

    def status(self, status: str) -> None: ...


@contextlib.asynccontextmanager
async def running(world: AgentWorld, shown: Shown) -> AsyncIterator[Daemon]:
    daemon = Daemon(world.start(), world.start, agent=lambda host, events: Agent(host, events, broker=world.broker))
    task = asyncio.create_task(daemon.run(shown))
    try:
        await until(lambda: bool(shown.begun) or task.done(), what="the agent to run")
        yield daemon
    finally:
        daemon.stop()
        await asyncio.wait_for(task, HANG)


async def first_is_in_use(world: AgentWorld) -> None:
    """Before that, who asks for a renewal waits for the first certificate and gets no second one."""

    async def confirmed() -> bool:
        return (await world.status("web")).confirmed_version == 1

    await until(confirmed, what="the first certificate in use")


async def reload(world: AgentWorld) -> tuple[bool, str]:
    """As the command asks."""
    async with asyncio.timeout(HANG):
        outcome = await ask(world.folder / "state", {"command": "reload"}, SilentProgress())
    assert outcome is not None
    return outcome.ok, outcome.text


async def test_a_certificate_more_is_taken_without_a_restart(world: AgentWorld) -> None:
    """The findings' operator had to restart the agent to add a name."""
    await world.enroll()
    shown = Shown()
    async with running(world, shown):
        world.configure([{"name": "web"}, {"name": "api"}], {})
        assert await reload(world) == (True, "in force: certificates added: api")
        assert shown.begun == ["certificates: 1", "certificates: 2"]
        await until((world.folder / "tls" / "api.pem").exists, what="the new certificate")
        assert await reload(world) == (True, "nothing has changed")
        world.configure([{"name": "api", "dns_names": ["other.example"]}], {})
        assert await reload(world) == (True, "in force: certificates removed: web; certificates changed: api")
        await until(lambda: len(world.broker.issued) == 3, what="the other name asked for")


BAD: dict[str, dict[str, Any]] = {
    "an unknown key": {"colour": "blue"},
    "state_dir": {"state_dir": "/nowhere/certplane"},
    "tracing": {"tracing": {"endpoint": "http://127.0.0.1:1"}},
    "a CA bundle that isn't there": {"broker": {"url": "https://127.0.0.1:1", "server_ca_bundle": "/nowhere/ca.crt"}},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_a_file_that_is_refused_changes_nothing(
    world: AgentWorld, bad: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await world.enroll()
    shown = Shown()
    path = world.folder / "agent.yml"
    async with running(world, shown):
        await first_is_in_use(world)
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | bad))
        ok, text = await reload(world)
        assert not ok
        assert text.startswith("refused, and the agent.yml before stays in force: ")
        assert next(iter(bad)) in text
        assert any(each.levelno == logging.ERROR and text.split(": ", 1)[1] in each.message for each in caplog.records)
        assert shown.begun == ["certificates: 1"]
        async with asyncio.timeout(HANG):
            outcome = await ask(world.folder / "state", {"command": "renew", "name": "web"}, SilentProgress())
        assert outcome is not None
        assert outcome.ok


async def test_a_file_with_which_the_agent_does_not_begin_gives_way(world: AgentWorld) -> None:
    """What no check finds beforehand: the agent of before goes on."""
    await world.enroll()
    shown, made = Shown(), 0

    def agent(host: Any, events: Any) -> Agent:
        nonlocal made
        made += 1
        one = Agent(host, events, broker=world.broker)
        if made == 2:

            async def fails(*_: object, **__: object) -> None:
                raise OperationError("no room", remedy="make room")

            one.run = fails  # type: ignore[method-assign]
        return one

    daemon = Daemon(world.start(), world.start, agent=agent)
    task = asyncio.create_task(daemon.run(shown))
    await until(lambda: bool(shown.begun), what="the agent to run")
    world.configure([{"name": "web"}, {"name": "api"}], {})
    assert await reload(world) == (False, "refused, and the agent.yml before stays in force: no room; make room")
    await until(lambda: len(shown.begun) == 2, what="the agent of before")
    assert shown.begun == ["certificates: 1", "certificates: 1"]
    daemon.stop()
    await asyncio.wait_for(task, HANG)


async def test_whoever_waits_for_a_renewal_hears_that_the_agent_begins_anew(world: AgentWorld) -> None:
    """`renew NAME` ends with a sentence, also where its agent ends in the middle."""
    await world.enroll()
    async with running(world, Shown()) as daemon:
        await first_is_in_use(world)
        world.broker.states, world.broker.stall = ["PENDING", "PENDING"], asyncio.Event()
        world.broker.calls.clear()
        waiting = asyncio.create_task(
            ask(world.folder / "state", {"command": "renew", "name": "web"}, SilentProgress())
        )
        await until(lambda: "watch_order" in world.broker.calls, what="the request under way")
        world.configure([{"name": "web"}, {"name": "api"}], {})
        reloading = asyncio.create_task(daemon.reload())
        async with asyncio.timeout(HANG):
            outcome = await waiting
        assert outcome is not None
        assert not outcome.ok
        assert "began anew with another agent.yml; run `certplane-agent renew web` again" in outcome.text
        world.broker.stall.set()
        async with asyncio.timeout(HANG):
            assert (await reloading).ok


def test_reload_without_an_agent_says_so(world: AgentWorld, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.folder / "agent.yml"
    assert cli.main(["reload", "-c", str(path)]) == 1
    assert f"no agent of this agent.yml runs in {world.host.state_dir}; start it" in capsys.readouterr().err
    path.write_text("identity: [")
    assert cli.main(["reload", "-c", str(path)]) == 2
    assert "an agent that runs keeps the agent.yml that it has" in capsys.readouterr().err
