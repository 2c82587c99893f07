"""The httpreq protocol: what is sent, and what each answer means."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.http_client import LARGEST_BODY
from certplane.broker.issuers.dns.httpreq import HttpreqMode, HttpreqSettings
from certplane.broker.issuers.dns.httpreq.provider import HttpreqProvider
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.httpreq_endpoint import HttpreqServer

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "value")
CHALLENGE = DnsChallenge("www.certplane.test", NAME, "value", "https://ca/a", "https://ca/c", "token.thumbprint")
PROFILE = Profile("web", "multi_san", ("www.certplane.test",), "hash")
SECRETS = {"http/user": "joe", "http/password": "pa:ss\u00f6"}


@pytest.fixture
def server() -> Iterator[HttpreqServer]:
    with HttpreqServer() as server:
        yield server


@pytest.fixture
async def provider(server: HttpreqServer) -> AsyncIterator[HttpreqProvider]:
    provider = made(HttpreqSettings(f"{server.url}/"))
    yield provider
    await provider.close()


def made(endpoint: HttpreqSettings) -> HttpreqProvider:
    return HttpreqProvider(endpoint, FakeSecretSource(SECRETS), SystemClock(), random.Random(1))


def soon(seconds: float = 10) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


async def refusal_of(provider: HttpreqProvider, seconds: float = 0.5) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(RECORD, soon(seconds))
    return caught.value.refusal


async def test_default_mode(server: HttpreqServer, provider: HttpreqProvider) -> None:
    """Name, with its final dot, and value."""
    record = provider.plan(CHALLENGE, PROFILE)
    assert await provider.add_txt(record, soon()) == record == RECORD
    await provider.remove_txt(record, soon())
    body = {"fqdn": f"{NAME}.", "value": "value"}
    assert server.calls == [("/dns/present", body), ("/dns/cleanup", body)]


async def test_raw_mode(server: HttpreqServer) -> None:
    """Domain, token and key authorization, from the journalled record alone."""
    provider = made(HttpreqSettings(server.url, mode=HttpreqMode.RAW))
    record = provider.plan(CHALLENGE, PROFILE)
    await provider.add_txt(record, soon())
    await provider.remove_txt(TxtRecord("", record.name, record.value, record.record_id), soon())
    await provider.close()
    body = {"domain": "www.certplane.test", "token": "token", "keyAuth": "token.thumbprint"}
    assert server.calls == [("/dns/present", body), ("/dns/cleanup", body)]


def test_raw_mode_of_a_delegated_name() -> None:
    """The endpoint would make another name of it: that is told when the record is planned."""
    provider = made(HttpreqSettings("https://dns.example/hook", mode=HttpreqMode.RAW))
    delegated = replace(CHALLENGE, record_name="www.acme.example.test")
    with pytest.raises(RefusalError, match="mode: default"):
        provider.plan(delegated, PROFILE)
    assert provider.plan(replace(CHALLENGE, record_name="_acme-challenge.x.example.test"), PROFILE).name
    assert made(HttpreqSettings("https://dns.example/hook")).plan(delegated, PROFILE).name == "www.acme.example.test"


async def test_basic_authentication(server: HttpreqServer) -> None:
    """User and password come from the secrets, also beyond ASCII; wrong ones are a person's job."""
    server.credentials = ("joe", "pa:ss\u00f6")
    provider = made(HttpreqSettings(server.url, username_secret="http/user", password_secret="http/password"))
    await provider.add_txt(RECORD, soon())
    server.credentials = ("joe", "changed")
    refusal = await refusal_of(provider)
    await provider.close()
    assert (refusal.reason, "status 401" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_missing_secret(server: HttpreqServer) -> None:
    """A secret that isn't there is named, and nothing is sent."""
    provider = made(HttpreqSettings(server.url, username_secret="http/nobody", password_secret="http/password"))
    refusal = await refusal_of(provider)
    await provider.close()
    assert (refusal.reason, "http/nobody" in refusal.message) == (Reason.DNS_REJECTED, True)
    assert not server.calls


@pytest.mark.parametrize(
    ("status", "headers", "reason", "retry_after"),
    [
        pytest.param(400, (), Reason.DNS_REJECTED, None, id="400"),
        pytest.param(403, (), Reason.DNS_REJECTED, None, id="403"),
        pytest.param(404, (), Reason.DNS_REJECTED, None, id="404"),
        pytest.param(302, (("Location", "http://127.0.0.1:1/"),), Reason.DNS_REJECTED, None, id="redirect"),
        pytest.param(429, (("Retry-After", "90"),), Reason.DNS_UNAVAILABLE, timedelta(seconds=90), id="429"),
        pytest.param(503, (("Retry-After", "x"),), Reason.DNS_UNAVAILABLE, None, id="503"),
    ],
)
async def test_statuses(
    server: HttpreqServer,
    provider: HttpreqProvider,
    status: int,
    headers: tuple[tuple[str, str], ...],
    reason: Reason,
    retry_after: timedelta | None,
) -> None:
    """4xx is a person's job, 429 and 5xx pass; redirects are not followed."""
    server.script.extend([(status, headers, b"secret internals")] * 10)
    refusal = await refusal_of(provider)
    assert (refusal.reason, refusal.retry_after) == (reason, retry_after)
    assert "internals" not in refusal.message


async def test_temporary_failure_is_repeated(server: HttpreqServer, provider: HttpreqProvider) -> None:
    """One 500 and all is well."""
    server.script.append((500, (), b""))
    await provider.add_txt(RECORD, soon())
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param((), b"x" * (LARGEST_BODY + 1), id="too-long"),
        pytest.param((("Content-Encoding", "gzip"),), b"\x1f\x8b", id="compressed"),
    ],
)
async def test_bodies_are_limited(
    server: HttpreqServer, provider: HttpreqProvider, headers: tuple[tuple[str, str], ...], body: bytes
) -> None:
    """An answer that is too large, or can't be measured, is no answer."""
    server.script.extend([(200, headers, body)] * 10)
    refusal = await refusal_of(provider)
    assert (refusal.reason, "answer" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


async def test_endpoint_that_is_away() -> None:
    """Nobody listens: temporary."""
    provider = made(HttpreqSettings("http://127.0.0.1:1"))
    refusal = await refusal_of(provider)
    await provider.close()
    assert (refusal.reason, "ConnectError" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


def test_credentials_do_not_travel_in_the_clear() -> None:
    """An endpoint on another machine that is sent credentials must be https; without them there is nothing to read."""
    with pytest.raises(ConfigurationError, match="https"):
        made(HttpreqSettings("http://dns.certplane.test", username_secret="user", password_secret="password"))
    made(HttpreqSettings("http://dns.certplane.test"))
