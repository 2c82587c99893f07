"""The broker's own certificate, got and renewed at each kind of internal CA."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.broker.init.certificate import OwnCertificate
from certplane.errors import OperationError
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.loopback import free_port
from certplane.sandbox.ports import IdentityCa
from certplane.stepca.errors import EnrollmentError, RefusedError, UnreachableError
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import PinnedRoots
from tests.support.waiting import until

pytestmark = pytest.mark.integration

NAME = "broker.certplane.test"
TIME = timedelta(seconds=20)


def now() -> datetime:
    return datetime.now(UTC)


def roots_of(pem: bytes) -> PinnedRoots:
    return PinnedRoots(tuple(x509.load_pem_x509_certificates(pem)))


@pytest_asyncio.fixture
async def own(any_identity_ca: IdentityCa, tmp_path: Path) -> AsyncIterator[OwnCertificate]:
    """Nothing is there yet."""
    yield OwnCertificate(
        tmp_path / "server.crt",
        tmp_path / "server.key",
        Endpoint.from_url(any_identity_ca.url),
        roots_of(any_identity_ca.roots_file.read_bytes()),
        TIME,
    )


@pytest.fixture
def pool() -> BlockingPool:
    """Where what blocks goes: the sandbox's CA answers on this loop."""
    return BlockingPool("test", 1)


async def test_it_is_got_with_a_token_and_renewed_with_itself(
    own: OwnCertificate, any_identity_ca: IdentityCa, pool: BlockingPool
) -> None:
    """Key 0600, chain without the root; a renewal has another serial number, the same key and name."""
    assert own.why_missing(NAME, now()) == "the broker has no certificate of its own yet"
    token = any_identity_ca.mint_token(NAME)
    await pool.run(lambda: own.get(NAME, token, now()))
    assert own.why_missing(NAME, now()) == ""
    assert own.name() == NAME
    assert stat.S_IMODE(own.key.stat().st_mode) == 0o600
    first = x509.load_pem_x509_certificates(own.certificate.read_bytes())
    assert any_identity_ca.authority.certificate not in first
    assert now() < own.due_time() < own.end_time()
    await pool.run(lambda: own.renew(now()))
    second = x509.load_pem_x509_certificates(own.certificate.read_bytes())
    assert second[0].serial_number != first[0].serial_number
    assert second[0].public_key() == first[0].public_key()
    assert own.why_missing(NAME, now()) == ""


async def test_what_is_there_is_judged_by_name_time_key_and_root(
    own: OwnCertificate, any_identity_ca: IdentityCa, pool: BlockingPool
) -> None:
    """Another name, an end, another key and another CA are each a reason to get a new one."""
    token = any_identity_ca.mint_token(NAME)
    await pool.run(lambda: own.get(NAME, token, now()))
    assert "it is none of other.certplane.test" in own.why_missing("other.certplane.test", now())
    assert "can't be used" in own.why_missing(NAME, own.end_time() + timedelta(days=1))
    another = roots_of(CertificateAuthority.root("Another").pem)
    elsewhere = OwnCertificate(own.certificate, own.key, own.endpoint, another, TIME)
    assert "leads to the internal CA's root" in elsewhere.why_missing(NAME, now())
    credential = await any_identity_ca.issue(NAME)
    own.key.write_bytes(credential.key_pem)
    assert "it is for another key" in own.why_missing(NAME, now())
    own.certificate.write_text("nothing")
    assert "can't be used" in own.why_missing(NAME, now())


async def test_a_used_token_leaves_the_key_for_the_next_one(
    own: OwnCertificate, any_identity_ca: IdentityCa, pool: BlockingPool
) -> None:
    """The refusal says that a new token is needed; no certificate is written."""
    token = any_identity_ca.mint_token(NAME)
    minted = now()
    await until(lambda: now() - minted > timedelta(seconds=1), what="the next second")  # a token knows seconds alone
    await any_identity_ca.restart()  # which makes it too old
    with pytest.raises(RefusedError, match="get a new token"):
        await pool.run(lambda: own.get(NAME, token, now()))
    assert not own.certificate.exists()
    key = own.key.read_bytes()
    fresh = any_identity_ca.mint_token(NAME)
    await pool.run(lambda: own.get(NAME, fresh, now()))
    assert own.key.read_bytes() == key


async def test_a_revoked_one_is_not_renewed_and_stays(
    own: OwnCertificate, any_identity_ca: IdentityCa, pool: BlockingPool
) -> None:
    """The file is as it was, and the remedy is a new token."""
    token = any_identity_ca.mint_token(NAME)
    await pool.run(lambda: own.get(NAME, token, now()))
    before = own.certificate.read_bytes()
    await any_identity_ca.revoke(x509.load_pem_x509_certificate(before).serial_number)
    with pytest.raises(RefusedError, match="run `certplane-broker init` with a new token"):
        await pool.run(lambda: own.renew(now()))
    assert own.certificate.read_bytes() == before


async def test_a_ca_that_is_away_or_another_one_gets_no_token(
    own: OwnCertificate, any_identity_ca: IdentityCa, pool: BlockingPool
) -> None:
    """Nothing is sent, and the token serves once the CA is there."""
    token = any_identity_ca.mint_token(NAME)
    away = OwnCertificate(
        own.certificate, own.key, Endpoint.from_url(f"https://127.0.0.1:{free_port()}"), own.roots, TIME
    )
    with pytest.raises(UnreachableError):
        await pool.run(lambda: away.get(NAME, token, now()))
    another = OwnCertificate(
        own.certificate, own.key, own.endpoint, roots_of(CertificateAuthority.root("Another").pem), TIME
    )
    with pytest.raises(EnrollmentError):
        await pool.run(lambda: another.get(NAME, token, now()))
    await pool.run(lambda: own.get(NAME, token, now()))


async def test_a_file_that_is_no_certificate_is_told(own: OwnCertificate) -> None:
    """Renewing what can't be read says which file, and what to do."""
    own.certificate.write_text("nothing")
    with pytest.raises(OperationError, match=r"server\.crt is no certificate; move it away"):
        own.due_time()
