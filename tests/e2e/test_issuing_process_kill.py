"""The broker's issuing process killed at every place of an order, while the broker lives on.

The agent gets its certificate from the one broker that it asked; the CA has seen one finalisation, and no TXT record is
left. What becomes of an order when the broker itself is killed is `test_broker_kill`'s.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.pki.keys import load_private_key
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from tests.e2e.test_broker_kill import LOSE_AN_ORDER, OUTSIDE, Lane, names_of, profile_of
from tests.support.killing import assert_issued_once, begin, ended, leaf_of, settle_on_a_port
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

STOPPED = "dns-present-stopped"
LEFT = "left-behind"
KINDS = ("cloudflare", "rfc2136")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lane]:
    """A broker with one of the DNS providers, and an enrolled host."""
    need_part("pebble")
    profiles = [*map(profile_of, OUTSIDE), STOPPED, LEFT]
    policy = {
        "version": 1,
        "profiles": {name: {"type": "mixed", "dns_names": names_of(name)} for name in profiles},
        "hosts": {"host": {"identity": "web1.certplane.test", "profiles": profiles}},
    }
    folder = tmp_path_factory.mktemp("issuing-kill")
    async with AsyncExitStack() as stack:
        deployment = Deployment(folder, DeploymentOptions(policy, request.param, {"rate_limits": UNLIMITED}))
        await stack.enter_async_context(deployment)
        settle_on_a_port(deployment)
        host = deployment.add_host("web1.certplane.test")
        finished = await host.run("enroll")
        assert finished.status == 0, finished.stderr
        yield Lane(deployment, host)


def issuing_process(deployment: Deployment) -> int:
    """The child of the running broker, 0 for none."""
    broker = deployment.broker_process._child
    assert broker is not None
    children = Path(f"/proc/{broker.pid}/task/{broker.pid}/children").read_text().split()
    found = [pid for pid in children if b"certplane.broker.issuing" in command_of(pid)]
    return int(found[0]) if found else 0


def command_of(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("failpoint", [point for point in OUTSIDE if point != "acme.register.sent"])
async def test_an_order_goes_on_with_the_next_process(lane: Lane, failpoint: str) -> None:
    """One certificate by one finalisation, no record left, and the broker was never away."""
    deployment, host, name = lane.deployment, lane.host, profile_of(failpoint)
    before = deployment.pebble.log
    host.write_config([{"name": name, "profile": name, "dns_names": names_of(name)}])
    await deployment.start_broker({"CERTPLANE_FAILPOINTS": f"{failpoint}=crash"})
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    assert deployment.broker_process.running
    assert (
        "the issuing process has ended and is started again: killed by signal 9" in deployment.broker_process.log_text()
    )
    await assert_issued_once(deployment, leaf_of(host, name))
    after = deployment.pebble.log
    assert after.finalize_requests - before.finalize_requests == 1
    assert len(after.orders) - len(before.orders) == 1 + (failpoint in LOSE_AN_ORDER)
    await deployment.stop_broker()


async def test_one_that_is_stopped_in_an_order(lane: Lane) -> None:
    """SIGSTOP while records are written: it is killed for giving no sign of life, and the order goes on."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": STOPPED, "profile": STOPPED, "dns_names": names_of(STOPPED)}])
    await deployment.start_broker({"CERTPLANE_FAILPOINTS": "dns.present.written=hang"})
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    assert "gave no sign of life" in deployment.broker_process.log_text()
    await assert_issued_once(deployment, leaf_of(host, STOPPED))
    await deployment.stop_broker()


async def test_a_killed_broker_leaves_none_behind(lane: Lane) -> None:
    """Whatever it was doing: here a loop that hangs, which no end of a connection reaches."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": LEFT, "profile": LEFT, "dns_names": names_of(LEFT)}])
    await deployment.start_broker({"CERTPLANE_FAILPOINTS": "dns.present.written=hang"})
    pid = issuing_process(deployment)
    agent = await begin(host, "run", "--once")
    await until(lambda: "TXT record written" in deployment.broker_process.log_text(), what="the record")
    broker = deployment.broker_process._child
    assert broker is not None
    os.kill(broker.pid, signal.SIGKILL)
    await ended(deployment.broker_process)
    await until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of its issuing process")
    await deployment.start_broker()
    assert await ended(agent) == 0
    await assert_issued_once(deployment, leaf_of(host, LEFT))
    await deployment.stop_broker()


async def test_secrets_of_the_account_are_not_in_the_brokers_memory(lane: Lane) -> None:
    """The account's key, after orders: in the issuing process it is, as the search finds."""
    deployment = lane.deployment
    await deployment.start_broker()
    key = account_key_of(deployment)
    broker = deployment.broker_process._child
    assert broker is not None
    if os.geteuid() != 0:
        pytest.skip("only root may read the memory of a process that has said that it isn't to be read")
    await until(lambda: issuing_process(deployment) != 0, what="the issuing process")
    assert not in_memory(broker.pid, key)
    assert in_memory(issuing_process(deployment), key)
    await deployment.stop_broker()


def account_key_of(deployment: Deployment) -> bytes:
    """The private number as OpenSSL has it in memory: words of 64 bits, the least significant first."""
    key = load_private_key((deployment.broker_folder / "account.key").read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.private_numbers().private_value.to_bytes(32, "little")


def in_memory(pid: int, needle: bytes) -> bool:
    """Whether a process has these octets in memory that can be written (proc(5), mem)."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, mode, *_ = line.split()
            if "w" not in mode:
                continue
            begin_at, end_at = (int(each, 16) for each in span.split("-"))
            try:
                memory.seek(begin_at)
                if needle in memory.read(end_at - begin_at):
                    return True
            except (OSError, ValueError, OverflowError):
                continue
    return False
