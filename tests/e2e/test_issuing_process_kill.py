"""The broker's issuing process killed at every place of an order, while the broker lives on.

The agent gets its certificate from the one broker that it asked; the CA has seen one finalisation, and no TXT record is
left. What becomes of an order when the broker itself is killed is `test_broker_kill`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.pki.keys import load_private_key
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import PebbleOptions
from tests.e2e.test_broker_kill import LOSE_AN_ORDER, OUTSIDE, Lane, names_of, profile_of
from tests.support.killing import (
    assert_issued_once,
    begin,
    ended,
    leaf_of,
    settle_on_a_port,
    stands_still,
    stopping_at,
)
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

STOPPED = "dns-present-stopped"
LEFT = "left-behind"
STOPPED_WHOLE = "stopped-whole"
TWICE = "killed-twice"
DRAINING = "killed-in-a-drain"
REGISTERED = "registered"
SECRET = "secret"
MAC_KEY = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
KINDS = ("cloudflare", "rfc2136")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=KINDS)
async def lane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lane]:
    """A broker with one of the DNS providers, and an enrolled host."""
    need_part("pebble")
    profiles = [*map(profile_of, OUTSIDE), STOPPED, LEFT, STOPPED_WHOLE, TWICE, DRAINING, REGISTERED]
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
    await until(  # a host has its certificate before the records are removed
        lambda: (
            "the issuing process has ended and is started again: killed by signal 9"
            in deployment.broker_process.log_text()
        ),
        what="the failpoint",
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


async def test_a_stop_of_all_processes_in_an_order(lane: Lane) -> None:
    """SIGTERM to each of a service, as systemd sends it: the issuing process outlives the orders, and goes with the broker."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": STOPPED_WHOLE, "profile": STOPPED_WHOLE, "dns_names": names_of(STOPPED_WHOLE)}])
    await deployment.start_broker(stopping_at("dns.present.written"))
    pid, broker = issuing_process(deployment), deployment.broker_process.pid
    agent = await begin(host, "run", "--once")
    await stands_still(pid, broker)
    for each in (pid, broker, pid):
        os.kill(each, signal.SIGTERM)
    for each in (pid, broker):
        os.kill(each, signal.SIGCONT)
    assert await ended(deployment.broker_process) == 0
    assert command_of(str(pid)) == b""
    log = deployment.broker_process.log_text()
    assert "stopped" in "".join(log.splitlines()[-2:])  # then the last checkpoint of the audit log
    assert "issuing process has ended" not in log
    await deployment.start_broker()
    if await ended(agent) != 0:
        assert (await host.run("renew", STOPPED_WHOLE)).status == 0
    await assert_issued_once(deployment, leaf_of(host, STOPPED_WHOLE))
    await deployment.stop_broker()


async def test_two_that_are_killed_in_a_row(lane: Lane) -> None:
    """The second one as soon as it is there: the order waits for the third."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": TWICE, "profile": TWICE, "dns_names": names_of(TWICE)}])
    await deployment.start_broker(stopping_at("dns.present.written"))
    first, broker = issuing_process(deployment), deployment.broker_process.pid
    agent = await begin(host, "run", "--once")
    await stands_still(first, broker)
    os.kill(first, signal.SIGKILL)
    os.kill(broker, signal.SIGCONT)
    await until(lambda: issuing_process(deployment) not in (0, first), what="the second one")
    os.kill(issuing_process(deployment), signal.SIGKILL)
    assert await ended(agent) == 0
    await assert_issued_once(deployment, leaf_of(host, TWICE))
    await deployment.stop_broker()


async def test_one_that_is_killed_while_the_broker_stops(lane: Lane) -> None:
    """The order under way still has the time of the drain, and a process for it."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": DRAINING, "profile": DRAINING, "dns_names": names_of(DRAINING)}])
    await deployment.start_broker(stopping_at("dns.present.written"))
    pid, broker = issuing_process(deployment), deployment.broker_process.pid
    agent = await begin(host, "run", "--once")
    await stands_still(pid, broker)
    os.kill(broker, signal.SIGTERM)
    os.kill(pid, signal.SIGKILL)
    os.kill(broker, signal.SIGCONT)
    assert await ended(deployment.broker_process) == 0
    log = deployment.broker_process.log_text()
    assert "is started again: killed by signal 9" in log
    assert "stopped" in "".join(log.splitlines()[-2:])  # then the last checkpoint of the audit log
    await deployment.start_broker()
    if await ended(agent) != 0:
        assert (await host.run("renew", DRAINING)).status == 0
    await assert_issued_once(deployment, leaf_of(host, DRAINING))
    await deployment.stop_broker()


async def test_one_that_is_killed_when_the_account_was_made(lane: Lane) -> None:
    """The CA has it, nobody has its URL: the next process finds it by its key."""
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": REGISTERED, "profile": REGISTERED, "dns_names": names_of(REGISTERED)}])
    (deployment.broker_folder / "account.key").unlink(missing_ok=True)  # in a random order this may be the first order
    await deployment.start_broker({"CERTPLANE_FAILPOINTS": "acme.register.sent=crash"})
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    assert "is started again: killed by signal 9" in deployment.broker_process.log_text()
    await assert_issued_once(deployment, leaf_of(host, REGISTERED))
    await deployment.stop_broker()


async def test_a_start_that_is_refused_leaves_none(lane: Lane) -> None:
    """The port is another program's: the broker says so, and ends with its issuing process."""
    deployment = lane.deployment
    with socket.create_server((LOOPBACK, deployment.broker_port)):
        refused = await deployment.run_broker("serve")
    assert refused.status != 0
    assert "in use" in refused.stderr
    # Each deployment has a token of its own, which its programs have in their environment.
    token = f"CLOUDFLARE_SANDBOX={deployment.cloudflare.token}".encode()
    assert processes_with(token) == []


def processes_with(variable: bytes) -> list[Path]:
    """Those that have it in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and variable in (process / "environ").read_bytes().split(b"\0"):
                found.append(process)
    return found


class WithSecretFiles(Deployment):
    """A broker whose secrets are files, and whose account is bound by a MAC key."""

    @property
    def broker_environment(self) -> dict[str, str]:
        return {}


async def test_secrets_of_files_are_not_in_the_brokers_memory(tmp_path: Path) -> None:
    """Neither the DNS provider's token nor the MAC key of the account, which was made with this order."""
    if os.geteuid() != 0:
        pytest.skip("only root may read the memory of a process that has said that it isn't to be read")
    need_part("pebble")
    policy = {
        "version": 1,
        "profiles": {SECRET: {"type": "mixed", "dns_names": names_of(SECRET)}},
        "hosts": {"host": {"identity": "web1.certplane.test", "profiles": [SECRET]}},
    }
    secrets = tmp_path / "secrets"
    broker = {
        "secrets": {"provider": "file", "file": {"directory": str(secrets)}},
        "issuer": {
            "acme": {
                "eab": {"kid": "kid-1", "hmac_secret": "mac-key"},
                "cloudflare": {"credentials": "dns-token"},
                "rfc2136": None,
            }
        },
    }
    pebble = PebbleOptions(external_account_keys={"kid-1": MAC_KEY})
    async with WithSecretFiles(
        tmp_path / "all", DeploymentOptions(policy, "cloudflare", broker, pebble=pebble)
    ) as all_:
        secrets.mkdir(0o700)
        for name, secret in (("mac-key", MAC_KEY), ("dns-token", all_.cloudflare.token)):
            (secrets / name).write_text(secret)
            (secrets / name).chmod(0o600)
        settle_on_a_port(all_)
        host = all_.add_host("web1.certplane.test")
        await all_.start_broker()
        assert (await host.run("enroll")).status == 0
        host.write_config([{"name": SECRET, "profile": SECRET, "dns_names": names_of(SECRET)}])
        finished = await host.run("run", "--once")
        assert finished.status == 0, finished.stderr
        assert in_memory(issuing_process(all_), all_.cloudflare.token.encode())
        for secret in (MAC_KEY, all_.cloudflare.token):
            assert not in_memory(all_.broker_process.pid, secret.encode())


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
