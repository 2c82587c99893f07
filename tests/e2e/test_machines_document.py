"""docs/machines.md, walked on real programs: a host is replaced, one is broken into, and the broker moves."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from tests.support.parts import need_part

pytestmark = pytest.mark.e2e

NAME = "web1.certplane.test"
_POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": NAME, "profiles": ["web"]}},
}
_CERTIFICATE = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test"]}


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    need_part("pebble")
    async with Deployment(tmp_path, DeploymentOptions(_POLICY)) as deployment:
        await deployment.start_broker()
        yield deployment


async def machine(deployment: Deployment, name: str) -> Host:
    """A machine of the one host, set up from nothing: enrolled with a token of its own, and with its certificate."""
    host = Host(deployment, NAME)
    host.folder = deployment.folder / "machines" / name
    host.folder.mkdir(parents=True)
    host.write_token()
    host.write_config([_CERTIFICATE])
    for command in (["enroll"], ["run", "--once"]):
        done = await host.run(*command)
        assert done.status == 0, done.stderr
    return host


async def broker(deployment: Deployment, *command: str) -> list[dict[str, Any]]:
    """What a command of the broker says, which must succeed."""
    done = await deployment.run_broker(*command)
    assert done.status == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_a_host_is_replaced(deployment: Deployment) -> None:
    """The new machine goes on without a contest; the old one, should it come back, gets nothing."""
    old = await machine(deployment, "old")
    (before,) = await broker(deployment, "identity", "list", "--all")
    new = await machine(deployment, "new")
    states = [row["state"] for row in await broker(deployment, "identity", "list", "--all")]
    assert not any("contested" in state for state in states)
    serial, issuer = (
        next(before[key] for key in before if key.lower().startswith(what)) for what in ("serial", "issuer")
    )
    await broker(
        deployment, "identity", "deny", "--issuer", issuer, "--serial", serial, "--reason", "web1 was replaced"
    )
    refused = await old.run("renew", "web")
    assert refused.status == 1
    assert "IDENTITY_" in refused.stderr
    well = await new.run("run", "--once")
    assert well.status == 0, well.stderr


async def test_a_host_is_broken_into(deployment: Deployment) -> None:
    """Denied at once, its certificate revoked; set up anew it goes on."""
    await machine(deployment, "taken")
    stolen = Host(deployment, NAME)
    stolen.folder = deployment.folder / "machines" / "taken"
    await broker(deployment, "identity", "deny", "--name", NAME, "--reason", "incident 4711")
    refused = await stolen.run("renew", "web")
    assert (refused.status, "IDENTITY_REVOKED" in refused.stderr) == (1, True), refused.stderr
    (certificate,) = await broker(deployment, "certs", "list")
    await broker(deployment, "certs", "revoke", certificate["certificateId"], "--reason", "keyCompromise")
    await broker(deployment, "identity", "allow", "--name", NAME)
    await machine(deployment, "anew")


async def test_the_broker_moves(deployment: Deployment, tmp_path: Path) -> None:
    """The copy of a stopped broker's database, in place elsewhere, knows all that there was."""
    host = await machine(deployment, "host")
    before = await broker(deployment, "certs", "list")
    await deployment.stop_broker()
    copy = tmp_path / "copy.db"
    await broker(deployment, "backup", str(copy))
    for file in deployment.broker_folder.glob("broker.db*"):
        file.unlink()
    shutil.move(copy, deployment.broker_folder / "broker.db")
    await deployment.start_broker()
    assert await broker(deployment, "certs", "list") == before
    renewed = await host.run("renew", "web")
    assert renewed.status == 0, renewed.stderr
