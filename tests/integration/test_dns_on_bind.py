"""dns-01 on real name servers: delegations, split horizon, servers that lack a record, long answers, and the faults.

The `bind` of the fixtures takes updates; `other_bind` has zones of the same names of its own, as the inside of a split
horizon has, or as a secondary that is never told of a change.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from certplane.broker import cli
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.cloudflare.provider import CloudflareProvider
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import DnsChallenge, PreflightResult, Profile
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.bind import BindServer
from certplane.sandbox.cloudflare_api import CloudflareApi, Fault
from certplane.sandbox.dns_endpoint import DnsEndpoint
from tests.fakes.secrets import FakeSecretSource
from tests.support.broker_files import BrokerFiles
from tests.support.parts import need_part
from tests.support.sandbox import ZONES
from tests.support.scripted_acme import ScriptedAcme

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=20)
BRIEFLY = timedelta(seconds=1)
QUICKLY = timedelta(milliseconds=50)


@pytest.fixture
async def other_bind(tmp_path: Path) -> AsyncIterator[BindServer]:
    async with BindServer(tmp_path / "other", ZONES, part=need_part("bind")) as server:
        yield server


def address_of(server: BindServer) -> HostPort:
    return HostPort(server.endpoint.addresses[0], server.endpoint.port)


def provider_of(server: BindServer, secret: str = "") -> Rfc2136Provider:
    key = server.endpoint.key
    secrets = FakeSecretSource({"dns/tsig": secret or key.secret})
    return Rfc2136Provider(Rfc2136Settings(address_of(server), key.name, "dns/tsig"), secrets, random.Random())


def route_of(server: BindServer, zone: str = "", *, asked: tuple[BindServer, ...] = ()) -> Route:
    """Written at `server`; looked for at `asked`, or at the name servers that its resolver finds."""
    if asked:
        lookup = DnsLookup(servers=[address_of(one) for one in asked])
    else:
        lookup = DnsLookup(resolvers=[address_of(server)], port=server.endpoint.port)
    return Route(provider_of(server), lookup, PropagationCheck(lookup, interval=QUICKLY), zone)


def solver_of(*routes: Route, delegations: tuple[str, ...] = ()) -> DnsSolver:
    return DnsSolver(Routes(routes[0], routes[1:]), SystemClock(), delegations=delegations)


def challenge(domain: str, value: str = "value") -> DnsChallenge:
    return DnsChallenge(domain, f"_acme-challenge.{domain}", value, "https://ca/authz", "https://ca/chall")


def profile(*names: str, credentials: str = "") -> Profile:
    return Profile("web", "multi_san", names, "hash", credentials=credentials)


async def values(endpoint: DnsEndpoint, name: str) -> set[str]:
    return set(await endpoint.txt(name))


async def test_delegated_to_another_zone(bind: BindServer, own_name: str) -> None:
    """Apex and wildcard are met at the CNAME's end in another zone, and a restart removes them there by the journal."""
    target = f"{own_name.partition('.')[0]}.acme.other.test"
    await bind.endpoint.add(f"_acme-challenge.{own_name}", "CNAME", f"{target}.")
    solver = solver_of(route_of(bind), delegations=("acme.other.test",))
    planned = await solver.plan([challenge(own_name, "apex"), challenge(own_name, "wild")], profile(own_name), SOON)
    assert [record.name for record in planned] == [target, target]
    written = await solver.present(planned, SOON)
    assert {record.zone for record in written} == {"other.test"}
    await solver.wait_until_visible(written, SOON)
    assert await values(bind.endpoint, target) == {"apex", "wild"}
    after_restart = solver_of(route_of(bind))
    assert list(await after_restart.remove(planned, SOON)) == []
    assert await values(bind.endpoint, target) == set()


@pytest.mark.parametrize(
    "wildcard",
    [
        pytest.param("*.{}", id="one-level"),
        pytest.param("*.app.{}", id="beside-the-challenge-name"),
    ],
)
async def test_wildcard_cname(bind: BindServer, own_name: str, wildcard: str) -> None:
    """A record at the challenge name hides a wildcard's CNAME; preflight says so, and the wildcard is back after it."""
    await bind.endpoint.add(wildcard.format(own_name), "CNAME", "lb.example.test.")
    name = f"_acme-challenge.app.{own_name}"
    solver = solver_of(route_of(bind), delegations=("acme.other.test",))
    looking = DnsPreflight(solver.routes, solver.delegations, {}, SystemClock())
    await looking.check_order([f"app.{own_name}"], "main", SOON)
    checks = {check.check: check for check in await looking.report(profile(f"app.{own_name}"), [], SOON)}
    assert checks["delegation"].detail.endswith("will hide the CNAME of a wildcard, which leads to lb.example.test")
    assert checks.pop("dnssec").result is PreflightResult.UNKNOWN  # this server knows nothing of the zone above
    assert {check.result for check in checks.values()} == {PreflightResult.OK}
    written = await solver.present(
        await solver.plan([challenge(f"app.{own_name}")], profile(f"app.{own_name}"), SOON), SOON
    )
    assert [(record.name, record.zone) for record in written] == [(name, "certplane.test")]
    assert list(await solver.wait_until_visible(written, SOON)) == []
    assert list(await solver.remove(written, SOON)) == []
    assert (await bind.endpoint.query(name, "CNAME")).answer


async def test_wildcard_cname_that_leads_to_itself(bind: BindServer, own_name: str) -> None:
    """The server can't answer for such names; the name above tells the zone, and the record hides the CNAME."""
    await bind.endpoint.add(f"*.{own_name}", "CNAME", f"loop.{own_name}.")
    solver = solver_of(route_of(bind))
    planned = await solver.plan([challenge(f"app.{own_name}")], profile(f"app.{own_name}"), SOON)
    written = await solver.present(planned, SOON)
    assert [record.zone for record in written] == ["certplane.test"]
    await solver.wait_until_visible(written, SOON)
    assert list(await solver.remove(written, SOON)) == []


async def test_wildcard_cname_into_the_zone_above(bind: BindServer, own_name: str) -> None:
    """A wildcard of a zone that leads into the zone above, on the same server, doesn't mislead the update."""
    below = f"{own_name.partition('.')[0]}.sub.certplane.test"
    await bind.endpoint.add(f"*.{below}", "CNAME", "lb.certplane.test.")
    solver = solver_of(route_of(bind))
    planned = await solver.plan([challenge(f"app.{below}")], profile(f"app.{below}"), SOON)
    written = await solver.present(planned, SOON)
    assert [record.zone for record in written] == ["sub.certplane.test"]
    await solver.wait_until_visible(written, SOON)
    assert list(await solver.remove(written, SOON)) == []


async def test_secondary_that_still_has_the_wildcard(bind: BindServer, other_bind: BindServer, own_name: str) -> None:
    """A server that answers with the wildcard, since it hasn't heard of the record yet, is waited for and named."""
    for server in (bind, other_bind):
        await server.endpoint.add(f"*.{own_name}", "CNAME", "lb.example.test.")
    solver = solver_of(route_of(bind, asked=(bind, other_bind)))
    planned = await solver.plan([challenge(f"app.{own_name}")], profile(f"app.{own_name}"), SOON)
    written = await solver.present(planned, SOON)
    with pytest.raises(RefusalError) as caught:
        await solver.wait_until_visible(written, BRIEFLY)
    assert f"{address_of(other_bind)} answers with the CNAME of a wildcard" in caught.value.refusal.message
    await other_bind.endpoint.add(f"_acme-challenge.app.{own_name}", "TXT", "value")
    await solver.wait_until_visible(written, SOON)
    assert list(await solver.remove(written, SOON)) == []


async def test_split_horizon(bind: BindServer, other_bind: BindServer, own_name: str) -> None:
    """A zone with servers of its own is written and looked for there; the rest of the names aren't."""
    inside = f"{own_name.partition('.')[0]}.example.test"
    solver = solver_of(route_of(bind), route_of(other_bind, "example.test", asked=(other_bind,)))
    planned = await solver.plan([challenge(own_name), challenge(inside)], profile(own_name, inside), SOON)
    written = await solver.present(planned, SOON)
    await solver.wait_until_visible(written, SOON)
    assert await values(other_bind.endpoint, f"_acme-challenge.{inside}") == {"value"}
    assert await values(bind.endpoint, f"_acme-challenge.{inside}") == set()
    assert await values(bind.endpoint, f"_acme-challenge.{own_name}") == {"value"}
    assert list(await solver.remove(written, SOON)) == []


async def test_long_answers(bind: BindServer, own_name: str) -> None:
    """More values at one name than fit into a datagram are read over TCP, the new one among them."""
    name = f"_acme-challenge.{own_name}"
    for number in range(40):
        await bind.endpoint.add(name, "TXT", f"{number:043}")
    solver = solver_of(route_of(bind))
    written = await solver.present(await solver.plan([challenge(own_name)], profile(own_name), SOON), SOON)
    await solver.wait_until_visible(written, SOON)
    assert list(await solver.remove(written, SOON)) == []
    assert len(await values(bind.endpoint, name)) == 40


async def test_permission_is_looked_at_without_a_trace(bind: BindServer, own_name: str) -> None:
    """The key that may write is told from one that may not, and the zone keeps its serial."""

    async def serial() -> str:
        return str((await bind.endpoint.query("certplane.test", "SOA")).answer[0][0])

    before = await serial()
    deadline = solver_deadline()
    assert await provider_of(bind).check_zone(f"_acme-challenge.{own_name}", "", deadline) == "certplane.test"
    assert await serial() == before
    with pytest.raises(RefusalError) as caught:
        await provider_of(bind, "d3Jvbmc=").check_zone(f"_acme-challenge.{own_name}", "", deadline)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED


def solver_deadline() -> Deadline:
    return Deadline.after(SOON, SystemClock())


@pytest.fixture
def account(cloudflare_api: CloudflareApi) -> FakeSecretSource:
    return FakeSecretSource({"cf/token": cloudflare_api.token})


@pytest.fixture
async def at_cloudflare(
    cloudflare_api: CloudflareApi, dns_server: BindServer, account: FakeSecretSource
) -> AsyncIterator[DnsSolver]:
    settings = CloudflareSettings(cloudflare_api.base_url, "cf/token")
    provider = CloudflareProvider(
        settings, account, SystemClock(), random.Random(1), ca_bundle=cloudflare_api.roots_file
    )
    lookup = DnsLookup(servers=[HostPort(dns_server.endpoint.addresses[0], dns_server.endpoint.port)])
    solver = solver_of(Route(provider, lookup, PropagationCheck(lookup, interval=QUICKLY)))
    yield solver
    await solver.close()
    await asyncio.sleep(0.01)  # the loop closes the transports of connections that broke off in its next rounds


RECORDS = r"/zones/[0-9a-f]{32}/dns_records"


@pytest.mark.parametrize("fault", [Fault(503), Fault(429, headers=(("retry-after", "0"),)), Fault(0)])
async def test_row_11_dns_api_that_fails_in_passing(
    cloudflare_api: CloudflareApi, at_cloudflare: DnsSolver, own_name: str, fault: Fault
) -> None:
    """A few failures are repeated within the time; the record stands once, and only then can it be answered for."""
    cloudflare_api.fail_next("POST", RECORDS, fault, times=2)
    planned = await at_cloudflare.plan([challenge(own_name)], profile(own_name), SOON)
    written = await at_cloudflare.present(planned, SOON)
    await at_cloudflare.wait_until_visible(written, SOON)
    assert [record.id for record in cloudflare_api.records("certplane.test")] == [written[0].record_id]
    assert list(await at_cloudflare.remove(written, SOON)) == []


async def test_row_11_dns_api_that_stays_away(
    cloudflare_api: CloudflareApi, at_cloudflare: DnsSolver, own_name: str
) -> None:
    """The tries are bounded by the time there is, and nobody gets as far as answering a challenge."""
    cloudflare_api.fail_next("POST", RECORDS, Fault(503), times=999)
    planned = await at_cloudflare.plan([challenge(own_name)], profile(own_name), SOON)
    with pytest.raises(RefusalError) as caught:
        await at_cloudflare.present(planned, BRIEFLY)
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE
    assert cloudflare_api.count("POST", RECORDS) < 5


async def test_row_12_record_of_a_lost_answer(
    cloudflare_api: CloudflareApi, at_cloudflare: DnsSolver, own_name: str
) -> None:
    """A write that took effect although its answer was lost is adopted (81058), with the id to remove it by."""
    cloudflare_api.fail_next("POST", RECORDS + "(/batch)?", Fault(0, after_commit=True))
    wanted = [challenge(own_name, "apex"), challenge(own_name, "wild")]
    written = await at_cloudflare.present(await at_cloudflare.plan(wanted, profile(own_name), SOON), SOON)
    standing = {record.id for record in cloudflare_api.records("certplane.test")}
    assert {record.record_id for record in written} == standing
    assert list(await at_cloudflare.remove(written, SOON)) == []
    assert not cloudflare_api.records("certplane.test")


async def test_row_13_token_that_was_revoked(
    cloudflare_api: CloudflareApi, at_cloudflare: DnsSolver, account: FakeSecretSource, own_name: str
) -> None:
    """It fails at once, for a person, with what to do; and the look at the start says the same."""
    account.secrets["cf/token"] = "revoked"
    planned = await at_cloudflare.plan([challenge(own_name)], profile(own_name), SOON)
    with pytest.raises(RefusalError) as caught:
        await at_cloudflare.present(planned, SOON)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert "check the API token's permissions" in caught.value.refusal.message
    assert len(cloudflare_api.calls) == 1
    [finding] = await at_cloudflare.check_accounts([profile(own_name)], SOON)
    assert (finding.fatal, "is not accepted" in finding.message) == (True, True)


async def test_row_13_zone_that_is_gone(at_cloudflare: DnsSolver) -> None:
    """A zone that the account has no more is a person's job; what was never written there is no debt."""
    planned = await at_cloudflare.plan([challenge("www.gone.invalid")], profile("www.gone.invalid"), SOON)
    with pytest.raises(RefusalError) as caught:
        await at_cloudflare.present(planned, SOON)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert list(await at_cloudflare.remove(planned, SOON)) == []


async def test_row_14_propagation_that_never_ends(bind: BindServer, other_bind: BindServer, own_name: str) -> None:
    """One authoritative server that lacks the record keeps the challenge from being answered, and is named with it."""
    solver = solver_of(route_of(bind, asked=(bind, other_bind)))
    written = await solver.present(await solver.plan([challenge(own_name)], profile(own_name), SOON), SOON)
    with pytest.raises(RefusalError) as caught:
        await solver.wait_until_visible(written, BRIEFLY)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert f"the TXT record at _acme-challenge.{own_name} isn't visible" in refusal.message
    assert f"{address_of(other_bind)} (127.0.0.1) says that the name doesn't exist" in refusal.message
    assert list(await solver.remove(written, SOON)) == []
    assert await values(bind.endpoint, f"_acme-challenge.{own_name}") == set()


async def test_row_15_record_that_was_left_behind(
    cloudflare_api: CloudflareApi, at_cloudflare: DnsSolver, own_name: str
) -> None:
    """After a kill between writing and the journal the plan alone finds the record and removes it."""
    planned = await at_cloudflare.plan([challenge(own_name)], profile(own_name), SOON)
    await at_cloudflare.present(planned, SOON)
    assert planned[0].record_id == ""
    assert list(await at_cloudflare.remove(planned, SOON)) == []
    assert not cloudflare_api.records("certplane.test")


async def test_servers_that_differ(bind: BindServer, other_bind: BindServer, own_name: str) -> None:
    """Preflight tells authoritative servers that have different versions of a zone."""
    await bind.endpoint.add(own_name, "TXT", "another version")
    solver = solver_of(route_of(bind, asked=(bind, other_bind)))
    looking = DnsPreflight(solver.routes, solver.delegations, {}, SystemClock())
    checks = await looking.report(profile(own_name), ["main"], SOON)
    [servers] = [check for check in checks if check.check == "servers"]
    assert (servers.result, "different versions" in servers.detail) == (PreflightResult.FAILED, True)


@pytest.fixture
def ca(tmp_path: Path) -> Iterator[ScriptedAcme]:
    with ScriptedAcme(tmp_path) as ca:
        yield ca


async def test_preflight_command(
    bind: BindServer,
    ca: ScriptedAcme,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command prints each check, one object a line with --json, and its status says whether an order would fail."""
    files = BrokerFiles(tmp_path)
    key = bind.endpoint.key
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", key.secret)
    acme = files.settings["issuer"]["acme"]
    acme |= {"directory_url": ca.directory_url, "ca_bundle": str(ca.roots_file)}
    acme["rfc2136"] |= {"server": str(address_of(bind)), "tsig_name": key.name}
    acme["propagation"] = {"nameservers": [str(address_of(bind))]}
    files.write()

    async def run(*arguments: str) -> tuple[int, str]:
        status = await asyncio.to_thread(cli.main, ["preflight", "-c", str(files.config), *arguments])
        return status, capsys.readouterr().out

    status, shown = await run("--profile", "web", "--json")
    found = [(row["check"], row["subject"], row["result"]) for row in map(yaml.safe_load, shown.splitlines())]
    assert status == 0
    assert ("directory", f"default ({ca.directory_url})", "ok") in found
    assert ("provider", "_acme-challenge.a.certplane.test", "ok") in found
    assert ("servers", "certplane.test", "ok") in found
    files.settings["issuer"]["acme"]["rfc2136"]["tsig_name"] = "another"
    files.write()
    status, shown = await run("--profile", "web", "--json")
    assert (status, "doesn't accept the TSIG key" in shown) == (1, True)
    status, _ = await run("--profile", "unknown")
    assert status == 1
