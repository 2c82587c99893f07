"""A rollout over real agents with nginx: three rings, a reload that fails in the first, and old certificates revoked last.

What operators type, against a running broker with Pebble; what clients are shown is asked of nginx.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certplane.agent.install.material import Outputs
from certplane.runtime.clock import SystemClock
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.operator import Operator
from tests.support.in_terminal import in_terminal
from tests.support.killing import settle_on_a_port
from tests.support.lineages import LocalIssuer, standing_pair
from tests.support.parts import need_part
from tests.support.tls_services import Nginx, served_serial
from tests.support.waiting import no_hang, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_RINGS = {"web1": {"ring": "canary"}, "web2": {"dc": "fra1"}, "web3": {}}
"""Hosts with their labels; web3 is in the rest."""
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["{label}.certplane.test"]}},
    "hosts": {
        name: {"identity": f"{name}.certplane.test", "profiles": ["web"], **({"labels": labels} if labels else {})}
        for name, labels in _RINGS.items()
    },
    "operators": {
        "alice": {"identity": "alice.certplane.test", "roles": ["admin"]},
        "bob": {"identity": "bob.certplane.test", "roles": ["operator"]},
        "carol": {"identity": "carol.certplane.test", "roles": ["viewer"]},
    },
}
_WAIT = ("--wait", "--timeout", "10m")


@dataclass
class Served:
    """A host with its nginx."""

    host: Host
    nginx: Nginx

    async def serial(self) -> str:
        """Of what clients are shown."""
        return await served_serial(self.nginx.port)

    def key(self) -> bytes:
        """The public key of what is installed."""
        leaf = x509.load_pem_x509_certificates((self.host.folder / "tls" / "web.pem").read_bytes())[0]
        return leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Scene:
    """Three hosts in three rings, and those who look after them: an admin, an operator, a viewer."""

    deployment: Deployment
    hosts: dict[str, Served]
    alice: Operator
    bob: Operator
    carol: Operator

    async def lines(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        """What a command of alice's prints when it is piped."""
        finished = await self.alice.run(*arguments)
        assert finished.status == status, finished.stdout + finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    async def rollout(self, rollout_id: str) -> dict[str, Any]:
        """As the broker has it."""
        finished = await self.alice.run("rollout", "show", rollout_id)
        (found,) = map(json.loads, finished.stdout.splitlines())
        return found  # type: ignore[no-any-return]

    async def items(self, rollout_id: str) -> dict[str, dict[str, Any]]:
        """Its certificates, by the label of their host."""
        finished = await self.alice.run("rollout", "show", rollout_id, "--certificates")
        return {each["host"].partition(".")[0]: each for each in map(json.loads, finished.stdout.splitlines())}

    async def serials(self) -> dict[str, str]:
        """What clients of each host are shown."""
        return {name: await each.serial() for name, each in self.hosts.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    need_part("pebble")
    nginx = need_part("nginx")
    async with AsyncExitStack() as stack:
        folder = tmp_path_factory.mktemp("rollout")
        deployment = await stack.enter_async_context(Deployment(folder, DeploymentOptions(_POLICY)))
        settle_on_a_port(deployment)
        await deployment.start_broker()
        hosts: dict[str, Served] = {}
        for name in _RINGS:
            service = Nginx(
                nginx,
                deployment.folder / f"nginx-{name}",
                deployment.folder / "hosts" / f"{name}.certplane.test" / "tls",
            )
            hosts[name] = Served(await _host(deployment, name, service), service)
            stack.push_async_callback(service.stop)
        people = [Operator(deployment, f"{name}.certplane.test") for name in ("alice", "bob", "carol")]
        enrolled = await asyncio.gather(
            *(each.enroll() for each in people), *(each.host.run("enroll") for each in hosts.values())
        )
        for finished in enrolled:
            assert finished.status == 0, finished.stderr
        for each in hosts.values():
            await each.host.start()
        made = Scene(deployment, hosts, *people)

        async def serving() -> bool:
            certificates = await made.lines("certs", "--profile", "web")
            return [each["certificate"]["state"] for each in certificates] == ["STATE_SERVING"] * len(hosts)

        await until(serving, poll=0.5, what="three certificates that are served")
        yield made


async def _host(deployment: Deployment, name: str, service: Nginx) -> Host:
    """A host whose nginx serves a placeholder so far."""
    identity = f"{name}.certplane.test"
    tls = deployment.folder / "hosts" / identity / "tls"
    outputs = Outputs(key=tls / "web.key", fullchain=tls / "web.pem")
    standing_pair(LocalIssuer(now=SystemClock().now().replace(microsecond=0)), outputs, "placeholder.certplane.test")
    await service.start()
    certificate = {
        "name": "web",
        "profile": "web",
        "dns_names": [identity],
        "key": str(outputs.key),
        "fullchain": str(outputs.fullchain),
        "reload_command": service.reload_command,
        "verify": {"connect": f"127.0.0.1:{service.port}", "timeout": "30s", "attempts": 300, "interval": "100ms"},
    }
    return deployment.add_host(identity, [certificate])


async def test_a_plan_and_who_may_begin(scene: Scene) -> None:
    """Rings by label and the rest; a viewer may look, and is told that he may not begin it; nor may an operator what revokes."""
    what = ("--profile", "web", "--rekey", "--rings", "canary:1h,dc=fra1,rest", "--revoke", "after-served")
    (plan,) = await scene.lines("rollout", "plan", *what)
    seen = await scene.carol.run("rollout", "plan", *what)
    assert json.loads(seen.stdout)["rings"] == plan["rings"]
    assert (seen.status, "the role admin is needed" in seen.stderr) == (1, True)
    assert [(ring["name"], ring["hosts"]) for ring in plan["rings"]] == [
        ("canary", ["web1.certplane.test"]), ("dc-fra1", ["web2.certplane.test"]), ("rest", ["web3.certplane.test"]),
    ]  # fmt: skip
    before = await scene.lines("rollout", "list")
    for person in (scene.bob, scene.carol):
        finished = await person.run("rollout", "start", *what, "--reason", "not mine to begin", "--yes")
        assert finished.status == 1
        assert "role" in finished.stderr
    assert await scene.lines("rollout", "list") == before
    finished = await scene.alice.run("rollout", "plan", "--profile", "web", "--rings", "ring=nosuch,rest")
    assert "nosuch" in finished.stdout + finished.stderr  # a ring that picks nobody


async def test_three_rings_a_halt_and_old_certificates_revoked_last(scene: Scene) -> None:
    """A reload that fails in ring one halts it: the others hold what they have; mended and resumed, all is new, and revoked."""
    before, keys = await scene.serials(), {name: each.key() for name, each in scene.hosts.items()}
    scene.hosts["web1"].nginx.break_config()
    (halted,) = await scene.lines(
        "rollout", "start", "--profile", "web", "--rekey", "--rings", "canary,dc=fra1,rest", "--revoke", "after-served",
        "--as", "superseded", "--reason", "ticket 4711", "--yes", *_WAIT, status=1,
    )  # fmt: skip
    assert halted["state"] == "STATE_HALTED"
    assert [(each["host"], each["ring"]) for each in halted["failed"]] == [("web1.certplane.test", "canary")]
    assert halted.get("revokedCount", 0) == 0
    rollout_id = halted["rolloutId"]

    async def all_held() -> bool:
        items = await scene.items(rollout_id)
        return [items[name]["state"] for name in ("web2", "web3")] == ["STATE_HELD", "STATE_HELD"]

    await until(all_held, poll=0.5, what="certificates that the other rings hold")
    assert await scene.serials() == before
    assert [scene.hosts[name].key() for name in ("web2", "web3")] == [keys["web2"], keys["web3"]]

    scene.hosts["web1"].nginx.mend_config()
    (done,) = await scene.lines("rollout", "resume", rollout_id, "--reason", "nginx is mended", *_WAIT)
    assert done["state"] == "STATE_COMPLETED"
    after = await scene.serials()
    assert not set(after.values()) & set(before.values())
    assert all(each.key() != keys[name] for name, each in scene.hosts.items())
    assert done["revokedCount"] == len(scene.hosts)
    assert all(first["doneTime"] <= second["releaseTime"] for first, second in pairwise(done["rings"]))
    for each in (await scene.items(rollout_id)).values():
        assert each["state"] == "STATE_DONE"
        assert each["doneTime"] <= each["revokeTime"]
    events = {each["eventType"] for each in await scene.lines("audit", "list", "--id", rollout_id, "--limit", "200")}
    assert {"rollout_created", "rollout_halted", "rollout_resumed", "rollout_completed"} <= events
    assert rollout_id in [each["rolloutId"] for each in await scene.lines("rollout", "list", "--state", "completed")]


async def test_an_abort_leaves_each_host_with_what_works(scene: Scene) -> None:
    """Held certificates stay unused, and nothing is revoked."""
    before = await scene.serials()
    (rollout,) = await scene.lines(
        "rollout",
        "start",
        "--host",
        "web3",
        "--host",
        "web1",
        "--rings",
        "canary:1d,rest",
        "--reason",
        "a drill",
        "--yes",
    )
    rollout_id = rollout["rolloutId"]

    async def baking() -> bool:
        items = await scene.items(rollout_id)
        return (items["web1"]["state"], items["web3"]["state"]) == ("STATE_DONE", "STATE_HELD")

    await until(baking, poll=0.5, what="a ring that bakes, and one that holds")
    (aborted,) = await scene.lines("rollout", "abort", rollout_id, "--reason", "enough seen", "--yes")
    assert aborted["state"] == "STATE_ABORTED"
    async with no_hang():
        after = await scene.serials()
    assert (after["web3"], after["web2"]) == (before["web3"], before["web2"])
    assert after["web1"] != before["web1"]
    assert "revokedCount" not in await scene.rollout(rollout_id)
    async with in_terminal(scene.carol.config, "rollout", "watch", rollout_id) as shown:
        await shown.writes("enough seen")
        shown.press("q")
        await shown.ends(0)
    assert "aborted: aborted by alice.certplane.test: enough seen" in shown.text


async def test_an_agent_that_is_killed_while_it_holds(scene: Scene) -> None:
    """It holds on as before, whoever starts it; its keeper may use what it holds."""
    before, host = await scene.serials(), scene.hosts["web2"].host
    agent = await host.start()
    what = ("--host", "web1", "--host", "web2", "--rings", "canary:1d,rest", "--reason", "a drill", "--yes")
    (rollout,) = await scene.lines("rollout", "start", *what)
    rollout_id = rollout["rolloutId"]

    async def holds() -> bool:
        items = await scene.items(rollout_id)
        return (items["web1"]["state"], items["web2"]["state"]) == ("STATE_DONE", "STATE_HELD")

    await until(holds, poll=0.5, what="a ring that bakes, and one that holds")
    agent.kill()
    await host.start()

    async def is_there() -> bool:
        (seen,) = await scene.lines("host", "web2")
        return seen.get("connected", False) is True

    await until(is_there, poll=0.5, what="the agent that was started again")
    assert await holds()
    assert (await scene.serials())["web2"] == before["web2"]
    finished = await host.run("status")
    assert rollout_id in finished.stdout
    finished = await host.run("activate", "web")
    assert finished.status == 0, finished.stdout + finished.stderr

    async def is_new() -> bool:
        return (await scene.serials())["web2"] != before["web2"]

    await until(is_new, poll=0.5, what="the certificate that was held, in use")
    await scene.lines("rollout", "abort", rollout_id, "--reason", "enough seen", "--yes")


async def test_another_operator_approves(scene: Scene) -> None:
    """Where the policy asks for it nothing begins before; whoever began it is refused."""
    scene.deployment.write_policy({**_POLICY, "rollouts": {"approval": "required", "approval_above_hosts": 0}})
    await scene.lines("policy", "reload")
    try:
        finished = await scene.bob.run("rollout", "start", "--host", "web2", "--reason", "a drill", "--yes")
        assert finished.status == 0, finished.stderr
        assert "it would wait: the policy wants approval by another operator" in finished.stderr
        rollout = json.loads(finished.stdout)
        assert rollout["state"] == "STATE_AWAITING_APPROVAL"
        approve = ("rollout", "approve", rollout["rolloutId"], "--reason", "seen", "--yes")
        refused = await scene.bob.run(*approve)
        assert (refused.status, "needs another operator's approval" in refused.stderr) == (1, True)
        (approved,) = await scene.lines(*approve)
        assert approved["approvedBy"] == "alice.certplane.test"
        finished = await scene.carol.run("rollout", "watch", rollout["rolloutId"])
        assert finished.status == 0, finished.stderr
        assert json.loads(finished.stdout.splitlines()[-1])["state"] == "STATE_COMPLETED"
    finally:
        scene.deployment.write_policy(_POLICY)
        await scene.lines("policy", "reload")


async def test_a_broker_that_is_killed_meanwhile(scene: Scene) -> None:
    """The rollout goes on where it was, and whoever waits for it waits on: each host is new, once."""
    before = await scene.serials()
    last = list(scene.hosts.values())[-1].host._agent
    assert last is not None
    os.kill(last.pid, signal.SIGSTOP)  # or all could be over before it is looked at
    starting = asyncio.create_task(
        scene.bob.run(
            "rollout", "start", "--profile", "web", "--rings", "canary,rest", "--reason", "a drill", "--yes", *_WAIT
        )
    )

    async def begun() -> bool:
        return bool(await scene.lines("rollout", "list", "--state", "running"))

    try:
        await until(begun, poll=0.2, by=starting, what="a rollout that runs")
        scene.deployment.broker_process.kill()
    finally:
        os.kill(last.pid, signal.SIGCONT)
    await scene.deployment.start_broker()
    async with no_hang():
        finished = await starting
    assert finished.status == 0, finished.stderr
    done = json.loads(finished.stdout)
    assert done["state"] == "STATE_COMPLETED"
    after = await scene.serials()
    assert not set(after.values()) & set(before.values())
    new = {name: each["newCertificateId"] for name, each in (await scene.items(done["rolloutId"])).items()}
    issued = await scene.lines("audit", "list", "--type", "certificate_issued", "--id", done["rolloutId"])
    assert {each["record"]["certificate_id"] for each in issued} == set(new.values())
    assert len(issued) == len(scene.hosts)
