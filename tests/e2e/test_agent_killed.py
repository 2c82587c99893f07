"""kill -9 of the agent at every step from the key to the end of the reload, with a real broker, Pebble and DNS server.

Whatever the step: what services read is nothing or a whole pair, the next run finishes, and Pebble has made exactly one
certificate for the key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.agent.install.steps import FAILPOINTS as INSTALL_FAILPOINTS
from certplane.agent.keystore.pending import FAILPOINTS as KEYSTORE_FAILPOINTS
from certplane.agent.request import FAILPOINTS as REQUEST_FAILPOINTS
from certplane.pki.keys import public_key_sha256
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from tests.support.parts import need_part

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

KILLED = -9
PASSED_STEPS = ("write", "publish", "forget", "install", "permit", "link", "switch", "reload", "confirm")
STEPS = [
    *(point for point in KEYSTORE_FAILPOINTS if ".begin." in point or ".record." in point),
    *REQUEST_FAILPOINTS,
    *(point for point in INSTALL_FAILPOINTS if point.split(".")[1] in PASSED_STEPS),
]


def profile_of(point: str) -> str:
    return f"step{STEPS.index(point)}"


def certificate(point: str, folder: Path) -> dict[str, object]:
    """A certificate of its own for each step, with a reload that can be counted."""
    name = profile_of(point)
    return {
        "name": name,
        "profile": name,
        "dns_names": [f"{name}.certplane.test"],
        "reload_command": f"echo reloaded >> {folder / name}.reloads",
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployment]:
    need_part("pebble")
    profiles = {
        profile_of(point): {"type": "multi_san", "dns_names": [f"{profile_of(point)}.certplane.test"]}
        for point in STEPS
    }
    policy = {
        "version": 1,
        "profiles": profiles,
        "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": list(profiles)}},
    }
    limits = {"per_identity_per_hour": 10000, "per_identity_profile_per_hour": 1000}
    options = DeploymentOptions(policy, dns_provider="rfc2136", broker={"rate_limits": limits})
    async with Deployment(tmp_path_factory.mktemp("deployment"), options) as running:
        host = running.add_host("web1.certplane.test")
        await running.start_broker()
        enrolled = await host.run("enroll")
        assert enrolled.status == 0, enrolled.stderr
        first = await host.run("run", "--once")  # the identity is confirmed: its own installation is behind us
        assert first.status == 0, first.stderr
        yield running


def installed(host: Host, name: str) -> x509.Certificate | None:
    """What a service would load; None if there is nothing.

    Raises:
        AssertionError: it is no pair.
    """
    key, fullchain = host.output(name, "key"), host.output(name, "fullchain")
    assert key.exists() == fullchain.exists(), "one file of the pair without the other"
    if not key.exists():
        return None
    leaf = x509.load_pem_x509_certificates(fullchain.read_bytes())[0]
    private = load_pem_private_key(key.read_bytes(), None)
    assert public_key_sha256(private.public_key()) == public_key_sha256(leaf.public_key()), "a mixed pair"
    return leaf


@pytest.mark.parametrize("point", STEPS)
async def test_killed_at_every_step_of_a_request(deployment: Deployment, point: str) -> None:
    """Never a mixed pair, never a second certificate for one key; the reload runs in the end."""
    host = deployment.hosts["web1.certplane.test"]
    name = profile_of(point)
    host.write_config([certificate(point, deployment.folder)])
    killed = await host.run("run", "--once", environment={"CERTPLANE_FAILPOINTS": f"{point}=kill"})
    assert killed.status == KILLED, f"{point} isn't passed: {killed.stderr}"
    seen = installed(host, name)
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    leaf = installed(host, name)
    assert leaf is not None
    if seen is not None:
        assert leaf == seen
    made = await deployment.pebble.certificates_of_key(leaf.public_key())
    assert [each.serial_number for each in made] == [leaf.serial_number]
    assert (deployment.folder / f"{name}.reloads").read_text().count("reloaded") in (1, 2)
    log = deployment.pebble.log
    assert len(log.finalizations) == len(set(log.finalizations)), "an order was finalised twice"
