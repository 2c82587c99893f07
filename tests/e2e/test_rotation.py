"""docs/rotation.md, step by step: a real step-ca gets a new root, real agents follow, and nobody is shut out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator
from tests.support.identity_ca_rotation import Rotation
from tests.support.killing import events
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_HOSTS = ("web1.certplane.test", "web2.certplane.test")
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {name.partition(".")[0]: {"identity": name, "profiles": ["web"]} for name in _HOSTS},
    "operators": {name: {"identity": f"{name}.certplane.test", "roles": ["operator"]} for name in ("alice", "bob")},
}


class Operated:
    """What alice sees."""

    def __init__(self, alice: Operator) -> None:
        self.alice = alice

    async def told(self, *arguments: str, status: int = 0) -> str:
        """What a command prints, on either stream."""
        finished = await self.alice.run(*arguments)
        assert finished.status == status, (finished.stdout, finished.stderr)
        return finished.stdout + finished.stderr

    async def plan(self, bundle: Path, *, status: int = 0) -> dict[str, Any]:
        """Whom a bundle would shut out."""
        made: dict[str, Any] = json.loads(await self.told("trust", "plan", str(bundle), "-o", "json", status=status))
        return made

    async def without(self, root: str) -> set[str]:
        """Hosts that don't know the broker by this root."""
        told = await self.told("fleet", "--lacks-root", root, "-o", "name")
        return set(told.split())

    async def connected(self) -> set[str]:
        """Hosts that have a stream."""
        hosts = [json.loads(line) for line in (await self.told("fleet", "-o", "json")).splitlines()]
        return {host["name"] for host in hosts if host.get("connected")}


async def test_all_hosts_get_to_a_new_root_and_none_is_shut_out(tmp_path: Path) -> None:
    """Both roots believed, the new one signs, identities on demand, the old one gone: each step is seen to be done."""
    need_part("step-ca")
    need_part("pebble")
    deployment = Deployment(tmp_path, DeploymentOptions(_POLICY))
    rotation = Rotation(deployment)
    async with deployment:
        hosts = [rotation.add_host(name) for name in _HOSTS]
        alice, bob = (Operator(deployment, f"{name}.certplane.test") for name in ("alice", "bob"))
        await deployment.start_broker()
        enrolling = [host.run("enroll") for host in hosts]
        for enrolled in await asyncio.gather(*enrolling, alice.enroll(), bob.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        for host in hosts:
            await host.start()
        seen = Operated(alice)
        both, new = tmp_path / "both.pem", tmp_path / "root2.crt"
        both.write_bytes(rotation.bundle(rotation.new, rotation.old))
        new.write_bytes(rotation.new.pem)

        async def all_connected() -> bool:
            return await seen.connected() == set(_HOSTS)

        await until(all_connected, poll=0.3, what="both hosts' streams")

        # 1. All believe both roots; the fleet says who doesn't yet.
        planned = await seen.plan(both)
        assert not planned.get("shutOutCount")
        assert [ca["subject"] for ca in planned["cas"] if not ca.get("before")] == ["CN=Certplane Sandbox Root CA 2"]
        rotation.agent_ca_bundle.write_bytes(both.read_bytes())
        await seen.told("broker", "reload", "--all")
        assert await seen.without(rotation.new.fingerprint) == set(_HOSTS)
        for host, others in zip(hosts, (_HOSTS[1:], ()), strict=True):
            rotation.host_trust(host.name).write_bytes(both.read_bytes())
            await host.start()  # it would read the file by itself, within half a minute

            async def lacking(names: Sequence[str] = others) -> bool:
                return await seen.without(rotation.new.fingerprint) == set(names)

            await until(lacking, poll=0.3, what=f"{host.name} knows the new root")
        (deployment.broker_folder / "root.crt").write_bytes(both.read_bytes())  # the operators'
        await until(all_connected, poll=0.3, what="both hosts' streams")
        planned = await seen.plan(new, status=1)
        assert (planned["shutOutCount"], planned["shutOutConnectedCount"]) == (2, 2)
        rotation.agent_ca_bundle.write_bytes(new.read_bytes())
        assert "confirm" in await seen.told("broker", "reload", "--all", status=1)
        rotation.agent_ca_bundle.write_bytes(both.read_bytes())
        await seen.told("broker", "reload", "--all")

        # 2. The CA signs by the new one, and takes renewals of the old.
        await rotation.sign_by_new([rotation.new, rotation.old])
        assert not any(rotation.is_new(host) for host in hosts)
        renew = ("renew", "--identity", "--reason", "new internal root", "--yes", "--wait")
        await seen.told(*renew, "--host", "web1")
        assert [rotation.is_new(host) for host in hosts] == [True, False]

        # 3. All get new identities, the broker and alice too; bob forgets to.
        await seen.told(*renew, "--all")
        assert all(rotation.is_new(host) for host in hosts)
        rotation.renew_brokers_own()
        renewed = await rotation.renew(alice)
        assert renewed.status == 0, renewed.stderr
        await seen.told("broker", "reload", "--all")
        assert not (await seen.plan(new)).get("shutOutCount")

        # 4. The old one goes.
        rotation.agent_ca_bundle.write_bytes(new.read_bytes())
        await seen.told("broker", "reload", "--all")
        for file in (deployment.broker_folder / "root.crt", *map(rotation.host_trust, _HOSTS)):
            file.write_bytes(new.read_bytes())
        await rotation.sign_by_new([rotation.new])
        refused = await bob.run("fleet")
        assert refused.status == 1
        assert "doesn't accept this identity" in refused.stderr
        for host in hosts:
            await host.start()
        await until(all_connected, poll=0.3, what="both hosts' streams")
        await seen.told(*renew, "--all")
        assert not await events(deployment, event_type="identity_refused")
