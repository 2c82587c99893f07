"""The Cloudflare provider, with the official SDK against the sandbox's API over HTTPS."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings as Settings
from certplane.broker.issuers.dns.cloudflare.calls import unquoted as _unquoted
from certplane.broker.issuers.dns.cloudflare.provider import CloudflareProvider
from certplane.broker.issuers.dns.http_client import LARGEST_BODY
from certplane.broker.model import TxtRecord
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.cloudflare_api import CloudflareApi, Fault, TokenScope
from certplane.sandbox.dns import SandboxDnsServer
from tests.fakes.secrets import FakeSecretSource
from tests.support.dns_solver import dns_solver

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "value", credentials="cf/token")
RECORDS = r"/zones/[0-9a-f]{32}/dns_records"
ONE_RECORD = RECORDS + r"/[0-9a-f]{32}"


class ShiftedClock(SystemClock):
    """The machine's clock with monotonic time moved by `shift` seconds."""

    shift = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift


BATCH = RECORDS + "/batch"


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
    settings = Settings(api.base_url, "cf/token")
    provider = CloudflareProvider(settings, secrets, clock, random.Random(1), ca_bundle=api.roots_file)
    yield provider
    await provider.close()
    await asyncio.sleep(0.01)  # the loop closes the transports of connections that broke off in its next rounds


def soon(seconds: float = 60) -> Deadline:
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
        settings = Settings(api.base_url, "cf/token")
        provider = CloudflareProvider(settings, secrets, SystemClock(), random.Random(1), ca_bundle=api.roots_file)
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
    refusal = await refusal_of(provider, seconds=0.7 if reason is Reason.DNS_UNAVAILABLE else 60)
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


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "caf\u00e9"])
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


def named(number: int, value: str = "value") -> TxtRecord:
    return TxtRecord("", f"_acme-challenge.h{number}.certplane.test", value, credentials="cf/token")


async def add_all(provider: CloudflareProvider, records: list[TxtRecord]) -> list[TxtRecord | BaseException]:
    return await asyncio.gather(*(provider.add_txt(record, soon()) for record in records), return_exceptions=True)


async def test_records_of_many_orders_are_one_call(
    api: CloudflareApi, provider: CloudflareProvider, sandbox_dns: SandboxDnsServer
) -> None:
    """What is wanted in one zone at once is one batch, each record with its own id; so is removing it."""
    records = [named(number) for number in range(8)]
    await provider.remove_txt(await provider.add_txt(named(8), soon()), soon())  # the zone is known now: nobody is late
    before = api.count("POST", BATCH), api.count("POST", RECORDS), api.count("DELETE", ONE_RECORD)
    written = await add_all(provider, records)
    ids = {record.name: record.id for record in api.records("certplane.test")}
    assert written == [replace(record, zone="certplane.test", record_id=ids[record.name]) for record in records]
    assert (api.count("POST", BATCH), api.count("POST", RECORDS)) == (before[0] + 1, before[1])
    assert await sandbox_dns.endpoint.txt(records[7].name) == {"value"}
    await asyncio.gather(*(provider.remove_txt(record, soon()) for record in written if isinstance(record, TxtRecord)))
    assert not api.records("certplane.test")
    assert (api.count("POST", BATCH), api.count("DELETE", ONE_RECORD)) == (before[0] + 2, before[2])


async def test_zones_have_their_own_batches(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """A batch is one zone's: the API knows no other."""
    names = [f"_acme-challenge.h{n}.{zone}" for n in range(2) for zone in ("certplane.test", "example.test")]
    await add_all(provider, [TxtRecord("", name, "v") for name in names])
    assert api.count("POST", BATCH) == 2


async def test_one_bad_record_fails_alone(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """Cloudflare takes a batch as a whole or not at all; the neighbours of a bad record are written all the same."""
    bad = TxtRecord("", f"_acme-challenge.{'x' * 64}.certplane.test", "value", credentials="cf/token")
    records = [named(0), named(1), bad, named(3), named(4)]
    results = await add_all(provider, records)
    refused = results.pop(2)
    assert isinstance(refused, RefusalError)
    assert (refused.refusal.reason, "DNS name is invalid" in refused.refusal.message) == (Reason.DNS_REJECTED, True)
    assert all(isinstance(result, TxtRecord) for result in results)
    assert len(api.records("certplane.test")) == 4


@pytest.mark.parametrize("answer", [Fault(0, after_commit=True), Fault(500, after_commit=True)], ids=["lost", "500"])
async def test_batch_of_a_lost_answer_is_adopted(
    api: CloudflareApi, provider: CloudflareProvider, answer: Fault
) -> None:
    """All records of a batch that took effect are found with one question, and none is made twice (fault 12)."""
    api.fail_next("POST", BATCH, answer)
    written = await add_all(provider, [named(number) for number in range(6)])
    assert {record.id for record in api.records("certplane.test")} == {
        record.record_id for record in written if isinstance(record, TxtRecord)
    }
    assert (api.count("POST", BATCH), api.count("GET", RECORDS), api.count("POST", RECORDS)) == (2, 1, 0)


async def test_standing_records_among_new_ones(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """Those that stand are adopted, the others go on together."""
    first = await provider.add_txt(named(0), soon())
    written = await add_all(provider, [named(number) for number in range(5)])
    assert written[0] == first
    assert len(api.records("certplane.test")) == 5
    assert api.count("POST", RECORDS) == 1


async def test_record_that_another_program_wrote_is_adopted_in_a_batch(
    api: CloudflareApi, provider: CloudflareProvider
) -> None:
    """A record of the same value without our comment isn't in the list of ours, and is found when it stands alone."""
    await api._records.create(api.zone_id("certplane.test"), {"type": "TXT", "name": named(1).name, "content": "value"})
    written = await add_all(provider, [named(0), named(1), named(2)])
    assert all(isinstance(result, TxtRecord) for result in written)
    assert len(api.records("certplane.test")) == 3


async def test_record_that_is_gone_holds_up_no_other_removal(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """One that somebody has removed already fails the batch, and nobody's order."""
    written = [
        record for record in await add_all(provider, [named(n) for n in range(4)]) if isinstance(record, TxtRecord)
    ]
    await provider.remove_txt(written[1], soon())
    await asyncio.gather(*(provider.remove_txt(record, soon()) for record in written))
    assert not api.records("certplane.test")


async def test_api_without_batches(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """An API that doesn't know the call is served record by record."""
    api.fail_next("POST", BATCH, Fault(404, 7003, "Could not route"), times=99)
    written = await add_all(provider, [named(number) for number in range(4)])
    assert all(isinstance(result, TxtRecord) for result in written)


async def test_refused_token_is_not_tried_for_each_record(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """What is wrong with the token is wrong for the whole batch: one call says so."""
    api.fail_next("POST", BATCH, Fault(403, 10000, "Authentication error"))
    results = await add_all(provider, [named(number) for number in range(4)])
    assert all(isinstance(result, RefusalError) for result in results)
    assert (api.count("POST", BATCH), api.count("POST", RECORDS)) == (1, 0)


async def test_short_batch_answer(api: CloudflareApi, provider: CloudflareProvider) -> None:
    """An answer that leaves records out is no success."""
    body = b'{"result": {"posts": []}, "success": true, "errors": [], "messages": []}'
    api.fail_next("POST", BATCH, Fault(200, body=body, headers=(("Content-Type", "application/json"),)))
    results = await add_all(provider, [named(0), named(1)])
    assert all(isinstance(result, RefusalError) for result in results)


async def test_block_holds_for_the_whole_account(
    api: CloudflareApi, provider: CloudflareProvider, clock: ShiftedClock
) -> None:
    """A 429 with five minutes to wait is obeyed by every order: nothing is asked meanwhile, then one call tries (11)."""
    await provider.add_txt(named(0), soon())
    api.fail_next("POST", RECORDS, Fault(429, headers=(("retry-after", "300"),)))
    calls = len(api.calls) + 1
    for number in range(1, 4):
        refusal = await refusal_of(provider, named(number))
        assert refusal.reason is Reason.DNS_UNAVAILABLE
        assert refusal.retry_after is not None
        assert timedelta(minutes=4) < refusal.retry_after <= timedelta(minutes=5)
    assert len(api.calls) == calls
    clock.shift = 301
    await provider.add_txt(named(1), soon())


async def test_api_that_keeps_failing_is_left_alone(
    api: CloudflareApi, provider: CloudflareProvider, clock: ShiftedClock
) -> None:
    """After five failures in a row no order asks, until a probe after the rest succeeds (fault 11)."""
    api.fail_next("GET", "/zones", Fault(503), times=5)
    for _ in range(5):
        await refusal_of(provider, seconds=0.1)
    calls = len(api.calls)
    refusal = await refusal_of(provider, seconds=0.1)
    assert (len(api.calls), "keeps failing" in refusal.message) == (calls, True)
    assert refusal.retry_after is not None
    clock.shift = 16
    await provider.add_txt(RECORD, soon())


async def test_budget_is_shared_by_tokens(
    api: CloudflareApi, secrets: FakeSecretSource, sandbox_dns: SandboxDnsServer
) -> None:
    """Cloudflare counts a user's calls, whichever token they have."""
    secrets.secrets["cf/other"] = api.token
    settings = Settings(api.base_url, "cf/token", calls_per_five_minutes=12)
    provider = CloudflareProvider(settings, secrets, SystemClock(), random.Random(1), ca_bundle=api.roots_file)
    await provider.add_txt(named(0), soon())  # a list of zones and a record, of a burst of three
    refusal = await refusal_of(provider, replace(named(1), credentials="cf/other"))
    assert (refusal.reason, "12 calls in 300 s" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)
    await provider.close()


CHECKED = [
    pytest.param(TokenScope(), (), id="good"),
    pytest.param(None, (True, "is not accepted"), id="invalid"),
    pytest.param(TokenScope(frozenset()), (False, "sees no zone"), id="no-zones"),
    pytest.param(TokenScope(frozenset({"other.test"}), edit=False), (False, "records in other.test"), id="read-only"),
]


@pytest.mark.parametrize(("scope", "expected"), CHECKED)
async def test_token_is_checked(
    api: CloudflareApi,
    provider: CloudflareProvider,
    secrets: FakeSecretSource,
    scope: TokenScope | None,
    expected: tuple[bool, str] | tuple[()],
) -> None:
    """What a token may do is known without changing anything; an invalid one is fatal, each with its remedy."""
    secrets.secrets["cf/token"] = "checked"
    if scope is not None:
        api.tokens["checked"] = scope
    findings = await provider.check_account("", soon())
    assert [(found.fatal, expected[1] in found.message) for found in findings if expected] == (
        [(expected[0], True)] if expected else []
    )
    assert all(found.remedy and "checked" not in found.message.split("'") for found in findings)
    assert not any(call.method != "GET" for call in api.calls)


async def test_zone_is_checked(api: CloudflareApi, provider: CloudflareProvider, secrets: FakeSecretSource) -> None:
    """Whether a record could be written is answered with its zone, or with what keeps it from being written."""
    assert await provider.check_zone(NAME, "", soon()) == "certplane.test"
    api.tokens["reads"] = TokenScope(edit=False)
    secrets.secrets["cf/token"] = "reads"
    with pytest.raises(RefusalError, match="DNS:Edit"):
        await provider.check_zone(NAME, "", soon())


async def test_fifty_orders_in_one_zone(
    api: CloudflareApi, provider: CloudflareProvider, sandbox_dns: SandboxDnsServer
) -> None:
    """Written and removed, fifty orders of two names take a fifth of a call each or less."""
    solver = dns_solver(provider, [HostPort("127.0.0.1", sandbox_dns.endpoint.port)])

    async def order(number: int) -> None:
        await asyncio.sleep(0.01 * number)  # as orders come from a CA, one after the other
        wanted = [named(2 * number), named(2 * number + 1)]
        written = await solver.present(wanted, timedelta(seconds=30))
        await solver.wait_until_visible(written, timedelta(seconds=30))
        assert list(await solver.remove(written, timedelta(seconds=30))) == []

    await asyncio.gather(*(order(number) for number in range(50)))
    writes = sum(call.method != "GET" for call in api.calls)
    assert not api.records("certplane.test")
    assert writes <= 10


def test_the_sdk_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optional package is missed at the start, with the way to get it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError) as caught:
        Settings().make(FakeSecretSource({}), SystemClock(), random.Random(1))
    (problem,) = caught.value.problems
    assert (problem.key, "broker-cloudflare.txt" in problem.remedy) == ("issuer.acme.cloudflare", True)
