"""Both programs for many lives of their certificates: what is watched meanwhile, and what must hold in the end.

One host with several certificates that live for seconds, each served by an nginx of its own, and one that lives long.
Both programs run as processes and can be killed; the figures are read from outside, where an operator would read them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shlex
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography import x509

from certplane.agent.install.material import Outputs
from certplane.broker.database import open_store
from certplane.broker.renewal.model import Selection
from certplane.broker.settings import load_settings
from certplane.pki.keys import public_key_sha256
from certplane.sandbox.deployment import ZONES, Deployment, DeploymentOptions, Host
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.operator import Operator
from certplane.sandbox.parts import Part
from certplane.sandbox.pebble import DEFAULT_PROFILE, SHORT_PROFILE, PebbleOptions
from certplane.sandbox.process import ServerProcess
from tests.support.killing import events, settle_on_a_port
from tests.support.limits import UNLIMITED
from tests.support.lineages import LocalIssuer, pair_problem, standing_pair
from tests.support.status_json import status_document
from tests.support.tls_services import Nginx, served_serial
from tests.support.waiting import until

HOST = "web1.certplane.test"
OPERATOR = "alice.certplane.test"
SHORT_LIVED = ("fast0", "fast1", "fast2")
"""Certificates that live for seconds."""
CALM = "calm"
"""The one that lives for 90 days."""
_PROFILES = dict.fromkeys(SHORT_LIVED, SHORT_PROFILE) | {CALM: DEFAULT_PROFILE}
_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {
        name: {"type": "multi_san", "dns_names": [f"{name}.certplane.test"], "acme": {"profile": profile}}
        for name, profile in _PROFILES.items()
    },
    "hosts": {"web1": {"identity": HOST, "profiles": list(_PROFILES)}},
    "operators": {"alice": {"identity": OPERATOR, "roles": ["operator"]}},
}
_LIMITS = {"rate_limits": UNLIMITED}


@dataclass(frozen=True)
class Process:
    """What one program holds; `resident` in bytes."""

    resident: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, program: ServerProcess) -> Process:
        process = psutil.Process(program.pid)
        with process.oneshot():
            return cls(process.memory_info().rss, _descriptors(process), process.num_threads())


def _descriptors(process: psutil.Process) -> int:
    """How many are open. A program that may not be dumped shows them to root alone."""
    try:
        return process.num_fds()
    except psutil.AccessDenied:
        pytest.fail("the soak looks into /proc/PID/fd of undumpable programs: run it as root", pytrace=False)


@dataclass(frozen=True)
class Figures:
    """What may not drift, at one moment."""

    renewals: int
    broker: Process
    agent: Process
    versions: int
    """On the host's disk, of the certificate that has most."""
    spooled: int
    """Files of reports on the host."""

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Soak:
    """The world. See `soak`."""

    def __init__(self, deployment: Deployment, nginx: Part) -> None:
        self.deployment = deployment
        self.host: Host = deployment.add_host(HOST)
        self.operator = Operator(deployment, OPERATOR)
        self.services = {name: Nginx(nginx, self.host.folder / name, self.pair(name)) for name in _PROFILES}
        self.agent: ServerProcess

    def pair(self, name: str) -> Path:
        """The folder that a certificate's service reads."""
        return self.host.folder / "tls" / name

    async def start(self) -> None:
        """Services with placeholders, an enrolled host, and everything served once."""
        for name, service in self.services.items():
            pair = self.pair(name)
            standing_pair(
                LocalIssuer(now=datetime.now(UTC)),
                Outputs(key=pair / "web.key", fullchain=pair / "web.pem"),
                "placeholder.certplane.test",  # one of its own names would be kept until it is due
            )
            (pair / "web.key").chmod(0o600)
            await service.start()
        self.host.write_config([self._certificate(name) for name in _PROFILES])
        await self.deployment.start_broker()
        # The operator does nothing for long: its identity isn't one of those that are renewed here.
        identity = await self.deployment.identity_ca.issue(OPERATOR, [OPERATOR], lifetime=timedelta(hours=12))
        certificate, key = self.operator.identity
        identity.write(certificate.parent, certificate.stem)
        assert (certificate.exists(), key.exists()) == (True, True)
        enrolled = await self.host.run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        self.agent = await self.host.start()
        await self.settle()

    def _certificate(self, name: str) -> dict[str, Any]:
        service, pair = self.services[name], self.pair(name)
        reloads = shlex.quote(str(self.reloads(name)))
        return {
            "name": name,
            "profile": name,
            "dns_names": [f"{name}.certplane.test"],
            "key": str(pair / "web.key"),
            "fullchain": str(pair / "web.pem"),
            "reload_command": f"{service.reload_command} && echo $CERTPLANE_SERIAL_NUMBER >> {reloads}",
            "verify": {
                "connect": f"127.0.0.1:{service.port}",
                "timeout": "2s",
                "attempts": 40,
                "interval": "100ms",
                "every": "5s",
            },
        }

    def reloads(self, name: str) -> Path:
        """The serial numbers with which a service was told to reload."""
        return self.host.folder / f"{name}.reloads"

    # ---- what others see -------------------------------------------------------------------------------------------

    async def known(self) -> dict[str, dict[str, Any]]:
        """The host's certificates as the broker knows them, by name."""
        return {each["name"]: each for each in (await self.fleet_says()).get("certificates", ())}

    async def fleet_says(self) -> dict[str, Any]:
        """What an operator is shown of the host."""
        finished = await self.operator.run("host", HOST, "--json")
        assert finished.status == 0, finished.stderr
        return dict(json.loads(finished.stdout))

    async def status(self) -> dict[str, dict[str, Any]]:
        """The certificates as the host shows them, by name."""
        return {each["name"]: each for each in (await self._shown())["certificates"]}

    async def _shown(self) -> dict[str, Any]:
        finished = await self.host.run("status", "--json")
        assert finished.stdout, finished.stderr
        return status_document(finished.stdout)

    def issued(self) -> list[str]:
        """Serial numbers of all certificates that Pebble has made, oldest first."""
        return [format(serial, "x") for _, serial in self.deployment.pebble.log.issued]

    def figures(self) -> Figures:
        """The moment's."""
        certificates = self.host.state / "certificates"
        versions = [len(list((certificates / name / "versions").iterdir())) for name in _PROFILES]
        return Figures(
            renewals=len(self.issued()),
            broker=Process.of(self.deployment.broker_process),
            agent=Process.of(self.agent),
            versions=max(versions),
            spooled=len(list((self.host.state / "reports").iterdir())),
        )

    async def reported(self, outcome: str) -> dict[str, list[str]]:
        """By certificate: the serial numbers that the host has reported with this outcome, by the audit log."""
        found: dict[str, list[str]] = {name: [] for name in _PROFILES}
        for event in await events(self.deployment, event_type="renewal_reported"):
            name, _, told = event["reason"].partition(": ")
            if name in found and told == outcome:
                found[name].append(event["cert_serial_number"])
        return found

    # ---- what happens ----------------------------------------------------------------------------------------------

    async def run(self, span: timedelta, *, sample: timedelta) -> list[Figures]:
        """Let it run, and look at it now and then."""
        found = [self.figures()]
        end = asyncio.get_running_loop().time() + span.total_seconds()
        while (left := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(left, sample.total_seconds()))
            found.append(self.figures())
        return found

    async def run_killing(self, span: timedelta, rng: random.Random, *, pause: tuple[float, float]) -> Counter[str]:
        """Let it run, and kill one program or the other at random moments; how often each was killed."""
        killed: Counter[str] = Counter()
        end = asyncio.get_running_loop().time() + span.total_seconds()
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(rng.uniform(*pause))
            which = rng.choice(("agent", "broker"))
            killed[which] += 1
            if which == "agent":
                await self.kill_agent()
            else:
                await self.kill_broker()
        return killed

    async def kill_agent(self) -> None:
        """SIGKILL, and a start as systemd would make it."""
        self.agent.kill()
        await until(lambda: not self.agent.running, what="the agent's end")
        self.agent = await self.host.start()

    async def kill_broker(self) -> None:
        """The same for the broker."""
        broker = self.deployment.broker_process
        broker.kill()
        await until(lambda: not broker.running, what="the broker's end")
        await self.deployment.start_broker()

    async def settle(self) -> None:
        """Wait until everything is served and valid, and the broker knows what the host knows."""
        unlike: list[str] = []

        async def agreed() -> bool:
            unlike[:] = await self.disagreements()
            return not unlike

        try:
            await until(agreed, poll=0.3)
        except AssertionError:
            log = self.agent.log_text()[-4000:]
            raise AssertionError(f"not settled: {'; '.join(unlike)}\n{log}") from None

    async def disagreements(self) -> list[str]:
        """In what host, broker and services differ, or what isn't well."""
        shown, known = await asyncio.gather(self._shown(), self.known())
        if shown["broker"]["unacknowledged_reports"]:
            return [f"{shown['broker']['unacknowledged_reports']} reports are on their way"]
        found = []
        for mine in shown["certificates"]:
            name = mine["name"]
            theirs = known.get(name, {})
            if mine["state"] != "serving":
                found.append(f"{name} is {mine['state']}: {mine['last_error']}")
            elif theirs.get("state") != "STATE_SERVING":
                found.append(f"{name} is {theirs.get('state')} for the broker")
            elif theirs["installed"]["certificateId"] != mine["certificate_id"]:
                found.append(f"{name} is another one for the broker")
            elif await served_serial(self.services[name].port) != mine["serial_number"]:
                found.append(f"{name} is served otherwise")
        return found

    # ---- what must hold --------------------------------------------------------------------------------------------

    async def assert_served_and_paired(self) -> None:
        """Each service serves a certificate that is valid, and the files that it reads belong together."""
        for name, service in self.services.items():

            async def served_as_filed(name: str = name, port: int = service.port) -> bool:
                pair = self.pair(name)
                cert, chain = self.host.output(name, "cert"), self.host.output(name, "chain")
                outputs = Outputs(key=pair / "web.key", fullchain=pair / "web.pem", cert=cert, chain=chain)
                files = [path.resolve() for path in outputs.paths().values()]
                problem = pair_problem(outputs)
                leaf = x509.load_pem_x509_certificate(cert.read_bytes())
                issuer = x509.load_pem_x509_certificate(chain.read_bytes())
                served = await served_serial(port)
                if files != [
                    path.resolve() for path in outputs.paths().values()
                ]:  # renewals go on: one came while this was read
                    return False
                assert problem == "", name
                leaf.verify_directly_issued_by(issuer)
                assert leaf.not_valid_before_utc <= datetime.now(UTC) < leaf.not_valid_after_utc, name
                return served == format(leaf.serial_number, "x")  # the service reloads after its files are there

            await until(served_as_filed, poll=0.3, what=f"{name} served as its files say")

    async def assert_one_order_a_key(self) -> None:
        """Every certificate that the CA has made is for a key of its own, by one finalisation, and the broker has it."""

        async def all_agree() -> bool:  # they are read one after the other, and renewals go on meanwhile
            made = await self.deployment.pebble.issued_certificates()
            keys = Counter(public_key_sha256(certificate.public_key()) for certificate in made)
            assert set(keys.values()) == {1}
            assert set(Counter(self.deployment.pebble.log.finalizations).values()) == {1}
            issued = self.query("SELECT public_key_sha256 FROM orders WHERE state = 'ISSUED'")
            told = await events(self.deployment, event_type="certificate_issued")
            in_events = sorted(event["cert_serial_number"] for event in told)
            return sorted(keys) == sorted(key for (key,) in issued) and in_events == sorted(self.issued())

        await until(all_agree, poll=0.3, what="one order and one event for each certificate of the CA's")

    async def assert_nothing_is_left(self) -> None:
        """After the broker's next start: no TXT record, no open order, no plan but those of certificates in force.

        The agent is stopped meanwhile, so that no new order comes in between.
        """
        await self.host.stop()
        await self.deployment.start_broker()
        unfinished = "SELECT order_id FROM orders WHERE end_time IS NULL OR txt_records IS NOT NULL"
        await until(lambda: self.query(unfinished) == [], what="the end of what the kills had cut")
        for zone in ZONES:
            assert self.deployment.cloudflare.records(zone) == []
        assert await self.deployment.dns.endpoint.txt("_acme-challenge.fast0.certplane.test") == frozenset()
        (plans,) = self.query("SELECT count(*) FROM renewal_plans")[0]
        assert plans <= len(_PROFILES) + 1  # one that expired since it started may be among them
        names = self.query("SELECT name FROM certificate_statuses ORDER BY name")
        assert names == [(CALM,), *((name,) for name in SHORT_LIVED), ("identity",)]
        self.agent = await self.host.start()

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Rows of the broker's database."""
        with contextlib.closing(sqlite3.connect(self.deployment.broker_folder / "broker.db")) as database:
            return database.execute(statement).fetchall()

    # ---- the CA's word ---------------------------------------------------------------------------------------------

    async def incident(self, name: str, url: str) -> None:
        """The CA wants a certificate back: its window is past. The broker, which must not run, will ask at its start.

        Pebble lets nobody ask again for six hours, which no test has.
        """
        past = datetime.now(UTC) - timedelta(days=1)
        window = {"start": f"{past - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}", "end": f"{past:%Y-%m-%dT%H:%M:%SZ}"}
        body = json.dumps({"suggestedWindow": window, "explanationURL": url})
        await self.deployment.pebble.set_renewal_info(self.host.output(name, "cert").read_text(), body)
        async with open_store(load_settings(self.deployment.broker_config)) as stores:
            now = datetime.now(UTC)
            (selected,) = await stores.renewal_plans.select(Selection(profiles=(name,)), now)
            certificate = await stores.renewal_plans.find(selected.certificate_id, now)
            assert certificate is not None
            assert certificate.plan is not None
            asked = replace(certificate.plan, next_check_time=now)
            assert await stores.renewal_plans.replace_plan(certificate.plan, asked)


@asynccontextmanager
async def soak(folder: Path, nginx: Part, *, life: timedelta, identity_life: timedelta) -> AsyncIterator[Soak]:
    """A broker, an agent and its services at work; certificates of `SHORT_LIVED` live for `life`."""
    options = DeploymentOptions(
        _POLICY,
        broker=_LIMITS,
        pebble=PebbleOptions(short_lifetime=life),
        identities=IdentityRules(lifetime=identity_life),
    )
    async with Deployment(folder, options) as deployment, AsyncExitStack() as stack:
        settle_on_a_port(deployment)
        made = Soak(deployment, nginx)
        for service in made.services.values():
            stack.push_async_callback(service.stop)
        await made.start()
        yield made
