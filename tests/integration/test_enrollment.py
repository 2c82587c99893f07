"""Enrollment and identity renewal as a user meets them: the command, its files, a real identity CA."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.agent.enrollment.identity import FAILPOINTS
from certplane.agent.install.steps import FAILPOINTS as INSTALL_FAILPOINTS
from certplane.agent.keystore.pending import FAILPOINTS as KEYSTORE_FAILPOINTS
from certplane.pki.keys import public_key_sha256
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import BACKDATE, CertificateAuthority
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.loopback import free_port
from certplane.sandbox.ports import PROVISIONER, IdentityCa
from certplane.sandbox.step_ca import StepCa
from certplane.sandbox.tokens import TokenClaims, mint_jwk_token
from tests.support.agent_host import AgentHost
from tests.support.bundles import DAY, pem
from tests.support.bundles import root as another_root
from tests.support.identities import names_of
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

KILLED = -9
SHORT = timedelta(seconds=3)


@pytest.fixture
def host(tmp_path: Path, step_ca: StepCa, own_name: str) -> AgentHost:
    """A host that was given a token and has not enrolled."""
    host = AgentHost(tmp_path / "host", step_ca, own_name)
    host.give_token()
    return host


async def _ca(kind: str, folder: Path, rules: IdentityRules) -> AsyncIterator[IdentityCa]:
    ca: IdentityCa = SandboxIdentityCa(folder / "ca", rules)
    if kind == "step-ca":
        ca = StepCa(folder / "ca", rules, part=need_part("step-ca"))
    async with ca:
        yield ca


@pytest_asyncio.fixture(params=["step-ca", "sandbox"])
async def half_over(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IdentityCa]:
    """An identity CA whose identities are due at once: as long as they live, they began before they were made."""
    async for ca in _ca(request.param, tmp_path, IdentityRules(lifetime=BACKDATE)):
        yield ca


@pytest_asyncio.fixture(params=["step-ca", "sandbox"])
async def expiring(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[IdentityCa]:
    """An identity CA whose identities live for seconds and are renewed also once they are over."""
    async for ca in _ca(request.param, tmp_path, IdentityRules(lifetime=SHORT, renewal_after_expiry=True)):
        yield ca


def key_of(certificate: x509.Certificate | x509.CertificateSigningRequest | None) -> str:
    assert certificate is not None
    return public_key_sha256(certificate.public_key())


async def test_enroll_brings_key_chain_and_takes_the_token_away(host: AgentHost) -> None:
    """The key is 0600 and made here, the certificate has its intermediate, the used token is gone."""
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr
    leaf = host.identity()
    assert leaf is not None
    assert names_of(leaf) == [host.name]
    assert host.cert.read_text().count("BEGIN CERTIFICATE") == 2
    assert stat.S_IMODE(host.key.stat().st_mode) == 0o600
    assert not host.token.exists()
    assert host.pending_csr() is None


@pytest.mark.parametrize("pin", ["bundle", "both"])
async def test_the_root_can_be_pinned_by_bundle(host: AgentHost, pin: str) -> None:
    """A bundle alone does, and a bundle that holds the fingerprint's root among others."""
    bundle = host.folder / "roots.crt"
    bundle.write_bytes(CertificateAuthority.root("Another").pem + host.ca.roots_file.read_bytes())
    settings = {"root_ca_bundle": str(bundle)}
    if pin == "bundle":
        bundle.write_bytes(host.ca.roots_file.read_bytes())
        settings["fingerprint"] = ""
    host.configure(step_ca=settings)
    if pin == "bundle":
        text = (host.folder / "agent.yml").read_text()
        (host.folder / "agent.yml").write_text(text.replace("fingerprint: ''", "fingerprint: null"))
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr


async def test_a_short_subject_is_refused_before_the_token_is_spent(host: AgentHost) -> None:
    """`step ca token web1 --san NAME` makes an identity that no broker lets in: `check` and `enroll` say so, unsent."""
    token = host.give_token(host.ca.mint_token("web1", [host.name]))
    check = await host.run("check")
    assert "FAIL  token: the token's subject is web1" in check.stdout
    finished = await host.run("enroll")
    assert finished.status == 1
    assert f"get a token whose subject is the whole name, without --san: `step ca token {host.name}`" in finished.stderr
    assert host.token.read_text().strip() == token
    assert host.identity() is None
    host.give_token()
    assert "ok    token: " in (await host.run("check")).stdout
    assert (await host.run("enroll")).status == 0


async def test_the_ca_is_called_without_a_proxy(host: AgentHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment of a shell has no part in it."""
    for variable in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    assert (await host.run("enroll")).status == 0


@pytest.mark.parametrize("which", ["root_ca_bundle", "issuer_ca_bundle"])
async def test_bundles_that_have_ended(host: AgentHost, which: str) -> None:
    """The file and the date are told before the token is sent; an ended root beside the present one does no harm."""
    ended = pem(another_root(host.ca.authority, begins=-9 * DAY, ends=-DAY))
    bundle = host.folder / "bundle.crt"
    bundle.write_bytes(ended)
    where = {"identity": {which: str(bundle)}} if which == "issuer_ca_bundle" else {"step_ca": {which: str(bundle)}}
    host.configure(**where)
    finished = await host.run("enroll")
    assert finished.status == 2
    assert f"{bundle} has no certificate that is still valid" in finished.stderr
    assert host.token.exists()
    bundle.write_bytes(b"\xef\xbb\xbf" + ended + host.ca.roots_file.read_bytes())
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr


async def test_a_uri_identity_is_enrolled(tmp_path: Path, step_ca: StepCa) -> None:
    """Identities may be URIs as SPIFFE has them."""
    host = AgentHost(tmp_path / "host", step_ca, "spiffe://certplane.test/host/web1")
    host.give_token()
    assert (await host.run("enroll")).status == 0
    leaf = host.identity()
    assert leaf is not None
    assert names_of(leaf) == [host.name]


async def test_row_34_a_replayed_token_keeps_the_key_and_asks_for_a_new_one(host: AgentHost) -> None:
    """The CA has burnt the token; the next token is sent with the same key."""
    token = host.token.read_text().strip()
    await host.ca.issue(host.name)  # another token: the CA itself is fine
    other = AgentHost(host.folder.parent / "thief", host.ca, host.name)
    other.give_token(token)
    assert (await other.run("enroll")).status == 0

    finished = await host.run("enroll")
    assert finished.status == 1
    assert "refused to enroll this host" in finished.stderr
    assert "get a new token" in finished.stderr
    assert token not in finished.stderr
    assert "Traceback" not in finished.stderr
    assert host.identity() is None
    key = key_of(host.pending_csr())

    host.give_token()
    assert (await host.run("enroll")).status == 0
    assert key_of(host.identity()) == key


async def test_row_35_an_expired_token_is_told_before_it_is_sent(host: AgentHost) -> None:
    """The message has the moment and what to do."""
    issued = SystemClock().now() - timedelta(hours=1)
    host.give_token(host.ca.mint_token(host.name, issued_at=issued))
    finished = await host.run("enroll")
    assert finished.status == 1
    assert "the bootstrap token expired at" in finished.stderr
    assert "get a new token" in finished.stderr


async def test_row_35_a_token_for_another_address_is_refused_by_the_ca(host: AgentHost, step_ca: StepCa) -> None:
    """A wrong audience is the CA's to find, and the remedy names the address that was used."""
    now = SystemClock().now()
    claims = TokenClaims(PROVISIONER, "https://other.example/1.0/sign", host.name, now, timedelta(minutes=5))
    host.give_token(mint_jwk_token(step_ca.provisioner_keys[PROVISIONER], claims))
    finished = await host.run("enroll")
    assert finished.status == 1
    assert "refused to enroll this host" in finished.stderr
    assert f"isn't for {step_ca.url}" in finished.stderr
    assert host.identity() is None


async def test_row_36_of_two_hosts_with_one_token_one_enrolls(host: AgentHost) -> None:
    """Redeemed at the same moment, exactly one wins and the other knows why."""
    other = AgentHost(host.folder.parent / "other", host.ca, host.name)
    other.give_token(host.token.read_text().strip())
    finished = await asyncio.gather(host.run("enroll"), other.run("enroll"))
    assert sorted(each.status for each in finished) == [0, 1]
    (loser,) = (each for each in finished if each.status)
    assert "the token was used before" in loser.stderr
    assert [host.identity() is None, other.identity() is None].count(True) == 1


async def test_a_wrong_fingerprint_sends_nothing(host: AgentHost) -> None:
    """The CA is not the pinned one: the token stays good for the right configuration."""
    host.configure(step_ca={"fingerprint": "ab" * 32})
    finished = await host.run("enroll")
    assert finished.status == 1
    assert "identity.step_ca.fingerprint" in finished.stderr
    assert host.token.exists()
    host.configure()
    assert (await host.run("enroll")).status == 0


async def test_a_bundle_without_the_fingerprint_is_a_configuration_error(host: AgentHost) -> None:
    """Fingerprint and bundle must agree; file, line and key are named."""
    bundle = host.folder / "roots.crt"
    bundle.write_bytes(CertificateAuthority.root("Another").pem)
    host.configure(step_ca={"root_ca_bundle": str(bundle)})
    finished = await host.run("enroll")
    assert finished.status == 2
    line = finished.stderr.splitlines()[-1]
    assert line.startswith(f"{host.folder / 'agent.yml'}:")
    assert "identity.step_ca.root_ca_bundle" in line
    assert host.token.exists()


async def test_a_token_of_another_ca_is_not_sent(host: AgentHost, step_ca: StepCa) -> None:
    """Its claim `sha` names another root than the pinned one: refused here, the token unspent."""
    now = SystemClock().now()
    audience = f"{step_ca.url}/1.0/sign"
    lifetime = timedelta(minutes=5)
    for root, status in (("cd" * 32, 1), (step_ca.authority.fingerprint, 0)):
        claims = TokenClaims(
            PROVISIONER, audience, host.name, now, lifetime, root_fingerprint=root, token_id=f"{host.name}-one"
        )
        host.give_token(mint_jwk_token(step_ca.provisioner_keys[PROVISIONER], claims))
        finished = await host.run("enroll")
        assert finished.status == status, finished.stderr
        assert ("the token is for a CA whose root" in finished.stderr) == bool(status)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda path: path.chmod(0o644), "chmod 600", id="world-readable"),
        pytest.param(lambda path: path.chmod(0o660), "chmod 600", id="group-writable"),
        pytest.param(lambda path: path.symlink_to(path.rename(path.with_name("real"))), "symbolic link", id="link"),
        pytest.param(lambda path: path.unlink(), "does not exist", id="missing"),
        pytest.param(lambda path: path.write_bytes(b""), "is empty", id="empty"),
    ],
)
async def test_a_token_file_that_is_not_ours_alone_is_refused(host: AgentHost, spoil: object, words: str) -> None:
    """One line with file, line, key and remedy, status 2, nothing sent."""
    assert callable(spoil)
    spoil(host.token)
    finished = await host.run("enroll")
    assert finished.status == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith(f"{host.folder / 'agent.yml'}:")
    assert "identity.bootstrap_token" in line
    assert words in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_a_token_file_of_another_user_is_refused(host: AgentHost) -> None:
    """Whoever owns the file may have read it, or may have put it there."""
    os.chown(host.token, 12345, 12345)
    finished = await host.run("enroll")
    assert finished.status == 2
    assert "belongs to another user" in finished.stderr


async def test_an_enrolled_host_keeps_its_identity(host: AgentHost) -> None:
    """A second `enroll` refuses without touching identity or token, and names `--force`."""
    assert (await host.run("enroll")).status == 0
    before = host.identity()
    token = host.give_token()
    finished = await host.run("enroll")
    assert finished.status == 1
    assert "enroll --force" in finished.stderr
    assert host.identity() == before
    assert host.token.read_text().strip() == token


async def test_force_replaces_the_identity_with_a_new_key(host: AgentHost) -> None:
    """`--force` with a new token makes another key, and the old identity is a version that stays on disk."""
    assert (await host.run("enroll")).status == 0
    before = host.identity()
    host.give_token()
    assert (await host.run("enroll", "--force")).status == 0
    assert key_of(host.identity()) != key_of(before)
    assert (host.state / "identity" / "versions" / "1" / "privkey.pem").exists()


async def test_a_failed_force_leaves_the_identity_in_place(host: AgentHost) -> None:
    """With a token that the CA refuses the old identity goes on."""
    token = host.token.read_text()
    assert (await host.run("enroll")).status == 0
    before = host.identity()
    host.give_token(token.strip())
    finished = await host.run("enroll", "--force")
    assert finished.status == 1
    assert host.identity() == before
    assert (await host.run("status")).status == 0


ENROLL_STEPS = [
    *(point for point in FAILPOINTS if point.startswith("enroll.")),
    *(point for point in KEYSTORE_FAILPOINTS if ".begin." in point),
    *(f"install.{step}.after" for step in ("write", "publish", "forget", "permit", "link", "switch")),
]
assert set(ENROLL_STEPS) <= {*FAILPOINTS, *KEYSTORE_FAILPOINTS, *INSTALL_FAILPOINTS}


@pytest.mark.parametrize("point", ENROLL_STEPS)
async def test_a_killed_enrollment_never_leaves_a_key_without_its_certificate(host: AgentHost, point: str) -> None:
    """Killed anywhere: no pair or a whole one; the next `enroll`, with a new token if one is needed, succeeds."""
    finished = await host.run("enroll", kill_at=point)
    assert finished.status == KILLED, f"{point} isn't passed: {finished.stderr}"
    killed_with = host.identity()
    pending = host.pending_csr()
    finished = await host.run("enroll")
    if finished.status:
        host.give_token()
        finished = await host.run("enroll")
    if killed_with is None:
        assert finished.status == 0, finished.stderr
    leaf = host.identity()
    assert leaf is not None
    if killed_with is not None:
        assert leaf == killed_with
    elif pending is not None:
        assert key_of(leaf) == key_of(pending)


@pytest.mark.parametrize("point", [point for point in FAILPOINTS if point.startswith("enroll.")])
async def test_a_killed_force_leaves_the_old_identity_or_the_new(host: AgentHost, point: str) -> None:
    """Killed anywhere: the old pair or the new one; the next `enroll --force` succeeds."""
    assert (await host.run("enroll")).status == 0
    before = host.identity()
    assert before is not None
    host.give_token()
    assert (await host.run("enroll", "--force", kill_at=point)).status == KILLED
    leaf = host.identity()
    assert leaf is not None
    if point != "enroll.activate.after":
        assert leaf == before
    host.give_token()
    finished = await host.run("enroll", "--force")
    assert finished.status == 0, finished.stderr
    assert key_of(host.identity()) != key_of(before)


@pytest.mark.parametrize("rekey", [True, False], ids=["rekey", "renew"])
async def test_a_due_identity_is_renewed(tmp_path: Path, half_over: IdentityCa, rekey: bool) -> None:
    """`run --once` renews past half of a short life, with a new key unless told otherwise, also without a broker."""
    host = await enrolled(tmp_path, half_over, {"rekey": rekey})
    before = host.identity()
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    leaf = host.identity()
    assert leaf != before
    assert (key_of(leaf) != key_of(before)) == rekey
    assert host.pending_csr() is None


async def test_check_finds_a_key_that_others_can_read(host: AgentHost) -> None:
    """The identity's private key must be closed to everybody else."""
    assert (await host.run("enroll")).status == 0
    key = host.key.resolve()
    key.chmod(0o644)
    finished = await host.run("check")
    assert finished.status == 1
    assert f"chmod 600 {key}" in finished.stdout


async def test_an_identity_that_is_not_due_stays(host: AgentHost) -> None:
    """A day's identity isn't renewed in its first hours."""
    assert (await host.run("enroll")).status == 0
    before = host.identity()
    assert (await host.run("run", "--once")).status == 0
    assert host.identity() == before


@pytest.mark.parametrize("rekey", [True, False], ids=["rekey", "renew"])
async def test_an_expired_identity_is_recovered(tmp_path: Path, expiring: IdentityCa, rekey: bool) -> None:
    """Where the CA allows it an identity that is over comes back by its own key, which is then replaced."""
    host = await enrolled(tmp_path, expiring, {"rekey": rekey})
    before = host.identity()
    await asyncio.sleep(SHORT.total_seconds() + 1)
    finished = await host.run("run", "--once")
    assert finished.status == 0, finished.stderr
    leaf = host.identity()
    assert leaf is not None
    assert leaf != before
    assert (key_of(leaf) != key_of(before)) == rekey
    assert "the identity expired at" in finished.stderr


async def test_an_expired_identity_that_the_ca_refuses_says_what_to_do(tmp_path: Path) -> None:
    """Without renewal after expiry `run --once` fails with the remedy, and `enroll --force` is the way back."""
    rules = IdentityRules(lifetime=timedelta(seconds=2))
    async with StepCa(tmp_path / "ca", rules, part=need_part("step-ca")) as ca:
        host = await enrolled(tmp_path, ca, {})
        await asyncio.sleep(3.1)
        finished = await host.run("run", "--once")
        assert finished.status == 1
        assert "enroll --force" in finished.stderr
        assert "expired" in (await host.run("status")).stdout.lower()
        check = await host.run("check")
        assert check.status == 1
        assert "FAIL  identity: expired at" in check.stdout
        host.give_token()
        assert (await host.run("enroll", "--force")).status == 0


@pytest.mark.parametrize("point", [point for point in FAILPOINTS if point.startswith("identity.")])
async def test_a_killed_renewal_goes_on(tmp_path: Path, point: str) -> None:
    """Killed anywhere in a re-key: the old identity stays until the next run has brought the new one."""
    async with SandboxIdentityCa(tmp_path / "ca", IdentityRules(lifetime=BACKDATE)) as ca:
        host = await enrolled(tmp_path, ca, {})
        before = host.identity()
        assert (await host.run("run", "--once", kill_at=point)).status == KILLED
        assert host.identity() == before
        finished = await host.run("run", "--once")
        assert finished.status == 0, finished.stderr
        assert key_of(host.identity()) != key_of(before)


async def enrolled(folder: Path, ca: IdentityCa, identity: dict[str, object]) -> AgentHost:
    host = AgentHost(folder / "host", ca, "web1.certplane.test")
    host.configure(identity=identity)
    host.give_token()
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr
    return host
