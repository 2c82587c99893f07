"""What the solver adds to its provider: order, time limits, and removing that never fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.provider import AccountFinding, DnsProvider, NoSuchZoneError
from certplane.broker.issuers.dns.routes import Routes
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.config.values import HostPort
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import SystemClock
from certplane.sandbox.dns import SandboxDnsServer
from tests.support.dns_solver import dns_solver, route

RECORDS = [TxtRecord("zone.test", f"_acme-challenge.h{number}.zone.test", "v") for number in range(12)]


class ScriptedProvider(DnsProvider):
    """A `DnsProvider` that does what it is told with each record, and counts how many it has at work."""

    def __init__(self, act: Callable[[TxtRecord], Awaitable[None]]) -> None:
        self.act = act
        self.at_work = self.most_at_work = 0
        self.closed = False
        self.written: list[str] = []

    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._work(record)
        self.written.append(record.name)
        return TxtRecord("zone.test", record.name, record.value, "id")

    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._work(record)

    async def close(self) -> None:
        self.closed = True

    async def _work(self, record: TxtRecord) -> None:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            await self.act(record)
        finally:
            self.at_work -= 1


def solver_of(provider: ScriptedProvider) -> DnsSolver:
    return dns_solver(provider, [HostPort("127.0.0.1", 1)])


async def test_writes_a_few_at_once_and_keeps_the_order() -> None:
    """Many records are written four at a time, and come back in the order they went."""
    provider = ScriptedProvider(lambda record: asyncio.sleep(0.002 * (12 - int(record.name[17:].split(".")[0]))))
    written = await solver_of(provider).present(RECORDS, timedelta(seconds=5))
    assert [record.name for record in written] == [record.name for record in RECORDS]
    assert provider.most_at_work == 4


async def test_provider_that_hangs() -> None:
    """Writing ends by its deadline, whatever the provider does."""
    provider = ScriptedProvider(lambda _: asyncio.sleep(60))
    with pytest.raises(RefusalError) as caught:
        await solver_of(provider).present(RECORDS[:1], timedelta(seconds=0.1))
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE
    assert list(await solver_of(provider).remove(RECORDS[:2], timedelta(seconds=0.1))) == RECORDS[:2]


async def test_removing_goes_on_past_every_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals and faults of the program alike leave their record standing and the others removed; all are logged."""

    async def act(record: TxtRecord) -> None:
        if record is RECORDS[1]:
            raise RefusalError(Reason.DNS_REJECTED, "no permission")
        if record is RECORDS[2]:
            raise KeyError("a fault")

    standing = await solver_of(ScriptedProvider(act)).remove(RECORDS[:4], timedelta(seconds=5))
    assert list(standing) == RECORDS[1:3]
    logged = [(record.levelname, record.fields) for record in caplog.records if "not removed" in record.message]
    names = [
        {"record_name": record.name, "record_value": record.value, "zone": record.zone, "record_id": ""}
        for record in RECORDS[1:3]
    ]
    assert logged == list(zip(("WARNING", "ERROR"), names, strict=True))


async def test_removing_can_be_cancelled() -> None:
    """Cancellation is no failure to be swallowed."""
    removing = asyncio.create_task(
        solver_of(ScriptedProvider(lambda _: asyncio.sleep(60))).remove(RECORDS[:1], timedelta(seconds=60))
    )
    await asyncio.sleep(0.01)
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing


async def test_closes_its_provider() -> None:
    """Who is closed closes what it was given."""
    provider = ScriptedProvider(lambda _: asyncio.sleep(0))
    await solver_of(provider).close()
    assert provider.closed


async def test_one_writer_a_name() -> None:
    """While an order's records of a name are written, another order's of that name wait; other names don't."""
    others = 0

    async def act(record: TxtRecord) -> None:
        nonlocal others
        at_work.append(record.name)
        others += len({*at_work} - {record.name})
        assert at_work.count(record.name) == 1
        await asyncio.sleep(0.01)
        at_work.remove(record.name)

    at_work: list[str] = []
    solver = solver_of(ScriptedProvider(act))
    same = [TxtRecord("zone.test", RECORDS[0].name, f"v{number}") for number in range(3)]
    await asyncio.gather(
        solver.present([same[0], same[1], RECORDS[1]], timedelta(seconds=5)),
        solver.remove([same[2]], timedelta(seconds=5)),
    )
    assert others
    assert not solver._names._gates


async def test_writer_that_never_ends_is_not_waited_for_beyond_the_deadline() -> None:
    """Whoever waits for a name gives up at its own time; removing then leaves its record standing."""
    solver = solver_of(ScriptedProvider(lambda _: asyncio.sleep(60)))
    blocking = asyncio.create_task(solver.present(RECORDS[:1], timedelta(seconds=60)))
    await asyncio.sleep(0.01)
    with pytest.raises(RefusalError) as caught:
        await solver.present(RECORDS[:1], timedelta(seconds=0.05))
    assert caught.value.refusal.reason is Reason.DNS_UNAVAILABLE
    assert list(await solver.remove(RECORDS[:1], timedelta(seconds=0.05))) == RECORDS[:1]
    blocking.cancel()
    await asyncio.wait({blocking})


@pytest.mark.parametrize(
    ("record", "left"),
    [
        pytest.param(TxtRecord("", "_acme-challenge.a.test", "v"), False, id="never-written"),
        pytest.param(TxtRecord("a.test", "_acme-challenge.a.test", "v"), True, id="zone-known"),
        pytest.param(TxtRecord("", "_acme-challenge.a.test", "v", "id"), True, id="id-known"),
    ],
)
async def test_record_of_a_zone_that_nobody_has(record: TxtRecord, left: bool) -> None:
    """A record that was only planned, in no zone of the account, is no debt; one that was written stays one."""

    async def act(_: TxtRecord) -> None:
        raise NoSuchZoneError("no zone of the account holds it")

    assert list(await solver_of(ScriptedProvider(act)).remove([record], timedelta(seconds=5))) == [record] * left


ROUTED = [
    pytest.param("a.test", "", "profile", id="no-entry-profile"),
    pytest.param("b.test", "", "zone/b", id="zone-before-profile"),
    pytest.param("c.test", "", "", id="other-provider-ignores-profile"),
    pytest.param("deep.b.test", "", "zone/deep", id="longest-zone"),
    pytest.param("a.test", "alias.b.test", "zone/b", id="target-zone"),
]


@pytest.mark.parametrize(("domain", "target", "credentials"), ROUTED)
async def test_credentials_go_by_the_zone(
    sandbox_dns: SandboxDnsServer, domain: str, target: str, credentials: str
) -> None:
    """Zone's, then profile's, then the provider's own; of a delegated name the target's zone decides."""
    domain = f"{domain}.certplane.test"
    name = f"_acme-challenge.{domain}"
    if target:
        await sandbox_dns.endpoint.add(name, "CNAME", f"{target}.certplane.test.")
    servers = [HostPort("127.0.0.1", sandbox_dns.endpoint.port)]
    default, other = ScriptedProvider(lambda _: asyncio.sleep(0)), ScriptedProvider(lambda _: asyncio.sleep(0))
    zones = [
        route(default, servers, "b.test.certplane.test", "zone/b"),
        route(default, servers, "deep.b.test.certplane.test", "zone/deep"),
        replace(route(other, servers, "c.test.certplane.test"), own_provider=True),
    ]
    solver = DnsSolver(Routes(route(default, servers), zones), SystemClock(), delegations=["b.test.certplane.test"])
    challenge = DnsChallenge(domain, name, "value", "https://ca/authz", "https://ca/chall")
    profile = Profile("web", "multi_san", (domain,), "hash", credentials="profile")
    [planned] = await solver.plan([challenge], profile, timedelta(seconds=5))
    assert (planned.name, planned.credentials) == (f"{target}.certplane.test" if target else name, credentials)
    await solver.present([planned], timedelta(seconds=5))
    assert (default.written, other.written) == (
        ([], [planned.name]) if domain.startswith("c.") else ([planned.name], [])
    )
    await solver.close()
    assert default.closed
    assert other.closed


class KeptToken:
    """A `KeepsSecrets` of one token: `kept` is used, `current` is what is read once `kept` was forgotten."""

    def __init__(self, kept: str, current: str) -> None:
        self.kept, self.current = kept, current
        self.generation = 0

    def forget(self, generation: int) -> bool:
        if self.kept != self.current:
            self.kept = self.current
            self.generation += 1
        return self.generation != generation


@pytest.mark.parametrize(
    ("current", "attempts"),
    [
        pytest.param("new", None, id="replaced"),
        pytest.param("old", len(RECORDS), id="still-refused"),
        pytest.param("wrong", None, id="replaced-and-refused"),
    ],
)
async def test_secret_that_was_replaced(current: str, attempts: int | None) -> None:
    """Whoever is refused with a kept secret tries once more with the one of now, however many they are."""
    token = KeptToken("old", current)
    used: list[str] = []

    async def act(record: TxtRecord) -> None:
        mine = token.kept
        used.append(mine)
        await asyncio.sleep(0)
        if mine != "new":
            raise RefusalError(Reason.DNS_REJECTED, "forbidden")

    routes = Routes(route(ScriptedProvider(act), [HostPort("127.0.0.1", 1)]))
    solver = DnsSolver(routes, SystemClock(), secrets=token)
    results = await asyncio.gather(
        *(solver.present([record], timedelta(seconds=5)) for record in RECORDS), return_exceptions=True
    )
    if current == "new":
        assert not [result for result in results if isinstance(result, BaseException)]
        assert used.count("new") == len(RECORDS)
    else:
        assert {str(result) for result in results} == {"DNS_REJECTED: forbidden"}
    assert len(used) == attempts or (attempts is None and len(RECORDS) < len(used) <= 2 * len(RECORDS))


@pytest.mark.parametrize("error", [RefusalError(Reason.DNS_UNAVAILABLE, "down"), NoSuchZoneError("no zone")])
async def test_refusals_that_are_not_about_secrets(error: RefusalError) -> None:
    """What no other secret would mend isn't tried again with one."""
    token = KeptToken("old", "new")

    async def act(record: TxtRecord) -> None:
        raise error

    routes = Routes(route(ScriptedProvider(act), [HostPort("127.0.0.1", 1)]))
    with pytest.raises(RefusalError):
        await DnsSolver(routes, SystemClock(), secrets=token).present(RECORDS[:1], timedelta(seconds=5))
    assert token.kept == "old"


class CheckedProvider(ScriptedProvider):
    """A provider that can tell what its credentials allow: nothing at all."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__(lambda _: asyncio.sleep(0))
        self.checked: list[str] = []
        self.failure = failure

    async def check_account(self, credentials: str, deadline: Deadline) -> list[AccountFinding]:
        self.checked.append(credentials)
        if self.failure:
            raise self.failure
        return [AccountFinding(f"{credentials or 'own'} is no good", "make another", fatal=True)]

    async def check_zone(self, name: str, credentials: str, deadline: Deadline) -> str:
        raise NotImplementedError


async def test_credentials_in_use_are_checked() -> None:
    """Those of each profile's names and of each zone, once; providers that can't tell are left out."""
    servers = [HostPort("127.0.0.1", 1)]
    checked, mute = CheckedProvider(), ScriptedProvider(lambda _: asyncio.sleep(0))
    zones = [route(checked, servers, "z.test", "zone/z"), replace(route(mute, servers, "mute.test"), own_provider=True)]
    solver = DnsSolver(Routes(route(checked, servers), zones), SystemClock())
    profiles = [
        Profile("a", "mixed", ("a.test", "*.a.test", "x.z.test"), "hash", credentials="profile/a"),
        Profile("b", "multi_san", ("b.mute.test", "b.test"), "hash"),
    ]
    findings = await solver.check_accounts(profiles, timedelta(seconds=5))
    assert sorted(checked.checked) == ["", "profile/a", "zone/z"]
    assert sorted(finding.message for finding in findings) == [
        "own is no good",
        "profile/a is no good",
        "zone/z is no good",
    ]


@pytest.mark.parametrize(
    ("failure", "fatal"),
    [
        pytest.param(RefusalError(Reason.DNS_UNAVAILABLE, "away"), False, id="away"),
        pytest.param(RefusalError(Reason.DNS_REJECTED, "there is no secret"), True, id="no-secret"),
        pytest.param(KeyError("a fault"), False, id="fault"),
    ],
)
async def test_check_that_fails(failure: Exception, fatal: bool) -> None:
    """A provider that is away says nothing of the credentials; nothing of it escapes."""
    solver = DnsSolver(Routes(route(CheckedProvider(failure), [HostPort("127.0.0.1", 1)])), SystemClock())
    [finding] = await solver.check_accounts([Profile("a", "multi_san", ("a.test",), "hash")], timedelta(seconds=5))
    assert finding.fatal is fatal
