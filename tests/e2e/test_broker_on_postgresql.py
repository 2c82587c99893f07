"""A broker on PostgreSQL that is killed, or stands still for longer than its lease, in the midst of an order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker.members.membership import SPAN
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from tests.e2e.test_broker_kill import Lane
from tests.e2e.test_issuing_process_kill import issuing_process
from tests.support.killing import (
    assert_issued_once,
    begin,
    ended,
    killing_at,
    leaf_of,
    settle_on_a_port,
    stands_still,
    stopping_at,
)
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

NAMES = ["www.certplane.test"]
POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": NAMES}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
}


@pytest_asyncio.fixture
async def lane(tmp_path: Path, postgres_url: str) -> AsyncIterator[Lane]:
    """A broker that isn't started yet, and an enrolled host that wants a certificate."""
    need_part("pebble")
    options = DeploymentOptions(POLICY, broker={"store": {"driver": "postgresql", "url": postgres_url}})
    async with Deployment(tmp_path / "deployment", options) as deployment:
        settle_on_a_port(deployment)
        certificate = {"name": "web", "profile": "web", "dns_names": NAMES}
        host = deployment.add_host("web1.certplane.test", [certificate])
        enrolled = await host.run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        yield Lane(deployment, host)


@pytest.mark.parametrize("failpoint", ["order.create.after", "order.finalize.before", "order.download.after"])
async def test_killed_it_goes_on_at_its_next_start(lane: Lane, failpoint: str) -> None:
    """At once: the lock beside the spill file names the one that was killed, so it waits for no lease of that one."""
    deployment, host = lane.deployment, lane.host
    await deployment.start_broker(killing_at(failpoint))
    agent = await begin(host, "run", "--once")
    await ended(deployment.broker_process)
    await deployment.start_broker()
    if await ended(agent) != 0:
        assert (await host.run("renew", "web")).status == 0
    await assert_issued_once(deployment, leaf_of(host, "web"))


async def test_one_that_stands_still_gives_up_its_lease(lane: Lane) -> None:
    """It says so when it goes on, takes its order anew, and ends it by one finalisation."""
    deployment, host = lane.deployment, lane.host
    await deployment.start_broker(stopping_at("dns.present.written"))
    broker, child = deployment.broker_process, issuing_process(deployment)
    agent = await begin(host, "run", "--once")
    await stands_still(broker.pid, child)
    os.kill(child, signal.SIGCONT)
    await asyncio.sleep(SPAN.total_seconds())
    os.kill(broker.pid, signal.SIGCONT)
    await until(lambda: "has lost its lease" in broker.log_text(), what="the lost lease in the log")
    await until(lambda: "has its lease again" in broker.log_text(), what="the lease in the log")
    if await ended(agent) != 0:
        assert (await host.run("renew", "web")).status == 0
    await assert_issued_once(deployment, leaf_of(host, "web"))
    await deployment.stop_broker()
