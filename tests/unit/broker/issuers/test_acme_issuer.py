"""`AcmeIssuer` against a CA that misbehaves on purpose, over real HTTPS."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certplane.broker.issuance.outcome import Consequence, classify, fails_over
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_connection import LARGEST_BODY
from certplane.broker.issuers.acme_keeping import KeptInFile
from certplane.broker.model import IssuerOrder, IssuerOrderStatus, Profile, RevocationReason
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.certificates import CertificateAuthority
from tests.support.scripted_acme import Answer, ScriptedAcme, problem
from tests.support.waiting import PATIENCE, until

SHORT = timedelta(seconds=1.5)
LONG = timedelta(seconds=20)
SETTLING = timedelta(seconds=1)
"""For how long the CA may not know what it has named."""
NAMES = ("*.certplane.test", "certplane.test")
PROFILE = Profile("mixed", "mixed", NAMES, "hash")
NOT_ALLOWED = "a URL on evil.test:443, which is neither the directory's host nor allowed"
LOST = Answer(lost=True)
HTML = Answer(502, b"<html>Bad gateway\x1b[2J</html>", "text/html")


def csr_der(*names: str) -> bytes:
    key = generate_private_key(KeyType.EC_P256)
    return x509.load_pem_x509_csr(build_csr(key, sans=names or NAMES).encode()).public_bytes(Encoding.DER)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedAcme]:
    with ScriptedAcme(tmp_path) as ca:
        yield ca


@pytest.fixture
def key(tmp_path: Path) -> AccountKey:
    return AccountKey.load_or_create(tmp_path / "account.key")


@pytest_asyncio.fixture
async def issuer(ca: ScriptedAcme, key: AccountKey) -> AsyncIterator[AcmeIssuer]:
    server = AcmeServer(ca.directory_url, "ops@certplane.test", ca_bundle=ca.roots_file, user_agent="certplane/test")
    issuer = AcmeIssuer("scripted", AcmeCa(server, SystemClock()), key, rng=random.Random(1), settling=SETTLING)
    yield issuer
    await issuer.ca.close()


def with_preferred(ca: ScriptedAcme, key: AccountKey, preferred: str) -> AcmeIssuer:
    server = AcmeServer(ca.directory_url, preferred_chain=preferred, ca_bundle=ca.roots_file)
    return AcmeIssuer("scripted", AcmeCa(server, SystemClock()), key, rng=random.Random(1), settling=SETTLING)


async def ready_order(issuer: AcmeIssuer, *names: str) -> IssuerOrder:
    created = await issuer.create_order(csr_der(*names), PROFILE, LONG)
    return await issuer.answer_challenges(created, LONG)


async def refusal_of(call: object) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await call  # type: ignore[misc] # any awaitable
    return caught.value.refusal


async def test_issues_through_every_step(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """From order to chain: apex and wildcard share one record name with two values, and one CSR is sent."""
    csr = csr_der()
    order = await issuer.create_order(csr, PROFILE, LONG)
    assert order.status is IssuerOrderStatus.PENDING
    assert {challenge.record_name for challenge in order.challenges} == {"_acme-challenge.certplane.test"}
    assert len({challenge.record_value for challenge in order.challenges}) == 2
    order = await issuer.answer_challenges(order, LONG)
    assert (order.status, order.challenges) == (IssuerOrderStatus.READY, ())
    order = await issuer.finalize(order, csr, LONG)
    chain = await issuer.download(order, LONG)
    leaf, *_ = x509.load_pem_x509_certificates(chain.encode())
    assert leaf.public_key() == x509.load_der_x509_csr(csr).public_key()
    assert ca.count("POST /finalize/1") == 1


async def test_account_is_registered_once(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """All calls share one account, made with contact and agreement on the first call."""
    await issuer.create_order(csr_der(), PROFILE, LONG)
    await issuer.create_order(csr_der(), PROFILE, LONG)
    registrations = [seen for seen in ca.requests if seen.path == "/newAccount"]
    assert [seen.payload for seen in registrations] == [
        {"contact": ["mailto:ops@certplane.test"], "termsOfServiceAgreed": True}
    ]
    assert ca.count("GET /directory") == 1


async def test_known_account_is_found_again(ca: ScriptedAcme, key: AccountKey, issuer: AcmeIssuer) -> None:
    """After a restart the same key leads to the same account (RFC 8555 7.3.1)."""
    await issuer.create_order(csr_der(), PROFILE, LONG)
    again = with_preferred(ca, key, "")
    await again.create_order(csr_der(), PROFILE, LONG)
    await again.ca.close()
    assert list(ca.accounts.values()) == [1]


async def test_lost_registration_is_repeated(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An account whose creation was not answered is found by its key."""
    ca.fail("POST /newAccount", Answer(lost=True, after=True))
    await issuer.create_order(csr_der(), PROFILE, LONG)
    assert ca.count("POST /newAccount") == 2
    assert list(ca.accounts.values()) == [1]


async def test_forgotten_account_is_registered_again(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that lost its accounts gets the key again, and the call succeeds."""
    await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.accounts.clear()
    order = await issuer.create_order(csr_der(), PROFILE, LONG)
    assert order.url == f"{ca.url}/order/2"


async def test_a_request_of_the_old_key_that_meets_the_new_one_is_repeated(ca: ScriptedAcme, tmp_path: Path) -> None:
    """The key was changed, and taken by another call, while the request was on its way: no order fails by that."""
    file = AccountKeyFile(tmp_path / "account.key")
    with closing(BlockingPool("files", 1)) as pool:
        server = AcmeServer(ca.directory_url, ca_bundle=ca.roots_file)
        keeper = KeptInFile(file, pool)
        issuer = AcmeIssuer("scripted", AcmeCa(server, SystemClock()), file.load(), rng=random.Random(1), keeper=keeper)
        created = await issuer.create_order(csr_der(), PROFILE, LONG)
        ca.fail("POST /order/1$", replace(problem("unauthorized", "no such key", 401), delay=0.5))
        looking = asyncio.create_task(issuer.get_order(created.url, LONG))
        asked = ca.count("POST /order/1$")
        await until(lambda: ca.count("POST /order/1$") > asked, what="the request")
        (tmp_path / "account.key").unlink()
        new = await keeper.load()
        assert await issuer.look_at_account_key(LONG) == new.public_key_sha256
        assert (await looking).url == created.url
        await issuer.ca.close()


@pytest.mark.parametrize("kind", ["invalidContact", "unsupportedContact"])
async def test_contact_that_the_ca_refuses(ca: ScriptedAcme, issuer: AcmeIssuer, kind: str) -> None:
    """It is a mistake in the configuration, for a person, and the message has the key."""
    ca.fail("POST /newAccount", problem(kind, "bad contact"))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert (refusal.reason, classify(refusal)) == (Reason.ISSUER_REJECTED, Consequence.ASK_PERSON)
    assert "correct issuer.acme.account_email" in refusal.message


async def test_deactivated_account_is_said(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An account that isn't valid is a person's job, and the message says which."""
    headers = (("Location", f"{ca.url}/account/1"),)
    ca.fail("POST /newAccount", Answer(200, b'{"status": "deactivated"}', headers=headers))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert f"{ca.url}/account/1 is deactivated" in refusal.message


async def test_every_request_names_the_program(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """User-Agent is mandatory (RFC 8555 6.1), and nothing asks for compression."""
    await issuer.create_order(csr_der(), PROFILE, LONG)
    assert {seen.headers["user-agent"] for seen in ca.requests} == {"certplane/test"}
    assert {seen.headers["accept-encoding"] for seen in ca.requests} == {"identity"}


async def test_profile_is_passed_on(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A policy profile with an ACME profile asks for it; one without sends no such member."""
    await issuer.create_order(csr_der(), PROFILE, LONG)
    await issuer.create_order(csr_der(), Profile("m", "mixed", NAMES, "h", acme_profile="tlsserver"), LONG)
    payloads = [seen.payload for seen in ca.requests if seen.path == "/newOrder"]
    assert [payload.get("profile") for payload in payloads] == [None, "tlsserver"]
    assert [entry["value"] for entry in payloads[0]["identifiers"]] == sorted(NAMES)


async def test_bad_nonces_are_tried_five_times(ca: ScriptedAcme, key: AccountKey) -> None:
    """Four bad nonces in a row cost no failure, and each retry takes the nonce that the refusal brought."""
    server = AcmeServer(ca.directory_url, ca_bundle=ca.roots_file)
    issuer = AcmeIssuer("one nonce", AcmeCa(server, SystemClock()), key, rng=random.Random(1))
    ca.fail("POST /newOrder", *[problem("badNonce")] * 4)
    await issuer.create_order(csr_der("certplane.test"), PROFILE, LONG)  # one name: one request at a time
    await issuer.ca.close()
    assert ca.count("POST /newOrder") == 5
    assert ca.count("HEAD /newNonce") == 1
    assert len(ca.orders) == 1


async def test_bad_nonce_storm_backs_off_and_ends(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that likes no nonce is unavailable: five tries, a wait, five more, until the deadline."""
    ca.fail("POST /newOrder", *[problem("badNonce")] * 100)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE
    assert ca.count("POST /newOrder") % 5 == 0
    assert 5 <= ca.count("POST /newOrder") <= 25


async def test_bad_nonce_does_not_send_a_csr_twice(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A nonce refused at the finalisation is retried: the CA took no CSR. It takes one in the end."""
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", problem("badNonce"), problem("badNonce"))
    await issuer.finalize(order, csr_der(), LONG)
    assert (ca.count("POST /finalize/1"), ca.csrs) == (3, 1)


RETRY_AFTER = [
    pytest.param("120", timedelta(seconds=120), id="seconds"),
    pytest.param(format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True), timedelta(), id="date-gone-by"),
    pytest.param("9" * 400, timedelta(days=7), id="huge"),
    pytest.param("soon", timedelta(minutes=10), id="nonsense"),
    pytest.param("", timedelta(minutes=10), id="absent"),
]


@pytest.mark.parametrize(("header", "wait"), RETRY_AFTER)
async def test_rate_limit_says_when_to_come_back(
    ca: ScriptedAcme, issuer: AcmeIssuer, header: str, wait: timedelta
) -> None:
    """429 ends the step at once, with the CA's wait and its own words."""
    ca.fail("POST /newOrder", problem("rateLimited", "too many orders", 429, retry_after=header))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert (refusal.reason, refusal.retry_after) == (Reason.ISSUER_RATE_LIMITED, wait)
    assert "too many orders" in refusal.message
    assert refusal.problems[0].type == "urn:ietf:params:acme:error:rateLimited"
    assert ca.count("POST /newOrder") == 1


async def test_rate_limit_with_a_date(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An HTTP date is measured against aware UTC, whatever the machine's zone."""
    when = datetime.now(UTC) + timedelta(hours=2)
    ca.fail("POST /newOrder", problem("rateLimited", status=429, retry_after=format_datetime(when, usegmt=True)))
    before = datetime.now(UTC)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    after = datetime.now(UTC)
    assert refusal.retry_after is not None
    second = timedelta(seconds=1)  # an HTTP date has no fractions
    assert when - after - second <= refusal.retry_after <= when - before + second


async def test_rate_limit_without_a_problem_document(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A bare 429, as something in front of the CA sends it, is a rate limit too."""
    ca.fail("POST /newOrder", Answer(429, b"slow down", "text/plain", (("Retry-After", "7"),)))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert (refusal.reason, refusal.retry_after) == (Reason.ISSUER_RATE_LIMITED, timedelta(seconds=7))
    assert [violation.subject for violation in refusal.violations] == ["name_set"]


TEMPORARY = [
    pytest.param(LOST, id="lost"),
    pytest.param(HTML, id="html"),
    pytest.param(Answer(404, b"<html>not here</html>", "text/html"), id="html-404"),
    pytest.param(problem("serverInternal", status=500), id="server-internal"),
    pytest.param(Answer(503, b"", headers=(("Retry-After", "0"),)), id="503"),
    pytest.param(Answer(200, b"{"), id="malformed-json"),
    pytest.param(Answer(200, b"[1, 2]"), id="not-an-object"),
    pytest.param(Answer(200, b'{"status": "surprised"}'), id="unknown-status"),
    pytest.param(Answer(200, b"[" * 100_000), id="deep-json"),
    pytest.param(Answer(200, b"\xff\xfe"), id="not-text"),
    pytest.param(Answer(200, b'{"status": "pending", "finalize": "x", "authorizations": 7}'), id="wrong-type"),
    pytest.param(Answer(200, b"{}", headers=(("Content-Encoding", "gzip"),)), id="compressed"),
    pytest.param(Answer(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), id="cut-off"),
    pytest.param(Answer(raw=b"what is this\r\n\r\n"), id="not-http"),
    pytest.param(Answer(302, b"", headers=(("Location", "https://127.0.0.1:1/elsewhere"),)), id="redirect"),
]


@pytest.mark.parametrize("answer", TEMPORARY)
async def test_looks_are_repeated(ca: ScriptedAcme, issuer: AcmeIssuer, answer: Answer) -> None:
    """Whatever isn't the CA's own word is an absent CA: the request is repeated and succeeds."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", answer)
    assert await issuer.get_order(created.url, LONG) == created
    assert ca.count("POST /order/1") == 2


@pytest.mark.parametrize("answer", TEMPORARY)
async def test_absent_ca_is_said_at_the_deadline(ca: ScriptedAcme, issuer: AcmeIssuer, answer: Answer) -> None:
    """A CA that stays away is ISSUER_UNAVAILABLE, printable, within the time that was given."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", *[answer] * 100)
    started = SystemClock().monotonic()
    refusal = await refusal_of(issuer.get_order(created.url, SHORT))
    assert SystemClock().monotonic() - started < LONG.total_seconds()
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE
    assert refusal.message.isprintable()
    assert refusal.message.startswith(f"the CA did not show the order {created.url}: ")


async def test_waiting_ends_by_the_deadline(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that takes the request and says nothing can't hold a step."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", Answer(delay=4 * PATIENCE))
    started = SystemClock().monotonic()
    refusal = await refusal_of(issuer.get_order(created.url, timedelta(seconds=0.5)))
    assert SystemClock().monotonic() - started < 3.5 * PATIENCE
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE


async def test_retry_after_beyond_the_deadline_is_handed_on(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A 503 that asks for more time than is left ends the step at once and passes the wait on."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", Answer(503, b"", headers=(("Retry-After", "3600"),)))
    refusal = await refusal_of(issuer.get_order(created.url, LONG))
    assert refusal.retry_after == timedelta(hours=1)
    assert ca.count("POST /order/1") == 1


async def test_oversized_body_is_not_read_to_its_end(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A body over the limit is refused, whether its length is announced or not."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    big = Answer(200, b" " * (LARGEST_BODY + 1))
    ca.fail("POST /order/1", *[big] * 20)
    refusal = await refusal_of(issuer.get_order(created.url, SHORT))
    assert (refusal.reason, f"more than {LARGEST_BODY} bytes" in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)


async def test_redirect_is_not_followed(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A redirect, even to the same host, leads nowhere."""
    ca.fail("GET /directory", *[Answer(307, headers=(("Location", f"{ca.url}/newNonce"),))] * 20)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    assert f"HTTP status 307, a redirect to {ca.url}/newNonce that isn't followed" in refusal.message
    assert ca.count("GET /newNonce") == 0


FOREIGN = [
    pytest.param("https://metadata.internal/newOrder", id="other-host"),
    pytest.param("https://127.0.0.1:1/newOrder", id="other-port"),
    pytest.param("http://127.0.0.1/newOrder", id="not-https"),
    pytest.param("https://127.0.0.1@evil.test/newOrder", id="user-info"),
    pytest.param("https://evil.test\\@127.0.0.1/newOrder", id="backslash"),
    pytest.param("file:///etc/passwd", id="file"),
]


@pytest.mark.parametrize("url", FOREIGN)
async def test_foreign_url_is_not_called(ca: ScriptedAcme, issuer: AcmeIssuer, url: str) -> None:
    """A directory that points to another host is refused before anything is sent there."""
    foreign = f'{{"newNonce": "{ca.url}/newNonce", "newAccount": "{ca.url}/newAccount", "newOrder": '.encode()
    foreign += f'"{url}", "revokeCert": "{ca.url}/revokeCert"}}'.replace("\\", "\\\\").encode()
    ca.fail("GET /directory", *[Answer(200, foreign)] * 20)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    assert (refusal.reason, "a URL " in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)
    assert ca.count("POST .*") == 0


async def test_names_that_were_not_asked_for_are_refused(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA can't make the broker write records for names that no CSR had."""
    ca.extra_identifier = "bank.test"
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert "'bank.test'" in refusal.message


async def test_authorization_that_is_no_dns_name(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An identifier becomes a record's name, so nothing but a DNS name is taken."""
    ca.extra_identifier = "a b\n.test"
    refusal = (await issuer.create_order(csr_der(), PROFILE, SHORT)).trouble
    assert refusal is not None
    assert "isn't a DNS name" in refusal.message


async def test_problem_documents_are_made_printable(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """Main problem and subproblems arrive with their identifiers, without control characters and of bounded length."""
    sub = {"type": "urn:ietf:params:acme:error:caa", "detail": "no\r\n\x00", "identifier": {"value": "a.test"}}
    ca.fail(
        "POST /newOrder", problem("rejectedIdentifier", "evil\x1b[2J\n\u202e" + "x" * 5000, 400, subproblems=[sub] * 50)
    )
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED
    main, first, *_ = refusal.problems
    assert main.type == "urn:ietf:params:acme:error:rejectedIdentifier"
    assert main.detail.startswith("evil[2J ")
    assert len(main.detail) == 500
    assert (first.detail, first.identifier) == ("no", "a.test")
    assert len(refusal.problems) == 10
    assert all(text.isprintable() for entry in refusal.problems for text in (entry.type, entry.detail))


async def test_lost_new_order_is_repeated(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order whose creation was not answered is asked for again: the first one is left to expire."""
    ca.fail("POST /newOrder", Answer(lost=True, after=True))
    order = await issuer.create_order(csr_der(), PROFILE, LONG)
    assert order.url == f"{ca.url}/order/2"


async def test_lost_answer_to_a_challenge_is_no_failure(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A challenge that turns out to be answered already is not answered again, and the order goes on."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /challenge/1/0", Answer(lost=True, after=True))
    assert (await issuer.answer_challenges(created, LONG)).status is IssuerOrderStatus.READY


async def test_a_challenge_that_the_ca_is_at_work_on_takes_no_second_answer(
    ca: ScriptedAcme, issuer: AcmeIssuer
) -> None:
    """Whoever takes an order over while the CA validates answers again: refused, and the order goes on."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.validation = "processing"
    ca.orders[1].names.append("third.test")
    assert (await issuer.answer_challenges(created, SHORT)).status is IssuerOrderStatus.PENDING
    ca.orders[1].names.pop()
    ca.orders[1].status = "ready"
    assert (await issuer.answer_challenges(created, LONG)).status is IssuerOrderStatus.READY


async def test_refused_challenge_that_is_pending_is_a_failure(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A refusal to take an answer is the CA's word as long as the authorization is pending."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /challenge/1/0", problem("malformed", "no such challenge"))
    refusal = await refusal_of(issuer.answer_challenges(created, LONG))
    assert (refusal.reason, "no such challenge" in refusal.message) == (Reason.ISSUER_REJECTED, True)


async def test_failed_validation_names_domain_and_reason(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An invalid order tells which name failed and why, from the challenge's own problem document."""
    ca.validation = "invalid"
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    refusal = await refusal_of(issuer.answer_challenges(created, LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert refusal.problems[0].identifier == "certplane.test"
    assert refusal.problems[0].detail == "Incorrect TXT record[31m found"
    assert "certplane.test Incorrect TXT record" in refusal.message


async def test_slow_validation_ends_at_the_deadline(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order that stays pending is shown as it is, with the CA's wait; nothing is finalised."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.validation, ca.retry_after = "pending", "30"
    ca.orders[1].names.append("third.test")
    answered = await issuer.answer_challenges(created, SHORT)
    assert (answered.status, answered.retry_after) == (IssuerOrderStatus.PENDING, timedelta(seconds=30))
    assert ca.csrs == 0


async def test_order_is_resumed_from_its_url(ca: ScriptedAcme, key: AccountKey, issuer: AcmeIssuer) -> None:
    """Another process finds the same challenges with the same values."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    again = with_preferred(ca, key, "")
    assert await again.get_order(created.url, LONG) == created
    await again.ca.close()


async def test_unknown_order_is_rejected(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order that the CA doesn't know is its word, not an outage."""
    refusal = await refusal_of(issuer.get_order(f"{ca.url}/order/77", LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED


async def test_bare_status_of_the_ca_is_its_word(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An empty 404 that carries a nonce comes from the CA itself: it doesn't know the order."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", *[Answer(404)] * 99)
    refusal = await refusal_of(issuer.get_order(created.url, LONG))
    assert (refusal.reason, refusal.problems[0].status) == (Reason.ISSUER_REJECTED, 404)


NOT_THERE = problem("malformed", "No such thing for this ID", status=404)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(NOT_THERE, id="malformed"),
        pytest.param(problem("unauthorized", "Not yours", status=404), id="unauthorized"),
        pytest.param(Answer(404), id="status-alone"),
    ],
)
@pytest.mark.parametrize(
    "where",
    ["POST /newAccount", "POST /newOrder", "POST /order/1", "POST /authz/1/0", "POST /challenge/1/1", "POST /cert/1"],
    ids=lambda where: where[6:11],
)
async def test_what_the_ca_named_and_does_not_know_yet(
    ca: ScriptedAcme, issuer: AcmeIssuer, where: str, answer: Answer
) -> None:
    """A replica's 404 about what the CA has just handed out is asked again within the step."""
    ca.fail(where, answer, answer)
    csr = csr_der()
    created = await issuer.create_order(csr, PROFILE, LONG)
    order = await issuer.finalize(await issuer.answer_challenges(created, LONG), csr, LONG)
    assert await issuer.download(order, LONG)
    assert (len(ca.orders), ca.csrs) == (1, 1)


async def test_finalize_url_that_is_not_known_yet(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """The step fails as one that may pass, and the next one sends the CSR: never blindly twice."""
    csr = csr_der()
    ready = await ready_order(issuer)
    ca.fail("POST /finalize/1", NOT_THERE)
    refusal = await refusal_of(issuer.finalize(ready, csr, LONG))
    assert (refusal.reason, ca.count("POST /finalize/1")) == (Reason.ISSUER_UNAVAILABLE, 1)
    order = await issuer.finalize(ready, csr, LONG)
    assert await issuer.download(order, LONG)
    assert (ca.count("POST /finalize/1"), ca.csrs) == (2, 1)


async def test_what_the_ca_named_and_stays_away(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """After a while it is the CA's last word, with the URL; and an older one doesn't count for the next."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /authz/1/0", *[NOT_THERE] * 99)
    refusal = await refusal_of(issuer.get_order(created.url, LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED
    assert f"it named {ca.url}/authz/1/0 itself, and has not known it for 1 s" in refusal.message
    assert ca.count("POST /authz/1/0") > 2


@pytest.mark.parametrize(
    ("where", "answer"),
    [
        pytest.param("POST /order/1", problem("unauthorized", status=403), id="403"),
        pytest.param("POST /order/1", problem("malformed"), id="400"),
    ],
)
async def test_refusals_that_are_no_lag(ca: ScriptedAcme, issuer: AcmeIssuer, where: str, answer: Answer) -> None:
    """Everything else that the CA refuses is refused at once."""
    ca.fail(where, answer)
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    refusal = await refusal_of(issuer.get_order(created.url, LONG))
    assert (refusal.reason, ca.count(where)) == (Reason.ISSUER_REJECTED, 1)


async def test_directory_whose_urls_have_moved(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that makes orders at another URL since the broker started: its directory is read again."""
    urls = {name: f"{ca.url}/{name}" for name in ("newNonce", "newAccount", "newOrder", "revokeCert")}
    ca.fail("GET /directory", Answer(200, json.dumps({**urls, "newOrder": f"{ca.url}/oldOrder"}).encode()))
    ca.fail("POST /oldOrder", *[NOT_THERE] * 99)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert f"it named {ca.url}/oldOrder itself" in refusal.message
    assert (await issuer.create_order(csr_der(), PROFILE, LONG)).url == f"{ca.url}/order/1"
    assert (len(ca.orders), ca.count("GET /directory")) == (1, 2)


async def test_order_of_an_account_that_the_ca_has_lost(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that has lost the account has lost its orders: nobody waits for them."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.accounts.clear()
    ca.orders.clear()
    refusal = await refusal_of(issuer.get_order(created.url, LONG))
    assert (refusal.reason, ca.count("POST /order/1")) == (Reason.ISSUER_REJECTED, 2)


async def test_replica_that_shows_an_older_state(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order that is shown as pending, after it was ready, is asked again and finalised once."""
    csr = csr_der()
    ready = await ready_order(issuer)
    older = Answer(
        200, json.dumps({"status": "pending", "authorizations": [], "finalize": f"{ca.url}/finalize/1"}).encode()
    )
    ca.fail("POST /finalize/1", problem("orderNotReady", status=403))
    ca.fail("POST /order/1", older)
    refusal = await refusal_of(issuer.finalize(ready, csr, LONG))
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE
    order = await issuer.finalize(ready, csr, LONG)
    assert await issuer.download(order, LONG)
    assert ca.csrs == 1


async def test_foreign_order_url_is_not_called(issuer: AcmeIssuer) -> None:
    """Even an order URL from the journal is checked."""
    refusal = await refusal_of(issuer.get_order("https://evil.test/order/1", SHORT))
    assert NOT_ALLOWED in refusal.message


@pytest.mark.parametrize("member", ["authorizations", "finalize", "certificate"])
async def test_foreign_url_in_an_order_is_not_called(ca: ScriptedAcme, issuer: AcmeIssuer, member: str) -> None:
    """No member of an order leads to another host."""
    status = {"authorizations": "pending", "finalize": "ready", "certificate": "valid"}[member]
    shown = {"status": status, "authorizations": [], "finalize": f"{ca.url}/finalize/1", "certificate": ""}
    foreign = "https://evil.test/x"
    shown[member] = [foreign] if member == "authorizations" else foreign
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /order/1", *[Answer(200, json.dumps(shown).encode())] * 20)
    step = {
        "authorizations": lambda: issuer.get_order(created.url, SHORT),
        "finalize": lambda: issuer.finalize(created, csr_der(), SHORT),
        "certificate": lambda: issuer.download(created, SHORT),
    }[member]
    refusal = await refusal_of(step())
    assert (refusal.reason, NOT_ALLOWED in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)


async def test_ca_without_dns_challenges(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that offers no dns-01 for a name can't be served, and the message has the name."""
    shown = {"status": "pending", "identifier": {"type": "dns", "value": "certplane.test"}, "challenges": []}
    ca.fail("POST /authz/1/1", Answer(200, json.dumps(shown).encode()))
    refusal = (await issuer.create_order(csr_der(), PROFILE, LONG)).trouble
    assert refusal is not None
    assert (refusal.reason, "no dns-01 challenge for certplane.test" in refusal.message) == (
        Reason.ISSUER_REJECTED,
        True,
    )


async def test_account_that_cannot_be_had_wants_a_person(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """What the CA says of a new account, a bad binding say, concerns every order of the account, and none's names."""
    ca.fail("POST /newAccount", problem("unauthorized", "unknown key identifier"))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, LONG))
    assert (refusal.reason, "unknown key identifier" in refusal.message) == (Reason.ISSUER_REJECTED, True)
    assert (classify(refusal), fails_over(refusal)) == (Consequence.ASK_PERSON, True)


async def test_challenges_of_an_absent_ca(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that takes no answer to a challenge at all is away, and the order stays as it is."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.fail("POST /challenge/1/.", *[HTML] * 40)
    refusal = await refusal_of(issuer.answer_challenges(created, SHORT))
    assert (refusal.reason, ca.orders[1].status) == (Reason.ISSUER_UNAVAILABLE, "pending")


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        pytest.param("GET /directory", Answer(200, b"[]"), id="directory"),
        pytest.param("POST /newAccount", Answer(201, b"[]", headers=(("Location", "ACCOUNT"),)), id="account"),
        pytest.param("POST /newAccount", Answer(201, b"{}"), id="account-without-url"),
        pytest.param("POST /newOrder", Answer(201, b"{}"), id="order-without-url"),
        pytest.param("HEAD /newNonce", Answer(200, b"", "text/html"), id="no-nonce"),
    ],
)
async def test_answers_without_what_is_promised(
    ca: ScriptedAcme, issuer: AcmeIssuer, request_: str, answer: Answer
) -> None:
    """An answer that lacks a part of the protocol is asked for again, and the order is made."""
    headers = tuple((name, value.replace("ACCOUNT", f"{ca.url}/account/1")) for name, value in answer.headers)
    ca.fail(request_, replace(answer, headers=headers))
    assert (await issuer.create_order(csr_der(), PROFILE, LONG)).status is IssuerOrderStatus.PENDING


async def test_waiting_for_the_account_ends_by_the_own_deadline(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """Who comes while another registers the account waits no longer than it may."""
    ca.fail("GET /directory", Answer(delay=1.5))
    first = asyncio.create_task(issuer.create_order(csr_der(), PROFILE, LONG))
    await asyncio.sleep(0.1)
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, timedelta(seconds=0.3)))
    assert (refusal.reason, "no answer in time" in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)
    assert (await first).url == f"{ca.url}/order/1"


async def test_answered_authorizations_are_skipped(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """Only challenges that are outstanding are handed out."""
    created = await issuer.create_order(csr_der(), PROFILE, LONG)
    ca.orders[1].answered.add(0)
    seen = await issuer.get_order(created.url, LONG)
    assert seen.challenges == created.challenges[1:]


LOST_FINALISATIONS = [
    pytest.param(Answer(lost=True, after=True), id="after-the-work"),
    pytest.param(LOST, id="before-the-work"),
    pytest.param(Answer(502, b"<html>", "text/html", after=True), id="html"),
    pytest.param(Answer(500, b"{}", after=True), id="500"),
    pytest.param(Answer(200, b"{", after=True), id="malformed"),
    pytest.param(problem("serverInternal", status=500), id="server-internal"),
]


@pytest.mark.parametrize("answer", LOST_FINALISATIONS)
async def test_lost_finalisation_is_never_repeated(ca: ScriptedAcme, issuer: AcmeIssuer, answer: Answer) -> None:
    """A CSR whose answer is lost is sent once: the step ends ISSUER_UNAVAILABLE although time is left."""
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", answer)
    refusal = await refusal_of(issuer.finalize(order, csr_der(), LONG))
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE
    assert ca.count("POST /finalize/1") == 1


async def test_finalised_order_takes_no_second_csr(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """After a lost answer the order is looked at first: it is finalised, so nothing is sent."""
    csr = csr_der()
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", Answer(lost=True, after=True))
    await refusal_of(issuer.finalize(order, csr, LONG))
    order = await issuer.finalize(order, csr, LONG)
    assert order.status in {IssuerOrderStatus.PROCESSING, IssuerOrderStatus.VALID}
    assert ca.count("POST /finalize/1") == 1
    assert await issuer.download(order, LONG)


async def test_failing_before_the_csr_is_sent_is_repeated(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A CA that gives no nonce got no CSR, so that another try is safe."""
    ready = await ready_order(issuer, "certplane.test")  # one name, one request at a time: one nonce in stock
    order = IssuerOrder(ready.url, ready.status)  # where the CSR goes isn't known: the order is looked at
    # That brings no nonce here, so that one has to be fetched.
    look = Answer(raw=_http(ca, ca.orders[1].number))
    ca.fail("POST /order/1", look)
    ca.fail("HEAD /newNonce", HTML, LOST)
    nonces = ca.count("HEAD /newNonce")
    await issuer.finalize(order, csr_der("certplane.test"), LONG)
    assert (ca.count("HEAD /newNonce") - nonces, ca.count("POST /finalize/1"), ca.csrs) == (3, 1, 1)


def _http(ca: ScriptedAcme, number: int) -> bytes:
    """The order as the CA shows it, without a nonce."""
    body = ca._show(ca.orders[number], None)[1]
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_order_not_ready_is_looked_at(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """`orderNotReady` from a replica that lags is a temporary failure, not the end of the order."""
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", problem("orderNotReady", status=403))
    refusal = await refusal_of(issuer.finalize(order, csr_der(), LONG))
    assert (refusal.reason, ca.csrs) == (Reason.ISSUER_UNAVAILABLE, 0)
    await issuer.finalize(order, csr_der(), LONG)
    assert ca.csrs == 1


async def test_finalised_by_another_is_no_failure(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """`orderNotReady` because the order is being finalised already shows the order as it is."""
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", Answer(*_as_answer(problem("orderNotReady", status=403)), after=True))
    assert (await issuer.finalize(order, csr_der(), LONG)).status is IssuerOrderStatus.VALID
    assert ca.count("POST /finalize/1") == 1


def _as_answer(answer: Answer) -> tuple[int, bytes, str]:
    return answer.status, answer.body, answer.content_type


async def test_order_that_became_invalid_is_not_finalised(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order that the CA has given up takes no CSR, and is rejected for good."""
    order = await ready_order(issuer)
    ca.orders[1].status = "invalid"
    refusal = await refusal_of(issuer.finalize(IssuerOrder(order.url, order.status), csr_der(), LONG))
    assert (refusal.reason, ca.count("POST /finalize/1")) == (Reason.ISSUER_REJECTED, 0)


async def test_order_that_became_invalid_since_it_was_looked_at_is_rejected(
    ca: ScriptedAcme, issuer: AcmeIssuer
) -> None:
    """Where the CSR was sent right after the look, the CA's answer leads to the order's own state."""
    order = await ready_order(issuer)
    ca.orders[1].status = "invalid"
    refusal = await refusal_of(issuer.finalize(order, csr_der(), LONG))
    assert (refusal.reason, ca.csrs) == (Reason.ISSUER_REJECTED, 0)


async def test_an_order_asks_for_no_more_than_it_needs(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """From newOrder to the certificate: one request for each thing to do, and one look for each state to wait for."""
    csr = csr_der()
    created = await issuer.create_order(csr, PROFILE, LONG)
    order = await issuer.finalize(await issuer.answer_challenges(created, LONG), csr, LONG)
    await issuer.download(order, LONG)
    asked = Counter(request.path.split("/")[1] for request in ca.requests if request.method == "POST")
    names = len(created.challenges)
    assert asked == {
        "newAccount": 1,
        "newOrder": 1,
        "authz": names,
        "challenge": names,
        "finalize": 1,
        "cert": 1,
        "order": 2,  # ready after the challenges, valid after the finalisation
    }


async def test_refused_csr_is_rejected(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """What the CA says about a CSR ends the order."""
    order = await ready_order(issuer)
    ca.fail("POST /finalize/1", problem("badCSR", "weak key"))
    refusal = await refusal_of(issuer.finalize(order, csr_der(), LONG))
    assert (refusal.reason, "badCSR: weak key" in refusal.message) == (Reason.ISSUER_REJECTED, True)


async def test_slow_issuance_is_waited_for(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A processing order is looked at until it is valid."""
    csr = csr_der()
    order = await ready_order(issuer)
    ca.slow_looks = 3
    order = await issuer.finalize(order, csr, LONG)
    assert order.status is IssuerOrderStatus.PROCESSING
    assert (await issuer.download(order, LONG)).startswith("-----BEGIN CERTIFICATE-----")


async def test_looks_as_seldom_as_the_ca_wants(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """Retry-After on an order keeps it from being looked at again before that."""
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    ca.orders[1].status, ca.slow_looks, ca.retry_after = "processing", 1, "1"
    looks, started = ca.count("POST /order/1"), SystemClock().monotonic()
    await issuer.download(order, LONG)
    assert SystemClock().monotonic() - started >= 1
    assert ca.count("POST /order/1") - looks == 2


async def test_stuck_issuance_ends_at_the_deadline(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """An order that stays in processing is polled to the deadline and no further (fault 7)."""
    order = await ready_order(issuer)
    ca.slow_looks = 1000
    order = await issuer.finalize(order, csr_der(), LONG)
    refusal = await refusal_of(issuer.download(order, SHORT))
    assert refusal.reason is Reason.ISSUER_UNAVAILABLE
    # The last look may still be under way when the time is up.
    assert "still processing" in refusal.message or "in time" in refusal.message, refusal.message
    assert ca.csrs == 1


async def test_page_in_place_of_a_chain(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A page of HTML is not the CA's word: it isn't handed on."""
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    ca.fail("POST /cert/1", *[Answer(200, b"<html>", "text/html")] * 20)
    refusal = await refusal_of(issuer.download(order, SHORT))
    assert (refusal.reason, "a page of HTML" in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)


@pytest.mark.parametrize(
    ("preferred", "root"),
    [
        pytest.param("", 0, id="default"),
        pytest.param("Scripted Root 0", 0, id="default-by-name"),
        pytest.param("Scripted Root 2", 2, id="second-alternate"),
        pytest.param("Unknown Root", 0, id="unknown-falls-back"),
    ],
)
async def test_preferred_chain(ca: ScriptedAcme, key: AccountKey, preferred: str, root: int) -> None:
    """The chain is chosen by the common name of its last certificate's issuer; the default serves where none fits."""
    ca.alternates = 2
    issuer = with_preferred(ca, key, preferred)
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    chain = x509.load_pem_x509_certificates((await issuer.download(order, LONG)).encode())
    await issuer.ca.close()
    assert chain[-1].issuer == ca.issuers[root].certificate.subject


UNUSABLE = [
    pytest.param(lambda _leaf: b"", id="nothing"),
    pytest.param(lambda _leaf: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", id="unreadable"),
    pytest.param(lambda leaf: leaf + CertificateAuthority.root("Elsewhere").pem, id="leads-nowhere"),
    pytest.param(lambda _leaf: CertificateAuthority.root("Elsewhere").pem, id="no-leaf"),
]


@pytest.mark.parametrize("preferred", ["", "Scripted Root 1", "Unknown Root"])
@pytest.mark.parametrize("make", UNUSABLE)
async def test_default_chain_that_cannot_be_used(
    ca: ScriptedAcme, key: AccountKey, preferred: str, make: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """An alternate one takes its place, whether or not it is preferred; without one, what came is the caller's."""
    ca.alternates = 1
    issuer = with_preferred(ca, key, preferred)
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    leaf = ca.chains(1)[0].encode().partition(b"-----END CERTIFICATE-----\n")
    body = make(leaf[0] + leaf[1])
    link = (("Link", f'<{ca.url}/cert/1/1>;rel="alternate"'),)
    ca.fail("POST /cert/1", Answer(200, body, "application/pem-certificate-chain", link))
    ca.fail("POST /cert/1", Answer(200, body, "application/pem-certificate-chain"))
    assert await issuer.download(order, LONG) == ca.chains(1)[1]
    assert await issuer.download(order, LONG) == body.decode()
    await issuer.ca.close()
    assert "the CA's default chain can't be used: " in caplog.text


async def test_preferred_chain_with_a_stranger_in_it(ca: ScriptedAcme, key: AccountKey) -> None:
    """What doesn't belong there says nothing of the root that a chain leads to."""
    ca.alternates = 1
    issuer = with_preferred(ca, key, "Scripted Root 1")
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    body = ca.chains(1)[1].encode() + CertificateAuthority.root("Elsewhere").pem + junk
    ca.fail("POST /cert/1/1", Answer(200, body, "application/pem-certificate-chain"))
    assert (await issuer.download(order, LONG)).startswith(ca.chains(1)[1])
    await issuer.ca.close()


async def test_alternate_chain_that_cannot_be_had(ca: ScriptedAcme, key: AccountKey) -> None:
    """An issued certificate is not lost over its alternate chain."""
    ca.alternates = 1
    issuer = with_preferred(ca, key, "Scripted Root 1")
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    ca.fail("POST /cert/1/1", *[problem("malformed", status=404)] * 9)
    chain = x509.load_pem_x509_certificates((await issuer.download(order, LONG)).encode())
    await issuer.ca.close()
    assert chain[-1].issuer == ca.issuers[0].certificate.subject


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        pytest.param(RevocationReason.UNSPECIFIED, 0, id="unspecified"),
        pytest.param(RevocationReason.KEY_COMPROMISE, 1, id="key-compromise"),
        pytest.param(RevocationReason.AFFILIATION_CHANGED, 3, id="affiliation-changed"),
        pytest.param(RevocationReason.SUPERSEDED, 4, id="superseded"),
        pytest.param(RevocationReason.CESSATION_OF_OPERATION, 5, id="cessation"),
    ],
)
async def test_revocation_reason(ca: ScriptedAcme, issuer: AcmeIssuer, reason: RevocationReason, code: int) -> None:
    """Reasons are sent as RFC 5280's codes."""
    leaf = ca.issuers[0].issue("", ["a.test"]).certificate.public_bytes(Encoding.PEM).decode()
    await issuer.revoke(leaf, reason, LONG)
    assert ca.requests[-1].payload["reason"] == code


async def test_revoking_again_is_success(ca: ScriptedAcme, issuer: AcmeIssuer) -> None:
    """A certificate that is revoked already is revoked."""
    leaf = ca.issuers[0].issue("", ["a.test"]).certificate.public_bytes(Encoding.PEM).decode()
    ca.fail("POST /revokeCert", problem("alreadyRevoked"))
    await issuer.revoke(leaf, RevocationReason.SUPERSEDED, LONG)
    ca.fail("POST /revokeCert", problem("unauthorized", status=403))
    refusal = await refusal_of(issuer.revoke(leaf, RevocationReason.SUPERSEDED, LONG))
    assert refusal.reason is Reason.ISSUER_REJECTED


async def test_untrusted_ca_is_said(ca: ScriptedAcme, key: AccountKey) -> None:
    """A CA whose HTTPS certificate isn't trusted is not talked to, and the message says TLS."""
    issuer = AcmeIssuer("x", AcmeCa(AcmeServer(ca.directory_url), SystemClock()), key, rng=random.Random(1))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    await issuer.ca.close()
    assert (refusal.reason, "TLS failed" in refusal.message) == (Reason.ISSUER_UNAVAILABLE, True)
    assert not ca.requests


async def test_environment_does_not_weaken_trust(
    ca: ScriptedAcme, key: AccountKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """REQUESTS_CA_BUNDLE is not looked at: who is trusted stands in the configuration."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(ca.roots_file))
    issuer = AcmeIssuer("x", AcmeCa(AcmeServer(ca.directory_url), SystemClock()), key, rng=random.Random(1))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    await issuer.ca.close()
    assert "TLS failed" in refusal.message


async def test_absent_ca_is_unavailable(key: AccountKey) -> None:
    """Nobody listens: ISSUER_UNAVAILABLE with the cause."""
    issuer = AcmeIssuer("x", AcmeCa(AcmeServer("https://127.0.0.1:1/dir"), SystemClock()), key, rng=random.Random(1))
    refusal = await refusal_of(issuer.create_order(csr_der(), PROFILE, SHORT))
    await issuer.ca.close()
    assert "Connection refused" in refusal.message


@pytest.mark.parametrize("url", ["http://ca.test/dir", "ca.test", "https:///dir", "https://a@b/dir"])
def test_directory_must_be_https(url: str) -> None:
    """A directory that isn't https is a configuration error."""
    with pytest.raises(ConfigurationError, match=r"issuer\.acme\.directory_url"):
        AcmeCa(AcmeServer(url), SystemClock())


async def test_nothing_secret_is_logged(ca: ScriptedAcme, issuer: AcmeIssuer, caplog: pytest.LogCaptureFixture) -> None:
    """Steps are logged with the order's URL; payloads of the protocol are not, even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    order = await issuer.finalize(await ready_order(issuer), csr_der(), LONG)
    await issuer.download(order, LONG)
    [sent] = [record for record in caplog.records if record.message == "CSR sent"]
    assert sent.fields == {"acme_order_url": order.url}
    assert not [record for record in caplog.records if record.name.startswith("acme")]
    assert "ops@certplane.test" not in caplog.text


async def test_account_key_is_told(issuer: AcmeIssuer, key: AccountKey) -> None:
    """The hash of the account's key is there to refuse a CSR that uses it."""
    assert issuer.account_key_sha256 == key.public_key_sha256
    assert len(issuer.account_key_sha256) == 64
