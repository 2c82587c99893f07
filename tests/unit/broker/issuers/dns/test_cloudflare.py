"""The Cloudflare provider, with the official SDK against the sandbox's API over HTTPS."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.cloudflare import CloudflareApi as Settings
from certplane.broker.issuers.dns.cloudflare import CloudflareProvider, _unquoted
from certplane.broker.issuers.dns.http_client import LARGEST_BODY
from certplane.broker.model import TxtRecord
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.cloudflare_api import CloudflareApi, Fault, TokenScope
from certplane.sandbox.dns import SandboxDnsServer
from tests.fakes.secrets import FakeSecretSource

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "value", credentials="cf/token")
RECORDS = r"/zones/[0-9a-f]{32}/dns_records"
ONE_RECORD = RECORDS + r"/[0-9a-f]{32}"


class ShiftedClock(SystemClock):
    """The machine's clock with monotonic time moved by `shift` seconds."""

    shift = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
async def api(tmp_path: Path, sandbox_dns: SandboxDnsServer) -> AsyncIterator[CloudflareApi]:
    async with CloudflareApi(tmp_path / "cloudflare", sandbox_dns.endpoint) as api:
        yield api


@pytest.fixture
def secrets(api: CloudflareApi) -> FakeSecretSource:
    return FakeSecretSource({"cf/token": api.token})


@pytest.fixture
async def provider(
    api: CloudflareApi, secrets: FakeSecretSource, clock: ShiftedClock
) -> AsyncIterator[CloudflareProvider]:
    settings = Settings(api.base_url, "cf/token", timedelta(seconds=5), ca_bundle=api.roots_file)
    provider = CloudflareProvider(settings, secrets, clock, random.Random(1))
    yield provider
    await provider.close()
    await asyncio.sleep(0.01)  # the loop closes the transports of connections that broke off in its next rounds


def soon(seconds: float = 10) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


async def refusal_of(provider: CloudflareProvider, record: TxtRecord = RECORD, seconds: float = 2) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(record, soon(seconds))
    return caught.value.refusal


async def test_writes_a_record_that_says_whose_it_is(
    api: CloudflareApi, provider: CloudflareProvider, sandbox_dns: SandboxDnsServer
) -> None:
    """Quoted content, a minute's TTL, a comment; zone and id come back for the journal."""
    written = await provider.add_txt(RECORD, soon())
    [record] = api.records("certplane.test")
    assert (record.name, record.content, record.ttl, record.type) == (NAME, '"value"', 60, "TXT")
    assert record.comment == "certplane acme challenge"
    assert written == TxtRecord("certplane.test", NAME, "value", record.id, "cf/token")
    assert await sandbox_dns.endpoint.txt(NAME) == {"value"}


async def test_takes_the_longest_zone(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """Of two zones that could hold a name the nearer one does."""
    name = "_acme-challenge.a.b.sub.certplane.test"
    assert (await provider.add_txt(TxtRecord("", name, "x"), soon())).zone == "sub.certplane.test"
    assert (await provider.add_txt(RECORD, soon())).zone == "certplane.test"
    assert len(api.records("sub.certplane.test")) == 1


async def test_zones_are_listed_once(api: CloudflareApi, provider: CloudflareProvider, clock: ShiftedClock) -> None:
    """The list serves many records, also at once, for ten minutes."""
    await asyncio.gather(*(provider.add_txt(TxtRecord("", NAME, f"v{n}"), soon()) for n in range(5)))
    assert api.count("GET", "/zones") == 1
    clock.shift = 599
    await provider.add_txt(TxtRecord("", NAME, "later"), soon())
    assert api.count("GET", "/zones") == 1
    clock.shift = 601
    await provider.add_txt(TxtRecord("", NAME, "much later"), soon())
    assert api.count("GET", "/zones") == 2


async def test_new_zone_is_found(
    api: CloudflareApi, provider: CloudflareProvider, secrets: FakeSecretSource, clock: ShiftedClock
) -> None:
    """A name without a zone has the list fetched again, but not for every name."""
    api.tokens["narrow"] = TokenScope(frozenset({"example.test"}))
    secrets.secrets["cf/token"] = "narrow"
    for _ in range(3):
        refusal = await refusal_of(provider)
        assert (refusal.reason, NAME in refusal.message) == (Reason.DNS_REJECTED, True)
    assert api.count("GET", "/zones") == 1
    api.tokens["narrow"] = TokenScope(frozenset({"example.test", "certplane.test"}))
    clock.shift = 6
    await provider.add_txt(RECORD, soon())
    assert api.count("GET", "/zones") == 2


async def test_zone_that_is_not_active(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A zone that Cloudflare doesn't serve yet is said to be so."""
    as_json = api._records.zone_as_json
    api._records.zone_as_json = lambda zone: as_json(zone) | {"status": "pending"}  # type: ignore[method-assign] # one field
    refusal = await refusal_of(provider)
    assert (refusal.reason, "isn't active: pending" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_many_zones(tmp_path: Path) -> None:
    """An account with more zones than fit on a page is read page by page, and no further."""
    zones = [f"z{number}.test" for number in range(120)]
    async with SandboxDnsServer(zones) as server, CloudflareApi(tmp_path / "cf", server.endpoint) as api:
        secrets = FakeSecretSource({"cf/token": api.token})
        settings = Settings(api.base_url, "cf/token", ca_bundle=api.roots_file)
        provider = CloudflareProvider(settings, secrets, SystemClock(), random.Random(1))
        assert (await provider.add_txt(TxtRecord("", "_acme-challenge.z119.test", "x"), soon())).zone == "z119.test"
        await provider.close()
        assert api.count("GET", "/zones") == 3


async def test_profiles_have_their_own_tokens(
    api: CloudflareApi, provider: CloudflareProvider, secrets: FakeSecretSource
) -> None:
    """A record's credentials choose the token; those of another profile don't see its zones."""
    api.tokens |= {"one": TokenScope(frozenset({"certplane.test"})), "two": TokenScope(frozenset({"example.test"}))}
    secrets.secrets |= {"cf/one": "one", "cf/two": "two"}
    written = await provider.add_txt(TxtRecord("", NAME, "x", credentials="cf/one"), soon())
    assert written.zone == "certplane.test"
    refusal = await refusal_of(provider, TxtRecord("", NAME, "x", credentials="cf/two"))
    assert refusal.reason is Reason.DNS_REJECTED


async def test_new_token_needs_no_restart(
    api: CloudflareApi, provider: CloudflareProvider, secrets: FakeSecretSource
) -> None:
    """A token that was changed is used from the next record on."""
    await provider.add_txt(RECORD, soon())
    api.tokens["fresh"] = TokenScope(frozenset({"certplane.test"}), edit=False)
    secrets.secrets["cf/token"] = "fresh"
    refusal = await refusal_of(provider, TxtRecord("", NAME, "other"))
    assert (refusal.reason, "10000" in refusal.message) == (Reason.DNS_REJECTED, True)


async def test_environment_is_not_used(
    api: CloudflareApi, provider: CloudflareProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No CLOUDFLARE_* variable gets into a request: an email alone would make the SDK leave out the token."""
    monkeypatch.setenv("CLOUDFLARE_EMAIL", "root@evil.test")
    monkeypatch.setenv("CLOUDFLARE_API_KEY", "key")
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token")
    monkeypatch.setenv("CLOUDFLARE_API_USER_SERVICE_KEY", "v1.0")
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", "https://evil.test/")
    monkeypatch.setenv("CLOUDFLARE_CUSTOM_HEADERS", "Authorization: Bearer evil")
    await provider.add_txt(RECORD, soon())
    assert len(api.records("certplane.test")) == 1


@pytest.mark.parametrize("answer", [Fault(0, after_commit=True), Fault(500, after_commit=True)], ids=["lost", "500"])
async def test_record_of_a_lost_answer_is_adopted(
    api: CloudflareApi, provider: CloudflareProvider, answer: Fault
) -> None:
    """A POST that took effect although its answer was lost makes one record, whose id is found (fault 12)."""
    api.fail_next("POST", RECORDS, answer)
    written = await provider.add_txt(RECORD, soon())
    assert [record.id for record in api.records("certplane.test")] == [written.record_id]
    assert api.count("POST", RECORDS) == 2


async def test_others_with_the_same_name_are_not_adopted(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """Adoption goes by value: the sibling at the same name stays what it is."""
    sibling = await provider.add_txt(TxtRecord("", NAME, "sibling"), soon())
    first = await provider.add_txt(RECORD, soon())
    again = await provider.add_txt(RECORD, soon())
    assert again == first != sibling


async def test_existing_record_that_is_not_listed(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A record that exists and isn't shown is a passing state, not a success."""
    api.fail_next("POST", RECORDS, Fault(400, 81057, "The record already exists."))
    refusal = await refusal_of(provider)
    assert (refusal.reason, "doesn't list it" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)


FAULTS = [
    pytest.param(Fault(400, 6003, "Invalid request headers"), Reason.DNS_REJECTED, id="bad-headers"),
    pytest.param(Fault(401, 1000, "Invalid API Token"), Reason.DNS_REJECTED, id="401"),
    pytest.param(Fault(403, 9109, "Invalid access token"), Reason.DNS_REJECTED, id="bad-token"),
    pytest.param(Fault(403, 1009, "Missing permission"), Reason.DNS_REJECTED, id="no-dns-edit"),
    pytest.param(Fault(400, 9005, "Content is invalid."), Reason.DNS_REJECTED, id="bad-content"),
    pytest.param(Fault(302, headers=(("Location", "https://evil.test/"),)), Reason.DNS_REJECTED, id="redirect"),
    pytest.param(Fault(429, 10429, "Rate limited"), Reason.DNS_UNAVAILABLE, id="429"),
    pytest.param(Fault(500), Reason.DNS_UNAVAILABLE, id="500"),
    pytest.param(Fault(502, body=b"<html>\x1b[2J"), Reason.DNS_UNAVAILABLE, id="html"),
    pytest.param(Fault(200, body=b"<html>"), Reason.DNS_UNAVAILABLE, id="html-200"),
    pytest.param(Fault(200, body=b"x" * (LARGEST_BODY + 1)), Reason.DNS_UNAVAILABLE, id="oversized"),
    pytest.param(Fault(200, headers=(("Content-Encoding", "gzip"),)), Reason.DNS_UNAVAILABLE, id="compressed"),
    pytest.param(Fault(0), Reason.DNS_UNAVAILABLE, id="hangs-up"),
    pytest.param(Fault(500, delay=timedelta(seconds=1.5)), Reason.DNS_UNAVAILABLE, id="slow"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
@pytest.mark.parametrize(("method", "path"), [("GET", "/zones"), ("POST", RECORDS)], ids=["zones", "records"])
async def test_faults(
    api: CloudflareApi, provider: CloudflareProvider, method: str, path: str, fault: Fault, reason: Reason
) -> None:
    """Each failure of the API is a person's job or a passing one, printable, and within the deadline."""
    api.fail_next(method, path, fault, times=50)
    refusal = await refusal_of(provider, seconds=0.7 if reason is Reason.DNS_UNAVAILABLE else 10)
    assert refusal.reason is reason
    assert refusal.message.isprintable()
    assert not api.records("certplane.test")


async def test_temporary_failures_are_repeated(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A few failures within the deadline cost nothing but time."""
    api.fail_next("GET", "/zones", Fault(500))
    api.fail_next("POST", RECORDS, Fault(429, headers=(("retry-after", "0"),)))
    await provider.add_txt(RECORD, soon())
    assert (api.count("GET", "/zones"), api.count("POST", RECORDS)) == (2, 2)


async def test_long_wait_is_handed_on(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A block of five minutes is told at once; the API isn't asked again meanwhile."""
    api.fail_next("POST", RECORDS, Fault(429, headers=(("retry-after", "300"),)), times=9)
    refusal = await refusal_of(provider, seconds=30)
    assert (refusal.reason, refusal.retry_after) == (Reason.DNS_UNAVAILABLE, timedelta(minutes=5))
    assert api.count("POST", RECORDS) == 1


async def test_removes_by_id(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """The journalled id is enough; one that is gone already is no failure."""
    written = await provider.add_txt(RECORD, soon())
    sibling = await provider.add_txt(TxtRecord("", NAME, "sibling"), soon())
    await provider.remove_txt(written, soon())
    await provider.remove_txt(written, soon())
    assert [record.id for record in api.records("certplane.test")] == [sibling.record_id]
    assert api.count("GET", RECORDS) == 0


async def test_removal_whose_answer_was_lost(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """Removing again what a lost call removed is success."""
    written = await provider.add_txt(RECORD, soon())
    api.fail_next("DELETE", ONE_RECORD, Fault(0, after_commit=True))
    await provider.remove_txt(written, soon())
    assert not api.records("certplane.test")
    assert api.count("DELETE", ONE_RECORD) == 2


async def test_refused_removal(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A record that may not be removed is not taken for removed."""
    written = await provider.add_txt(RECORD, soon())
    api.fail_next("DELETE", ONE_RECORD, Fault(403, 10000, "Authentication error"))
    with pytest.raises(RefusalError) as caught:
        await provider.remove_txt(written, soon())
    assert caught.value.refusal.reason is Reason.DNS_REJECTED


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "", "caf\u00e9"])
async def test_secret_that_is_no_token(
    api: CloudflareApi, provider: CloudflareProvider, secrets: FakeSecretSource, token: str
) -> None:
    """What can't be a token isn't sent, and isn't quoted."""
    secrets.secrets["cf/token"] = token
    refusal = await refusal_of(provider)
    assert (refusal.reason, refusal.message) == (Reason.DNS_REJECTED, "the secret 'cf/token' isn't an API token")
    assert not api.calls


async def test_token_is_never_shown(
    api: CloudflareApi, provider: CloudflareProvider, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither logs at DEBUG, the SDK's included, nor errors hold the token."""
    caplog.set_level(logging.DEBUG)
    api.fail_next("POST", RECORDS, Fault(403, 9109, "Invalid access token"))
    refusal = await refusal_of(provider)
    assert api.token not in caplog.text
    assert api.token not in repr(refusal)
    assert api.token not in repr(provider._accounts)


def test_base_url_must_be_https() -> None:
    """A token doesn't travel in the clear."""
    with pytest.raises(ConfigurationError, match="https"):
        CloudflareProvider(Settings("http://api.cloudflare.test/"), FakeSecretSource(), SystemClock(), random.Random(1))


@pytest.mark.parametrize(
    ("content", "value"),
    [
        pytest.param('"abc"', "abc", id="quoted"),
        pytest.param("abc", "abc", id="plain"),
        pytest.param('"ab" "cd"', "abcd", id="two-strings"),
        pytest.param(r'"a\"b\\c"', r'a"b\c', id="escaped"),
        pytest.param('"abc" tail', '"abc" tail', id="not-quite-quoted"),
        pytest.param(None, "", id="none"),
    ],
)
def test_content_as_one_value(content: object, value: str) -> None:
    """However the API shows a TXT record, its value is compared."""
    assert _unquoted(content) == value
