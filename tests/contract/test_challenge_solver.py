"""The `ChallengeSolver` contract, on the fake and on `DnsSolver` with every provider and a real DNS server.

And once on that by the messages of the issuing process, which know no provider.
"""

from __future__ import annotations

import random
import socket
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from hashlib import sha256
from typing import Protocol

import pytest

from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.cloudflare.provider import CloudflareProvider
from certplane.broker.issuers.dns.httpreq import HttpreqMode, HttpreqSettings
from certplane.broker.issuers.dns.httpreq.provider import HttpreqProvider
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider
from certplane.broker.issuing.remote import RemoteSolver
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.broker.ports import ChallengeSolver
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.cloudflare_api import CloudflareApi
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.ports import DnsServer
from tests.fakes.dns import FakeChallengeSolver, FakeDns
from tests.fakes.secrets import FakeSecretSource
from tests.support.dns_providers import MAKERS
from tests.support.dns_solver import dns_solver
from tests.support.httpreq_endpoint import HttpreqServer
from tests.support.issuing_wire import Wire
from tests.support.sandbox import ZONES

SOON = timedelta(seconds=20)
BRIEFLY = timedelta(seconds=1)
CREDENTIALS = "dns/secret"
PROFILE = Profile("web", "mixed", ("certplane.test",), "hash", credentials=CREDENTIALS)


class World(Protocol):
    """A solver, and the DNS from beside."""

    solver: ChallengeSolver
    deletes: bool
    """Whether what is removed is gone from the DNS; acme-dns only gives its place free."""

    async def values(self, name: str) -> frozenset[str]:
        """The TXT values that stand at `name`."""
        ...

    async def write_beside(self, name: str, value: str) -> None:
        """What somebody else writes."""
        ...

    def break_provider(self) -> None:
        """From now on the provider takes nothing from us."""
        ...

    def add_silent_server(self) -> None:
        """One more name server, which gives no answer."""
        ...


class FakeWorld:
    deletes = True

    def __init__(self) -> None:
        self.dns = FakeDns(ZONES)
        self.fake = FakeChallengeSolver(self.dns)
        self.solver: ChallengeSolver = self.fake

    async def values(self, name: str) -> frozenset[str]:
        return frozenset(value for found, value in self.dns.visible() if found == name)

    async def write_beside(self, name: str, value: str) -> None:
        self.dns.write(TxtRecord("", name, value))

    def break_provider(self) -> None:
        error = RefusalError(Reason.DNS_UNAVAILABLE, "broken")
        for operation in ("present", "remove"):
            self.fake.faults.fail_always(operation, error)

    def add_silent_server(self) -> None:
        self.fake.silent = ("ns9.test can't be asked",)


class RealWorld:
    def __init__(
        self, provider: DnsProvider, dns: DnsEndpoint, secrets: FakeSecretSource, *, deletes: bool = True
    ) -> None:
        self.deletes = deletes
        self.dns, self.secrets = dns, secrets
        servers = [HostPort(address, dns.port) for address in dns.addresses]
        self.real = dns_solver(provider, servers)
        self.provider, self.servers = provider, servers
        self.solver: ChallengeSolver = self.real

    async def values(self, name: str) -> frozenset[str]:
        return await self.dns.txt(name)

    async def write_beside(self, name: str, value: str) -> None:
        await self.dns.add(name, "TXT", value)

    def break_provider(self) -> None:
        self.secrets.secrets = dict.fromkeys(self.secrets.secrets, "d3Jvbmc=")

    def add_silent_server(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            closed = HostPort(*free.getsockname())
        patience = timedelta(milliseconds=300)
        self.solver = self.real = dns_solver(self.provider, [*self.servers, closed], patience=patience)


class MessagesWorld(RealWorld):
    """The same as the broker has it: by messages of its issuing process."""

    def __init__(self, provider: DnsProvider, dns: DnsEndpoint, secrets: FakeSecretSource) -> None:
        super().__init__(provider, dns, secrets)
        self.wires: list[Wire] = []
        self._wrap()

    def _wrap(self) -> None:
        self.wires.append(Wire(solver=self.real))
        self.solver = RemoteSolver(self.wires[-1], SystemClock())

    def add_silent_server(self) -> None:
        super().add_silent_server()
        self._wrap()


def _provider(kind: str, dns: DnsEndpoint, request: pytest.FixtureRequest) -> tuple[DnsProvider, FakeSecretSource]:
    if kind == "cloudflare":
        api: CloudflareApi = request.getfixturevalue("cloudflare_api")
        secrets = FakeSecretSource({CREDENTIALS: api.token})
        settings = CloudflareSettings(api.base_url)
        return CloudflareProvider(settings, secrets, SystemClock(), random.Random(), ca_bundle=api.roots_file), secrets
    if kind == "rfc2136":
        secrets = FakeSecretSource({CREDENTIALS: dns.key.secret})
        server = Rfc2136Settings(HostPort(dns.addresses[0], dns.port), dns.key.name, "unused")
        return Rfc2136Provider(server, secrets, random.Random()), secrets
    if kind in MAKERS:
        return MAKERS[kind](dns, request, CREDENTIALS)
    server = HttpreqServer(dns, credentials=("user", "password"))
    request.addfinalizer(server.__exit__)
    server.__enter__()
    secrets = FakeSecretSource({"http/user": "user", "http/password": "password"})
    endpoint = HttpreqSettings(
        server.url, HttpreqMode.RAW if kind == "httpreq-raw" else HttpreqMode.DEFAULT, "http/user", "http/password"
    )
    return HttpreqProvider(endpoint, secrets, SystemClock(), random.Random()), secrets


REAL = ["cloudflare", "rfc2136", "httpreq", "httpreq-raw", *MAKERS]


@pytest.fixture(params=["fake", *(pytest.param(kind, marks=pytest.mark.integration) for kind in (*REAL, "messages"))])
def made(request: pytest.FixtureRequest) -> FakeWorld | RealWorld:
    if request.param == "fake":
        return FakeWorld()
    dns: DnsServer = request.getfixturevalue("dns_server")
    if request.param == "messages":
        provider, secrets = _provider("rfc2136", dns.endpoint, request)
        return MessagesWorld(provider, dns.endpoint, secrets)
    provider, secrets = _provider(request.param, dns.endpoint, request)
    return RealWorld(provider, dns.endpoint, secrets, deletes=request.param != "acme-dns")


@pytest.fixture
async def world(made: FakeWorld | RealWorld) -> AsyncIterator[World]:
    yield made
    if isinstance(made, MessagesWorld):
        for wire in made.wires:
            await wire.close()
    if isinstance(made, RealWorld):
        await made.real.close()


@pytest.fixture
def pair(own_name: str) -> list[DnsChallenge]:
    """The challenges of an apex and its wildcard: two values at one name."""
    return [challenge(own_name, "apex"), challenge(own_name, "wildcard")]


def challenge(domain: str, token: str) -> DnsChallenge:
    authorization = f"{token}.thumbprint"
    value = urlsafe_b64encode(sha256(authorization.encode()).digest()).decode().rstrip("=")
    return DnsChallenge(
        domain, f"_acme-challenge.{domain}", value, "https://ca/authz", "https://ca/chall", authorization
    )


def values_of(records: Sequence[TxtRecord]) -> set[str]:
    return {record.value for record in records}


def left(world: World, records: Sequence[TxtRecord]) -> set[str]:
    """What is left in the DNS of records that were removed."""
    return set() if world.deletes else values_of(records)


async def test_planning_writes_nothing(world: World, pair: list[DnsChallenge]) -> None:
    """A plan has name, value and credentials of each record, in order, and is the same each time."""
    plan = await world.solver.plan(pair, PROFILE, SOON)
    assert [(record.name, record.value, record.credentials) for record in plan] == [
        (entry.record_name, entry.record_value, CREDENTIALS) for entry in pair
    ]
    assert list(await world.solver.plan(pair, PROFILE, SOON)) == list(plan)


async def test_presents_side_by_side(world: World, pair: list[DnsChallenge]) -> None:
    """Apex and wildcard stand at one name, and what comes back is what was planned, in order."""
    plan = await world.solver.plan(pair, PROFILE, SOON)
    written = await world.solver.present(plan, SOON)
    assert [(record.name, record.value) for record in written] == [(record.name, record.value) for record in plan]
    assert list(await world.solver.wait_until_visible(written, SOON)) == []
    assert await world.values(plan[0].name) == values_of(plan)


async def test_goes_on_without_a_server_that_gives_no_answer(world: World, pair: list[DnsChallenge]) -> None:
    """When all others show the records, a server that gives no answer is told and holds nothing up."""
    world.add_silent_server()
    written = await world.solver.present(await world.solver.plan(pair, PROFILE, SOON), SOON)
    [line] = await world.solver.wait_until_visible(written, SOON)
    assert line.isprintable()
    assert list(await world.solver.remove(written, SOON)) == []


async def test_leaves_what_others_wrote(world: World, pair: list[DnsChallenge]) -> None:
    """Neither writing nor removing touches another's record at the same name."""
    name = pair[0].record_name
    await world.write_beside(name, "another's")
    written = await world.solver.present(await world.solver.plan(pair, PROFILE, SOON), SOON)
    assert await world.values(name) == {"another's"} | values_of(written)
    assert list(await world.solver.remove(written, SOON)) == []
    assert await world.values(name) == {"another's"} | left(world, written)


async def test_presenting_again_adopts(world: World, pair: list[DnsChallenge]) -> None:
    """After a crash between writing and the journal, the same plan finds its records: one removal takes them away."""
    plan = await world.solver.plan(pair, PROFILE, SOON)
    first = await world.solver.present(plan, SOON)
    assert list(await world.solver.present(plan, SOON)) == list(first)
    await world.solver.remove(first, SOON)
    assert await world.values(plan[0].name) == left(world, first)


async def test_removes_one_of_two(world: World, pair: list[DnsChallenge]) -> None:
    """Only the records named are removed."""
    written = await world.solver.present(await world.solver.plan(pair, PROFILE, SOON), SOON)
    assert list(await world.solver.remove(written[:1], SOON)) == []
    assert await world.values(written[0].name) == {written[1].value} | left(world, written)


async def test_removes_what_was_only_planned(world: World, pair: list[DnsChallenge]) -> None:
    """A journal that knows neither zone nor id is enough: name and value find the record."""
    plan = await world.solver.plan(pair, PROFILE, SOON)
    await world.solver.present(plan, SOON)
    assert list(await world.solver.remove(plan, SOON)) == []
    assert await world.values(plan[0].name) == left(world, plan)


async def test_removing_twice_is_removing(world: World, pair: list[DnsChallenge]) -> None:
    """What is gone already isn't left standing, whether it was written or not."""
    plan = await world.solver.plan(pair, PROFILE, SOON)
    written = await world.solver.present(plan[:1], SOON)
    await world.solver.remove(written, SOON)
    assert list(await world.solver.remove([*written, plan[1]], SOON)) == []


async def test_what_is_not_there_is_not_visible(world: World, pair: list[DnsChallenge]) -> None:
    """Waiting for a record of which only the sibling stands ends DNS_UNAVAILABLE, naming a server and the record.

    Who waits is told so meanwhile, once.
    """
    told: list[str] = []
    plan = await world.solver.plan(pair, PROFILE, SOON)
    await world.solver.present(plan[:1], SOON)
    with pytest.raises(RefusalError) as caught:
        await world.solver.wait_until_visible(plan, BRIEFLY, told.append)
    refusal = caught.value.refusal
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert plan[0].name in refusal.message
    assert plan[1].value not in refusal.message
    assert [plan[0].name in line for line in told] == [True]


async def test_name_outside_of_every_zone(world: World) -> None:
    """A name that the provider has no zone for is refused; what was never written is no debt."""
    plan = await world.solver.plan([challenge("elsewhere.invalid", "x")], PROFILE, SOON)
    with pytest.raises(RefusalError) as caught:
        await world.solver.present(plan, BRIEFLY)
    assert caught.value.refusal.reason in {Reason.DNS_REJECTED, Reason.DNS_UNAVAILABLE}
    left = await world.solver.remove(plan, BRIEFLY)
    assert list(left) == [] or caught.value.refusal.reason is Reason.DNS_UNAVAILABLE  # httpreq's endpoint doesn't say


async def test_broken_provider(world: World, pair: list[DnsChallenge]) -> None:
    """A provider that takes nothing from us refuses to write, and removing returns what still stands, never raises."""
    written = await world.solver.present(await world.solver.plan(pair[:1], PROFILE, SOON), SOON)
    world.break_provider()
    with pytest.raises(RefusalError) as caught:
        await world.solver.present(await world.solver.plan(pair[1:], PROFILE, SOON), BRIEFLY)
    assert caught.value.refusal.reason in {Reason.DNS_REJECTED, Reason.DNS_UNAVAILABLE}
    standing = list(written) if world.deletes else []
    assert list(await world.solver.remove(written, BRIEFLY)) == standing
    assert await world.values(written[0].name) == values_of(written)


async def test_nothing_is_nothing(world: World) -> None:
    """Empty lists are fine everywhere."""
    assert list(await world.solver.present([], SOON)) == []
    await world.solver.wait_until_visible([], SOON)
    assert list(await world.solver.remove([], SOON)) == []
