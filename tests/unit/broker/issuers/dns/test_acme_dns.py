"""acme-dns: what is sent, which value goes, and what each answer means."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.acme_dns import AcmeDnsSettings as Settings
from certplane.broker.issuers.dns.acme_dns.provider import AcmeDnsProvider
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.acme_dns_server import AcmeDnsServer

NAME = "d420c923-bbd7-4056-ab64-c3ca54c9b3cf.auth.example.org"
APEX, WILDCARD, LATER, LAST = (letter * 43 for letter in "awxy")
Answer = tuple[int, tuple[tuple[str, str], ...], bytes]
LOST: Answer = (599, (), b"")
BUSY: Answer = (503, (), b"")
AGE = timedelta(milliseconds=20)
"""In these tests the server tells ages this finely, where a real one takes a second."""


@pytest.fixture
def server() -> Iterator[AcmeDnsServer]:
    clock = SystemClock()
    with AcmeDnsServer(clock=lambda: clock.monotonic() / AGE.total_seconds()) as server:
        yield server


@pytest.fixture
def account(server: AcmeDnsServer) -> dict[str, str]:
    return server.register(NAME)


@pytest.fixture
def secrets(account: dict[str, str]) -> FakeSecretSource:
    return FakeSecretSource({"acme-dns/accounts": json.dumps({"www.example.com": account})})


@pytest.fixture
async def provider(server: AcmeDnsServer, secrets: FakeSecretSource) -> AsyncIterator[AcmeDnsProvider]:
    settings = Settings(server.url, "acme-dns/accounts")
    provider = AcmeDnsProvider(settings, secrets, SystemClock(), random.Random(1), spacing=AGE)
    yield provider
    await provider.close()


def record(value: str) -> TxtRecord:
    return TxtRecord("", NAME, value)


def soon(seconds: float = 10) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


async def refusal_of(provider: AcmeDnsProvider, of: TxtRecord | None = None) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(of or record(APEX), soon(0.15))
    return caught.value.refusal


async def test_update(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """The record stands at the account's name; a delegated challenge's name is that."""
    challenge = DnsChallenge("www.example.com", NAME, APEX, "https://ca/a", "https://ca/c", "token.thumbprint")
    planned = provider.plan(challenge, Profile("web", "multi_san", ("www.example.com",), "hash", credentials="dns/x"))
    assert planned == TxtRecord("", NAME, APEX, credentials="dns/x")
    assert await provider.add_txt(record(APEX), soon()) == record(APEX)
    assert server.updates == [(NAME, APEX)]


@pytest.mark.parametrize("layout", ["one", "named", "case", "go"])
async def test_layouts_of_accounts(
    server: AcmeDnsServer, provider: AcmeDnsProvider, secrets: FakeSecretSource, account: dict[str, Any], layout: str
) -> None:
    """One account as /register answers it, or several by name as other clients keep them."""
    account |= {"allowfrom": []}
    others = {"other.example": {**account, "fulldomain": "other.auth.example.org", "password": "no"}}
    contents: dict[str, object] = {
        "one": account,
        "named": {**others, "www.example.com": account},
        "go": {"www.example.com": {key.title(): value for key, value in account.items()}},
        "case": {**others, "a": {**account, "fulldomain": f"{NAME.upper()}."}},
    }
    secrets.secrets["dns/own"] = json.dumps(contents[layout])
    await provider.add_txt(replace(record(APEX), credentials="dns/own"), soon())
    assert server.standing(NAME) == {APEX}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("hush", id="text"),
        pytest.param("[]", id="list"),
        pytest.param("null", id="null"),
        pytest.param('{"username": "hush"}', id="half"),
        pytest.param('{"a": "hush"}', id="no-account"),
        pytest.param('{"a": {"username": 7}}', id="number"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(
            json.dumps(dict.fromkeys(("username", "password", "subdomain", "fulldomain"), "hush\n")), id="line"
        ),
    ],
)
async def test_accounts_that_are_none(
    server: AcmeDnsServer, provider: AcmeDnsProvider, secrets: FakeSecretSource, content: str
) -> None:
    """A secret that isn't accounts is told by its name, and never quoted."""
    secrets.secrets["acme-dns/accounts"] = content
    refusal = await refusal_of(provider)
    assert refusal.reason is Reason.DNS_REJECTED
    assert "'acme-dns/accounts' isn't acme-dns accounts in JSON" in refusal.message
    assert "hush" not in refusal.message
    assert not server.updates


async def test_name_without_account(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """A name that no account may write is refused with the way to get there; nothing is sent."""
    refusal = await refusal_of(provider, TxtRecord("", "_acme-challenge.www.example.com", APEX))
    assert refusal.reason is Reason.DNS_REJECTED
    assert "point the challenge name's CNAME to" in refusal.message
    assert not server.updates


async def test_apex_and_wildcard(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """Two values fit, at once or one after the other, and a later order's take the places of the last one's."""
    await asyncio.gather(*(provider.add_txt(record(value), soon()) for value in (APEX, WILDCARD)))
    assert server.standing(NAME) == {APEX, WILDCARD}
    for value in (APEX, WILDCARD):
        await provider.remove_txt(record(value), soon())
    for value in (LATER, LAST):
        await provider.add_txt(record(value), soon())
    assert server.standing(NAME) == {LATER, LAST}
    assert len(server.updates) == 4


async def test_third_value_takes_nobodys_place(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """While two values are in use a third order waits for its turn; one that is done makes room."""
    for value in (APEX, WILDCARD):
        await provider.add_txt(record(value), soon())
    refusal = await refusal_of(provider, record(LATER))
    assert (refusal.reason, refusal.retry_after) == (Reason.DNS_UNAVAILABLE, timedelta(minutes=1))
    assert server.standing(NAME) == {APEX, WILDCARD}
    await provider.remove_txt(record(APEX), soon())
    await provider.add_txt(record(LATER), soon())
    assert server.standing(NAME) == {WILDCARD, LATER}


async def test_presenting_again(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """An order that writes its values again keeps both, whichever comes first."""
    for first, second in itertools.permutations((APEX, WILDCARD)):
        for value in (APEX, WILDCARD, first, second, second, first):
            await provider.add_txt(record(value), soon())
            assert value in server.standing(NAME)
        assert server.standing(NAME) == {APEX, WILDCARD}


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([LOST], id="made"),
        pytest.param([BUSY], id="not-made"),
        pytest.param([LOST, LOST], id="twice"),
        pytest.param([BUSY, LOST], id="at-the-second-try"),
        pytest.param([LOST, None, LOST], id="at-the-sibling-too"),
        pytest.param([BUSY, None, LOST, None, LOST], id="and-again"),
    ],
)
async def test_lost_answers(server: AcmeDnsServer, provider: AcmeDnsProvider, answers: list[Answer | None]) -> None:
    """Whichever answers are lost, with the update made or not, both values stand in the end."""
    await provider.add_txt(record(APEX), soon())
    server.script.extend(answers)
    provider._rng = _Impatient()
    await provider.add_txt(record(WILDCARD), soon())
    assert server.standing(NAME) == {APEX, WILDCARD}


async def test_values_of_orders_that_are_gone(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """A value that nobody removed doesn't block its name for ever."""
    for value in (APEX, WILDCARD):
        await provider.add_txt(record(value), soon())
    (name,) = provider._names.values()
    name.used = dict.fromkeys(name.used, 0.0)
    await provider.add_txt(record(LATER), soon())
    assert LATER in server.standing(NAME)


async def test_removing_sends_nothing(server: AcmeDnsServer, provider: AcmeDnsProvider) -> None:
    """Nothing can be deleted, and removing what was never written is fine too."""
    await provider.add_txt(record(APEX), soon())
    for value in (APEX, APEX, WILDCARD):
        await provider.remove_txt(record(value), soon())
    assert server.updates == [(NAME, APEX)]


async def test_wrong_password(server: AcmeDnsServer, provider: AcmeDnsProvider, account: dict[str, str]) -> None:
    """What the server forbids is a person's job, with the two things that it may be; nothing secret is told."""
    server.accounts[account["username"]] = {**account, "password": "changed"}
    refusal = await refusal_of(provider)
    assert refusal.reason is Reason.DNS_REJECTED
    assert "allowfrom" in refusal.message
    assert account["password"] not in refusal.message


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param((400, (), b'{"error":"bad_txt"}'), Reason.DNS_REJECTED, id="400"),
        pytest.param((404, (), b"internals"), Reason.DNS_REJECTED, id="404"),
        pytest.param((302, (("Location", "http://127.0.0.1:1/"),), b""), Reason.DNS_REJECTED, id="redirect"),
        pytest.param((429, (), b""), Reason.DNS_UNAVAILABLE, id="429"),
        pytest.param((500, (), b'{"error":"db_error"}'), Reason.DNS_UNAVAILABLE, id="500"),
        pytest.param((200, (), b"<html>internals"), Reason.DNS_UNAVAILABLE, id="portal"),
        pytest.param((200, (), b'{"txt": "another"}'), Reason.DNS_UNAVAILABLE, id="another-value"),
        pytest.param((200, (("Content-Encoding", "gzip"),), b"x"), Reason.DNS_UNAVAILABLE, id="compressed"),
    ],
)
async def test_answers(
    server: AcmeDnsServer,
    provider: AcmeDnsProvider,
    answer: tuple[int, tuple[tuple[str, str], ...], bytes],
    reason: Reason,
) -> None:
    """4xx is a person's job, 429, 5xx and nonsense pass; the value counts as written only if the answer has it."""
    server.script.extend([answer] * 20)
    refusal = await refusal_of(provider)
    assert (refusal.reason, "internals" in refusal.message) == (reason, False)


async def test_nobody_there(secrets: FakeSecretSource) -> None:
    """A server that can't be reached passes."""
    settings = Settings("http://127.0.0.1:1", "acme-dns/accounts")
    provider = AcmeDnsProvider(settings, secrets, SystemClock(), random.Random(1), spacing=AGE)
    assert (await refusal_of(provider)).reason is Reason.DNS_UNAVAILABLE
    await provider.close()


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        pytest.param(Settings("http://auth.example.org", "x"), "endpoint", id="plain"),
        pytest.param(Settings("https://a", "x", ca_bundle=Path("/nowhere.pem")), "ca_bundle", id="bundle"),
    ],
)
def test_settings_that_cannot_be_used(settings: Settings, key: str) -> None:
    """Passwords go over https only, and a bundle must be there."""
    with pytest.raises(ConfigurationError, match=rf"issuer\.acme\.acme_dns\.{key}"):
        AcmeDnsProvider(settings, FakeSecretSource(), SystemClock(), random.Random(1))


class _Impatient(random.Random):
    """Waits as little as a backoff may."""

    def random(self) -> float:
        return 0.0

    def uniform(self, a: float, b: float) -> float:
        return a
