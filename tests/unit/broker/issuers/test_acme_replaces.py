"""`replaces` in new orders (RFC 9773 5), against a CA that takes it, refuses it, or has never heard of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.certificate_ids import certificate_id
from certplane.broker.model import IssuerOrderStatus, Profile
from certplane.errors import Reason, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from tests.support.scripted_acme import Answer, ScriptedAcme, problem

SOON = timedelta(seconds=20)
NAMES = ("certplane.test",)
PROFILE = Profile("web", "multi_san", NAMES, "hash")


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedAcme]:
    with ScriptedAcme(tmp_path) as ca:
        ca.renewal_info = True
        yield ca


@pytest_asyncio.fixture
async def issuer(ca: ScriptedAcme, tmp_path: Path) -> AsyncIterator[AcmeIssuer]:
    key = AccountKey.load_or_create(tmp_path / "account.key")
    server = AcmeServer(ca.directory_url, ca_bundle=ca.roots_file)
    waits = Backoff(first=timedelta(milliseconds=20), most=timedelta(milliseconds=40))
    issuer = AcmeIssuer("scripted", AcmeCa(server, SystemClock()), key, rng=random.Random(1), repeat_waits=waits)
    yield issuer
    await issuer.ca.close()


@pytest.fixture(scope="module")
def replaced() -> str:
    """A certificate with the identifier of its issuer's key."""
    return CertificateAuthority.root("Issuer").issue("certplane.test", list(NAMES)).chain_pem.decode()


def csr_der() -> bytes:
    pem = build_csr(generate_private_key(KeyType.EC_P256), sans=NAMES)
    return x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)


def asked(ca: ScriptedAcme) -> list[str | None]:
    """What each new order said that it replaces."""
    return [seen.payload.get("replaces") for seen in ca.requests if (seen.method, seen.path) == ("POST", "/newOrder")]


async def test_a_renewal_names_what_it_replaces(ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str) -> None:
    """By the name that the certificate has at its CA; a first order names nothing."""
    await issuer.create_order(csr_der(), PROFILE, SOON)
    await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert asked(ca) == [None, certificate_id(x509.load_pem_x509_certificate(replaced.encode()))]


async def test_a_ca_without_renewal_information_is_told_nothing(
    ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str
) -> None:
    """Such CAs refuse members that they don't know (HARICA does)."""
    ca.renewal_info = False
    await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert asked(ca) == [None]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(problem("alreadyReplaced", "it has an order", 409), id="already replaced (fault row 9)"),
        pytest.param(problem("malformed", "unknown field replaces"), id="an unknown member (mod_md#406)"),
        pytest.param(problem("malformed", "no such certificate", 404), id="an unknown certificate"),
        pytest.param(problem("unauthorized", "not your certificate", 403), id="another account's"),
    ],
)
async def test_an_order_is_asked_for_once_without_what_it_replaces(
    ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str, answer: Answer
) -> None:
    """A renewal doesn't fail because of it."""
    ca.fail("POST /newOrder", answer)
    order = await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert order.status is IssuerOrderStatus.PENDING
    assert [bool(name) for name in asked(ca)] == [True, False]


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        pytest.param(1, [True, True], id="a fault that passes"),
        pytest.param(2, [True, True, False], id="one that doesn't"),
        pytest.param(3, [True, True, False, False], id="and one that is about something else"),
    ],
)
async def test_a_ca_that_stumbles_over_it_is_asked_without_it(
    ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str, faults: int, told: list[bool]
) -> None:
    """Pebble answers 500 each time for certain serial numbers: such a certificate would never be renewed."""
    ca.fail("POST /newOrder", *[problem("serverInternal", "could not find an order", 500)] * faults)
    order = await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert order.status is IssuerOrderStatus.PENDING
    assert [bool(name) for name in asked(ca)] == told
    assert order.replaces is told[-1]


async def test_an_order_that_is_refused_without_it_too_is_refused(
    ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str
) -> None:
    """The second answer is the one that counts, and there is no third question."""
    ca.fail("POST /newOrder", problem("alreadyReplaced", status=409), problem("malformed", "a bad name"))
    with pytest.raises(RefusalError, match="a bad name") as refused:
        await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert refused.value.refusal.reason is Reason.ISSUER_REJECTED
    assert len(asked(ca)) == 2


@pytest.mark.parametrize("kind", ["rejectedIdentifier", "rateLimited", "userActionRequired"])
async def test_other_refusals_are_not_blamed_on_it(
    ca: ScriptedAcme, issuer: AcmeIssuer, replaced: str, kind: str
) -> None:
    """What the CA says of names, limits or the account is said once."""
    ca.fail("POST /newOrder", problem(kind, status=403, retry_after="3600"))
    with pytest.raises(RefusalError):
        await issuer.create_order(csr_der(), PROFILE, SOON, replaces=replaced)
    assert len(asked(ca)) == 1
