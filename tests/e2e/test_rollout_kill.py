"""A rollout whose broker is killed at one place after the other, with real agents: it comes to the same end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator
from tests.support.killing import KILLED, ended, events, killing_at, leaf_of, settle_on_a_port
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_HOSTS = ("web1.certplane.test", "web2.certplane.test")
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["{label}.certplane.test"]}},
    "hosts": {
        "web1": {"identity": _HOSTS[0], "profiles": ["web"], "labels": {"ring": "canary"}},
        "web2": {"identity": _HOSTS[1], "profiles": ["web"]},
    },
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["admin"]}},
}
_POINTS = ("rollout.plans.after", "rollout.step.after", "rollout.revoke.after")
"""Where something is durable and the next isn't yet; the unit tests walk all. Agents come back within half a minute each."""


async def test_a_rollout_survives_its_brokers(tmp_path: Path) -> None:
    """Each certificate is replaced, by a new key, and revoked once; each ring is released once, the second after the first."""
    need_part("pebble")
    async with Deployment(tmp_path / "rollout", DeploymentOptions(_POLICY)) as deployment:
        settle_on_a_port(deployment)
        await deployment.start_broker()
        hosts = [deployment.add_host(name, [{"name": "web", "profile": "web", "dns_names": [name]}]) for name in _HOSTS]
        alice = Operator(deployment, "alice.certplane.test")
        for finished in await asyncio.gather(alice.enroll(), *(host.run("enroll") for host in hosts)):
            assert finished.status == 0, finished.stderr
        for host in hosts:
            await host.start()

        async def shown(*arguments: str) -> list[dict[str, Any]]:
            finished = await alice.run(*arguments)
            return [json.loads(line) for line in finished.stdout.splitlines()] if finished.status == 0 else []

        async def issued() -> bool:
            return [each["certificate"]["state"] for each in await shown("certs", "--profile", "web")] == [
                "STATE_WAITING"
            ] * len(hosts)

        await until(issued, poll=0.5, what="two certificates in use")
        before = [leaf_of(host, "web") for host in hosts]
        await deployment.start_broker(killing_at(_POINTS[0]))
        started = await alice.run(
            "rollout", "start", "--profile", "web", "--rekey", "--rings", "canary,rest", "--revoke", "after-served",
            "--as", "superseded", "--reason", "drill", "--yes",
        )  # fmt: skip
        assert started.status == 0, started.stderr
        for following in (*_POINTS[1:], ""):
            assert await ended(deployment.broker_process) == KILLED
            await deployment.start_broker(killing_at(following) if following else None)

        async def completed() -> list[dict[str, Any]]:
            return await shown("rollout", "list", "--state", "completed")

        (rollout,) = await until(completed, poll=0.5, what="the end of the rollout")
        after = [leaf_of(host, "web") for host in hosts]
        assert all(old.public_key() != new.public_key() for old, new in zip(before, after, strict=True))
        assert rollout["revokedCount"] == len(hosts)
        told = await events(deployment, rollout_id=rollout["rolloutId"])
        revoked = [each["cert_serial_number"] for each in told if each["event_type"] == "certificate_revoked"]
        assert sorted(revoked) == sorted(f"{leaf.serial_number:x}" for leaf in before)
        kinds = [each["event_type"] for each in told]
        assert kinds.count("rollout_ring_released") == 2
        assert kinds.count("rollout_completed") == 1
        first, second = rollout["rings"]
        assert first["doneTime"] <= second["releaseTime"]
