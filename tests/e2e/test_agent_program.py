"""certplane-agent as a process beside a real broker: signals, its socket, what it says while it runs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.status_json import status_document
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NAME = "web1.certplane.test"
POLICY = {
    "version": 1,
    "profiles": {
        "web": {"type": "multi_san", "dns_names": ["web.certplane.test", "www.certplane.test"]},
        "wild": {"type": "wildcard", "dns_names": ["*.wild.certplane.test"]},
    },
    "hosts": {"web1": {"identity": NAME, "profiles": ["web", "wild"]}},
}
CERTIFICATES = [
    {"name": "web", "profile": "web", "dns_names": ["web.certplane.test", "www.certplane.test"]},
    {"name": "wild", "profile": "wild", "dns_names": ["*.wild.certplane.test"]},
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    need_part("pebble")
    options = DeploymentOptions(POLICY, dns_provider="rfc2136", broker={"rate_limits": UNLIMITED})
    async with Deployment(tmp_path_factory.mktemp("deployment"), options) as running:
        await running.start_broker()
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def host(deployment: Deployment) -> AsyncIterator[Host]:
    """An enrolled host of its own folder; the identity's name is the same for each test."""
    host = deployment.add_host(NAME, CERTIFICATES)
    finished = await host.run("enroll", "--force")
    assert finished.status == 0, finished.stderr
    yield host
    await host.stop()


async def status(host: Host) -> dict[str, dict[str, object]]:
    """The certificates of `status --json` by name."""
    finished = await host.run("status", "--json")
    assert finished.status in {0, 1}, finished.stderr  # 1: it is hurt, or will be
    return {each["name"]: each for each in status_document(finished.stdout)["certificates"]}


async def logged(host: Host, words: str) -> None:
    """Wait until the agent's log has `words`."""
    log = host.folder / "agent.log"
    await until(lambda: words in log.read_text(), what=f"{words!r} in the agent's log")


async def started(host: Host) -> None:
    """Start the agent and wait until both certificates are in force."""
    await host.start()
    await host.until_running()  # what an earlier test's agent has left says the same of its certificates

    async def all_wait() -> bool:
        return all(each["state"] == "waiting" for each in (await status(host)).values())

    await until(all_wait, poll=0.2, what="certificates in force")


async def test_a_running_agent_answers_its_commands(host: Host) -> None:
    """`status` and `check` beside it, `renew` through it, a second agent refused; SIGTERM ends it well."""
    await started(host)
    shown = await host.run("status")
    assert "agent: running (process " in shown.stdout

    check = await host.run("check")
    assert check.status == 0, check.stdout
    assert all(line.startswith("ok  ") for line in check.stdout.splitlines())

    before = (await status(host))["web"]["version"]
    assert isinstance(before, int)
    renewed = await host.run("renew", "web", "--json")
    assert renewed.status == 0, renewed.stderr
    events = [json.loads(line) for line in renewed.stdout.splitlines()]
    assert [event["event"] for event in events][-1] == "done"
    assert {event["subject"] for event in events} == {"web"}
    assert (await status(host))["web"]["version"] == before + 1

    second = await host.run("run")
    assert second.status == 1
    assert "is in use by process" in second.stderr
    enroll = await host.run("enroll", "--force")
    assert enroll.status == 1

    await host.stop()
    assert "agent: not running" in (await host.run("status")).stdout
    log = (host.folder / "agent.log").read_text()
    assert "the agent stops" in log
    assert "Traceback" not in log


async def test_hangup_is_survived(host: Host) -> None:
    """SIGHUP reads agent.yml again instead of ending the agent."""
    process = await host.start()
    await host.until_running()  # not by the log as a whole: an earlier test's agent has written to it too
    os.kill(process.pid, signal.SIGHUP)
    await logged(host, "agent.yml was read again: nothing has changed")
    assert "agent: running" in (await host.run("status")).stdout


async def test_an_edited_file_is_taken_by_a_reload(host: Host) -> None:
    """`reload` speaks either way: a file with a mistake costs nothing, and one without is in force when it returns."""
    text = host.config.read_text()
    await started(host)
    host.config.write_text(text + "colour: blue\n")
    refused = await host.run("reload")
    assert refused.status == 2
    assert "an agent that runs keeps the agent.yml that it has" in refused.stderr
    host.config.write_text(text.replace("name: wild", "name: wilder"))
    taken = await host.run("reload")
    assert taken.status == 0, taken.stderr
    assert "in force: certificates added: wilder; certificates removed: wild" in taken.stderr
    assert "agent: running" in (await host.run("status")).stdout


async def test_renew_without_a_running_agent(host: Host) -> None:
    """The command takes the lock and does it itself; its steps are lines when piped."""
    finished = await host.run("renew", "wild")
    assert finished.status == 0, finished.stderr
    lines = finished.stderr.splitlines()
    assert "wild: asking the broker" in lines
    assert lines[-1].startswith("wild: done: version ")
    assert finished.stdout == ""


async def test_a_broker_that_is_down_is_named(deployment: Deployment, host: Host) -> None:
    """Exit status 1 with cause and remedy; an operator needn't wait for the next try once the broker is back."""
    await deployment.stop_broker()
    finished = await host.run("renew", "web")
    assert finished.status == 1
    assert "can't be reached: Connection refused; check that the broker runs" in finished.stderr
    assert "Traceback" not in finished.stderr
    once = await host.run("run", "--once")
    assert once.status == 1
    assert "web" in once.stderr
    await deployment.start_broker()
    again = await host.run("renew", "web")
    assert again.status == 0, again.stderr
