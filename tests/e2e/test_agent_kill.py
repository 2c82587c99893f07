"""The agent killed at every step from its key to the end of the reload: in a first issuance, then in a renewal.

Each case is one host's story, with a profile of its own: killed, looked at, run again. Hosts are copies of one that has
enrolled, so they share an identity, not a key of any certificate. What a service would read is looked at right after
the kill, before anything had a chance to repair it.

Kills while the host enrolls are in tests/integration/test_enrollment.py; every step of the disk under every mode and
mishap, at each of its passes, in tests/integration/test_install_kill.py.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.agent.install.steps import ACTIVATION_STEPS, DISK_STEPS
from certplane.agent.keystore.pending import FAILPOINTS as KEYSTORE_FAILPOINTS
from certplane.agent.request import FAILPOINTS as REQUEST_FAILPOINTS
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from tests.support.killing import (
    KILLED,
    assert_issued_once,
    assert_key_stayed,
    assert_no_mixed_pair,
    leaf_of,
    let_waits_pass,
    outputs_of,
    settle_on_a_port,
    version_leaves,
)
from tests.support.limits import UNLIMITED
from tests.support.lineages import LocalIssuer, standing_pair
from tests.support.parts import need_part

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

IDENTITY = "web1.certplane.test"
WEB = "web"


def around(*steps: str) -> tuple[str, ...]:
    return tuple(f"install.{step}.{side}" for step in steps for side in ("before", "after"))


@dataclass(frozen=True)
class Story:
    """What differs between hosts, and at which points the agent is killed in the first issuance and in the renewal."""

    first: tuple[str, ...] = ()
    renewal: tuple[str, ...] = ()
    mode: str = "link"
    standing: bool = False
    """Another tool's pair stands at the configured paths."""
    rejected: bool = False
    """The reload fails for the second version, until an operator has mended what it needs."""


ALWAYS = (*KEYSTORE_FAILPOINTS, *REQUEST_FAILPOINTS, *around("write", "publish", "forget"))
ACTIVATION = around("install", "switch", "reload", "confirm")
STORIES = {
    "plain": Story(
        first=(*ALWAYS, *ACTIVATION, *around("permit", "link")), renewal=(*ALWAYS, *ACTIVATION, *around("permit"))
    ),
    "beside another's pair": Story(first=around("keep", "hold", "release", "relink", "finish"), standing=True),
    "copies": Story(renewal=around("prepare", "journal", "commit", "finish"), mode="copy"),
    "reload fails": Story(renewal=around("rollback", "reload_again", "record"), rejected=True),
}


@dataclass(frozen=True)
class Case:
    """One host: killed at `first` in its first issuance and at `renewal` in the next one; empty for not at all."""

    number: int
    story: Story
    first: str
    renewal: str

    @property
    def profile(self) -> str:
        return f"case{self.number}"


def cases() -> dict[str, Case]:
    made: dict[str, Case] = {}
    for name, story in STORIES.items():
        # A host that was killed in its first issuance is as good as any for the renewal.
        length = max(len(story.first), len(story.renewal))
        for place in range(length):
            first = story.first[place] if place < len(story.first) else ""
            renewal = story.renewal[place] if place < len(story.renewal) else ""
            made[f"{name}: {first or '-'} then {renewal or '-'}"] = Case(len(made), story, first, renewal)
    return made


CASES = cases()
BATCHES = [list(CASES)[start : start + 2] for start in range(0, len(CASES), 2)]


@dataclass(frozen=True)
class World:
    """The deployment and the enrolled host that all hosts are copies of."""

    deployment: Deployment
    template: Host

    def host(self, case: Case) -> Host:
        """A host of its own for this case, enrolled, and with its identity in use."""
        host = Host(self.deployment, IDENTITY)
        host.folder = self.deployment.folder / "hosts" / case.profile
        shutil.copytree(self.template.state, host.state, symlinks=True)
        reload = f"echo $CERTPLANE_VERSION >> {host.folder}/reloads"
        if case.story.rejected:
            reload += f" && {{ [ $CERTPLANE_VERSION = 1 ] || [ -e {host.folder}/mended ]; }}"
        certificate = {
            "name": WEB,
            "profile": case.profile,
            "dns_names": [f"{case.profile}.certplane.test"],
            "install": case.story.mode,
            "reload_command": reload,
        }
        host.write_config([certificate], NO_OUTPUTS)
        if case.story.standing:
            standing_pair(LocalIssuer(), outputs_of(host, WEB), "www.example.org")
            host.output(WEB, "key").chmod(0o600)  # a new key takes the mode of the one that it replaces
        return host


NO_OUTPUTS = {"identity": {"cert": None, "key": None}}
"""Otherwise the first thing that a copied host does is to link its identity, by the same steps."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    need_part("pebble")
    profiles = {
        case.profile: {"type": "multi_san", "dns_names": [f"{case.profile}.certplane.test"]} for case in CASES.values()
    }
    policy = {
        "version": 1,
        "profiles": profiles,
        "hosts": {"web1": {"identity": IDENTITY, "profiles": list(profiles)}},
    }
    limits = {
        "rate_limits": UNLIMITED,
        "server": {"calls_per_identity_per_second": 1000, "calls_burst": 1000},
    }
    async with Deployment(tmp_path_factory.mktemp("agent-kill"), DeploymentOptions(policy, broker=limits)) as running:
        settle_on_a_port(running)
        await running.start_broker()
        template = running.add_host(IDENTITY, agent=NO_OUTPUTS)
        for command in (["enroll"], ["run", "--once"]):
            finished = await template.run(*command)
            assert finished.status == 0, finished.stderr
        yield World(running, template)


async def test_every_failpoint_is_walked() -> None:
    """No step is without a case, but those of a pruning, a look, a PKCS#12 file and a reload that never succeeds again.

    Those are walked in tests/integration/test_install_kill.py.
    """
    walked = {point for case in CASES.values() for point in (case.first, case.renewal)} - {""}
    steps = {*around(*DISK_STEPS, *ACTIVATION_STEPS), *KEYSTORE_FAILPOINTS, *REQUEST_FAILPOINTS}
    assert steps - walked == {*around("remove", "derive", "verify", "verify_again", "reinstate", "reload_last")}


async def test_identity_passes_none_of_the_failpoints(world: World) -> None:
    """A host that has its identity in use passes no step for it: what kills below is a certificate's."""
    host = Host(world.deployment, IDENTITY)
    host.folder = world.deployment.folder / "hosts" / "no-certificates"
    shutil.copytree(world.template.state, host.state, symlinks=True)
    host.write_config([], NO_OUTPUTS)
    points = (*around(*DISK_STEPS, *ACTIVATION_STEPS), *KEYSTORE_FAILPOINTS, *REQUEST_FAILPOINTS)
    finished = await host.run("run", "--once", environment=armed(*points))
    assert finished.status == 0, finished.stderr


@pytest.mark.parametrize("batch", BATCHES, ids=" | ".join)
async def test_killed_agent_goes_on_where_it_was(world: World, batch: list[str]) -> None:
    """Services read a whole pair or nothing at any time; the next run ends as if nothing had happened, with one order."""
    await asyncio.gather(*(live(world, CASES[name]) for name in batch))


async def live(world: World, case: Case) -> None:
    host = world.host(case)
    if case.first:
        await killed(host, case, ["run", "--once"], case.first)
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    await assert_installed(world, case, host, versions=1)
    if case.renewal:
        await killed(host, case, ["renew", WEB], case.renewal)
        if case.story.rejected:
            (host.folder / "mended").touch()
            let_waits_pass(host, WEB)
        if not (host.state / "certificates" / WEB / "pending").exists() and len(version_leaves(host, WEB)) == 1:
            # Killed before the key was on disk: nothing but the operator's wish is lost.
            finished = await host.run("renew", WEB)
        else:
            finished = await host.run("run", "--once")
        assert finished.status == 0, finished.stderr
        await assert_installed(world, case, host, versions=2)


def armed(*failpoints: str) -> dict[str, str]:
    return {"CERTPLANE_FAILPOINTS": ",".join(f"{point}=kill" for point in failpoints)}


async def killed(host: Host, case: Case, command: list[str], failpoint: str) -> None:
    """Kill the agent there, and look at the paths before anybody can repair them."""
    before = standing_leaf(host)
    finished = await host.run(*command, environment=armed(failpoint))
    assert finished.status == KILLED, f"{failpoint} was not passed: {finished.stderr}"
    if case.story.mode == "link":
        assert_no_mixed_pair(host, WEB, f"after the kill at {failpoint}")
    assert before is None or standing_leaf(host) is not None, "what was there is gone"


def standing_leaf(host: Host) -> x509.Certificate | None:
    path = host.output(WEB, "cert")
    return x509.load_pem_x509_certificate(path.read_bytes()) if path.exists() else None


async def assert_installed(world: World, case: Case, host: Host, *, versions: int) -> None:
    """The newest of so many versions is in use and was loaded; each has a key of its own, and each key one order."""
    leaf = leaf_of(host, WEB)
    leaves = version_leaves(host, WEB)
    assert len(leaves) == versions
    assert leaves[-1] == leaf
    assert not (host.state / "certificates" / WEB / "pending").exists()
    assert all(path.is_symlink() == (case.story.mode == "link") for path in outputs_of(host, WEB).paths().values())
    assert (host.folder / "reloads").read_text().split()[-1] == str(versions)
    for each in leaves:
        await assert_issued_once(world.deployment, each)
    # Nothing was made for these names but what is on the disk: no certificate for a key that was lost.
    made = [each for each in await world.deployment.pebble.issued_certificates() if each.subject == leaf.subject]
    names = [each for each in made if names_of(each) == [f"{case.profile}.certplane.test"]]
    assert names == leaves
    assert_key_stayed(world.deployment, host, WEB)


def names_of(certificate: x509.Certificate) -> list[str]:
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return extension.value.get_values_for_type(x509.DNSName)
