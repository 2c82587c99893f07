"""Programs of today beside those of 452d001, over a whole renewal: any order of upgrades works."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host, run_program
from certplane.sandbox.operator import Operator
from tests.support.killing import assert_issued_once, begin, ended, killing_at, leaf_of, settle_on_a_port
from tests.support.parts import need_part
from tests.support.status_json import status_document
from tests.support.waiting import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # the first one may have to build the old release's environment
]

_NAME, _ADMIN = "web1.certplane.test", "admin.certplane.test"
_POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["web.certplane.test"]}},
    "hosts": {"web1": {"identity": _NAME, "profiles": ["web"]}},
    "operators": {"admin": {"identity": _ADMIN, "roles": ["operator"]}},
}
_WEB = {"name": "web", "profile": "web", "dns_names": ["web.certplane.test"]}


class Fleet:
    """A deployment with one host and an operator; `agent_python` runs the programs of both."""

    def __init__(self, deployment: Deployment, agent_python: str) -> None:
        self.deployment = deployment
        self._python = agent_python
        self.host: Host = deployment.add_host(_NAME, [_WEB])
        self.host.python = agent_python
        self.operator = Operator(deployment, _ADMIN)

    async def ctl(self, *arguments: str) -> dict[str, Any]:
        finished = await run_program(self.operator.command(*arguments), {}, python=self._python)
        assert finished.status == 0, finished.stderr
        said: dict[str, Any] = json.loads(finished.stdout)
        return said

    async def status(self) -> dict[str, Any]:
        return status_document((await self.host.run("status", "--json")).stdout)

    async def enrolled(self) -> None:
        for finished in (await self.operator.enroll(), await self.host.run("enroll")):
            assert finished.status == 0, finished.stderr

    async def agree_on(self, version: int) -> None:
        """Wait until host and broker say the same: this version is in use, all is well, and no report waits."""

        async def agreed() -> bool:
            status, known = await self.status(), await self.ctl("host", _NAME, "--json")
            (web,) = status["certificates"]
            (seen,) = [each for each in known.get("certificates", []) if each["name"] == "web"] or [{}]
            return (
                (web["version"], web["state"]) == (version, "waiting")
                and status["broker"]["unacknowledged_reports"] == 0
                and seen.get("state") == "STATE_WAITING"
                and seen["installed"]["certificateId"] == web["certificate_id"]
                and seen["installed"]["version"] == str(version)
            )

        await until(agreed, poll=0.5, what=f"version {version} in use, here and there")


@asynccontextmanager
async def running(folder: Path, *, agent_python: str = "", broker_python: str = "") -> AsyncIterator[Fleet]:
    """A fleet whose broker serves, with an identity for each; the programs are those of the Python that is given."""
    need_part("pebble")
    limits = {"rate_limits": {"new_keys_per_identity_profile_per_day": 1000}}
    async with Deployment(folder, DeploymentOptions(_POLICY, dns_provider="rfc2136", broker=limits)) as deployment:
        settle_on_a_port(deployment)  # it is started again by the other release
        deployment.python = broker_python or deployment.python
        await deployment.start_broker()
        fleet = Fleet(deployment, agent_python or Host.python)
        await fleet.enrolled()
        yield fleet


async def renewed_from_afar(fleet: Fleet) -> None:
    """The agent gets its certificate, opens its stream, and renews when an operator says so."""
    await fleet.host.start()
    await fleet.agree_on(1)
    assert (await fleet.status())["broker"]["phase"] == "connected"
    first = leaf_of(fleet.host, "web")
    asked = await fleet.ctl("renew", "--host", _NAME, "--reason", "keys leaked", "--yes", "--json")
    assert (asked["certificateCount"], asked["changedCount"]) == (1, 1)
    await fleet.agree_on(2)
    second = leaf_of(fleet.host, "web")
    assert second.public_key() != first.public_key()
    assert await fleet.deployment.pebble.certificates_of_key(second.public_key()) == [second]
    assert "an operator asked: keys leaked" in (fleet.host.folder / "agent.log").read_text()


def _schema_of(deployment: Deployment) -> str:
    with contextlib.closing(sqlite3.connect(deployment.broker_folder / "broker.db")) as database:
        return str(database.execute("SELECT version_num FROM alembic_version").fetchone()[0])


async def test_an_old_agent_with_the_broker_of_today(tmp_path: Path, old_python: str) -> None:
    """It enrolls, is issued a certificate, streams its status, obeys a directive, and is taken through a rollout."""
    async with running(tmp_path, agent_python=old_python) as fleet:
        await renewed_from_afar(fleet)
        assert "health" not in (await fleet.status())["identity"], "this isn't the old agent"
        rollout = ("rollout", "start", "--host", _NAME, "--rings", "rest", "--reason", "a drill", "--yes", "--wait")
        finished = await fleet.operator.run(*rollout)
        assert finished.status == 0, finished.stdout + finished.stderr
        assert json.loads(finished.stdout)["state"] == "STATE_COMPLETED"
        await fleet.agree_on(3)


async def test_the_agent_of_today_with_an_old_broker(tmp_path: Path, old_python: str) -> None:
    """The same; and the broker of today, started in its place, ends the order at which the old one was killed."""
    async with running(tmp_path, broker_python=old_python) as fleet:
        deployment, host = fleet.deployment, fleet.host
        await renewed_from_afar(fleet)
        assert _schema_of(deployment) == "0005", "this isn't the old broker"
        await host.stop()
        await deployment.start_broker(killing_at("order.finalize.after"))
        killed = deployment.broker_process
        renewing = await begin(host, "renew", "web")
        await until(lambda: not killed.running, what="the kill of the old broker")
        deployment.python = Deployment.python
        await deployment.start_broker()
        assert await ended(renewing) == 0
        await fleet.agree_on(3)
        await assert_issued_once(deployment, leaf_of(host, "web"))
