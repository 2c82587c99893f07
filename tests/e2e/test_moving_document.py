"""docs/moving.md, its lines typed on a host that has its certificate by a real certbot."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.operator import Operator
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.step_ca import StepCa
from tests.support.certbot_client import Certbot
from tests.support.init_host import InitHost
from tests.support.lineages import read_leaf
from tests.support.others_files import PublicCa, acme_sh_certificate, lego_certificate
from tests.support.parts import need_part

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

DOCUMENT = Path(__file__).parents[2] / "docs" / "moving.md"
WEB = "www.example.com"
OPERATOR = "alice.certplane.test"
HOST = "host{}.certplane.test"
_NUMBERS = iter(range(10))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    """A broker whose policy gives the document's profile to each of the hosts."""
    need_part("step-ca")
    need_part("pebble")
    policy = {
        "version": 1,
        "profiles": {"web": {"type": "multi_san", "dns_names": [WEB]}},
        "operators": {"alice": {"identity": OPERATOR, "roles": ["viewer", "operator"]}},
        "hosts": {f"host{number}": {"identity": HOST.format(number), "profiles": ["web"]} for number in range(10)},
    }
    async with Deployment(tmp_path_factory.mktemp("moving"), DeploymentOptions(policy=policy)) as deployment:
        assert isinstance(deployment.identity_ca, StepCa)
        await deployment.start_broker()
        yield deployment


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pebble(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pebble]:
    """The CA that certbot used."""
    need_part("certbot")
    folder = tmp_path_factory.mktemp("pebble")
    options = PebbleOptions(always_valid=True)
    async with Pebble(folder, "127.0.0.1:1", options, part=need_part("pebble")) as pebble:
        yield pebble


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may pass, as /etc and /var are."""
    folder = Path(tempfile.mkdtemp(prefix="certplane-moving-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def host(deployment: Deployment, folder: Path) -> InitHost:
    host = InitHost(deployment, folder, HOST.format(next(_NUMBERS)))
    if os.geteuid() == 0:
        host.user = "nobody"
    return host


@pytest.fixture
def certbot(pebble: Pebble, folder: Path) -> Certbot:
    return Certbot(need_part("certbot"), pebble, folder / "letsencrypt")


def lines_of(section: str) -> list[str]:
    """The lines to type of one section of the document."""
    text = DOCUMENT.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


async def typed(host: InitHost, line: str, *, token: str | None = None) -> str:
    """Type one line of the document on the host; what it printed."""
    words = shlex.split(line)
    if words[:2] == ["certplane-agent", "init"]:
        asked = [*words[words.index("--from") :]]
        asked[1:2] = [asked[1], str(host.folder / "letsencrypt")]
        asked = [word for word in asked if word not in {"--token", "token"}]
        done = await host.init(*asked, token=token)
        assert done.status == 0, done.stderr
        return done.stdout
    line = line.replace("/etc/letsencrypt", str(host.folder / "letsencrypt"))
    line = line.replace("/etc/certplane/tls", str(host.tls))
    subprocess.run(["/bin/sh", "-ec", line], check=True)  # noqa: ASYNC221 - a rename and links
    return ""


async def test_from_certbot(host: InitHost, certbot: Certbot) -> None:
    """The dry run makes nothing; then copies, agent.yml and the document's own lines, which `check` agrees with."""
    live = await certbot.certonly(WEB)
    serial = read_leaf(live / "fullchain.pem")
    dry, real, stop, links, *_ = lines_of("From certbot")
    token = host.mint()
    before = sorted(host.folder.iterdir())
    shown = await typed(host, dry, token=token)
    assert f"would take over certbot's {WEB} ({WEB}), until" in shown
    assert sorted(host.folder.iterdir()) == before
    said = await typed(host, real, token=token)
    for line in (stop, links):
        here = line.replace("/etc/letsencrypt", str(host.folder / "letsencrypt"))
        assert here.replace("/etc/certplane/tls", str(host.tls)) in said
        await typed(host, line)
    assert read_leaf(live / "fullchain.pem") == serial
    assert stat.S_IMODE((host.tls / "web.key").stat().st_mode) == 0o600
    if os.geteuid() == 0:
        assert (host.tls / "web.key").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    check = await host.run("-c", str(host.config), "check")
    assert check.status == 0, check.stdout
    assert "the pair at its paths is taken over at the agent's start" in check.stdout
    assert "certbot renews it too" not in check.stdout
    again = await typed(host, real)
    assert "nothing to do" in again, again
    renewed = await certbot.run("renew", "--force-renewal")
    assert "No renewals were attempted" in renewed.stdout


async def test_from_certbot_for_an_agent_of_root(host: InitHost, certbot: Certbot, deployment: Deployment) -> None:
    """Its outputs are certbot's paths; the agent's first run orders nothing, `renew` gets a certificate there."""
    if os.geteuid() == 0:
        host.user = "root"
    live = await certbot.certonly(WEB, options=("--deploy-hook", "true"))
    serial = read_leaf(live / "fullchain.pem")
    said = await typed(host, lines_of("From certbot")[1], token=host.mint())
    (certificate,) = host.settings["certificates"]
    if os.geteuid() != 0:
        pytest.skip("only an agent of root has the paths of others")
    assert (certificate["fullchain"], certificate["reload_command"]) == (f"{live}/fullchain.pem", "true")
    assert "ln -sfn" not in said
    orders = len(deployment.pebble.log.orders)
    once = await host.run("-c", str(host.config), "run", "--once")
    assert once.status == 0, once.stderr
    assert len(deployment.pebble.log.orders) == orders
    assert read_leaf(live / "fullchain.pem") == serial
    assert (live / "privkey.pem").readlink().is_relative_to(host.state)
    check = await host.run("-c", str(host.config), "check")
    assert (check.status, "state of web: OK: version 0 until " in check.stdout) == (0, True), check.stdout
    await operators_see(deployment, host, serial)


async def operators_see(deployment: Deployment, host: InitHost, serial: str) -> None:
    """The fleet's view has what was taken over, with its end; the broker, which hasn't issued it, can't renew it."""
    alice = Operator(deployment, OPERATOR)
    enrolled = await alice.enroll()
    assert enrolled.status == 0, enrolled.stderr
    shown = json.loads((await alice.run("host", host.name.partition(".")[0])).stdout)
    web = next(each for each in shown["certificates"] if each["name"] == "web")
    assert (web["health"], web["installed"]["serialNumber"]) == ("HEALTH_OK", serial)
    refused = await alice.run("renew", "--host", host.name.partition(".")[0], "--yes", "--reason", "moved")
    assert (refused.status, "no certificate in force matches" in refused.stderr) == (1, True), refused.stderr


@pytest.mark.parametrize("client", ["acme.sh", "lego"])
async def test_from_another_client(host: InitHost, client: str) -> None:
    """Its pair stands where the agent takes it over, and what is left to do is said."""
    pair = PublicCa().pair(WEB)
    if client == "lego":
        lego_certificate(host.folder / "client", WEB, pair)
    else:
        acme_sh_certificate(host.folder / "client", WEB, pair)
    done = await host.init("--from", client, str(host.folder / "client"), token=host.mint())
    assert done.status == 0, done.stderr
    assert f"keep {client} from renewing {WEB}: " in done.stdout
    assert (host.tls / "web.pem").read_bytes() == pair.fullchain
    check = await host.run("-c", str(host.config), "check")
    assert check.status == 0, check.stdout
    assert "the pair at its paths is taken over at the agent's start" in check.stdout


async def test_a_folder_without_certificates(host: InitHost) -> None:
    """It is said before anything is made, and before a token is asked for."""
    (host.folder / "empty").mkdir()
    refused = await host.init("--from", "certbot", str(host.folder / "empty"))
    assert refused.status == 1
    assert f"{host.folder}/empty has no certificate of certbot; name its folder after --from" in refused.stderr
    assert [path.name for path in host.folder.iterdir()] == ["empty"]
