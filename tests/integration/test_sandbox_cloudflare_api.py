"""The official `cloudflare` package against our server of its API."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cloudflare import APIConnectionError, APIStatusError, APITimeoutError, Cloudflare

from certplane.sandbox.cloudflare_api import RATE_LIMITED, CloudflareApi, Fault, TokenScope
from certplane.sandbox.ports import DnsServer

pytestmark = pytest.mark.integration

RECORDS = r"/zones/\w+/dns_records"


@pytest.fixture
def clients(cloudflare_api: CloudflareApi) -> Iterator[Callable[..., Cloudflare]]:
    """Makes clients of the package, with the full token by default and without retries."""
    made: list[Cloudflare] = []
    trust = ssl.create_default_context(cafile=cloudflare_api.roots_file)

    def make(token: str = cloudflare_api.token, *, retries: int = 0, timeout: float = 5) -> Cloudflare:
        http = httpx.Client(verify=trust, timeout=timeout)
        made.append(
            Cloudflare(api_token=token, base_url=cloudflare_api.base_url, max_retries=retries, http_client=http)
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


async def refused(call: Callable[..., Any], *arguments: Any, **members: Any) -> tuple[int, list[int | None]]:
    """Status and error codes of a call that is refused."""
    with pytest.raises(APIStatusError) as error:
        await asyncio.to_thread(call, *arguments, **members)
    return error.value.status_code, [entry.code for entry in error.value.errors]


async def test_a_created_record_is_in_the_dns(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], dns_server: DnsServer, own_name: str
) -> None:
    """`create` writes the TXT record before it returns, `list` finds it by name and content, `delete` removes it."""
    client, zone = clients(), cloudflare_api.zone_id("certplane.test")

    def create() -> Any:
        return client.dns.records.create(
            zone_id=zone, type="TXT", name=own_name, content='"value"', ttl=60, comment="certplane"
        )

    record = await asyncio.to_thread(create)
    assert await dns_server.endpoint.txt(own_name) == {"value"}

    def find() -> list[str]:
        page = client.dns.records.list(zone_id=zone, type="TXT", name={"exact": own_name}, content={"exact": '"value"'})
        return [found.id for found in page.result]

    assert await asyncio.to_thread(find) == [record.id]
    await asyncio.to_thread(client.dns.records.delete, record.id, zone_id=zone)
    assert await dns_server.endpoint.txt(own_name) == frozenset()
    assert cloudflare_api.records("certplane.test") == []


async def test_changes_take_their_time_to_spread(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], dns_server: DnsServer, own_name: str
) -> None:
    """The API has a record that the DNS server doesn't serve yet; changes arrive in order, and all of them."""
    client, zone = clients(), cloudflare_api.zone_id("certplane.test")

    def create(content: str) -> Any:
        return client.dns.records.create(zone_id=zone, type="TXT", name=own_name, content=f'"{content}"', ttl=60)

    cloudflare_api.spread_time = timedelta(minutes=10)
    first = await asyncio.to_thread(create, "first")
    cloudflare_api.spread_time = timedelta()
    await asyncio.to_thread(client.dns.records.delete, first.id, zone_id=zone)
    second = await asyncio.to_thread(create, "second")
    assert [record.id for record in cloudflare_api.records("certplane.test")] == [second.id]
    assert await dns_server.endpoint.txt(own_name) == frozenset()
    await cloudflare_api.spread(hurry=True)
    assert await dns_server.endpoint.txt(own_name) == {"second"}
    await asyncio.to_thread(client.dns.records.delete, second.id, zone_id=zone)
    assert await dns_server.endpoint.txt(own_name) == frozenset()


async def test_a_bad_day_fails_some_calls(cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare]) -> None:
    """`fail_often` fails about as many calls as it is told to, whatever they are."""
    client = clients()
    cloudflare_api.fail_often(Fault(503), 0.5)

    def ask() -> int:
        try:
            client.zones.list()
        except APIStatusError as error:
            return error.status_code
        return 200

    seen = [await asyncio.to_thread(ask) for _ in range(40)]
    assert set(seen) == {200, 503}
    assert 8 < seen.count(503) < 32


async def test_pages_end_with_an_empty_one(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], dns_server: DnsServer
) -> None:
    """Iterating, which asks until a page is empty, sees every zone once."""
    client = clients()
    zones = await asyncio.to_thread(lambda: [zone.name for zone in client.zones.list(per_page=2)])
    assert zones == list(dns_server.endpoint.zones)
    assert cloudflare_api.count("GET", "/zones") == 3


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        pytest.param({"name": "certplane.test"}, ["certplane.test"], id="name"),
        pytest.param({"name": "elsewhere.test"}, [], id="unknown"),
        pytest.param({"name": "certplane.test", "status": "pending"}, [], id="status"),
    ],
)
async def test_finds_zones(clients: Callable[..., Cloudflare], filters: dict[str, str], found: list[str]) -> None:
    """`zones.list` filters by name and status."""
    client = clients()
    assert await asyncio.to_thread(lambda: [zone.name for zone in client.zones.list(**filters).result]) == found


async def test_an_identical_record_exists_already(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], own_name: str
) -> None:
    """A second record with the same name and content is refused with 81058, quoted or not."""
    client = clients()
    record = {"zone_id": cloudflare_api.zone_id("certplane.test"), "type": "TXT", "name": own_name, "ttl": 60}
    await asyncio.to_thread(client.dns.records.create, **record, content='"value"')
    assert await refused(client.dns.records.create, **record, content="value") == (400, [81058])


async def test_a_batch_is_all_or_nothing(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], dns_server: DnsServer, own_name: str
) -> None:
    """Deletes come before posts, and one bad part undoes the rest."""
    client, zone = clients(), cloudflare_api.zone_id("certplane.test")
    post = {"type": "TXT", "name": own_name, "ttl": 60}
    made = await asyncio.to_thread(
        client.dns.records.batch, zone_id=zone, posts=[{**post, "content": '"one"'}, {**post, "content": '"two"'}]
    )
    assert await dns_server.endpoint.txt(own_name) == {"one", "two"}
    first = made.posts[0].id
    bad = {"zone_id": zone, "deletes": [{"id": first}], "posts": [{**post, "content": '"two"'}]}
    assert await refused(client.dns.records.batch, **bad) == (400, [81058])
    assert await dns_server.endpoint.txt(own_name) == {"one", "two"}
    again = {"zone_id": zone, "deletes": [{"id": first}], "posts": [{**post, "content": '"one"'}]}
    await asyncio.to_thread(client.dns.records.batch, **again)
    assert await dns_server.endpoint.txt(own_name) == {"one", "two"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"ttl": 59}, 9021, id="ttl"),
        pytest.param({"content": ""}, 9005, id="content"),
        pytest.param({"type": "NONSENSE"}, 9004, id="type"),
        pytest.param({"name": "a b"}, 9000, id="name"),
    ],
)
async def test_refuses_malformed_records(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], changes: dict[str, Any], code: int
) -> None:
    """What Cloudflare wouldn't take is a 400 with its code."""
    zone = cloudflare_api.zone_id("certplane.test")
    record = {"zone_id": zone, "type": "TXT", "name": "x", "content": '"x"', "ttl": 60, **changes}
    assert await refused(clients().dns.records.create, **record) == (400, [code])


async def test_what_isnt_there_is_not_found(cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare]) -> None:
    """An unknown record is 81044, an unknown zone 7003."""
    client, zone = clients(), cloudflare_api.zone_id("certplane.test")
    assert await refused(client.dns.records.delete, "0" * 32, zone_id=zone) == (404, [81044])
    assert await refused(client.dns.records.delete, "0" * 32, zone_id="f" * 32) == (404, [7003])


async def test_tokens_open_what_they_are_for(cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare]) -> None:
    """An unknown token, a zone outside its scope and a write by a reader are refused, each with Cloudflare's code."""
    cloudflare_api.tokens["reader"] = TokenScope(frozenset({"example.test"}), edit=False)
    reader = clients("reader")
    assert await refused(clients("wrong").zones.list) == (403, [9109])
    assert await asyncio.to_thread(lambda: [zone.name for zone in reader.zones.list().result]) == ["example.test"]
    record = {"type": "TXT", "name": "x", "content": '"x"', "ttl": 60}
    for zone in ("example.test", "certplane.test"):
        call = {"zone_id": cloudflare_api.zone_id(zone), **record}
        assert await refused(reader.dns.records.create, **call) == (403, [10000])
    verified = await asyncio.to_thread(clients().user.tokens.verify)
    assert verified is not None
    assert verified.status == "active"


async def test_a_malformed_authorization_is_a_bad_request(cloudflare_api: CloudflareApi) -> None:
    """Without a bearer token the answer is 6003."""
    trust = ssl.create_default_context(cafile=cloudflare_api.roots_file)
    async with httpx.AsyncClient(verify=trust) as plain:
        answer = await plain.get(f"{cloudflare_api.base_url}/zones")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (400, 6003)


async def test_a_rate_limit_is_waited_for(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], own_name: str
) -> None:
    """After a scripted 429 with Retry-After the package's retry succeeds; both calls are counted."""
    cloudflare_api.fail_next("POST", RECORDS, RATE_LIMITED)
    zone = cloudflare_api.zone_id("certplane.test")
    record = {"zone_id": zone, "type": "TXT", "name": own_name, "content": '"x"', "ttl": 60}
    await asyncio.to_thread(clients(retries=1).dns.records.create, **record)
    assert cloudflare_api.count("POST", RECORDS) == 2
    assert [call.status for call in cloudflare_api.calls] == [429, 200]


async def test_a_lost_answer_after_the_commit(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], dns_server: DnsServer, own_name: str
) -> None:
    """The record is there although the connection broke; the retry hears that it exists."""
    cloudflare_api.fail_next("POST", RECORDS, Fault(status=0, after_commit=True))
    zone = cloudflare_api.zone_id("certplane.test")
    record = {"zone_id": zone, "type": "TXT", "name": own_name, "content": '"x"', "ttl": 60}
    with pytest.raises(APIConnectionError):
        await asyncio.to_thread(clients().dns.records.create, **record)
    assert await dns_server.endpoint.txt(own_name) == {"x"}
    assert await refused(clients().dns.records.create, **record) == (400, [81058])


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        pytest.param(Fault(503), 503, id="unavailable"),
        pytest.param(Fault(502, body=b"<html>bad gateway</html>"), 502, id="html"),
    ],
)
async def test_server_errors_by_script(
    cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare], fault: Fault, status: int
) -> None:
    """5xx answers come as often as they were scripted, then no more."""
    cloudflare_api.fail_next("GET", "/zones", fault, times=2)
    for _ in range(2):
        with pytest.raises(APIStatusError) as error:
            await asyncio.to_thread(clients().zones.list)
        assert error.value.status_code == status
    await asyncio.to_thread(clients().zones.list)


async def test_a_slow_answer_by_script(cloudflare_api: CloudflareApi, clients: Callable[..., Cloudflare]) -> None:
    """A delay longer than the client's patience is a time-out."""
    cloudflare_api.fail_next("GET", "/zones", Fault(delay=timedelta(seconds=0.5)))
    with pytest.raises(APITimeoutError):
        await asyncio.to_thread(clients(timeout=0.1).zones.list)


async def test_speaks_plain_http_if_asked(tmp_path: Path, dns_server: DnsServer) -> None:
    """Without HTTPS nothing but the scheme is different."""
    async with CloudflareApi(tmp_path, dns_server.endpoint, https=False) as api, httpx.AsyncClient() as plain:
        answer = await plain.get(f"{api.base_url}/zones", headers={"Authorization": f"Bearer {api.token}"})
    assert (api.base_url.startswith("http://"), answer.json()["success"]) == (True, True)
