"""The broker killed at every step of an order while a real agent waits for its certificate.

Two brokers on the same servers, one on each DNS provider, are killed at two failpoints at a time; each is started
again once, and each agent must end with its certificate: the one agent is left alone and finds the broker again by
itself, the other one is stopped and run again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

import certplane.broker
from certplane.broker.init.certificate import FAILPOINTS as OWN_CERTIFICATE
from certplane.broker.init.command import FAILPOINTS as INIT
from certplane.broker.issuance.steps import FAILPOINTS
from certplane.pki.keys import load_private_key
from certplane.sandbox import faults
from certplane.sandbox.acme_endpoints import FINALIZE, NEW_ORDER, ORDER
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import certificate_pb2_grpc as pb_grpc
from tests.support.killing import (
    KILLED,
    BrokerBeside,
    assert_issued_once,
    assert_key_stayed,
    begin,
    channel_of,
    ended,
    events,
    killing_at,
    leaf_of,
    order_of,
    settle_on_a_port,
)
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

OUTSIDE = (
    "acme.register.sent",
    "acme.create_order.sent",
    "dns.present.written",
    "acme.answer_challenges.sent",
    "acme.finalize.before",
    "acme.finalize.sent",
    "acme.download.fetched",
    "dns.remove.removed",
)
"""In the midst of a step: the world outside has it, the broker doesn't know it yet."""

REVOCATION = "acme.revoke.sent"
ROLLOVER = ("acme.change_key.before", "acme.change_key.sent")
OF_A_KEPT_KEY = ("acme.rollover.prepared", "acme.rollover.taken")
"""What `account rollover` does with a key wherever it is kept; `test_account_of_brokers` walks them."""
REPORT = ("report.store.before", "report.store.written", "report.store.after")
"""What a broker does with a report; `test_fleet_streams` walks them."""
TOLD_AND_COPIED = (
    "notification.deliver.before",
    "notification.deliver.after",
    "audit.sink.send.before",
    "audit.sink.send.after",
)
"""What a broker does with notifications, and with the audit log's copies; `test_told_and_copied` walks them."""
ROLLOUT = tuple(
    f"rollout.{step}.{when}" for step in ("create", "word", "plans", "step", "revoke") for when in ("before", "after")
)
"""What a broker does with rollouts; unit tests of `rollouts.desk` and `.runner` walk them, `test_rollout_kill` some."""
INCIDENT = (
    "incident.open.before",
    "incident.open.after",
    "incident.rollout.before",
    "incident.rollout.after",
    "incident.close.before",
)
"""What a broker does with an incident; `test_incident_kill` walks them."""
POINTS = (*FAILPOINTS, *OUTSIDE)
PAIRS = [(POINTS[number], POINTS[number + 1]) for number in range(0, len(POINTS), 2)]

LOSE_AN_ORDER = {"acme.create_order.sent", "order.create.after", "order.journal_url.before"}
"""The CA has an order whose URL was never written down: it is left to expire, and a second one is made."""


def profile_of(failpoint: str) -> str:
    return failpoint.replace(".", "-").replace("_", "-")


def names_of(failpoint: str) -> list[str]:
    """A wildcard and its apex: two TXT values at one name."""
    apex = f"{profile_of(failpoint)}.certplane.test"
    return [apex, f"*.{apex}"]


@dataclass(frozen=True)
class Lane:
    """A broker and the host that asks it."""

    deployment: Deployment
    host: Host

    def want(self, failpoint: str) -> None:
        """Let the host want the certificate of this failpoint, and nothing else."""
        name = profile_of(failpoint)
        self.host.write_config([{"name": name, "profile": name, "dns_names": names_of(failpoint)}])


def policy(host: str) -> dict[str, object]:
    profiles = [*map(profile_of, POINTS), profile_of(REVOCATION), "startup", "reused", "rolled"]
    return {
        "version": 1,
        "profiles": {name: {"type": "mixed", "dns_names": names_of(name)} for name in profiles},
        "hosts": {"host": {"identity": host, "profiles": profiles}},
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lanes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lane, Lane]]:
    """Two brokers that can be killed, each with an enrolled host."""
    need_part("pebble")
    folder = tmp_path_factory.mktemp("broker-kill")
    limits = {"rate_limits": UNLIMITED}
    async with AsyncExitStack() as stack:
        first = Deployment(folder / "first", DeploymentOptions(policy("web1.certplane.test"), "cloudflare", limits))
        await stack.enter_async_context(first)
        settle_on_a_port(first)
        second = BrokerBeside(
            folder / "second", first, DeploymentOptions(policy("web2.certplane.test"), "rfc2136", limits)
        )
        await stack.enter_async_context(second)
        both = Lane(first, first.add_host("web1.certplane.test")), Lane(second, second.add_host("web2.certplane.test"))
        for finished in await asyncio.gather(*(lane.host.run("enroll") for lane in both)):
            assert finished.status == 0, finished.stderr
        yield both


async def test_every_failpoint_of_the_broker_is_walked() -> None:
    """No place where the broker can be killed is left out here."""
    folder = Path(certplane.broker.__file__).parent
    written = {
        name for path in folder.rglob("*.py") for name in re.findall(r'failpoint\(f?"([^"]+)"\)', path.read_text())
    }
    assert written - {"order.{name}.before", "order.{name}.after"} == {
        *OUTSIDE,
        REVOCATION,
        *ROLLOVER,
        *OF_A_KEPT_KEY,
        *REPORT,
        *TOLD_AND_COPIED,
        *ROLLOUT,
        *INCIDENT,
        # Where `certplane-broker init` can be killed: `test_broker_init` walks them.
        *OWN_CERTIFICATE,
        *INIT,
    }


@pytest.mark.parametrize("points", PAIRS, ids=" and ".join)
async def test_killed_broker_goes_on_where_it_was(lanes: tuple[Lane, Lane], points: tuple[str, str]) -> None:
    """The agent gets its certificate; the CA has seen one finalisation and made one certificate; nothing is left over."""
    pebble = lanes[0].deployment.pebble
    before = pebble.log
    await asyncio.gather(*(kill_and_recover(*each) for each in zip(lanes, points, (True, False), strict=True)))
    after = pebble.log
    assert after.finalize_requests - before.finalize_requests == len(points)
    lost = len(LOSE_AN_ORDER.intersection(points))
    assert len(after.orders) - len(before.orders) == len(points) + lost


async def kill_and_recover(lane: Lane, failpoint: str, alone: bool) -> None:
    """`alone`: the agent is left to itself while the broker is away."""
    deployment, host = lane.deployment, lane.host
    lane.want(failpoint)
    certificate = profile_of(failpoint)
    await deployment.start_broker(killing_at(failpoint))
    agent = await begin(host, "run", "--once")
    assert await ended(deployment.broker_process) == KILLED
    if not alone:
        await agent.stop()
    await deployment.start_broker()
    if alone:
        await ended(agent)
    if await ended(agent) != 0:
        # A refused connection is waited out, half a minute at most; an operator doesn't wait.
        again = ["renew", certificate] if "no certificate" in agent.log_text() else ["run", "--once"]
        finished = await host.run(*again)
        assert finished.status == 0, finished.stderr
    leaf = leaf_of(host, certificate)
    await assert_issued_once(deployment, leaf)
    assert_key_stayed(deployment, host, certificate)


async def test_order_is_resumed_by_the_start_alone(lanes: tuple[Lane, Lane]) -> None:
    """Killed with the records written and the challenges unanswered, the broker ends the order although nobody asks."""
    lane = lanes[0]
    deployment, host = lane.deployment, lane.host
    host.write_config([{"name": "startup", "profile": "startup", "dns_names": names_of("startup")}])
    await deployment.start_broker(killing_at("order.answer.before"))
    agent = await begin(host, "run", "--once")
    assert await ended(deployment.broker_process) == KILLED
    agent.kill()
    assert await deployment.dns.endpoint.txt("_acme-challenge.startup.certplane.test")
    await deployment.start_broker()

    async def issued() -> bool:
        return bool(await events(deployment, event_type="certificate_issued", profile_name="startup"))

    await until(issued, what="the issuance")
    key = load_private_key((host.state / "certificates" / "startup" / "pending" / "privkey.pem").read_bytes())
    (certificate,) = await deployment.pebble.certificates_of_key(key.public_key())
    record, _ = await order_of(deployment, certificate)
    assert record.deliver_time is None
    await assert_issued_once(deployment, certificate)

    requests = deployment.pebble.log.finalize_requests
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    assert leaf_of(host, "startup") == certificate
    assert deployment.pebble.log.finalize_requests == requests
    record, _ = await order_of(deployment, certificate)
    assert record.deliver_time is not None


async def test_revocation_that_the_kill_cut_is_completed_by_asking_again(lanes: tuple[Lane, Lane]) -> None:
    """Killed after the CA has revoked, the broker records the revocation when it is asked again."""
    lane = lanes[1]
    deployment, host = lane.deployment, lane.host
    name = profile_of(REVOCATION)
    lane.want(REVOCATION)
    await deployment.start_broker(killing_at(REVOCATION))
    assert (await host.run("run", "--once")).status == 0
    leaf = leaf_of(host, name)
    record, _ = await order_of(deployment, leaf)
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await revoke(lane, record.certificate_id)
    assert lost.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await ended(deployment.broker_process) == KILLED
    assert await deployment.pebble.is_revoked(leaf.serial_number)
    await deployment.start_broker()
    await revoke(lane, record.certificate_id)
    record, _ = await order_of(deployment, leaf)
    assert record.revoke_time is not None
    told = await events(deployment, event_type="certificate_revoked", identity=host.name)
    assert len(told) == 1


async def revoke(lane: Lane, certificate_id: str) -> None:
    """RevokeCertificate as the host."""
    async with channel_of(lane.deployment, lane.host) as channel:
        request = pb.RevokeCertificateRequest(certificate_id=certificate_id, reason=pb.REVOCATION_REASON_SUPERSEDED)
        await pb_grpc.CertificateServiceStub(channel).RevokeCertificate(request, timeout=HANG)


async def test_order_that_the_ca_hands_back_is_no_second_one(lanes: tuple[Lane, Lane], tmp_path: Path) -> None:
    """Killed before the order's URL was written down, at a CA like Boulder: it hands the same order back, and one is all."""
    deployment, host = lanes[0].deployment, lanes[0].host
    pebble = deployment.pebble
    reuse = faults.PendingOrderReuse()
    with FaultProxy(tmp_path, pebble.directory_url, roots_file=pebble.https_roots_file) as proxy:
        proxy.add(reuse, NEW_ORDER, ORDER, times=None)
        acme = {"directory_url": proxy.url, "ca_bundle": str(proxy.roots_file)}
        deployment.write_broker_config({"issuer": {"acme": acme}})
        host.write_config([{"name": "reused", "profile": "reused", "dns_names": names_of("reused")}])
        await deployment.start_broker(killing_at("acme.create_order.sent"))
        agent = await begin(host, "run", "--once")
        assert await ended(deployment.broker_process) == KILLED
        await agent.stop()
        await deployment.start_broker()
        finished = await host.run("renew", "reused")
        assert finished.status == 0, finished.stderr
        await deployment.stop_broker()
        assert (proxy.count(NEW_ORDER), reuse.reused) == (2, 1)
        assert [len(proxy.served(kind)) for kind in (NEW_ORDER, FINALIZE)] == [1, 1]
        assert proxy.count(FINALIZE) == 1
    deployment.write_broker_config()
    await assert_issued_once(deployment, leaf_of(host, "reused"))


async def test_change_of_the_accounts_key_that_a_kill_cuts(lanes: tuple[Lane, Lane]) -> None:
    """Killed before or after the CA took the new key, beside a running broker: the account stays, and goes on issuing."""
    deployment, host = lanes[0].deployment, lanes[0].host
    host.write_config([{"name": "rolled", "profile": "rolled", "dns_names": names_of("rolled")}])
    await deployment.start_broker()
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    shown = [json.loads((await deployment.run_broker("account", "show")).stdout)]
    for failpoint in ROLLOVER:
        killed = await deployment.run_broker("account", "rollover", environment=killing_at(failpoint))
        assert killed.status == KILLED, killed.stderr
        shown.append(json.loads((await deployment.run_broker("account", "show")).stdout))
    finished = await host.run("renew", "rolled")
    assert finished.status == 0, finished.stderr
    completed = await deployment.run_broker("account", "rollover")
    assert completed.status == 0, completed.stderr
    shown.append(json.loads(completed.stdout))
    assert len({account["accountUrl"] for account in shown}) == 1
    first, before_the_ca, after_the_ca, last = (account["keySha256"] for account in shown)
    assert first == before_the_ca
    assert len({first, after_the_ca, last}) == 3

    record, _ = await order_of(deployment, leaf_of(host, "rolled"))
    unknown = await deployment.run_broker("certs", "revoke", "unknown")
    assert (unknown.status, "`certs list` shows their ids" in unknown.stderr) == (1, True)
    with_key = ["certs", "revoke", record.certificate_id, "--key"]
    other = await deployment.run_broker(*with_key, str(host.identity[1]))
    assert (other.status, "is another key" in other.stderr) == (2, True)
    revoked = await deployment.run_broker(*with_key, str(host.output("rolled", "key")))
    assert json.loads(revoked.stdout)["state"] == "revoked", revoked.stderr
    assert await deployment.pebble.is_revoked(int(record.serial_number, 16))
    kinds = [event["event_type"] for event in await events(deployment, event_type="account_key_changed")]
    assert len(kinds) == 2 * len(ROLLOVER)
