"""What is looked at before an order, and what is told of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.delegation import Delegations
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.provider import DnsProvider, NoSuchZoneError
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.settings import Mode
from certplane.broker.issuers.standing_records import StandingAccount
from certplane.broker.model import PreflightResult, Profile
from certplane.broker.ports import CaaIdentity
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.unit.broker.issuers.dns.test_solver import CheckedProvider, ScriptedProvider

OK, FAILED, UNKNOWN = PreflightResult.OK, PreflightResult.FAILED, PreflightResult.UNKNOWN
PROFILE = Profile("web", "mixed", ("www.certplane.test", "*.www.certplane.test"), "hash", credentials="dns/web")
CHALLENGE = "_acme-challenge.www.certplane.test"
SOON = timedelta(seconds=20)


@dataclass
class Ca:
    """What a CA says of itself, or how it fails."""

    identity: CaaIdentity = field(default_factory=lambda: CaaIdentity(("ca.example",), "https://ca.example/acct/1"))
    failure: RefusalError | None = None
    asked: int = 0

    async def caa_identity(self, timeout: timedelta) -> CaaIdentity:
        self.asked += 1
        if self.failure:
            raise self.failure
        return self.identity


class Writer(CheckedProvider):
    """A provider that may write in certplane.test with dns/web."""

    async def check_zone(self, name: str, credentials: str, deadline: object) -> str:
        if self.failure:
            raise self.failure
        if not name.endswith("certplane.test"):
            raise NoSuchZoneError(f"no zone holds {name}")
        assert credentials == "dns/web"
        return "certplane.test"


def preflight(
    server: SandboxDnsServer,
    ca: Ca | None = None,
    provider: DnsProvider | None = None,
    *,
    mode: Mode = Mode.AUTHORITATIVE,
    allowed: tuple[str, ...] = (),
    kind: ChallengeKind = ChallengeKind.DNS_01,
    account: Account | None = None,
) -> DnsPreflight:
    servers = [HostPort(address, server.endpoint.port) for address in server.endpoint.addresses]
    lookup = DnsLookup(servers=servers)
    routes = Routes(Route(provider or Writer(), lookup, PropagationCheck(lookup, mode=mode)))
    return DnsPreflight(
        routes,
        Delegations(allowed, routes),
        {"main": ca or Ca(CaaIdentity(("ca.example",), "https://ca.example/acct/1", kind.caa_method))},
        SystemClock(),
        kinds={"main": kind},
        accounts={"main": account or Account()},
    )


async def caa(server: SandboxDnsServer, value: str, name: str = "www.certplane.test") -> None:
    await server.endpoint.add(name, "CAA", value)


async def test_order_that_nothing_is_against(sandbox_dns: SandboxDnsServer) -> None:
    """Without CAA records the CA isn't even asked for its name."""
    ca = Ca()
    await preflight(sandbox_dns, ca).check_order(PROFILE.dns_names, "main", SOON)
    await caa(sandbox_dns, '0 issue "ca.example"')
    assert not ca.asked
    await preflight(sandbox_dns, ca).check_order(PROFILE.dns_names, "main", SOON)
    assert ca.asked


async def test_order_that_caa_forbids(sandbox_dns: SandboxDnsServer) -> None:
    """The refusal quotes the record and says which one to add; nothing was spent at the CA."""
    await caa(sandbox_dns, '0 issue "other.example"')
    with pytest.raises(RefusalError) as caught:
        await preflight(sandbox_dns).check_order(PROFILE.dns_names, "main", SOON)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.DNS_REJECTED
    assert '0 issue "other.example"' in refusal.message
    assert 'add `www.certplane.test. CAA 0 issue "ca.example"`' in refusal.message


async def test_order_whose_challenge_leads_astray(sandbox_dns: SandboxDnsServer) -> None:
    """A delegation that isn't allowed is told before an order is spent on it."""
    await sandbox_dns.endpoint.add(CHALLENGE, "CNAME", "x.example.test.")
    with pytest.raises(RefusalError) as caught:
        await preflight(sandbox_dns).check_order(PROFILE.dns_names, "main", SOON)
    assert "dns.delegations" in caught.value.refusal.message
    await preflight(sandbox_dns, allowed=("example.test",)).check_order(PROFILE.dns_names, "main", SOON)


@dataclass
class Account:
    """What standing records must name, or why that isn't known."""

    failure: RefusalError | None = None

    async def standing_account(self, timeout: timedelta) -> StandingAccount:
        if self.failure:
            raise self.failure
        return StandingAccount(("ca.example",), "https://ca.example/acct/1")


async def test_order_without_its_standing_record(sandbox_dns: SandboxDnsServer) -> None:
    """Nothing is spent on it; what challenge names lead to, or who writes there, is nobody's business then."""
    await sandbox_dns.endpoint.add(CHALLENGE, "CNAME", "x.example.test.")
    looking = preflight(sandbox_dns, kind=ChallengeKind.DNS_PERSIST_01)
    with pytest.raises(RefusalError) as caught:
        await looking.check_order(PROFILE.dns_names, "main", SOON)
    assert caught.value.refusal.reason is Reason.DNS_REJECTED
    assert "_validation-persist.www.certplane.test. IN TXT" in caught.value.refusal.message
    reported = await looking.report(PROFILE, ["main"], SOON)
    assert [(check.check, check.result) for check in reported if check.check != "caa"] == [("record", FAILED)]
    value = "ca.example; accounturi=https://ca.example/acct/1; policy=wildcard"
    await sandbox_dns.endpoint.add("_validation-persist.www.certplane.test", "TXT", f'"{value}"')
    await looking.check_order(PROFILE.dns_names, "main", SOON)
    away = Account(RefusalError(Reason.ISSUER_UNAVAILABLE, "away"))
    await sandbox_dns.endpoint.remove("_validation-persist.www.certplane.test", "TXT", f'"{value}"')
    await preflight(sandbox_dns, kind=ChallengeKind.DNS_PERSIST_01, account=away).check_order(
        PROFILE.dns_names, "main", SOON
    )


async def test_order_that_proves_nothing(sandbox_dns: SandboxDnsServer) -> None:
    """CAA counts for a CA that has approved the names too; how it has done so only it can say."""
    await sandbox_dns.endpoint.add(CHALLENGE, "CNAME", "x.example.test.")
    looking = preflight(sandbox_dns, kind=ChallengeKind.NONE)
    await looking.check_order(PROFILE.dns_names, "main", SOON)
    await caa(sandbox_dns, '0 issue "other.example"')
    with pytest.raises(RefusalError):
        await looking.check_order(PROFILE.dns_names, "main", SOON)


DOUBTS = [
    pytest.param(Ca(failure=RefusalError(Reason.ISSUER_UNAVAILABLE, "away")), "", id="ca-away"),
    pytest.param(Ca(failure=RefusalError(Reason.ISSUER_REJECTED, "no account")), "", id="ca-refuses"),
    pytest.param(Ca(CaaIdentity()), "", id="ca-without-a-name"),
    pytest.param(Ca(), "servfail", id="dns-servfail"),
    pytest.param(Ca(), "drop", id="dns-silent"),
]


@pytest.mark.parametrize(("ca", "fault"), DOUBTS)
async def test_doubts_hold_nothing_up(sandbox_dns: SandboxDnsServer, ca: Ca, fault: str) -> None:
    """Neither a CA nor a DNS that can't be asked keeps an order from being tried."""
    await caa(sandbox_dns, '0 issue "other.example"')
    for faults in sandbox_dns.faults.values():
        if fault:
            setattr(faults, fault, True)
    await preflight(sandbox_dns, ca).check_order(PROFILE.dns_names, "main", timedelta(seconds=0.5))


async def test_resolvers_that_remember_are_not_asked(sandbox_dns: SandboxDnsServer) -> None:
    """In the recursive mode the names aren't looked up early: what doesn't exist yet would be remembered."""
    await caa(sandbox_dns, '0 issue "other.example"')
    sandbox_dns.questions.clear()
    await preflight(sandbox_dns, mode=Mode.RECURSIVE).check_order(PROFILE.dns_names, "main", SOON)
    assert not sandbox_dns.questions


async def results(made: DnsPreflight, profile: Profile = PROFILE) -> dict[tuple[str, str], tuple[PreflightResult, str]]:
    checks = await made.report(profile, ["main"], SOON)
    return {(check.check, check.subject): (check.result, check.detail) for check in checks}


async def test_report_of_a_good_profile(sandbox_dns: SandboxDnsServer) -> None:
    """CAA of each name, each challenge name, provider and servers; an apex and its wildcard share theirs."""
    found = await results(preflight(sandbox_dns))
    await caa(sandbox_dns, '0 issue "ca.example"')
    found = await results(preflight(sandbox_dns))
    assert {key: result for key, (result, _) in found.items()} == {
        ("caa", "www.certplane.test at main"): OK,
        ("caa", "*.www.certplane.test at main"): OK,
        ("delegation", CHALLENGE): OK,
        ("provider", CHALLENGE): OK,
        ("servers", "certplane.test"): OK,
    }
    assert found["servers", "certplane.test"][1].startswith("2 of 2 answer, with serial ")


async def test_report_of_a_delegated_name(sandbox_dns: SandboxDnsServer) -> None:
    """Provider and servers are those of where the record will stand."""
    await sandbox_dns.endpoint.add(CHALLENGE, "CNAME", "x.example.test.")
    found = await results(preflight(sandbox_dns, allowed=("example.test",)))
    assert found["delegation", CHALLENGE] == (OK, f"{CHALLENGE} -> x.example.test")
    assert found["provider", "x.example.test"][0] is FAILED
    assert found["servers", "example.test"][0] is OK


async def test_report_of_what_fails(sandbox_dns: SandboxDnsServer) -> None:
    """Servers that don't answer are named, the provider's refusal quoted."""
    await caa(sandbox_dns, '0 issue "other.example"')
    for faults in sandbox_dns.faults.values():
        faults.servfail, faults.below = True, "certplane.test"
    provider = Writer(RefusalError(Reason.DNS_REJECTED, "the token may not"))
    found = await results(preflight(sandbox_dns, provider=provider))
    assert found["provider", CHALLENGE] == (FAILED, "the token may not")
    result, detail = found["servers", CHALLENGE]
    assert (result, "127.0.0.2" in detail) == (FAILED, True)
    for faults in sandbox_dns.faults.values():
        faults.servfail = False
    assert (await results(preflight(sandbox_dns)))["caa", "www.certplane.test at main"][0] is FAILED


@pytest.mark.parametrize("fault", ["servfail", "drop"])
async def test_report_of_one_server_that_gives_no_answer(sandbox_dns: SandboxDnsServer, fault: str) -> None:
    """It is told, and is no failure: an order goes on without it."""
    setattr(sandbox_dns.faults["127.0.0.2"], fault, True)
    result, detail = (await results(preflight(sandbox_dns)))["servers", "certplane.test"]
    assert (result, detail.startswith("1 of 2 answer, with serial "), "127.0.0.2" in detail) == (UNKNOWN, True, True)


async def test_report_of_a_wildcard(sandbox_dns: SandboxDnsServer) -> None:
    """Preflight says the same as the order will do: the record at the name itself hides the wildcard."""
    await sandbox_dns.endpoint.add("*.certplane.test", "CNAME", "lb.example.test.")
    result, detail = (await results(preflight(sandbox_dns)))["delegation", CHALLENGE]
    assert (result, detail) == (
        OK,
        "not delegated; the record will hide the CNAME of a wildcard, which leads to lb.example.test",
    )
    await preflight(sandbox_dns).check_order(PROFILE.dns_names, "main", SOON)


async def test_report_of_what_cannot_be_told(sandbox_dns: SandboxDnsServer) -> None:
    """A provider that can't be asked without writing, and servers that nobody asks, are unknown, not good."""
    provider = ScriptedProvider(lambda _: asyncio.sleep(0))
    found = await results(preflight(sandbox_dns, provider=provider, mode=Mode.WAIT))
    assert found["provider", CHALLENGE][0] is UNKNOWN
    assert found["servers", CHALLENGE][0] is UNKNOWN
