"""A directory that isn't there: told at once with its URL, final where a person is needed, waited for where it isn't."""

from __future__ import annotations

import json
import logging
import random
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuance.outcome import Consequence, classify, fails_over
from certplane.broker.issuers import acme_registration
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.model import Profile
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from tests.support.scripted_acme import Answer, ScriptedAcme, problem

LONG = timedelta(seconds=20)
SHORT = timedelta(seconds=1.5)
NAMES = ("www.certplane.test",)
PROFILE = Profile("web", "multi_san", NAMES, "hash")


@pytest.fixture(autouse=True)
def _briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong directory is borne for less than the ten seconds of a page that passes."""
    monkeypatch.setattr(acme_registration, "_BRIEFLY", timedelta(seconds=1))


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedAcme]:
    with ScriptedAcme(tmp_path) as ca:
        yield ca


def issuer_at(
    ca: ScriptedAcme, url: str = "", *, trusted: bool = True, section: str = "issuer.acme", email: str = ""
) -> AcmeIssuer:
    key = AccountKey.load_or_create(ca.roots_file.with_name("account.key"))
    bundle = ca.roots_file if trusted else None
    server = AcmeServer(url or ca.directory_url, email, ca_bundle=bundle, section=section)
    return AcmeIssuer("scripted", AcmeCa(server, SystemClock()), key, rng=random.Random(1))


def csr_der() -> bytes:
    key = generate_private_key(KeyType.EC_P256)
    return x509.load_pem_x509_csr(build_csr(key, sans=NAMES).encode()).public_bytes(Encoding.DER)


async def refusal_of(call: object) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await call  # type: ignore[misc] # any awaitable
    return caught.value.refusal


def directory(**changes: object) -> Answer:
    names = ("newNonce", "newAccount", "newOrder", "revokeCert")
    urls: dict[str, object] = {name: f"https://127.0.0.1/{name}" for name in names} | changes
    return Answer(200, json.dumps({name: url for name, url in urls.items() if url}).encode())


WRONG = [
    pytest.param(Answer(404), "HTTP status 404", id="404"),
    pytest.param(Answer(404, b"<html>", "text/html"), "HTTP status 404", id="404-html"),
    pytest.param(Answer(410), "HTTP status 410", id="410"),
    pytest.param(Answer(403, b"no", "text/plain"), "HTTP status 403", id="403"),
    pytest.param(problem("malformed", status=405), "HTTP status 405", id="problem-document"),
    pytest.param(
        Answer(301, headers=(("Location", "https://ca.test/x"),)), "a redirect to https://ca.test/x", id="301"
    ),
    pytest.param(Answer(200, b"<html>", "text/html"), "something that isn't JSON (text/html)", id="html"),
    pytest.param(Answer(200, b""), "something that isn't JSON", id="empty"),
    pytest.param(Answer(200, b"[]"), "JSON that isn't an object", id="list"),
    pytest.param(Answer(200, b'{"keys": []}'), "an object without newNonce", id="another-api"),
    pytest.param(directory(newOrder=""), "an object without newOrder", id="without-newOrder"),
    pytest.param(directory(newOrder=7), "an object without newOrder", id="newOrder-is-a-number"),
    pytest.param(directory(newNonce="https://evil.test/n"), "a URL on evil.test:443", id="another-host"),
]


@pytest.mark.parametrize(("answer", "said"), WRONG)
async def test_something_else_than_a_directory(
    ca: ScriptedAcme, answer: Answer, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An order ends soon, for a person, with URL and remedy; the look without an order says so at once; one warning."""
    caplog.set_level(logging.INFO, "certplane")
    ca.fail("GET /directory", *[answer] * 99)
    issuer = issuer_at(ca)
    with pytest.raises(AcmeError) as caught:
        await issuer.ca.read_directory(LONG)
    assert (caught.value.suspects_configuration, ca.count("GET /directory")) == (True, 1)
    assert caplog.records == []
    told = (caught.value.refusal, await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG)))
    await issuer.ca.close()
    for refusal in told:
        assert (refusal.reason, classify(refusal)) == (Reason.ISSUER_REJECTED, Consequence.ASK_PERSON)
        assert f"{ca.directory_url} is no ACME directory: " in refusal.message
        assert said in refusal.message
        assert "issuer.acme." in refusal.message
        assert fails_over(refusal)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert ca.directory_url in caplog.text


@pytest.mark.parametrize(
    "answer", [problem("serverInternal", status=500), Answer(503, b"busy", "text/plain"), Answer(408)]
)
async def test_outage(ca: ScriptedAcme, answer: Answer, caplog: pytest.LogCaptureFixture) -> None:
    """A CA that is out of order is waited for, said once with the URL, and once that it is back."""
    caplog.set_level(logging.INFO, "certplane.broker.issuers.acme_registration")
    ca.fail("GET /directory", *[answer] * 3)
    issuer = issuer_at(ca)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    assert (refusal.reason, ca.directory_url in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)
    await issuer.create_order(csr_der(), PROFILE, LONG)
    await issuer.ca.close()
    texts = [record.message.partition(":")[0] for record in caplog.records]
    assert texts[:2] == ["the CA's directory can't be read", "the CA's directory can be read again"]
    assert len(ca.orders) == 1


async def test_rate_limit_is_one(ca: ScriptedAcme) -> None:
    """429 stays what it is."""
    ca.fail("GET /directory", problem("rateLimited", status=429, retry_after="30"))
    issuer = issuer_at(ca)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    await issuer.ca.close()
    assert refusal.reason is Reason.ISSUER_RATE_LIMITED


async def test_nobody_there(ca: ScriptedAcme) -> None:
    """A refused connection or an unknown host is told at once with the URL; an order waits for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for url in (f"https://127.0.0.1:{port}/directory", "https://ca.invalid/directory"):
        issuer = issuer_at(ca, url)
        with pytest.raises(AcmeError) as caught:
            await issuer.ca.read_directory(LONG)
        order = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
        await issuer.ca.close()
        assert (caught.value.suspects_configuration, order.reason) == (True, Reason.ISSUER_UNAVAILABLE)
        for refusal in (caught.value.refusal, order):
            assert url in refusal.message
            assert "check host and port of issuer.acme.directory_url" in refusal.message


@pytest.mark.parametrize("mismatch", [True, False], ids=["another-name", "untrusted"])
async def test_tls(ca: ScriptedAcme, mismatch: bool) -> None:
    """A server of another name, or one that isn't trusted, is told at once; an order waits, since it may be put right."""
    url = ca.directory_url.replace("127.0.0.1", "localhost") if mismatch else ca.directory_url
    issuer = issuer_at(ca, url, trusted=mismatch)
    with pytest.raises(AcmeError) as caught:
        await issuer.ca.read_directory(LONG)
    order = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    await issuer.ca.close()
    assert (caught.value.suspects_configuration, order.reason) == (True, Reason.ISSUER_UNAVAILABLE)
    for refusal in (caught.value.refusal, order):
        assert f"{url}: no answer: TLS failed" in refusal.message
        assert "issuer.acme.ca_bundle" in refusal.message


async def test_page_that_passes(ca: ScriptedAcme) -> None:
    """A page in front of the CA for a moment ends no order."""
    ca.fail("GET /directory", Answer(200, b"<html>", "text/html"))
    issuer = issuer_at(ca)
    assert (await issuer.create_order(csr_der(), PROFILE, LONG)).challenges
    await issuer.ca.close()


async def test_directory_that_was_there(ca: ScriptedAcme) -> None:
    """What was a directory in this process is taken for away, not for wrong."""
    issuer = issuer_at(ca)
    await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("GET /directory", *[Answer(404)] * 99)
    missing = Profile("web", "multi_san", NAMES, "hash", acme_profile="new")
    refusal = await refusal_of(issuer.create_order(csr_der(), missing, timedelta(seconds=3)))
    await issuer.ca.close()
    assert (refusal.reason, refusal.problems) == (Reason.ISSUER_UNAVAILABLE, ())


async def test_look_at_the_account(ca: ScriptedAcme) -> None:
    """`account show` says at once, with the URL, that there is no directory."""
    ca.fail("GET /directory", Answer(404))
    issuer = issuer_at(ca)
    refusal = await refusal_of(issuer.account(LONG))
    await issuer.ca.close()
    assert (ca.directory_url in refusal.message, ca.count("GET /directory")) == (True, 1)


async def test_look_at_the_start(ca: ScriptedAcme, caplog: pytest.LogCaptureFixture) -> None:
    """The look at the start warns once, and an order that meets the same says nothing more."""
    ca.fail("GET /directory", *[Answer(404)] * 99)
    issuer = issuer_at(ca)
    await issuer.note_directory(LONG)
    assert ca.count("GET /directory") == 1
    await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    await issuer.ca.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


KEYS = [
    pytest.param("GET /directory", Answer(404), "directory_url", id="no-directory"),
    pytest.param("GET /directory", directory(newNonce="https://evil.test/n"), "allowed_hosts", id="another-host"),
    pytest.param("POST /newAccount", problem("externalAccountRequired"), "eab", id="binding"),
    pytest.param("POST /newAccount", problem("invalidContact"), "account_email", id="contact"),
    pytest.param("POST /newAccount", problem("unsupportedContact"), "account_email", id="kind-of-contact"),
]


@pytest.mark.parametrize(("request_", "answer", "key"), KEYS)
async def test_a_further_issuer_names_its_own_keys(ca: ScriptedAcme, request_: str, answer: Answer, key: str) -> None:
    """What an order meets at a further issuer is mended in that issuer's section, and the message says so."""
    ca.fail(request_, *[answer] * 99)
    issuer = issuer_at(ca, section="issuers.second.acme", email="ops@certplane.test")
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    await issuer.ca.close()
    assert f"issuers.second.acme.{key}" in refusal.message
    assert "issuer.acme" not in refusal.message


async def test_a_further_issuer_that_is_not_reached_names_its_own_keys(ca: ScriptedAcme) -> None:
    """The same of one whose server isn't trusted, and of an address that can't be used."""
    issuer = issuer_at(ca, trusted=False, section="issuers.second.acme")
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    await issuer.ca.close()
    assert "issuers.second.acme.ca_bundle" in refusal.message
    with pytest.raises(ConfigurationError) as caught:
        issuer_at(ca, "http://ca.test/directory", section="issuers.second.acme")
    assert [problem.key for problem in caught.value.problems] == ["issuers.second.acme.directory_url"]


async def test_a_contact_that_is_refused_later_names_its_own_key(
    ca: ScriptedAcme, caplog: pytest.LogCaptureFixture
) -> None:
    """An account that is there whose contact can't be changed: the log names the further issuer's key."""
    first = issuer_at(ca)
    await first.create_order(csr_der(), PROFILE, LONG)
    await first.ca.close()
    ca.fail("POST /account/1", problem("invalidContact"))
    again = issuer_at(ca, section="issuers.second.acme", email="ops@certplane.test")
    await again.create_order(csr_der(), PROFILE, LONG)
    await again.ca.close()
    assert "correct issuers.second.acme.account_email" in caplog.text


def test_an_account_key_names_its_own_setting(tmp_path: Path) -> None:
    """A key of a further issuer that can't be used while the broker runs is told of that issuer."""
    path = tmp_path / "second.key"
    path.write_text("junk")
    path.chmod(0o600)
    file = AccountKeyFile(path, "issuers.second.acme.account_key")
    path.with_name("second.key.next").write_text("junk")
    for read in (file.load, file.pending, file.prepare):
        with pytest.raises(ConfigurationError) as caught:
            read()
        assert [problem.key for problem in caught.value.problems] == ["issuers.second.acme.account_key"]
