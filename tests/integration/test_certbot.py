"""What a real certbot leaves is found and taken over, and what it does beside the agent from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.agent.init.found import find
from certplane.agent.renewal.status import is_well
from certplane.pki.keys import KeyType
from certplane.runtime.clock import SystemClock
from certplane.sandbox.pebble import Pebble, PebbleOptions
from tests.support.agent_world import AgentWorld
from tests.support.certbot_client import Certbot
from tests.support.lineages import read_leaf
from tests.support.parts import need_part

pytestmark = pytest.mark.integration
WEB = "www.example.com"


@pytest_asyncio.fixture
async def certbot(tmp_path: Path) -> AsyncIterator[Certbot]:
    part = need_part("certbot")
    (tmp_path / "pebble").mkdir()
    options = PebbleOptions(always_valid=True)
    async with Pebble(tmp_path / "pebble", "127.0.0.1:1", options, part=need_part("pebble")) as pebble:
        yield Certbot(part, pebble, tmp_path / "letsencrypt")


async def test_its_lineages_are_found(certbot: Certbot) -> None:
    """Names, kinds of keys, the hook of one, and a second version."""
    await certbot.certonly(WEB, "example.com", options=("--deploy-hook", "echo 'a, b' > /dev/null"))
    await certbot.certonly("*.example.org", options=("--key-type", "rsa", "--rsa-key-size", "2048"))
    renewed = await certbot.run("renew", "--force-renewal", "--cert-name", WEB)
    assert renewed.returncode == 0, renewed.stdout + renewed.stderr
    wild, web = find("certbot", certbot.folder, SystemClock().now())
    assert (web.name, web.dns_names, web.key_type, web.problem) == (WEB, ("example.com", WEB), KeyType.EC_P256, "")
    assert web.hooks == ("echo 'a, b' > /dev/null",)
    assert web.paths["fullchain"].resolve().name == "fullchain2.pem"
    assert (wild.name, wild.dns_names, wild.key_type) == ("example.org", ("*.example.org",), KeyType.RSA_2048)
    assert wild.hooks == ()


async def test_what_it_does_beside_the_agent(tmp_path: Path, certbot: Certbot) -> None:
    """The agent has the paths of `live`: certbot doesn't touch them again, and says nothing once it was stopped."""
    live = await certbot.certonly(WEB)
    (tmp_path / "host").mkdir()
    paths = {"key": f"{live}/privkey.pem", "fullchain": f"{live}/fullchain.pem", "chain": f"{live}/chain.pem"}
    world = AgentWorld(tmp_path / "host", [{"name": "web", "dns_names": [WEB], **paths}])
    try:
        await world.enroll()
        before = read_leaf(live / "fullchain.pem")
        agent = world.agent()
        status = (await agent.run_once())["web"]
        await agent.close()
        assert (is_well(status), status.confirmed_version) == (True, 0)
        assert "issue" not in world.broker.calls
        renewed = await certbot.run("renew", "--force-renewal")
        assert renewed.returncode != 0
        assert f"{WEB}.conf" in renewed.stdout + renewed.stderr
        assert read_leaf(live / "fullchain.pem") == before
        assert (live / "privkey.pem").readlink().is_relative_to(tmp_path / "host" / "state")
        conf = certbot.folder / "renewal" / f"{WEB}.conf"
        conf.rename(conf.with_name(f"{conf.name}.moved"))
        stopped = await certbot.run("renew", "--force-renewal")
        assert (stopped.returncode, "No renewals were attempted" in stopped.stdout) == (0, True)
    finally:
        world.close()
