"""Programs of today on what those of 452d001 left: they show the same, and go on where those were killed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.sandbox.certificates import write_private
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Finished, Host, run_program
from certplane.sandbox.pebble import PebbleOptions
from tests.support.killing import events, leaf_of
from tests.support.old_data import DATA, lay_out, make_sqlite, missing
from tests.support.parts import need_part
from tests.support.status_json import broker_rows, status_document
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_HOSTS = ("web1", "db1", "api1", "new1")
_KNOWN = ("web1", "db1", "api1", "gone1")
"""Hosts that the broker has heard of."""


@dataclass
class OldFleet:
    """A deployment of today: its broker has the old database, and its hosts have the old state folders."""

    deployment: Deployment
    shown: dict[str, Finished]
    """What `status --json` said of each host before anything else ran."""
    told: dict[str, list[dict[str, Any]]]
    """What the broker told of them before any of them ran, by command."""

    def host(self, name: str) -> Host:
        return Host(self.deployment, f"{name}.certplane.test")

    async def ctl(self, *arguments: str) -> list[dict[str, Any]]:
        config = self.host("admin").folder / "ctl.yml"
        finished = await run_program(["-m", "certplane.ctl", "-c", str(config), *arguments, "--json"], {})
        assert finished.status == 0, finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    async def broker(self, *arguments: str) -> list[dict[str, Any]]:
        finished = await self.deployment.run_broker(*arguments, "--json")
        assert finished.status == 0, finished.stderr
        return broker_rows(finished.stdout)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OldFleet]:
    need_part("pebble")
    policy = yaml.safe_load((DATA / "policy.yml").read_text())
    broker = {
        "server": {"mtls": {"agent_ca_bundle": str(DATA / "identity-roots.pem")}, "drain_timeout": "1s"},
        "store": {"keep": "forever"},
        "audit": {"keep": "forever"},
        "rate_limits": {"per_identity_profile_per_hour": 1000, "new_keys_per_identity_profile_per_day": 1000},
    }
    pebble = PebbleOptions(blocked_domains=["blocked.certplane.test"])
    options = DeploymentOptions(policy, dns_provider="rfc2136", broker=broker, pebble=pebble)
    async with Deployment(tmp_path_factory.mktemp("old"), options) as deployment:
        make_sqlite(deployment.broker_folder / "broker.db")
        for name in (*_HOSTS, "admin"):
            _point_to(deployment, lay_out(name, deployment.folder))
        write_private(deployment.broker_folder / "audit-spill.jsonl", (DATA / "spill.jsonl").read_bytes())
        fleet = OldFleet(deployment, {}, {})
        fleet.shown = {name: await fleet.host(name).run("status", "--json") for name in _HOSTS}
        await deployment.start_broker()
        fleet.told = {
            "fleet": await fleet.ctl("fleet", "--sort", "name", "--kind", "host"),
            "identity list": await fleet.broker("identity", "list"),
            "certs list": await fleet.broker("certs", "list"),
            **{name: await fleet.ctl("host", f"{name}.certplane.test") for name in _KNOWN},
        }
        yield fleet


def _point_to(deployment: Deployment, folder: Path) -> None:
    """Let a host's settings name the broker of today and the CA that its identity is of."""
    for path in folder.glob("*.yml"):
        settings = yaml.safe_load(path.read_text())
        settings["broker"]["url"] = f"https://localhost:{deployment.broker_port}"
        if "issuer_ca_bundle" in settings["identity"]:
            settings["identity"]["issuer_ca_bundle"] = str(DATA / "identity-roots.pem")
        path.write_text(yaml.safe_dump(settings))


def old_lines(name: str) -> list[dict[str, Any]]:
    """What was shown; a member that said nothing is left out today."""
    lines = [json.loads(line) for line in (DATA / "shown" / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if value != ""} for line in lines]


@pytest.mark.parametrize("name", _HOSTS)
@pytest.mark.asyncio(loop_scope="module")
async def test_an_agent_shows_what_it_showed(fleet: OldFleet, name: str) -> None:
    """Lineages, failures, directives, waiting reports and the link, from the state folder alone."""
    expected = json.loads((DATA / "shown" / f"{name}-status.json").read_text())
    for certificate in expected["certificates"]:
        del certificate["next_attempt_time"]  # it has passed, and what has passed isn't shown any more
    if name == "new1":  # there is no status yet, and so none's time
        del expected["identity"]["update_time"], expected["certificates"][0]["update_time"]
    assert missing(expected, status_document(fleet.shown[name].stdout)) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_broker_shows_what_it_showed(fleet: OldFleet) -> None:
    """Hosts, their certificates and statuses, the contested and the denied identity."""
    assert missing(old_lines("fleet.jsonl"), fleet.told["fleet"]) == []
    for name in _KNOWN:
        expected = json.loads((DATA / "shown" / f"{name}-host.json").read_text())
        assert missing([expected], fleet.told[name]) == []
    assert missing(old_lines("identity-list.jsonl"), fleet.told["identity list"]) == []
    old = old_lines("certs-list.jsonl")
    known = {each["certificate_id"]: each for each in fleet.told["certs list"]}
    for each in old:  # one that another has taken the place of is named so today
        was, now = each.pop("state"), known[each["certificate_id"]]["state"]
        assert now == was or (was, now) == ("delivered", "superseded")
        assert each.pop("renew")  # the rule's; today it is the plan's time, and none of what was replaced
    assert missing(old, [known[each["certificate_id"]] for each in old]) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_the_audit_log_goes_on(fleet: OldFleet) -> None:
    """Its records are the same; behind them stand the spilled ones."""
    old = old_lines("audit-tail.jsonl")
    events = await fleet.broker("audit", "tail", "--limit", "1000")
    assert events[: len(old)] == old
    spilled = [json.loads(line) for line in (DATA / "spill.jsonl").read_text().splitlines()]
    assert [event for event in events if event in spilled] == spilled


@pytest.mark.asyncio(loop_scope="module")
async def test_an_agent_goes_on_where_it_was(fleet: OldFleet) -> None:
    """The request that was under way ends with its own key, the operator's wish is heard, and all reports arrive."""
    web1 = fleet.host("web1")
    pending = web1.state / "certificates" / "web" / "pending" / "privkey.pem"
    key = load_pem_private_key(pending.read_bytes(), None).public_key()
    wanted = {"web": ("STATE_WAITING", "3"), "wild": ("STATE_WAITING", "2"), "mail": ("STATE_DEGRADED", "1")}

    async def gone_on() -> bool:  # a run listens for a second, in which a busy broker may not have told all wishes
        finished = await web1.run("run", "--once")
        assert finished.status == 1, "the reload command of `mail` fails as ever"
        known = {
            each["name"]: (each["state"], each["installed"]["version"]) for each in await certificates(fleet, "web1")
        }
        return {name: known[name] for name in wanted} == wanted

    await until(gone_on, what="what was under way, and the operator's wish")
    assert leaf_of(web1, "web").public_key() == key
    status = status_document((await web1.run("status", "--json")).stdout)
    assert (status["broker"]["unacknowledged_reports"], status["certificates"][0]["last_error"]) == (0, "")
    failure = "web: failed at request"  # it was told before the success: no report of the spool was lost
    assert [each for each in await events(fleet.deployment, event_type="renewal_reported") if failure in each["reason"]]


@pytest.mark.asyncio(loop_scope="module")
async def test_an_interrupted_activation_is_finished(fleet: OldFleet) -> None:
    """The journal of copied files: they are the new version's, all of them; what the CA refused waits as it did."""
    db1 = fleet.host("db1")
    finished = await db1.run("run", "--once")
    assert "finishing the interrupted copy of version 2" in finished.stderr
    current = x509.load_pem_x509_certificate(
        (db1.state / "certificates" / "db" / "versions" / "2" / "cert.pem").read_bytes()
    )
    assert leaf_of(db1, "db") == current
    states = {each["name"]: each["state"] for each in await certificates(fleet, "db1")}
    assert states == {"db": "STATE_WAITING", "blocked": "STATE_FAILED", "identity": "STATE_WAITING"}


async def certificates(fleet: OldFleet, host: str) -> list[dict[str, Any]]:
    """A host's certificates as the broker knows them."""
    (known,) = await fleet.ctl("host", f"{host}.certplane.test")
    found: list[dict[str, Any]] = known["certificates"]
    return found
