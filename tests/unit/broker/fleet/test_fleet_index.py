"""The whole fleet in memory: what is in it at once, what is read, what time and policy make of it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.fleet.circumstances import DAEMON_SILENCE, SHORT_STREAM, TIMER_RUNS, UNKNOWN_INTERVAL
from certplane.broker.fleet.elsewhere import ShutOuts
from certplane.broker.fleet.filter import FleetFilter
from certplane.broker.fleet.kept import SLICE
from certplane.broker.fleet.model import RevokedCertificate
from certplane.broker.fleet.summary import sum_up
from certplane.broker.members.model import Member
from certplane.broker.model import DenyEntry, Grant, IdentityKind, IdentityUse, KnownIdentity, RevocationReason
from certplane.broker.notify.rules import picks
from certplane.broker.notify.settings import NotificationRule
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import AgentMode, CertificateState, CertificateStatus, RenewalStep
from certplane.runtime.health import HealthActor, HealthWord
from tests.support.fleet_index import DAY, HOUR, MINUTE, SECOND, SERVICE, IndexWorld, policy_of
from tests.support.stores import StoreHarness, StorePlace

FAILED = {
    "state": CertificateState.FAILED,
    "failed_step": RenewalStep.REQUEST,
    "request_failures": 1,
    "last_error": "DNS_UNAVAILABLE: ns2.example.org (192.0.2.2) lacks the record",
}


@pytest.fixture
def world() -> IndexWorld:
    return IndexWorld("web1.example", "web2.example")


async def test_after_the_first_reading_the_whole_fleet_is_there(world: IndexWorld) -> None:
    """Hosts that reported, hosts of the policy that never came, and those that the policy no longer has."""
    await world.record("web1.example", world.status())
    await world.record("gone.example", world.status())
    assert not world.index.ready
    await world.index.settled()
    assert world.index.ready
    assert [host.name async for host in world.index.walk()] == ["gone.example", "web1.example", "web2.example"]
    assert world.index.hosts["web2.example"].connect_time is None
    assert world.index.hosts["web1.example"].label == "web1"
    assert world.index.hosts["gone.example"].blocked == "the policy no longer has it"
    assert world.counts == {"OK": 1, "WONT_HEAL": 1}


async def test_a_report_is_in_it_at_once(world: IndexWorld) -> None:
    """Without a reading; with since when it is so, which stays while the cause does."""
    await world.index.settled()
    world.told.clear()
    world.report("web1.example", world.status())
    assert world.health("web1.example") is HealthWord.OK
    first = world.clock.now()
    world.report("web1.example", world.status(**FAILED, update_time=first, next_attempt_time=first + HOUR))
    world.clock.advance(HOUR)
    later = world.clock.now()
    world.report("web1.example", world.status(**FAILED, update_time=later, next_attempt_time=later + HOUR))
    (certificate,) = world.index.hosts["web1.example"].certificates
    assert certificate.health is HealthWord.FAILING
    assert (certificate.cause, certificate.actor) == ("DNS_UNAVAILABLE ns2.example.org", HealthActor.DNS)
    assert (certificate.since, certificate.next_attempt_time) == (first, later + HOUR)
    assert world.told == ["web1.example"] * 3
    assert world.changed == []  # whoever watches is told of the reports themselves
    world.watchers.certificate_removed("web1.example", "web", later)
    assert world.counts == {}


async def test_who_issued_what_is_in_use_is_found_out(world: IndexWorld) -> None:
    """With its key; not of another's certificate, which a host may well claim to have."""
    harness = StoreHarness(StorePlace("memory", None), world.clock, world.stores)  # type: ignore[arg-type]  # no path
    record = await harness.issue(identity="web1.example", issuer="staging", key="a-key")
    held = world.status().installed
    assert held is not None
    status = world.status(installed=replace(held, certificate_id=record.certificate_id))
    await world.record("web1.example", status)
    await world.index.settled()
    world.report("web2.example", status)
    await world.index.settled()
    (own,), (claimed,) = (world.index.hosts[name].certificates for name in ("web1.example", "web2.example"))
    assert (own.issuer, own.public_key_sha256) == ("staging", "a-key")
    assert (claimed.issuer, claimed.public_key_sha256) == ("", "")
    world.report("web1.example", replace(status, state=CertificateState.DUE))
    assert world.index.hosts["web1.example"].certificates[0].issuer == "staging"


async def test_what_is_recorded_elsewhere_is_read(world: IndexWorld) -> None:
    """Within a second, and when somebody waits for it; a host that was forgotten is gone, or expected again."""
    await world.record("gone.example", world.status())
    await world.index.settled()
    await world.record("web1.example", world.status(**FAILED))
    assert world.index.hosts["web1.example"].certificates == ()
    world.watchers.recorded_elsewhere("web1.example", ["web"], world.clock.now())
    await world.index.look()
    assert world.health("web1.example") is HealthWord.FAILING
    world.stores.database.forget("host_streams")
    world.stores.database.forget("certificate_statuses")
    for host in ("web1.example", "gone.example"):
        world.watchers.host_elsewhere(host, world.clock.now())
    await world.index.settled()
    assert sorted(world.index.hosts) == ["web1.example", "web2.example"]
    assert world.index.hosts["web1.example"].connect_time is None
    assert world.counts == {}


async def test_where_a_broker_is_its_hosts_are(world: IndexWorld) -> None:
    """One that comes, or that this one hears of after its hosts, and one that was killed and recorded no end."""
    await world.record("web1.example", world.status(), end_time=None)
    await world.index.settled()
    assert not world.index.hosts["web1.example"].connected
    broker_id = world.stores.fleet.broker_id
    now = world.clock.now()
    other = Member(broker_id, "machine-2", "[::]:8443", "1", now, "p", "t", "c")
    for there in (True, False):
        world.others.members = {broker_id: other} if there else {}
        world.watchers.brokers_changed({broker_id}, now)
        await world.index.look()
        host = world.index.hosts["web1.example"]
        assert (host.connected, host.broker_id) == (there, broker_id if there else "")


async def test_what_was_missed_is_read_anew(world: IndexWorld) -> None:
    """Of all hosts, those that are gone included."""
    await world.record("web1.example", world.status())
    await world.record("gone.example", world.status())
    await world.index.settled()
    world.stores.database.connection.execute("DELETE FROM host_streams WHERE host = 'gone.example'")
    await world.record("web2.example", world.status(**FAILED))
    world.watchers.fleet_changed(world.clock.now())
    await world.index.look()
    assert sorted(world.index.hosts) == ["web1.example", "web2.example"]
    assert world.counts == {"OK": 1, "FAILING": 1}
    assert world.changed == []  # those who watch were told to read all


async def test_what_is_heard_while_it_is_read_is_newer(world: IndexWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that was read before a report never takes its place."""
    await world.record("web1.example", world.status(**FAILED))
    read = world.stores.fleet.list_hosts

    async def slowly(**which: object) -> object:
        found = await read(**which)  # type: ignore[arg-type]
        if await first.wait():
            return found
        return found

    first = asyncio.Event()
    monkeypatch.setattr(world.stores.fleet, "list_hosts", slowly)
    reading = asyncio.create_task(world.index.settled())
    await asyncio.sleep(0)
    await world.record("web1.example", world.status())
    world.report("web1.example", world.status())
    first.set()
    await reading
    assert world.health("web1.example") is HealthWord.OK


async def test_a_policy_that_asks_for_other_names_is_known_within_a_second(world: IndexWorld) -> None:
    """Long before a renewal fails; and so is a configuration that was made to fit."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    await world.pass_time(SECOND)
    world.policy.policy = policy_of("web1.example", "web2.example", names=("store.example.test", "web.example.test"))
    await world.pass_time(SECOND)
    (certificate,) = world.index.hosts["web1.example"].certificates
    assert (certificate.health, certificate.cause) == (HealthWord.MISMATCHED, "NAMES_NOT_ALLOWED web")
    assert certificate.since == world.clock.now()
    assert world.changed == ["web1.example"]
    world.report("web1.example", world.status(dns_names=("store.example.test", "web.example.test")))
    assert world.health("web1.example") is HealthWord.OK


async def test_the_policys_hosts_come_and_go_with_it(world: IndexWorld) -> None:
    """One that never came is there as long as it is expected; one that reported stays, and is shut out."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    world.policy.policy = policy_of("web3.example")
    await world.index.look()
    assert sorted(world.index.hosts) == ["web1.example", "web3.example"]
    assert world.health("web1.example") is HealthWord.WONT_HEAL
    assert (world.index.hosts["web1.example"].label, world.index.hosts["web3.example"].label) == ("", "web3")


async def test_hosts_have_the_labels_of_the_policy_in_force(world: IndexWorld) -> None:
    """Other labels are another value of the host; the same ones, written anew, are not."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    found = [world.index.hosts["web1.example"]]
    for labels in ({"ring": "canary"}, {"ring": "canary"}, {"ring": "rest"}, {}):
        policy = policy_of("web1.example")
        grant = policy.grants["web1.example"]
        world.policy.policy = replace(policy, grants={grant.name: replace(grant, labels=labels)})
        await world.index.look()
        found.append(world.index.hosts["web1.example"])
    assert [dict(host.labels) for host in found] == [{}, {"ring": "canary"}, {"ring": "canary"}, {"ring": "rest"}, {}]
    assert found[1] is found[2]


async def test_who_is_shut_out_is_known_at_once(world: IndexWorld) -> None:
    """By whoever denied it, for whoever asks then; and who is let in again, or contested."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    world.stores.database.shut_out(DenyEntry(name="web1.example", create_time=world.clock.now()))
    await world.index.settled()
    (certificate,) = world.index.hosts["web1.example"].certificates
    assert (certificate.health, certificate.cause) == (HealthWord.WONT_HEAL, Reason.IDENTITY_REVOKED)
    assert "denied" in world.index.hosts["web1.example"].blocked
    world.stores.database.let_in()
    await world.index.look()
    assert world.health("web1.example") is HealthWord.OK
    use = IdentityUse("CN=internal", "1f", world.clock.now() - DAY, world.clock.now())
    await world.stores.identities.activate("web1.example", use, ())
    world.stores.database.put_identity(KnownIdentity("web1.example", use, use.not_before, (use,), use))
    await world.index.settled()
    (certificate,) = world.index.hosts["web1.example"].certificates
    assert (certificate.health, certificate.cause) == (HealthWord.WONT_HEAL, Reason.IDENTITY_CONTESTED)
    assert world.changed == ["web1.example"] * 3


async def test_one_that_is_shut_out_elsewhere_is_looked_at_alone(world: IndexWorld) -> None:
    """The change feed names it; a serial number is of no host."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    await world.stores.deny_list.deny(DenyEntry(name="web1.example"), ())
    await ShutOuts(world.index).changed(["1f CN=internal", "web1.example"])
    assert world.health("web1.example") is HealthWord.WONT_HEAL


async def test_a_question_that_is_given_up_leaves_no_host_by_the_old_policy(world: IndexWorld) -> None:
    """A person's Ctrl-C while a policy is taken in: the next one who asks has all of the fleet by the new one."""
    names = [f"web{number}.example" for number in range(3 * SLICE)]
    world.policy.policy = policy_of(*names)
    await world.index.settled()
    for name in names:
        world.report(name, world.status())
    world.policy.policy = policy_of(*names, names=("store.example.test", "web.example.test"))
    asked = asyncio.create_task(world.index.settled())
    await asyncio.sleep(0)
    assert 0 < world.counts["MISMATCHED"] < len(names)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await world.index.settled()
    assert world.counts == {"MISMATCHED": len(names)}


async def test_a_certificate_that_a_newer_one_replaced_ends_for_nobody(world: IndexWorld) -> None:
    """Of a service: it isn't next, and neither a list of what ends, nor a rule for it has it."""
    harness = StoreHarness(StorePlace("memory", None), world.clock, world.stores)  # type: ignore[arg-type]  # no path
    first = await harness.issue(identity=SERVICE, lasts=90 * DAY)
    await world.index.settled()
    await world.pass_time(89 * DAY, step=DAY)
    second = await harness.issue(identity=SERVICE, lasts=90 * DAY)
    world.clock.advance(12 * HOUR)
    await world.pass_time(MINUTE + SECOND)
    now, service = world.clock.now(), world.index.hosts[SERVICE]
    newer, older = service.certificates
    assert [each.name for each in service.certificates] == [second.certificate_id, first.certificate_id]
    assert (newer.superseded, newer.end) == (False, second.not_after)
    assert (older.superseded, older.end, older.renew_time, older.health) == (True, None, None, HealthWord.OK)
    sums = await sum_up(world.index.walk(), FleetFilter().at(now), now, DAY)
    assert (sums.next_count, sums.endings[30 * DAY], sums.endings[90 * DAY]) == (0, 0, 1)
    assert FleetFilter(expiring_within=7 * DAY).at(now).of(service) is None
    rule = NotificationRule(life_left=10)
    assert not any(picks(rule, each, each.health, now) for each in service.certificates)


async def test_a_revocation_is_in_it_at_once(world: IndexWorld) -> None:
    """As long as what was revoked is in use."""
    await world.record("web1.example", world.status())
    await world.index.settled()
    revoked = RevokedCertificate("web1.example", "2", world.clock.now(), RevocationReason.KEY_COMPROMISE)
    world.watchers.certificate_revoked(revoked, world.clock.now())
    assert world.health("web1.example") is HealthWord.REVOKED_IN_USE
    world.report("web1.example", world.status(serial="3"))
    assert world.health("web1.example") is HealthWord.OK


async def test_time_alone_makes_it_another_health(world: IndexWorld) -> None:
    """Told within a second of the moment, once, though the host says nothing."""
    await world.record("web1.example", world.status(left=90 * SECOND, renew_time=world.clock.now() + 80 * SECOND))
    await world.record("web2.example", world.status(left=DAY, renew_time=world.clock.now() + HOUR))
    await world.index.settled()
    await world.pass_time(84 * SECOND)
    assert world.changed == []
    await world.pass_time(2 * SECOND)
    assert (world.changed, world.health("web1.example")) == (["web1.example"], HealthWord.OVERDUE)
    await world.pass_time(5 * SECOND)
    assert (world.changed, world.health("web1.example")) == (["web1.example"] * 2, HealthWord.EXPIRED)
    await world.pass_time(20 * HOUR, step=20 * SECOND)
    assert world.counts == {"EXPIRED": 1, "OVERDUE": 1}
    assert world.index.hosts["web2.example"].certificates[0].since == world.index.hosts[
        "web1.example"
    ].last_seen_time + (HOUR + 23 * HOUR / 2)


async def test_a_fleet_that_time_changes_at_once_is_judged_some_at_a_time(world: IndexWorld) -> None:
    """A thousand certificates that end at one moment hold up nobody: others have their turn between them."""
    names = [f"h{number:03}.example" for number in range(500)]
    for name in names:
        await world.record(name, world.status("web", 90 * SECOND), world.status("mail", 90 * SECOND, "3"))
    await world.index.look()
    turns = 0
    judged: Counter[int] = Counter()

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    world.index.listen(lambda _name: judged.update([turns]))
    world.clock.advance(91 * SECOND)
    await world.index.look()
    counting.cancel()
    assert world.counts == {"EXPIRED": 1_000}
    assert max(judged.values()) <= SLICE // 3 + 1


SILENCES: dict[str, tuple[AgentMode | None, timedelta | None, timedelta, timedelta]] = {
    "a daemon": (AgentMode.DAEMON, None, SECOND, DAEMON_SILENCE),
    "an agent that doesn't say": (None, None, SHORT_STREAM, DAEMON_SILENCE),
    "one that stays for a moment": (None, None, SHORT_STREAM - SECOND, TIMER_RUNS * UNKNOWN_INTERVAL),
    "an hourly timer": (AgentMode.TIMER, HOUR, HOUR, TIMER_RUNS * HOUR),
    "a timer of each minute": (AgentMode.TIMER, MINUTE, SECOND, DAEMON_SILENCE),
    "a timer that doesn't say": (AgentMode.TIMER, None, SECOND, TIMER_RUNS * UNKNOWN_INTERVAL),
}


@pytest.mark.parametrize(("mode", "interval", "lasted", "allowed"), SILENCES.values(), ids=SILENCES)
async def test_a_host_is_unheard_after_what_its_mode_allows(
    world: IndexWorld, mode: AgentMode | None, interval: timedelta | None, lasted: timedelta, allowed: timedelta
) -> None:
    """Counted from the end of its stream; shown at the host, and at its certificates where nothing is worse."""
    await world.index.settled()
    begun = world.clock.now()
    ill = world.status("shop", **FAILED, profile="web", dns_names=("web.example.test",))
    stream = {"connect_time": begun - lasted}
    await world.record("web1.example", world.status(), ill, mode=mode, run_interval=interval, **stream)
    world.watchers.host_elsewhere("web1.example", begun)
    await world.pass_time(allowed - SECOND, step=timedelta(seconds=59))
    assert world.index.hosts["web1.example"].unheard_since is None
    await world.pass_time(3 * SECOND)
    host = world.index.hosts["web1.example"]
    assert (host.unheard_since, host.health) == (begun + allowed, HealthWord.FAILING)
    assert [each.health for each in host.certificates] == [HealthWord.FAILING, HealthWord.UNHEARD]
    assert (host.certificates[1].cause, host.certificates[1].since) == ("UNHEARD", begun + allowed)


async def test_a_time_without_any_broker_is_no_silence_of_the_hosts(world: IndexWorld) -> None:
    """They get as long to come back as ever; who was silent before is silent still, since then."""
    long_ago = world.clock.now()
    await world.record("web1.example", world.status())
    world.clock.advance(DAY)
    stopped = world.clock.now()
    await world.record("web2.example", world.status())
    world.clock.advance(3 * HOUR)
    world.begin()
    await world.index.settled()
    one, other = (world.index.hosts[name] for name in ("web1.example", "web2.example"))
    assert (one.unheard_since, other.unheard_since) == (long_ago + DAEMON_SILENCE, None)
    await world.pass_time(DAEMON_SILENCE)
    assert world.index.hosts["web2.example"].unheard_since == stopped + 3 * HOUR + DAEMON_SILENCE


async def test_services_have_a_health_by_what_was_issued(world: IndexWorld) -> None:
    """The newest of each profile: late, then expired, without a successor; revoked; well again with one."""
    harness = StoreHarness(StorePlace("memory", None), world.clock, world.stores)  # type: ignore[arg-type]  # no path
    first = await harness.issue(identity=SERVICE, lasts=90 * DAY)
    await world.index.settled()
    assert (world.index.services, world.counts) == (1, {"OK": 1})
    service = world.index.hosts[SERVICE]
    assert (service.kind, service.label, service.unheard_since) == (IdentityKind.SERVICE, "builder", None)
    assert (service.certificates[0].name, service.certificates[0].issuer) == (first.certificate_id, "acme")
    await world.pass_time(76 * DAY, step=DAY)
    assert world.counts == {"OVERDUE": 1}
    await world.pass_time(15 * DAY, step=DAY)
    assert world.counts == {"EXPIRED": 1}
    second = await harness.issue(identity=SERVICE, lasts=90 * DAY)
    await world.pass_time(MINUTE + SECOND)
    assert world.counts == {"OK": 1}
    revoked = await world.stores.certificates.mark_revoked(
        second.certificate_id, RevocationReason.KEY_COMPROMISE, world.clock.now(), []
    )
    assert revoked.revoke_time is not None
    told = RevokedCertificate(SERVICE, second.serial_number, revoked.revoke_time, RevocationReason.KEY_COMPROMISE)
    world.watchers.certificate_revoked(told, world.clock.now())
    assert world.counts == {"REVOKED_IN_USE": 1}
    await harness.issue(identity=SERVICE, lasts=90 * DAY)
    await world.pass_time(MINUTE + SECOND)
    assert world.counts == {"OK": 1}
    world.replaced_policy(grants={})
    await world.index.settled()
    assert (world.index.services, sorted(world.index.hosts)) == (0, [])


async def test_causes_are_grouped(world: IndexWorld) -> None:
    """The worst first, then the most frequent; each with some hosts, since when and when it is tried again."""
    world.policy.policy = policy_of(*(f"web{n}.example" for n in range(10)))
    now = world.clock.now()
    for number in range(7):
        failed = FAILED | {"update_time": now - number * HOUR, "next_attempt_time": now + (9 - number) * HOUR}
        await world.record(f"web{number}.example", world.status(**failed))
    await world.record("web7.example", world.status(**FAILED | {"last_error": "RATE_LIMITED: too many"}))
    await world.record("web8.example", world.status(left=-HOUR), world.status("identity", profile=""))
    await world.index.settled()
    found = await world.index.causes()
    assert [(each.health, each.cause, each.certificate_count, each.host_count) for each in found] == [
        (HealthWord.EXPIRED, "UNHEARD", 1, 1),
        (HealthWord.FAILING, "DNS_UNAVAILABLE ns2.example.org", 7, 7),
        (HealthWord.FAILING, "RATE_LIMITED", 1, 1),
    ]
    assert found[1].hosts == tuple(f"web{n}.example" for n in range(5))
    assert (found[1].example, found[1].actor) == (("web0.example", "web"), HealthActor.DNS)
    assert (found[1].since, found[1].next_attempt_time) == (now - 6 * HOUR, now + 3 * HOUR)
    assert await world.index.causes(lambda host: host.certificates if host.label == "web7" else ()) == found[2:]


async def test_a_store_that_is_away_is_said_once_and_read_when_it_is_back(
    world: IndexWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asks meanwhile is told so; time goes on."""
    await world.record("web1.example", world.status())
    world.stores.database.down = True
    running = asyncio.create_task(world.index.run())
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await asyncio.sleep(0)
            world.clock.advance(SECOND)
    assert len([line for line in caplog.records if "index" in line.message]) == 1
    with pytest.raises(RefusalError) as refused:
        await world.index.settled()
    assert refused.value.refusal.reason is Reason.STORE_UNAVAILABLE
    world.stores.database.down = False
    await world.index.settled()
    assert world.counts == {"OK": 1}
    running.cancel()
    await asyncio.wait({running})


async def test_a_bug_of_the_index_keeps_no_host_from_reporting(
    world: IndexWorld, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said is durable by then: it is logged, and the fleet is read anew."""
    await world.index.settled()
    monkeypatch.setattr(type(world.index), "reported", lambda *_: 1 / 0)
    await world.record("web1.example", world.status())
    world.report("web1.example", world.status())
    assert "reading the fleet anew" in caplog.text
    await world.index.look()
    assert world.counts == {"OK": 1}


async def test_a_service_of_the_policy_alone_is_not_a_host(world: IndexWorld) -> None:
    """It is there once it has a certificate; a host with the same certificates isn't counted as one."""
    world.policy.policy = replace(
        policy_of("web1.example"),
        grants={SERVICE: Grant(SERVICE, IdentityKind.SERVICE, "builder", profiles=("web",))},
    )
    await world.record("web1.example", CertificateStatus("web", CertificateState.ABSENT))
    await world.index.settled()
    assert (world.index.services, sorted(world.index.hosts)) == (0, ["web1.example"])
