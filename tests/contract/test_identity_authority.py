"""What `IdentityAuthority` promises, asked of the fake, of the sandbox's identity CA and of the real step-ca."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.agent.model import IssuedCertificate, Version
from certplane.agent.ports import IdentityAuthority
from certplane.pki.csr import build_csr
from certplane.pki.keys import PrivateKey, public_key_sha256
from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.ports import IdentityCa
from certplane.sandbox.step_ca import StepCa
from certplane.stepca.errors import EnrollmentError, RefusedError
from tests.fakes.agent_identity import FakeIdentityAuthority
from tests.fakes.clock import ManualClock
from tests.support.identities import authority_for, leads_to, leaf_of, names_of, new_key, store
from tests.support.parts import need_part

SHORT = timedelta(seconds=3)


@dataclass
class Subject:
    """An authority, the CA behind it, and what a test may do to it."""

    authority: IdentityAuthority
    root: x509.Certificate
    clock: Clock
    mint_token: Callable[[str], str]
    revoke: Callable[[Version], Awaitable[None]]
    wait_until_expired: Callable[[Version], Awaitable[None]]

    async def enroll(self, folder: Path, name: str) -> tuple[Version, PrivateKey]:
        """A first identity as a version on disk."""
        key = new_key()
        issued = await self.authority.enroll(self.mint_token(name), csr(key, name))
        return store(folder, 1, issued, key), key


def csr(key: PrivateKey, name: str) -> str:
    return build_csr(key, common_name=name, sans=[name])


def serial(issued: IssuedCertificate) -> str:
    return format(leaf_of(issued).serial_number, "x")


def _fake(rules: IdentityRules) -> Subject:
    clock = ManualClock(SystemClock().now())
    fake = FakeIdentityAuthority(clock, lifetime=rules.lifetime, renewal_after_expiry=rules.renewal_after_expiry)

    async def revoke(version: Version) -> None:
        fake.revoke(version.serial_number)

    async def wait(version: Version) -> None:
        clock.advance(version.not_after - clock.now() + timedelta(seconds=1))

    return Subject(fake, fake.root.certificate, clock, fake.mint_token, revoke, wait)


def _real(ca: IdentityCa, authority: IdentityAuthority) -> Subject:
    clock = SystemClock()

    async def revoke(version: Version) -> None:
        await ca.revoke(int(version.serial_number, 16))

    async def wait(version: Version) -> None:
        await asyncio.sleep(max(0.0, (version.not_after - clock.now()).total_seconds()) + 1)

    return Subject(authority, ca.authority.certificate, clock, ca.mint_token, revoke, wait)


async def _subject(kind: str, folder: Path, rules: IdentityRules) -> AsyncIterator[Subject]:
    if kind == "fake":
        yield _fake(rules)
        return
    ca = StepCa(folder / "ca", rules, part=need_part("step-ca")) if kind == "step-ca" else None
    async with ca or SandboxIdentityCa(folder / "ca", rules) as running:
        authority = authority_for(running)
        yield _real(running, authority)
        authority.close()


KINDS = [
    pytest.param("fake", id="fake"),
    pytest.param("sandbox", id="sandbox"),
    pytest.param("step-ca", id="step-ca", marks=pytest.mark.integration),
]


@pytest_asyncio.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Identities of a day; an expired one is not renewed."""
    async for subject in _subject(request.param, tmp_path, IdentityRules()):
        yield subject


@pytest_asyncio.fixture(params=KINDS)
async def short_lived(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Identities of seconds, also renewed once expired."""
    rules = IdentityRules(lifetime=SHORT, renewal_after_expiry=True)
    async for subject in _subject(request.param, tmp_path, rules):
        yield subject


@pytest_asyncio.fixture(params=KINDS)
async def short_lived_strict(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Subject]:
    """Identities of seconds; an expired one is not renewed."""
    async for subject in _subject(request.param, tmp_path, IdentityRules(lifetime=SHORT)):
        yield subject


@pytest.mark.parametrize("name", ["web1.example", "spiffe://certplane.test/host/web1"], ids=["dns", "uri"])
async def test_a_token_buys_an_identity_with_its_whole_chain(subject: Subject, name: str) -> None:
    """`enroll` returns a certificate for the CSR's key and name whose chain leads to the root."""
    key = new_key()
    issued = await subject.authority.enroll(subject.mint_token(name), csr(key, name))
    assert public_key_sha256(leaf_of(issued).public_key()) == public_key_sha256(key.public_key())
    assert names_of(leaf_of(issued)) == [name]
    assert issued.chain_pem.count("BEGIN CERTIFICATE") == 1
    assert leads_to(issued, subject.root, subject.clock.now())


async def test_a_token_works_once(subject: Subject) -> None:
    """A replayed token is refused, and the error says that it is spent (bad input 34)."""
    token = subject.mint_token("web1.example")
    await subject.authority.enroll(token, csr(new_key(), "web1.example"))
    with pytest.raises(RefusedError) as refused:
        await subject.authority.enroll(token, csr(new_key(), "web1.example"))
    assert refused.value.token_spent
    assert refused.value.status == 401
    assert token not in str(refused.value)


async def test_of_two_simultaneous_redemptions_exactly_one_wins(subject: Subject, tmp_path: Path) -> None:
    """Two hosts with one token: one gets an identity (bad input 36)."""
    token = subject.mint_token("web1.example")
    results = await asyncio.gather(
        *(subject.authority.enroll(token, csr(new_key(), "web1.example")) for _ in range(2)), return_exceptions=True
    )
    assert sum(isinstance(result, IssuedCertificate) for result in results) == 1
    (loser,) = (result for result in results if not isinstance(result, IssuedCertificate))
    assert isinstance(loser, RefusedError)
    assert loser.token_spent


async def test_a_token_for_another_host_is_not_spent(subject: Subject) -> None:
    """A token for other names is refused without being burnt."""
    token = subject.mint_token("web2.example")
    with pytest.raises(EnrollmentError) as refused:
        await subject.authority.enroll(token, csr(new_key(), "web1.example"))
    assert not refused.value.token_spent
    await subject.authority.enroll(token, csr(new_key(), "web2.example"))


async def test_renewal_keeps_key_and_names(subject: Subject, tmp_path: Path) -> None:
    """`renew` returns another certificate for the same key and names."""
    current, key = await subject.enroll(tmp_path, "web1.example")
    issued = await subject.authority.renew(current)
    assert serial(issued) != current.serial_number
    assert public_key_sha256(leaf_of(issued).public_key()) == public_key_sha256(key.public_key())
    assert names_of(leaf_of(issued)) == ["web1.example"]
    assert leads_to(issued, subject.root, subject.clock.now())


async def test_rekey_changes_the_key_and_keeps_the_names(subject: Subject, tmp_path: Path) -> None:
    """`rekey` returns a certificate for the CSR's key and the current names, whatever names the CSR has."""
    current, _ = await subject.enroll(tmp_path, "web1.example")
    key = new_key()
    issued = await subject.authority.rekey(current, csr(key, "web1.example"))
    assert public_key_sha256(leaf_of(issued).public_key()) == public_key_sha256(key.public_key())
    assert names_of(leaf_of(issued)) == ["web1.example"]
    renewed = await subject.authority.renew(store(tmp_path, 2, issued, key))
    assert names_of(leaf_of(renewed)) == ["web1.example"]


async def test_a_revoked_identity_is_not_renewed(subject: Subject, tmp_path: Path) -> None:
    """After a revocation the CA refuses both ways of renewal, for good."""
    current, _ = await subject.enroll(tmp_path, "web1.example")
    await subject.revoke(current)
    with pytest.raises(RefusedError) as refused:
        await subject.authority.renew(current)
    assert 400 <= refused.value.status < 500
    with pytest.raises(RefusedError):
        await subject.authority.rekey(current, csr(new_key(), "web1.example"))


async def test_an_expired_identity_renews_by_its_key_alone(short_lived: Subject, tmp_path: Path) -> None:
    """After expiry mTLS fails, `recover` works where the CA allows it, and what it returns can be re-keyed at once."""
    current, key = await short_lived.enroll(tmp_path, "web1.example")
    await short_lived.wait_until_expired(current)
    with pytest.raises(EnrollmentError):
        await short_lived.authority.renew(current)
    issued = await short_lived.authority.recover(current)
    assert public_key_sha256(leaf_of(issued).public_key()) == public_key_sha256(key.public_key())
    assert leaf_of(issued).not_valid_after_utc > short_lived.clock.now()
    recovered = store(tmp_path, 2, issued, key)
    await short_lived.authority.rekey(recovered, csr(new_key(), "web1.example"))


async def test_recovery_is_refused_where_the_ca_does_not_allow_it(short_lived_strict: Subject, tmp_path: Path) -> None:
    """Without renewal after expiry the CA's refusal comes through, and it is final."""
    current, _ = await short_lived_strict.enroll(tmp_path, "web1.example")
    await short_lived_strict.wait_until_expired(current)
    with pytest.raises(RefusedError) as refused:
        await short_lived_strict.authority.recover(current)
    assert 400 <= refused.value.status < 500


async def test_what_it_made_is_vouched_for(subject: Subject, tmp_path: Path) -> None:
    """An identity of this CA with its chain is one; without its intermediate, or of another CA, it isn't."""
    version, _ = await subject.enroll(tmp_path, "web1.example")
    leaf, chain = ((version.path / name).read_text() for name in ("cert.pem", "chain.pem"))
    await subject.authority.vouch(leaf, chain)
    with pytest.raises(EnrollmentError):
        await subject.authority.vouch(leaf, "")
    fake = FakeIdentityAuthority(subject.clock)
    key = new_key()
    other = await fake.enroll(fake.mint_token("web1.example"), csr(key, "web1.example"))
    with pytest.raises(EnrollmentError):
        await subject.authority.vouch(other.certificate_pem, other.chain_pem)


async def test_what_has_expired_is_not_vouched_for(short_lived: Subject, tmp_path: Path) -> None:
    """Whoever has only that needs a token, or the CA's word."""
    version, _ = await short_lived.enroll(tmp_path, "web1.example")
    await short_lived.wait_until_expired(version)
    with pytest.raises(EnrollmentError, match="expired"):
        await short_lived.authority.vouch(
            (version.path / "cert.pem").read_text(), (version.path / "chain.pem").read_text()
        )
