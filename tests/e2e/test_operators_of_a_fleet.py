"""What an operator does to a fleet, with the programs: identities renewed on demand, a revocation, a host forgotten."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Finished
from certplane.sandbox.operator import Operator
from tests.support.killing import events
from tests.support.limits import UNLIMITED
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

WEB, MAIL, OLD = "web1.certplane.test", "mail1.certplane.test", "old1.certplane.test"
_PROFILES = {name: {"type": "multi_san", "dns_names": [f"{name}.certplane.test"]} for name in ("web", "mail")}
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": _PROFILES,
    "hosts": {
        "web1": {"identity": WEB, "profiles": ["web"]},
        "mail1": {"identity": MAIL, "profiles": ["mail"]},
    },
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["operator"]}},
}


class Story:
    """A broker, a host whose agent runs, one whose agent a timer starts, and an operator."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.web = deployment.add_host(WEB, [_certificate("web")])
        self.mail = deployment.add_host(MAIL, [_certificate("mail")])
        self.alice = Operator(deployment, "alice.certplane.test")

    async def ctl(self, *arguments: str) -> Finished:
        """What the operator runs, and ends well."""
        finished = await self.alice.run(*arguments)
        assert finished.status == 0, finished.stderr
        return finished

    async def host(self, label: str) -> dict[str, Any]:
        """What the broker knows of a host."""
        found: dict[str, Any] = json.loads((await self.ctl("host", label)).stdout)
        return found

    async def serial_number(self, label: str, certificate: str) -> str:
        """Of what the host has in use; empty before it has something."""
        for each in (await self.host(label)).get("certificates", ()):
            if each["name"] == certificate:
                return str(each.get("installed", {}).get("serialNumber", ""))
        return ""


def _certificate(name: str) -> dict[str, Any]:
    return {"name": name, "profile": name, "dns_names": [f"{name}.certplane.test"]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Story]:
    need_part("pebble")
    options = DeploymentOptions(_POLICY, broker={"rate_limits": UNLIMITED})
    async with Deployment(tmp_path_factory.mktemp("operators"), options) as deployment:
        made = Story(deployment)
        await deployment.start_broker()
        for host in (made.web, made.mail):
            enrolled = await host.run("enroll")
            assert enrolled.status == 0, enrolled.stderr
        assert (await made.alice.enroll()).status == 0
        await made.web.start()
        await made.web.until_running()
        assert (await made.mail.run("run", "--once")).status == 0
        await until(lambda: made.serial_number("web1", "web"), poll=0.2, what="the first certificate")
        yield made


async def test_identities_are_renewed_on_demand(story: Story) -> None:
    """A host that is connected at once, one in timer mode at its next run; long before either is due."""
    before = {label: (await story.host(label))["identitySerialNumber"] for label in ("web1", "mail1")}
    asked = json.loads((await story.ctl("renew", "--all", "--identity", "--reason", "key ceremony", "--yes")).stdout)
    assert (asked["certificateCount"], asked["changedCount"]) == (2, 2)
    assert "heldUp" not in asked

    async def is_another() -> bool:
        return (await story.host("web1"))["identitySerialNumber"] != before["web1"]

    await until(is_another, poll=0.2, what="another identity of web1")
    assert [each["identity"] for each in (await story.host("mail1"))["pendingRenewals"]] == [True]
    ran = await story.mail.run("run", "--once")
    assert ran.status == 0, ran.stderr
    mail = await story.host("mail1")
    assert mail["identitySerialNumber"] != before["mail1"]
    assert "pendingRenewals" not in mail


async def test_how_a_host_runs_is_known(story: Story) -> None:
    """A daemon, or by a timer and how often: one that is away between two runs is all right, and not missing."""
    assert (await story.mail.run("run", "--once")).status == 0  # the second one at least: how often takes two
    web, mail = await story.host("web1"), await story.host("mail1")
    assert (web["agentMode"], mail["agentMode"]) == ("AGENT_MODE_DAEMON", "AGENT_MODE_TIMER")
    assert "connected" not in mail
    assert mail["runInterval"].endswith("s")
    assert all(len(root) == 64 for root in web["brokerRootsSha256"])
    assert web["brokerRootsSha256"] == mail["brokerRootsSha256"] != []
    assert web["features"] == mail["features"] == ["identity", "rollout"]
    assert {each["health"] for each in (*web["certificates"], *mail["certificates"])} == {"HEALTH_OK"}
    summary = json.loads((await story.ctl("summary", "--check")).stdout)
    assert (summary["hostCount"], summary["connectedHostCount"]) == (2, 1)
    assert "missingCount" not in summary
    assert "causeCount" not in summary


async def test_a_renewal_is_waited_for(story: Story) -> None:
    """Of a certificate and of an identity: the command ends when the host has what was asked for."""
    before = await story.serial_number("web1", "web")
    await story.ctl("renew", "--host", "web1", "--reason", "drill", "--wait", "--yes")
    assert await story.serial_number("web1", "web") != before
    before = await story.serial_number("web1", "identity")
    await story.ctl("renew", "--host", "web1", "--identity", "--reason", "drill", "--wait", "--yes")
    assert await story.serial_number("web1", "identity") != before


async def test_an_identity_is_renewed_by_hand(story: Story) -> None:
    """On the host, where the agent runs."""
    before = await story.serial_number("web1", "identity")
    renewed = await story.web.run("renew", "identity")
    assert renewed.status == 0, renewed.stdout + renewed.stderr

    async def is_another() -> bool:
        return await story.serial_number("web1", "identity") != before

    await until(is_another, poll=0.2, what="another identity of web1")


async def test_a_certificate_is_revoked_over_grpc(story: Story) -> None:
    """Its holder replaces it at once; doing it again is told, and audited no second time."""
    before = await story.serial_number("web1", "web")
    (held,) = (each for each in (await story.host("web1"))["certificates"] if each["name"] == "web")
    command = ("revoke", held["installed"]["certificateId"], "--as", "superseded", "--reason", "moved", "--yes")
    first = json.loads((await story.ctl(*command)).stdout)
    assert (first["identity"], first["holderTold"]) == (WEB, True)
    assert "alreadyRevoked" not in first

    async def is_replaced() -> bool:
        return await story.serial_number("web1", "web") != before

    await until(is_replaced, poll=0.2, what="another certificate in use")
    assert json.loads((await story.ctl(*command)).stdout)["alreadyRevoked"] is True
    audited = await events(story.deployment, event_type="certificate_revoked")
    assert [(each["identity"], each["reason"]) for each in audited] == [("alice.certplane.test", f"of {WEB}: moved")]


async def test_a_host_that_is_gone_is_forgotten(story: Story) -> None:
    """Only once the policy has lost it; then it is in no list any more."""

    async def reload(hosts: dict[str, Any]) -> None:
        story.deployment.write_policy({**_POLICY, "hosts": hosts})
        reloaded = await story.deployment.run_broker("reload", "--confirm")
        assert reloaded.status == 0, reloaded.stderr

    await reload({**_POLICY["hosts"], "old1": {"identity": OLD, "profiles": ["mail"]}})
    old = story.deployment.add_host(OLD, [_certificate("mail")])
    for command in (("enroll",), ("run", "--once")):
        ran = await old.run(*command)
        assert ran.status == 0, ran.stderr
    refused = await story.alice.run("forget", OLD, "--reason", "sold", "--yes")
    assert refused.status != 0
    assert "remove it from policy.yml" in refused.stderr
    await reload(_POLICY["hosts"])
    assert "the policy no longer has it" in (await story.host(OLD))["blockedReason"]
    await story.ctl("forget", OLD, "--reason", "sold", "--yes")
    assert OLD not in (await story.ctl("fleet", "-o", "name")).stdout
    assert (await story.alice.run("host", OLD)).status != 0
