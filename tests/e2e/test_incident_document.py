"""docs/incident.md, its commands as they stand there: a real CA, real agents, an operator, and each of the four cases.

Only names differ: what the document says it makes up is replaced by what there is. A command that nobody has run in the end
fails the test, so that none is added without being tried.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions, Finished, Host
from certplane.sandbox.operator import Operator
from certplane.sandbox.parts import PEBBLE_SET_RENEWAL_INFO
from tests.support.called_back import call_back
from tests.support.identity_ca_rotation import Rotation
from tests.support.killing import events
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "incident.md"
_BLOCK: Final = re.compile(r"```text\n(?P<commands>.*?)```", re.DOTALL)
_LABELS: Final = ("web1", "web2", "web3")
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {
        "web": {
            "type": "multi_san",
            "dns_names": ["{label}.shop.certplane.test"],
            "acme": {"issuers": ["default", "other"]},
        }
    },
    "hosts": {
        label: {
            "identity": f"{label}.certplane.test",
            "profiles": ["web"],
            "labels": {"ring": "canary" if label == "web1" else "rest"},
        }
        for label in _LABELS
    },
    "operators": {"alice": {"identity": "alice.certplane.test", "roles": ["admin"]}},
    "incidents": {"at_least": 3},
}


def commands_of(section: str) -> list[str]:
    """The commands of a section, by what its heading begins with; before the first heading where it is empty."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)
    (part,) = parts[:1] if not section else [part for part in parts if part.startswith(section)]
    return [line for match in _BLOCK.finditer(part) for line in match["commands"].replace("\\\n", " ").splitlines()]


class Page:
    """The document, a command at a time."""

    def __init__(self, deployment: Deployment, alice: Operator, *sections: str) -> None:
        self._deployment = deployment
        self._alice = alice
        self.left = [command for section in sections for command in commands_of(section)]
        self.names: dict[str, str] = {}
        """What stands for what the document has made up; the first that is in a word."""

    async def run(self, beginning: str) -> str:
        """The first command that begins so, of those that were not run: what it writes."""
        command = next(each for each in self.left if each.startswith(beginning))
        self.left.remove(command)
        finished = await self._do(command)
        assert finished.status == 0, (command, finished.stdout, finished.stderr)
        return finished.stdout

    async def json(self, beginning: str) -> list[dict[str, Any]]:
        """The same, of one that writes messages."""
        return [json.loads(line) for line in (await self.run(beginning)).splitlines()]

    async def _do(self, command: str) -> Finished:
        program, *arguments = [self._named(word) for word in shlex.split(command)]
        if program == "certplane-broker":
            return await self._deployment.run_broker(*arguments, "-c", str(self._deployment.broker_config))
        assert program == "certplanectl"
        return await self._alice.run(*arguments)

    def _named(self, word: str) -> str:
        for name, there in self.names.items():
            if name in word:
                return word.replace(name, there)
        return word


class Night:
    """A broker with two issuers, three hosts with agents, and alice with the page in her hand."""

    def __init__(self, deployment: Deployment, sections: Sequence[str]) -> None:
        self.deployment = deployment
        self.hosts = {label: self._host(label) for label in _LABELS}
        self.alice = Operator(deployment, "alice.certplane.test")
        self.page = Page(deployment, self.alice, *sections)
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        self.page.names = {
            "letsencrypt-20260319": "",
            "letsencrypt": "default",
            "r-7f3a": "",
            "2026-11-20": f"{tomorrow:%Y-%m-%d}",
            "web1.example.org": "web1.certplane.test",
            "canary:1h": "canary:1s",  # nobody bakes for an hour here
        }

    def _host(self, label: str) -> Host:
        certificate = {"name": "web", "profile": "web", "dns_names": [f"{label}.shop.certplane.test"]}
        return self.deployment.add_host(f"{label}.certplane.test", [certificate])

    async def shown(self, *arguments: str) -> list[dict[str, Any]]:
        finished = await self.alice.run(*arguments)
        assert finished.status == 0, finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    async def serials(self) -> dict[str, str]:
        """Of what is in use, by host."""
        held = await self.shown("certs", "-o", "json")
        return {each["host"]: each["certificate"].get("installed", {}).get("serialNumber", "") for each in held}

    async def all_have_one(self) -> bool:
        serials = await self.serials()
        return len(serials) == len(_LABELS) and all(serials.values())

    async def start(self, beginning: str) -> dict[str, Any]:
        """Begin the rollout of this command; what it is named from here on."""
        (begun,) = await self.page.json(beginning)
        rollout: dict[str, Any] = begun.get("rollout", begun)
        self.page.names["r-7f3a"] = rollout["rolloutId"]
        return rollout

    async def state(self) -> str:
        (shown,) = await self.shown("rollout", "show", self.page.names["r-7f3a"])
        return str(shown.get("rollout", shown)["state"])

    async def ended(self) -> bool:
        return await self.state() == "STATE_COMPLETED"


@asynccontextmanager
async def night(folder: Path, *sections: str) -> AsyncIterator[Night]:
    """Each host has its first certificate; alice has these sections of the page."""
    if not need_part("pebble").can(PEBBLE_SET_RENEWAL_INFO):
        pytest.skip("this Pebble has no renewal-info control")
    async with Deployment(folder, DeploymentOptions(_POLICY)) as deployment:
        pebble = deployment.pebble
        other = {
            "directory_url": pebble.directory_url,
            "account_email": "operator@certplane.test",
            "account_key": str(deployment.broker_folder / "other.key"),
            "ca_bundle": str(pebble.https_roots_file),
        }
        # Three nights in five minutes are more than a CA's week has.
        limits = {"certificates_per_name_set_per_week": 100}
        deployment.write_broker_config({"issuers": {"other": {"acme": other}}, "rate_limits": limits})
        made = Night(deployment, sections)
        await deployment.start_broker()
        enrolling = [host.run("enroll") for host in made.hosts.values()]
        for enrolled in await asyncio.gather(*enrolling, made.alice.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        for host in made.hosts.values():
            await host.start()
        await until(made.all_have_one, poll=0.5, what="first certificates")
        yield made


async def test_the_ca_revokes_and_a_key_is_out(tmp_path: Path) -> None:
    """What comes before the cases, and cases 1 and 2 on one fleet: each ends with what the document calls done."""
    async with night(tmp_path, "", "1.", "2.") as made:
        await _the_ca_revokes(made)
        await _the_ca_has_written(made)
        await _a_key_is_out(made)
        await _a_host_is_shut_out(made)
        assert made.page.left == []


async def test_a_ca_is_left(tmp_path: Path) -> None:
    """Case 3: to the other one, the canary first; nothing of the first is in use then."""
    async with night(tmp_path, "3.") as made:
        await made.page.run("certplanectl rollout plan --issuer letsencrypt --move-to")
        await made.start("certplanectl rollout start --issuer letsencrypt --move-to")
        await made.page.run("certplanectl rollout watch")
        assert await made.page.json("certplanectl certs --issuer letsencrypt") == []
        assert len(await made.shown("certs", "--issuer", "other")) == len(_LABELS)
        assert made.page.left == []


async def _the_ca_revokes(made: Night) -> None:
    """Hosts that are away for the moment have theirs in rings when they come."""
    page, before = made.page, await made.serials()
    for host in made.hosts.values():
        await host.stop()
    await call_back(made.deployment, made.hosts.values(), "web")

    async def opened() -> str:
        found = [each for each in await made.shown("incident", "list") if each.get("certificateCount") == 3]
        return str(found[0]["incidentId"]) if found else ""

    page.names["letsencrypt-20260319"] = await until(opened, poll=0.5, what="the incident")
    await page.run("certplanectl summary")
    await page.run("certplanectl incident list")
    await page.run("certplanectl incident list")
    (shown,) = await page.json("certplanectl incident show")
    assert shown.get("incident", shown)["certificateCount"] == 3
    await made.start("certplanectl rollout start --incident")
    await page.run("certplanectl rollout pause")
    await page.run("certplanectl rollout resume")
    watching = asyncio.create_task(page.run("certplanectl rollout watch"))
    for host in made.hosts.values():
        await host.start()
    await watching
    assert await made.ended()
    after = await made.serials()
    assert all(after[host] != before[host] for host in before)

    async def over() -> bool:
        (now,) = await made.shown("incident", "show", page.names["letsencrypt-20260319"])
        return bool(now.get("incident", now)["state"] == "STATE_CLOSED")

    await until(over, poll=0.5, what="the end of the incident")
    await page.run("certplanectl incident show")
    assert await page.json("certplanectl fleet --health revoked_in_use --health expired") == []
    assert "3 have a successor in use" in await page.run("certplanectl audit list --type incident_closed")


async def _the_ca_has_written(made: Night) -> None:
    """What the CA says in words is a selection."""
    before = await made.serials()
    await made.page.run("certplanectl rollout plan --issuer letsencrypt --issued-before")
    await made.start("certplanectl rollout start --issuer letsencrypt --issued-before")
    await until(made.ended, poll=0.5, what="the rollout")
    after = await made.serials()
    assert all(after[host] != before[host] for host in before)


async def _a_key_is_out(made: Night) -> None:
    """A new key in use, then the old certificate revoked; at once where that can't wait."""
    page, host = made.page, made.hosts["web1"]
    await page.run("certplanectl certs --host web1")
    await page.run("certplanectl rollout plan --host web1 --rekey")
    await made.start("certplanectl rollout start --host web1 --rekey")
    await page.run("certplanectl rollout watch")
    await page.run("certplanectl rollout show")
    revoked = await page.json("certplanectl audit list --type certificate_revoked")
    assert len(revoked) == 1
    (shown,) = await made.shown("certs", "--host", "web1")
    held = shown["certificate"]
    assert held["installed"]["certificateId"] in await page.run("certplanectl certs --host web1")
    page.names = {"01JDXW3ZQ8": held["installed"]["certificateId"], **page.names}
    await page.run("certplanectl revoke")

    async def replaced() -> bool:
        return (await made.serials())[host.name] not in {"", held["installed"]["serialNumber"]}

    await until(replaced, poll=0.5, what="the successor of what was revoked")


async def _a_host_is_shut_out(made: Night) -> None:
    """The end of case 2, last of all: nobody waits for it to come back."""
    await made.page.run("certplane-broker identity deny")
    (shut_out,) = await made.shown("host", "web1")
    assert "denied" in json.dumps(shut_out)


async def test_the_internal_cas_root_changes(tmp_path: Path) -> None:
    """Case 4 in short; each step of it is walked by `test_rotation`."""
    need_part("step-ca")
    need_part("pebble")
    policy = {**_POLICY, "profiles": {}, "hosts": {"web1": {"identity": "web1.certplane.test"}}}
    deployment = Deployment(tmp_path, DeploymentOptions(policy))
    rotation = Rotation(deployment)
    async with deployment:
        host, alice = rotation.add_host("web1.certplane.test"), Operator(deployment, "alice.certplane.test")
        await deployment.start_broker()
        for enrolled in await asyncio.gather(host.run("enroll"), alice.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        page = Page(deployment, alice, "4.")
        both, new = tmp_path / "both.pem", tmp_path / "root2.crt"
        both.write_bytes(rotation.bundle(rotation.new, rotation.old))
        new.write_bytes(rotation.new.pem)
        page.names = {"both.pem": str(both), "root2.crt": str(new)}
        await page.run("certplanectl trust plan both.pem")
        rotation.agent_ca_bundle.write_bytes(both.read_bytes())
        await page.run("certplanectl broker reload")
        rotation.host_trust(host.name).write_bytes(both.read_bytes())
        (deployment.broker_folder / "root.crt").write_bytes(both.read_bytes())
        await rotation.sign_by_new([rotation.new, rotation.old])
        await host.start()

        async def connected() -> bool:
            return any(json.loads(line).get("connected") for line in (await alice.run("fleet")).stdout.splitlines())

        await until(connected, poll=0.3, what="the host's stream")
        await page.run("certplanectl renew --all --identity")
        assert rotation.is_new(host)
        rotation.renew_brokers_own()
        assert (await rotation.renew(alice)).status == 0
        await page.run("certplanectl trust plan root2.crt")
        await page.run("certplanectl audit list --since 7d")
        assert page.left == []
        assert not await events(deployment, event_type="identity_refused")
