"""What `check` says, and what it ends with: monitoring asks it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from certplane.agent.check import findings
from certplane.agent.inspection import Finding, Level, address_findings
from certplane.agent.install.status import JsonStatusFile
from certplane.agent.model import ServedLeaf, ServiceView, Version
from certplane.config.broker_urls import BrokerUrl
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.runtime.health import HealthWord
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.loopback import free_port
from tests.fakes.agent_broker import FakeBroker
from tests.support.agent_world import AgentWorld
from tests.support.bundles import DAY, pem, root
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG

MakeWorld = Callable[..., AgentWorld]


@pytest_asyncio.fixture
async def make_world(tmp_path: Path) -> AsyncIterator[MakeWorld]:
    worlds: list[AgentWorld] = []

    def make(*arguments: Any, **how: Any) -> AgentWorld:
        worlds.append(AgentWorld(tmp_path, *arguments, **how))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


async def look(world: AgentWorld) -> dict[str, Finding]:
    """The findings by subject, of a program that has just been started; the worst where there are several."""
    world.broker.calls.clear()
    found: dict[str, Finding] = {}
    order = [Level.OK, Level.WARN, Level.FAIL]
    async for finding in findings(world.start(), lambda _: world.broker):
        before = found.get(finding.subject)
        if before is None or order.index(before.level) < order.index(finding.level):
            found[finding.subject] = finding
    return found


async def ready(make_world: MakeWorld, *certificates: dict[str, Any]) -> AgentWorld:
    """A host that is enrolled and has its certificates."""
    world = make_world(certificates or ({"name": "web"},))
    await world.enroll()
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    return world


def failures(found: dict[str, Finding]) -> list[str]:
    return [subject for subject, finding in found.items() if finding.level is Level.FAIL]


async def test_all_is_well(make_world: MakeWorld) -> None:
    """Each thing that was looked at is a line, and nothing fails."""
    world = await ready(make_world)
    found = await look(world)
    assert failures(found) == []
    assert found["state of web"].health is HealthWord.OK
    assert found["state of web"].text.startswith("OK: version 1 until ")
    assert found["configuration"].text.endswith("agent.yml: 1 certificate")


async def test_before_the_first_run(make_world: MakeWorld) -> None:
    """A host that is enrolled and has nothing yet isn't ill."""
    world = make_world()
    await world.enroll()
    found = await look(world)
    assert failures(found) == []
    assert (found["state of web"].level, found["state of web"].health) == (Level.OK, HealthWord.OK)


async def test_expired(make_world: MakeWorld) -> None:
    """What is in place and over is a failure, whatever its service says."""
    world = await ready(make_world)
    world.clock.advance(world.broker.lifetime)
    found = await look(world)
    assert found["state of web"].health is HealthWord.EXPIRED
    assert found["state of web"].text.startswith("EXPIRED: expired at ")
    assert "certplane-agent renew web" in found["state of web"].text
    assert "state of web" in failures(found)


async def test_overdue(make_world: MakeWorld) -> None:
    """A renewal that should have been, and wasn't."""
    world = await ready(make_world)
    world.clock.advance(world.broker.lifetime - timedelta(days=2))
    found = await look(world)
    assert found["state of web"].health is HealthWord.OVERDUE
    assert "state of web" in failures(found)


async def test_revoked_as_the_host_has_heard(make_world: MakeWorld) -> None:
    """A directive said so, and the renewal hasn't been yet."""
    world = await ready(make_world)
    status = await world.status("web")
    JsonStatusFile(world.folder / "state" / "certificates" / "web").save(replace(status, revoked_versions=(1,)))
    found = await look(world)
    assert found["state of web"].health is HealthWord.REVOKED_IN_USE
    assert "state of web" in failures(found)


async def test_revoked_as_the_broker_knows(make_world: MakeWorld) -> None:
    """A host that runs from a timer hasn't heard it: the broker is asked."""
    world = await ready(make_world)
    world.broker.revoked[world.broker.issued[-1]] = world.clock.now()
    found = await look(world)
    assert found["state of web"].health is HealthWord.REVOKED_IN_USE
    assert "state of web" in failures(found)


async def test_wont_heal(make_world: MakeWorld) -> None:
    """A person is needed, or the next try comes too late."""
    world = await ready(make_world)
    current = (await world.versions("web"))[-1]
    status = replace(
        await world.status("web"),
        failures=3,
        request_error="DNS_REJECTED: no",
        last_error="DNS_REJECTED: no",
        next_attempt_time=current.not_after + DAY,
    )
    JsonStatusFile(world.folder / "state" / "certificates" / "web").save(status)
    found = await look(world)
    assert found["state of web"].health is HealthWord.WONT_HEAL
    assert "DNS_REJECTED: no" in found["state of web"].text
    assert "state of web" in failures(found)


@pytest.mark.parametrize("foreign", [True, False], ids=["another's certificate", "an expired one of this host's"])
async def test_what_the_service_serves(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, foreign: bool) -> None:
    """A certificate that isn't this host's, and one that is over, hurt whoever connects."""
    world = await ready(make_world)
    world.configure([{"name": "web", "verify": {"connect": "127.0.0.1:1"}}], {})
    now = world.clock.now()

    async def served(_: object, version: Version) -> ServiceView:
        serial, key = ("ffff", "0" * 64) if foreign else (version.serial_number, version.public_key_sha256)
        leaf = ServedLeaf(serial, key, now - 2 * DAY, now + (DAY if foreign else -DAY))
        return ServiceView(leaf, "serves another certificate" if foreign else "")

    monkeypatch.setattr("certplane.agent.install.probe.TlsProbe.look", served)
    found = await look(world)
    assert found["state of web"].health is (HealthWord.FOREIGN_SERVED if foreign else HealthWord.EXPIRED)
    assert "state of web" in failures(found)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param(("web.example", "api.example"), "dns_names lacks api.example", id="one is lacking"),
        pytest.param(("api.example",), "lacks api.example and has web.example besides", id="another"),
        pytest.param((), "has web.example besides", id="none"),
        pytest.param(tuple(f"n{number}.example" for number in range(9)), "and 4 more", id="many"),
    ],
)
async def test_names_that_are_not_the_profiles(make_world: MakeWorld, names: tuple[str, ...], words: str) -> None:
    """What the next renewal would be refused for is told before it is due."""
    world = await ready(make_world)
    world.broker.profile_names = {"web": names}
    found = await look(world)
    assert words in found["certificate web"].text
    assert "write the profile's names" in found["certificate web"].text
    assert failures(found) == ["certificate web"]
    world.broker.profile_names = {"web": ("web.example",)}
    assert failures(await look(world)) == []


async def test_profile_that_is_not_this_hosts(make_world: MakeWorld) -> None:
    """As before names were told."""
    world = await ready(make_world)
    world.broker.profiles = ("other",)
    assert failures(await look(world)) == ["certificate web"]


async def test_a_certificate_that_cannot_be_installed_is_not_ordered(make_world: MakeWorld) -> None:
    """The same trial as `check`'s comes before the order: what, why, what to do, and the CA isn't troubled."""
    world = make_world([{"name": "web"}, {"name": "api"}])
    await world.enroll()
    (world.folder / "tls" / "web.key").mkdir(parents=True)
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    assert world.broker.calls.count("issue") == 1  # that of `api`
    status = await world.status("web")
    assert "not ordered, since it couldn't be installed: key: " in status.last_error
    assert "is a directory" in status.last_error
    found = await look(world)
    assert failures(found) == ["files of web"]
    (world.folder / "tls" / "web.key").rmdir()
    world.clock.advance(timedelta(minutes=6))
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    assert (await world.status("web")).confirmed_version == 1


async def test_a_password_that_no_program_reads(make_world: MakeWorld, tmp_path: Path) -> None:
    """It is told by `check`, stops the one certificate before it is ordered, and never ends the agent."""
    password = tmp_path / "password"
    password.write_bytes("pässwörd".encode("latin-1"))
    password.chmod(0o600)
    pkcs12 = {"path": str(tmp_path / "tls" / "web.p12"), "password_file": str(password)}
    world = make_world([{"name": "web", "pkcs12": pkcs12}, {"name": "api"}])
    await world.enroll()
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    assert "isn't UTF-8" in (await world.status("web")).last_error
    assert (await world.status("api")).confirmed_version == 1
    assert failures(await look(world)) == ["files of web"]
    password.write_bytes(b"secret \n")
    found = await look(world)
    assert failures(found) == []
    assert found["files of web"].level is Level.WARN


@pytest.mark.parametrize("key", ["broker.server_ca_bundle", "identity.issuer_ca_bundle"])
@pytest.mark.parametrize("enrolled", [True, False], ids=["enrolled", "not enrolled"])
async def test_bundles(make_world: MakeWorld, tmp_path: Path, key: str, enrolled: bool) -> None:
    """A bundle that is missing, over or about to be is told, before enrollment too."""
    bundle = tmp_path / "issuer.crt"
    world = make_world(identity={"issuer_ca_bundle": str(bundle)})
    good, path = world.authority.root.pem, tmp_path / "broker-ca.crt"
    bundle.write_bytes(good)
    if enrolled:
        await world.enroll()
    path = bundle if key == "identity.issuer_ca_bundle" else path
    assert key not in await look(world)
    ended = pem(root(world.authority.root, begins=-9 * DAY, ends=-DAY))
    path.write_bytes(ended + good)
    assert (await look(world))[key].level is Level.WARN
    path.write_bytes(ended)
    assert "no certificate that is still valid" in (await look(world))[key].text
    path.unlink()
    found = (await look(world))[key]
    assert found.level is Level.FAIL
    assert f"{path} does not exist" in found.text


async def test_hook(make_world: MakeWorld) -> None:
    """A reload command that can't work."""
    world = await ready(make_world)
    world.configure([{"name": "web", "reload_command": "no-such-program-at-all"}], {})
    found = await look(world)
    assert failures(found) == ["hook of web"]
    assert "reload_command: there is no program no-such-program-at-all" in found["hook of web"].text


async def test_pending_request_that_cannot_be_read(make_world: MakeWorld) -> None:
    """It would stop the next renewal, and that of this certificate alone."""
    world = await ready(make_world, {"name": "web"}, {"name": "api"})
    pending = world.folder / "state" / "certificates" / "web" / "pending"
    pending.mkdir(mode=0o700)
    (pending / "request.json").write_text("{")
    (pending / "privkey.pem").write_text("")
    found = await look(world)
    assert failures(found) == ["state of web"]
    assert f"restart the agent, which sets it aside; or `mv {pending} {pending}.damaged`" in found["state of web"].text


async def test_where_other_programs_read_the_identity(make_world: MakeWorld, tmp_path: Path) -> None:
    """The output is called as agent.yml calls it, and nothing else depends on it."""
    cert = tmp_path / "tls" / "identity.crt"
    world = make_world(identity={"cert": str(cert)})
    await world.enroll()
    cert.unlink()
    cert.mkdir()
    found = await look(world)
    assert failures(found) == ["files of the identity"]
    assert found["files of the identity"].text.startswith(f"cert: {cert} is a directory")


async def test_identity(make_world: MakeWorld) -> None:
    """Without one, and with one that is over: cause and remedy."""
    world = make_world()
    found = await look(world)
    assert "isn't enrolled" in found["identity"].text
    assert found["broker"].level is Level.FAIL
    await world.enroll()
    assert failures(await look(world)) == []
    world.clock.advance(400 * DAY)
    assert (await look(world))["identity"].health is HealthWord.EXPIRED


async def test_broker_that_does_not_answer(make_world: MakeWorld) -> None:
    """Everything else is looked at all the same."""
    world = await ready(make_world)
    world.broker.errors.append(OperationError("can't be reached", remedy="start it"))
    found = await look(world)
    assert failures(found) == ["broker"]
    assert found["state of web"].health is HealthWord.OK


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_looks_as_the_agents_user() -> None:
    """What root may do says nothing of what the agent's user may, and no remedy takes the folder from it."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-check-"))
    folder.chmod(0o755)
    try:
        AgentWorld(folder).close()
        (folder / "state").mkdir()
        os.chown(folder / "state", 65534, 65534)
        (folder / "broker-ca.crt").chmod(0o600)
        command = [sys.executable, "-m", "certplane.agent", "-c", str(folder / "agent.yml"), "check", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG)
        assert done.returncode == 1, done.stderr
        found = {line["subject"]: line for line in map(json.loads, done.stdout.splitlines())}
        assert found["user"]["text"] == f"runs as user nobody, the owner of {folder / 'state'}"
        assert "can't be read by this user" in found["broker.server_ca_bundle"]["text"]
        assert "chown root" not in done.stdout
    finally:
        shutil.rmtree(folder)


SEVERAL = {"urls": ["https://b1.example:8443", "https://b2.example:8443"]}


async def look_at_several(world: AgentWorld, *errors: CertplaneError | None) -> dict[str, Finding]:
    """The findings where each broker answers, or fails with its error."""
    path = world.folder / "agent.yml"
    settings = yaml.safe_load(path.read_text())
    settings["broker"] = {key: value for key, value in settings["broker"].items() if key != "url"} | SEVERAL
    path.write_text(yaml.safe_dump(settings))
    answers = dict(zip(SEVERAL["urls"], errors, strict=True))

    def connect(url: BrokerUrl) -> FakeBroker:
        error = answers[str(url)]
        if error is None:
            return world.broker
        failing = FakeBroker(world.clock, LocalIssuer())
        failing.errors = [error]
        return failing

    return {finding.subject: finding async for finding in findings(world.start(), connect)}


async def test_each_of_several_brokers_has_its_line(make_world: MakeWorld) -> None:
    """All of them are asked: one that would not do is found before it is needed."""
    found = await look_at_several(await ready(make_world), None, None)
    assert failures(found) == []
    for url in SEVERAL["urls"]:
        assert found[f"broker {url}"].text.startswith(f"{url} (release 0.1.0) knows this host as host ")
    assert found["clock"].level is Level.OK


@pytest.mark.parametrize(
    "error", [OperationError("the broker can't be reached"), RefusalError(Reason.IDENTITY_UNKNOWN, "?")]
)
async def test_a_broker_that_fails_beside_one_that_answers_is_a_warning(
    make_world: MakeWorld, error: CertplaneError
) -> None:
    """The host is served; whoever looks learns which broker isn't well, and why."""
    found = await look_at_several(await ready(make_world), error, None)
    assert failures(found) == []
    first, second = (found[f"broker {url}"] for url in SEVERAL["urls"])
    assert (first.level, second.level) == (Level.WARN, Level.OK)
    assert str(error) in first.text


async def test_brokers_that_all_fail_are_failures(make_world: MakeWorld) -> None:
    """Nobody serves the host."""
    away = OperationError("the broker can't be reached")
    found = await look_at_several(await ready(make_world), away, away)
    assert failures(found) == [f"broker {url}" for url in SEVERAL["urls"]]


@pytest.mark.parametrize(
    ("addresses", "looked_at"),
    [
        pytest.param(["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "127.0.0.2"], id="two"),
        pytest.param(["127.0.0.1", "127.0.0.1"], [], id="one twice"),
        pytest.param(["127.0.0.1", "::1"], [], id="one of each family"),
        pytest.param(["::1", "127.0.0.1", "127.0.0.2"], ["127.0.0.1", "127.0.0.2"], id="several of one family"),
    ],
)
async def test_each_address_of_a_name_is_looked_at(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, addresses: list[str], looked_at: list[str]
) -> None:
    """Behind a name with several there are several brokers; one that isn't well is a warning, with its address."""
    world = await ready(make_world)
    host, port = world.start(), free_port()
    host.settings.broker.server_ca_bundle.write_bytes(CertificateAuthority.root("Servers").pem)
    identity = await host.current_identity()
    assert identity is not None
    families = {".": socket.AF_INET, ":": socket.AF_INET6}
    found = [
        (families[sign], socket.SOCK_STREAM, 6, "", (address, port))
        for address in addresses
        for sign in families
        if sign in address
    ]
    with monkeypatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        url = BrokerUrl("brokers.example", port)
        result = [
            (finding.subject, finding.level, f"{url}, address {address}, can't be reached" in finding.text)
            for address, finding in zip(looked_at, address_findings(host, "broker", url, identity), strict=True)
        ]
    assert result == [(f"broker at {address}", Level.WARN, True) for address in looked_at]
