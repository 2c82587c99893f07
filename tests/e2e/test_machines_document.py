"""docs/machines.md, walked on real programs: a host comes, is replaced, goes, is broken into, and the broker moves.

A machine is set up by the line that `certplanectl host add` prints, typed into a shell; what a package would bring (where
the files are, whose they are) a wrapper of the test's says.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Finished
from certplane.sandbox.operator import Operator
from certplane.sandbox.ports import PROVISIONER
from certplane.sandbox.process import ServerProcess
from tests.support.init_host import InitHost
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import HANG

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DOCUMENT = (Path(__file__).parents[2] / "docs" / "machines.md").read_text(encoding="utf-8")
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {},
    "operators": {
        "alice": {"identity": "alice.certplane.test", "roles": ["admin"]},
        "bob": {"identity": "bob.certplane.test", "roles": ["operator"]},
    },
}
_NUMBERS = itertools.count(1)


def documented(*words: str) -> None:
    """The document has this command of ours, with these words."""
    assert re.search(r"certplanectl\s+" + r"\s+".join(map(re.escape, words)), DOCUMENT), words


class Fleet:
    """A deployment whose broker makes tokens, an admin, an operator who is none, and hosts that come and go."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.alice, self.bob = (Operator(deployment, f"{name}.certplane.test") for name in ("alice", "bob"))
        self.hosts = {"other": {"identity": "other.certplane.test", "profiles": ["web"]}}
        self.write_policy()

    async def start(self) -> None:
        """Start the broker, or start it again."""
        ca: Any = self.deployment.identity_ca
        key = json.dumps(ca.provisioner_keys[PROVISIONER].private_jwk)
        await self.deployment.start_broker({"BOOTSTRAP_KEY": key})

    def write_policy(self) -> None:
        self.deployment.write_policy({**_POLICY, "hosts": self.hosts})

    async def add(self) -> Known:
        """A host of its own, in the policy."""
        known = Known(self, next(_NUMBERS))
        self.hosts[known.label] = {"identity": known.name, "profiles": ["web"]}
        await self.load()
        return known

    async def load(self) -> None:
        self.write_policy()
        done = await self.alice.run("policy", "reload", "--confirm")
        assert done.status == 0, done.stderr

    async def ctl(self, *words: str, status: int = 0) -> dict[str, Any]:
        """The one object that a command of alice's prints."""
        done = await self.alice.run(*words)
        assert done.status == status, done.stderr
        (line,) = done.stdout.splitlines()
        found: dict[str, Any] = json.loads(line)
        return found

    async def broker(self, *command: str) -> list[dict[str, Any]]:
        """What a command of the broker says, which must succeed."""
        done = await self.deployment.run_broker(*command)
        assert done.status == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


class Known:
    """One host of the fleet."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.label = f"web{number}"
        self.name = f"{self.label}.certplane.test"

    def machine(self, name: str) -> Machine:
        return Machine(self.fleet.deployment, self.name, name)

    async def first_machine(self) -> Machine:
        return await self.machine("first").set_up((await self.fleet.ctl("host", "add", self.name))["command"])

    async def contested(self) -> bool:
        rows = await self.fleet.broker("identity", "list", "--all")
        return any("contested" in row["state"] for row in rows if row.get("name") == self.name)


class Machine(InitHost):
    """A new machine of a host: a folder, and the agent's program with its files in there."""

    def __init__(self, deployment: Deployment, host: str, name: str) -> None:
        folder = deployment.folder / "machines" / host / name
        folder.mkdir(parents=True)
        super().__init__(deployment, folder, host)
        if os.geteuid() == 0:
            self.user = "root"
        broker_ca = deployment.broker_folder / "root.crt"
        place = f"-c {self.config} --state-dir {self.state} --broker-ca {broker_ca}"
        place += f" --user {self.user}" if self.user else ""
        program = folder / "bin" / "certplane-agent"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m certplane.agent "$@" {place}\n')
        program.chmod(0o755)

    def type(self, line: str) -> Finished:
        """Type the line that was printed."""
        assert line.startswith("echo ")
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            env={"PATH": f"{self.folder / 'bin'}:/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    async def agent(self, *words: str) -> Finished:
        return await self.run("-c", str(self.config), *words)

    async def set_up(self, line: str) -> Machine:
        """From the printed line to a certificate in place."""
        done = self.type(line)
        assert done.status == 0, done.stderr
        once = await self.agent("run", "--once")
        assert once.status == 0, once.stderr
        assert "BEGIN CERTIFICATE" in (self.tls / "web.pem").read_text()
        return self


async def serve(folder: Path, stack: AsyncExitStack) -> Fleet:
    deployment = await stack.enter_async_context(
        Deployment(folder, DeploymentOptions(_POLICY, broker={"rate_limits": UNLIMITED}))
    )
    ca: Any = deployment.identity_ca
    section = {
        "ca_url": ca.url,
        "root_ca_bundle": str(ca.roots_file),
        "provisioner": PROVISIONER,
        "key_secret": "bootstrap-key",
    }
    deployment.write_broker_config({"bootstrap": section})
    fleet = Fleet(deployment)
    await fleet.start()
    for operator in (fleet.alice, fleet.bob):
        enrolled = await operator.enroll()
        assert enrolled.status == 0, enrolled.stderr
    return fleet


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    need_part("pebble")
    async with AsyncExitStack() as stack:
        yield await serve(tmp_path_factory.mktemp("machines"), stack)


def patched(policy: Path, diff: str) -> Any:
    """The policy once `patch` has taken the diff."""
    if (patch := shutil.which("patch")) is None:
        pytest.skip("there is no patch on this machine")
    done = subprocess.run([patch, "-p0", policy], input=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return yaml.safe_load(policy.read_text())


async def test_a_host_is_added(fleet: Fleet) -> None:
    """First the policy's line, then the machine's: it is enrolled and served; typed again there is nothing to do."""
    documented("host", "add", "web1.example.net", "--profile", "web", "--service", "nginx")
    host = Known(fleet, next(_NUMBERS))
    line = ("host", "add", host.name, "--profile", "web")
    lacking = await fleet.ctl(*line, status=3)
    assert lacking["state"] == "POLICY_FIRST"
    policy = fleet.deployment.broker_folder / "policy.yml"
    assert lacking["policyFile"] == str(policy)
    assert f"+  {host.label}: {{identity: {host.name}, profiles: [web]}}\n" in lacking["policyDiff"]
    assert patched(policy, lacking["policyDiff"])["hosts"][host.label]["identity"] == host.name
    fleet.hosts[host.label] = {"identity": host.name, "profiles": ["web"]}
    documented("policy", "reload")
    await fleet.load()

    planned = await fleet.ctl(*line, "--dry-run")
    assert (planned["state"], planned["dryRun"], "token" in planned["token"]) == ("READY", True, False)
    ready = await fleet.ctl(*line)
    assert ready["state"] == "READY"
    machine = await host.machine("first").set_up(ready["command"])
    used = host.machine("thief").type(ready["command"])
    assert used.status == 1
    assert "the token was used before" in used.stderr

    events = await fleet.broker("audit", "tail", "--limit", "1000")
    made = [
        event for event in events if event["event_type"] == "bootstrap_token_created" and host.name in event["reason"]
    ]
    assert [event["identity"] for event in made] == ["alice.certplane.test"]
    for record in (json.dumps(events), fleet.deployment.broker_process.log_text()):
        assert ready["token"]["token"] not in record

    command = [sys.executable, "-P", "-m", "certplane.agent", "-c", machine.config, "run"]
    agent = ServerProcess("certplane-agent", command, machine.folder / "agent.log")

    async def connected() -> bool:
        return bool((await fleet.ctl("host", host.name)).get("connected"))

    await agent.start(connected)
    try:
        assert (await fleet.ctl(*line))["state"] == "SET_UP"
    finally:
        await agent.stop()


async def test_a_token_alone(fleet: Fleet) -> None:
    """`certplanectl token` makes one that enrolls the host; nobody but an admin gets one."""
    documented("token", "web1.example.net")
    host = await fleet.add()
    refused = await fleet.bob.run("token", host.name)
    assert (refused.status, "ROLE_REQUIRED" in refused.stderr) == (1, True)
    unknown = await fleet.alice.run("token", "nobody.certplane.test")
    assert (unknown.status, "isn't in the policy" in unknown.stderr) == (1, True)
    token = (await fleet.alice.run("token", host.label, "-o", "name")).stdout.strip()
    done = await host.machine("by-token").init("--profile", "web", token=token)
    assert done.status == 0, done.stderr


async def shut_out(machine: Machine) -> None:
    """The machine is told that an operator has denied its identity."""
    refused = await machine.agent("renew", "web")
    assert (refused.status, "IDENTITY_REVOKED" in refused.stderr) == (1, True), refused.stderr


async def test_a_host_is_replaced(fleet: Fleet) -> None:
    """The new machine goes on without a contest; the old one, should it come back, gets nothing; safe to type again."""
    documented("host", "replace", "web1.example.net", "--reason", "'a new machine'", "--profile", "web")
    host = await fleet.add()
    old = await host.first_machine()
    line = ("host", "replace", host.name, "--reason", "a new machine", "--yes")
    planned = await fleet.ctl(*line, "--dry-run")
    assert [each.get("alreadyDenied", False) for each in planned["denied"]] == [False]
    assert (await old.agent("renew", "web")).status == 0

    first = await fleet.ctl(*line)
    (denied,) = first["denied"]
    await shut_out(old)
    again = await fleet.ctl(*line)
    assert again["denied"] == [{**denied, "alreadyDenied": True}]
    assert again["token"]["token"] != first["token"]["token"]

    new = await host.machine("new").set_up(again["command"])
    await shut_out(old)
    done = await fleet.ctl(*line)
    assert done["state"] == "REPLACED"
    assert done["activeSerialNumber"] != denied["serialNumber"]
    well = await new.agent("renew", "web")
    assert well.status == 0, well.stderr
    assert not await host.contested()


async def test_a_host_goes_for_good(fleet: Fleet) -> None:
    """Shut out at once, taken out of the policy by a person, forgotten by the same command; safe to type again."""
    documented("host", "retire", "web1.example.net", "--reason", "'it was sold'")
    host = await fleet.add()
    machine = await host.first_machine()
    line = ("host", "retire", host.name, "--reason", "it was sold", "--yes")
    assert (await fleet.ctl(*line, "--dry-run", status=3))["state"] == "POLICY_FIRST"
    assert (await machine.agent("renew", "web")).status == 0

    first = await fleet.ctl(*line, status=3)
    assert first["validCertificateCount"] >= 1
    assert f"-  {host.label}:" in first["policyDiff"]
    await shut_out(machine)
    no_token = await fleet.alice.run("token", host.name)
    assert (no_token.status, "is denied" in no_token.stderr) == (1, True)

    del fleet.hosts[host.label]
    await fleet.load()
    assert (await fleet.ctl(*line))["state"] == "RETIRED"
    gone = await fleet.alice.run("host", host.name)
    assert (gone.status, "HOST_NOT_FOUND" in gone.stderr) == (1, True), gone.stderr
    assert (await fleet.ctl(*line))["state"] == "RETIRED"
    slip = await fleet.alice.run("host", "retire", "wbe1.certplane.test", "--reason", "x", "--yes")
    assert (slip.status, "nobody knows wbe1.certplane.test" in slip.stderr) == (1, True)
    denied = [row.get("name") for row in await fleet.broker("identity", "list") if row["state"] == "denied"]
    assert host.name in denied
    assert "wbe1.certplane.test" not in denied


async def test_a_host_is_broken_into(fleet: Fleet) -> None:
    """Denied at once, its certificate revoked; set up anew it goes on, and whoever has the old keys doesn't."""
    host = await fleet.add()
    stolen = await host.first_machine()
    await fleet.broker("identity", "deny", "--name", host.name, "--reason", "incident 4711")
    await shut_out(stolen)
    (certificate,) = (row for row in await fleet.broker("certs", "list") if row["identity"] == host.name)
    await fleet.broker("certs", "revoke", certificate["certificateId"], "--reason", "keyCompromise")
    await fleet.broker("identity", "allow", "--name", host.name)
    documented("host", "replace", "web1.example.net", "--reason", "'incident 4711'")
    ready = await fleet.ctl("host", "replace", host.name, "--reason", "incident 4711", "--yes")
    await host.machine("anew").set_up(ready["command"])
    await shut_out(stolen)
    assert not await host.contested()


async def test_the_broker_moves(fleet: Fleet, tmp_path: Path) -> None:
    """The copy of a stopped broker's database, in place elsewhere, knows all that there was."""
    deployment = fleet.deployment
    machine = await (await fleet.add()).first_machine()
    before = await fleet.broker("certs", "list")
    await deployment.stop_broker()
    copy = tmp_path / "copy.db"
    await fleet.broker("backup", str(copy))
    for file in deployment.broker_folder.glob("broker.db*"):
        file.unlink()
    shutil.move(copy, deployment.broker_folder / "broker.db")
    await fleet.start()
    assert await fleet.broker("certs", "list") == before
    renewed = await machine.agent("renew", "web")
    assert renewed.status == 0, renewed.stderr
