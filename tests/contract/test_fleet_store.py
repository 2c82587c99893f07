"""What `FleetStore` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.fleet.audience import HostAnchor
from certplane.broker.fleet.model import HostStream, RevokedCertificate
from certplane.broker.fleet.ports import FleetStore, RecordedReports
from certplane.broker.model import RevocationReason
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import (
    AgentMode,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalStep,
    Report,
)
from tests.support.stores import NO_LIMITS, StoreHarness, certificate
from tests.support.stores import draft as a_draft

HOST = "web1.example"
T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)

HELD = HeldCertificate("3e7", T0, T0 + timedelta(days=90), "certificate-1", 4, T0 + timedelta(microseconds=1))
FULL = CertificateStatus(
    name="web",
    state=CertificateState.DEGRADED,
    profile="web-profile",
    dns_names=("*.example.org", "example.org"),
    failed_step=RenewalStep.RELOAD,
    issued=HELD,
    installed=replace(HELD, version=3),
    served=HeldCertificate("3e6"),
    renew_time=T0 + timedelta(days=60),
    renew_reason="two thirds of its life are over",
    last_error="nginx: \u2018configuration\u2019 file test failed\x00",
    request_failures=1,
    activation_failures=2,
    next_attempt_time=T0 + timedelta(minutes=1),
    activate_time=T0 + timedelta(hours=1),
    update_time=T0,
    held_by_rollout_id="rollout-1",
)


def stream(host: str = HOST, **changes: Any) -> HostStream:
    return HostStream(
        **{
            "host": host,
            "facts": HostFacts("1.2.0"),
            "identity_serial_number": "1f",
            "identity_not_after": T0 + timedelta(days=365),
            "source_ip": "192.0.2.1",
            "connect_time": T0,
            "last_seen_time": T0,
            **changes,
        }
    )


def known(fleet: FleetStore, host: str = HOST, **changes: Any) -> HostStream:
    """A host's first stream, after it has begun."""
    return stream(host, broker_id=fleet.broker_id, stream_epoch=1, **changes)


def report(
    sequence: int, state: CertificateState = CertificateState.WAITING, name: str = "web", **facts: Any
) -> Report:
    return Report(sequence, CertificateStatus(name, state, **facts))


def serving(sequence: int, serial: str, name: str = "web") -> Report:
    return report(sequence, CertificateState.SERVING, name, served=HeldCertificate(serial))


async def begun(fleet: FleetStore, host: str = HOST) -> Callable[..., Awaitable[RecordedReports]]:
    """The host's first stream begins: what records the reports that come on it."""
    await fleet.record_stream(stream(host))
    return functools.partial(fleet.record_reports, host, stream_epoch=1)


@pytest.fixture
def fleet(store: StoreHarness) -> FleetStore:
    found: FleetStore = store.stores.fleet
    return found


def events(store: StoreHarness, *reports: Report) -> dict[int, AuditEvent]:
    """An event for each report, with its sequence as the reason."""
    return {each.sequence: store.event(AuditEventType.RENEWAL_REPORTED, reason=f"{each.sequence}") for each in reports}


async def audited(store: StoreHarness) -> list[object]:
    return [record["reason"] for record in await store.stores.audit.tail(1000)]


async def test_what_was_reported_is_read_back_whole(fleet: FleetStore) -> None:
    """Every field of a status, of a stream and of a refused directive survives."""
    says = await begun(fleet)
    facts = HostFacts("1.2.0", AgentMode.TIMER, timedelta(hours=1), ("ab" * 32, "cd" * 32), ("identity",))
    skew = timedelta(seconds=-3, microseconds=5)
    ended = known(fleet, facts=facts, end_time=T0 + timedelta(hours=2), clock_skew=skew)
    await fleet.record_stream(ended)
    await says("epoch-1", [Report(7, FULL)])
    error = Refusal(Reason.REQUEST_INVALID, "no such certificate")
    await fleet.record_directive_error(HOST, error, 1)
    record = await fleet.get_host(HOST)
    assert record is not None
    assert (record.host, record.stream, record.certificates) == (HOST, ended, (FULL,))
    assert (record.acknowledged_sequence, record.directive_error) == (7, error)
    await fleet.record_directive_error(HOST, None, 1)
    await fleet.record_stream(replace(ended, end_time=None))
    record = await fleet.get_host(HOST)
    assert record is not None
    assert record.directive_error is None
    assert record.stream == replace(ended, end_time=None)


async def test_a_refused_directive_outlives_the_stream(fleet: FleetStore) -> None:
    """A new stream doesn't make the host's refusal forgotten; a host without one has none."""
    await fleet.record_directive_error(HOST, Refusal(Reason.REQUEST_INVALID, "nobody"), 1)
    assert await fleet.get_host(HOST) is None
    await fleet.record_stream(stream())
    await fleet.record_directive_error(HOST, Refusal(Reason.REQUEST_INVALID, "no such certificate"), 1)
    await fleet.record_stream(stream(connect_time=T0 + timedelta(hours=1)))
    record = await fleet.get_host(HOST)
    assert record is not None
    assert record.directive_error is not None


async def test_a_stream_is_kept_beside_its_reports(fleet: FleetStore) -> None:
    """What a host says with hello is one call; a stream alone needs no report."""
    recorded = await fleet.record_reports(HOST, "e", [report(3)], names=["web"], stream=stream())
    assert (recorded.acknowledged_sequence, recorded.stream_epoch) == (3, 1)
    record = await fleet.get_host(HOST)
    assert record is not None
    assert (record.stream, record.certificates) == (known(fleet), (report(3).certificate,))
    later = stream(connect_time=T0 + timedelta(hours=1))
    recorded = await fleet.record_reports(HOST, "e", [], names=["web"], stream=later)
    assert recorded == RecordedReports(3, (), stream_epoch=2)
    record = await fleet.get_host(HOST)
    assert record is not None
    assert record.stream == replace(later, broker_id=fleet.broker_id, stream_epoch=2)
    assert record.certificates == (report(3).certificate,)


async def test_reports_count_once(fleet: FleetStore) -> None:
    """What was acknowledged is acknowledged again and isn't new; gaps are no matter."""
    says = await begun(fleet)
    first, second, third = report(1), report(4, CertificateState.DUE), report(9, CertificateState.ABSENT, "mail")
    assert await says("e", [first, second]) == RecordedReports(4, (first, second), telling=(1,))
    assert await says("e", [first, second]) == RecordedReports(4, ())
    assert await says("e", [report(3), third]) == RecordedReports(9, (third,))
    assert await says("e", []) == RecordedReports(9, ())
    record = await fleet.get_host(HOST)
    assert record is not None
    assert record.certificates == (third.certificate, second.certificate)


async def test_another_epoch_counts_anew(fleet: FleetStore) -> None:
    """A host with a new state directory begins at 1, and is heard."""
    says = await begun(fleet)
    await says("before", [report(100)])
    again = report(1, CertificateState.DUE)
    assert await says("after", [again]) == RecordedReports(1, (again,))
    assert await says("after", []) == RecordedReports(1, ())


async def test_what_is_not_named_is_forgotten(fleet: FleetStore) -> None:
    """The names are those that the host has; other hosts keep theirs."""
    web, other = await begun(fleet), await begun(fleet, "web2.example")
    for says in (web, other):
        await says("e", [report(1), report(2, name="mail"), report(3, name="old")])
    await web("e", [report(4, name="new")], names=["mail", "new", "web"])
    hosts = await fleet.list_hosts()
    assert [[status.name for status in host.certificates] for host in hosts] == [
        ["mail", "new", "web"],
        ["mail", "old", "web"],
    ]


async def test_some_hosts_are_listed_of_many(fleet: FleetStore) -> None:
    """However many are asked for: each that is known comes once, by name, with its own certificates."""
    came = [f"web{number:03}.example" for number in range(300)]
    for host in came:
        await fleet.record_reports(host, "e", [report(1, dns_names=(host,))], stream=stream(host))
    wanted = [*came[::2], "nobody.example", came[0]]
    found = await fleet.list_hosts(hosts=wanted[::-1])
    assert [record.host for record in found] == came[::2]
    assert all([status.dns_names for status in record.certificates] == [(record.host,)] for record in found)
    assert await fleet.list_hosts(hosts=[]) == []
    assert [record.host for record in await fleet.list_hosts(hosts=came, after=came[10], limit=2)] == came[11:13]


async def test_events_are_written_with_what_is_new_and_says_something_new(
    store: StoreHarness, fleet: FleetStore
) -> None:
    """A step in between, a repeated report, and an outcome that the log has already, add no event."""
    says = await begun(fleet)
    reports = [
        report(1, CertificateState.VERIFYING),
        serving(2, "3e7"),
        report(3, CertificateState.REQUESTING),
        serving(4, "3e7"),
        report(5, CertificateState.FAILED, failed_step=RenewalStep.RELOAD),
        report(6, CertificateState.FAILED, failed_step=RenewalStep.RELOAD),
        serving(7, "3e8"),
        serving(8, "3e8", name="mail"),
    ]
    await says("e", reports[:3], events(store, *reports[:3]))
    assert await audited(store) == ["2"]
    await says("e", reports, events(store, *reports))
    assert await audited(store) == ["2", "5", "7", "8"]
    await says("e", reports, events(store, *reports))
    assert await audited(store) == ["2", "5", "7", "8"]


async def test_a_report_that_can_not_be_audited_is_not_kept(store: StoreHarness, fleet: FleetStore) -> None:
    """Under `fail_closed` nothing of it is there, and it is new when it is sent again."""
    says = await begun(fleet)
    decisive = serving(1, "3e7")
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await says("e", [decisive], events(store, decisive))
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    record = await fleet.get_host(HOST)
    assert record is not None
    assert (record.certificates, record.acknowledged_sequence) == ((), 0)
    recorded = await says("e", [decisive], events(store, decisive))
    assert recorded == RecordedReports(1, (decisive,), telling=(1,))
    assert await audited(store) == ["1"]


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_under_fail_open_the_report_stands(store: StoreHarness, fleet: FleetStore) -> None:
    """Its event goes elsewhere."""
    says = await begun(fleet)
    decisive = serving(1, "3e7")
    with store.audit_broken():
        recorded = await says("e", [decisive], events(store, decisive))
    assert recorded == RecordedReports(1, (decisive,), telling=(1,))
    assert await audited(store) == []


async def test_what_tells_something_is_said_whether_it_has_an_event_or_not(fleet: FleetStore) -> None:
    """So that whoever counts repeats together counts each telling report once, and no other."""
    says = await begun(fleet)
    reports = [
        report(1, CertificateState.REQUESTING),
        serving(2, "3e7"),
        serving(3, "3e7"),
        report(4, CertificateState.FAILED, failed_step=RenewalStep.RELOAD),
        serving(5, "3e7"),
    ]
    recorded = await says("e", reports)
    assert recorded.telling == (2, 4, 5)
    recorded = await says("e", [*reports, serving(6, "3e8")])
    assert recorded.telling == (6,)


async def test_a_fleet_that_reports_at_once_is_kept_whole(store: StoreHarness, fleet: FleetStore) -> None:
    """Three hundred hosts, each with two calls beside its stream's under way at once; pages list them by name."""
    hosts = [f"web{number:03d}.example" for number in range(300)]

    async def live(host: str) -> list[RecordedReports]:
        first, second = serving(1, "3e7"), report(2, CertificateState.DUE)
        says = await begun(fleet, host)
        answers = await asyncio.gather(
            fleet.record_stream(known(fleet, host)),
            says("e", [first], events(store, first), names=["web"]),
            says("e", [first, second]),
        )
        return [answer for answer in answers if answer is not None]

    for _, first, second in [
        [None, *await live(hosts[0])],
        *[[None, *found] for found in await asyncio.gather(*map(live, hosts[1:]))],
    ]:
        assert (first.acknowledged_sequence, len(first.new)) == (1, 1)
        assert (second.acknowledged_sequence, [each.sequence for each in second.new]) == (2, [2])
    assert await audited(store) == ["1"] * 300
    listed: list[str] = []
    while page := await fleet.list_hosts(after=listed[-1] if listed else "", limit=128):
        assert all(record.certificates[0].state is CertificateState.DUE for record in page)
        listed += [record.host for record in page]
    assert listed == hosts


async def test_a_cancelled_call_is_written_all_the_same(fleet: FleetStore) -> None:
    """Who no longer waits takes nothing back."""
    says = await begun(fleet)
    waiting = asyncio.ensure_future(says("e", [report(1)]))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await says("e", []) == RecordedReports(1, ())


async def test_revoked_certificates_that_have_not_expired(store: StoreHarness) -> None:
    """All of them, or those of some hosts: with when and why; not one that is in force, nor one that has expired."""
    fleet: FleetStore = store.stores.fleet
    now = store.clock.now()
    wanted = (("web1", 90), ("web1", 1), ("web2", 90), ("web3", 90))
    records = []
    for number, (host, days) in enumerate(wanted):
        draft = a_draft(identity=host, dns_names=(f"n{number}.example",), public_key_sha256=f"key-{number}")
        order = (await store.stores.orders.open_order(draft, NO_LIMITS, [])).order
        record = certificate(order, f"certificate-{number}", now, timedelta(days=days))
        await store.stores.orders.finish_order(order, record, [])
        records.append(record)
    reason = RevocationReason.KEY_COMPROMISE
    for record in records[:3]:
        await store.stores.certificates.mark_revoked(record.certificate_id, reason, now, [])
    later = now + timedelta(days=2)
    first, _, second, _ = (RevokedCertificate(each.identity, each.serial_number, now, reason) for each in records)
    assert list(await fleet.list_revoked(later)) == [first, second]
    assert list(await fleet.list_revoked(later, ["web2", "web3", "web4"])) == [second]
    assert list(await fleet.list_revoked(later, [])) == []
    assert len(await fleet.list_revoked(now)) == 3


async def test_what_hosts_report_is_told_to_other_brokers(store: StoreHarness, fleet: FleetStore) -> None:
    """Once a host and transaction, with the names of the certificates, new and gone, unless they are many."""
    if store.place.kind == "memory":
        pytest.skip("nobody else follows")
    says = await begun(fleet)
    many = tuple(f"c{number}" for number in range(9))
    await says("e", [report(1), report(2), report(3, name="mail")])
    await says("e", [report(3, name="mail")])
    await says("e", [report(4, name="c0")], names=("web", *many))
    await says("e", [report(number, name=name) for number, name in enumerate(many, 5)])
    told = store.place.query("SELECT key FROM changes WHERE kind = 'report' ORDER BY number")
    shared = store.place.kind == "postgresql"
    assert told == ([(f"{HOST} web mail",), (f"{HOST} c0 mail",), (HOST,)] if shared else [])


async def test_a_host_that_is_gone_is_forgotten(store: StoreHarness) -> None:
    """Nothing of it is left that is planned or reported, and no start takes its certificates up again."""
    fleet, plans = store.stores.fleet, store.stores.renewal_plans
    now = store.clock.now()
    valid = await store.issue(identity=HOST, key="k1")
    other = await store.issue(identity="web2.example", key="k2", dns_names=("b.example",))
    await fleet.record_reports(HOST, "e", [Report(1, FULL)], stream=stream())
    await fleet.record_stream(stream("web2.example"))
    known = await fleet.get_host(HOST)
    assert known is not None
    event = store.event(AuditEventType.HOST_FORGOTTEN)
    assert await store.stores.host_removal.forget_host(HOST, known.stream, now, [event])

    assert await fleet.get_host(HOST) is None
    assert await plans.in_force_of([HOST, "web2.example"], now) == await plans.in_force("web2.example", now)
    assert [each.certificate_id for each in await plans.in_force("web2.example", now)] == [other.certificate_id]
    assert await plans.adopt(now) == 0
    assert await store.stores.certificates.get_certificate(valid.certificate_id) == valid
    assert await store.event_ids() == [event.event_id]
    again = await fleet.record_reports(HOST, "e", [Report(1, FULL)], stream=stream())
    assert again.new, "one that comes back is a new host"


async def test_a_host_that_has_come_back_is_not_forgotten(store: StoreHarness) -> None:
    """Between the look and the removal it may say hello: then nothing is removed, and nothing is audited."""
    fleet, now = store.stores.fleet, store.clock.now()
    removal = store.stores.host_removal
    await fleet.record_stream(stream())
    known = await fleet.get_host(HOST)
    assert known is not None
    await fleet.record_reports(HOST, "e", [Report(1, FULL)], stream=stream())
    for seen in (known.stream, None):
        assert not await removal.forget_host(HOST, seen, now, [store.event(AuditEventType.HOST_FORGOTTEN)])
    kept = await fleet.get_host(HOST)
    assert kept is not None
    assert kept.certificates == (FULL,) or kept.certificates[0].name == FULL.name
    assert await store.event_ids() == []
    assert await removal.forget_host("never.example", None, now, [])


async def test_hosts_are_listed_with_the_ca_that_let_them_in(fleet: FleetStore, store: StoreHarness) -> None:
    """By name, in pages; who has no stream is at no broker."""
    await fleet.record_stream(stream("a", identity_anchor="old"))
    await fleet.record_stream(stream("b"))
    await fleet.record_stream(known(fleet, "b", end_time=T0 + timedelta(hours=1), identity_anchor="new"))
    listing = store.stores.fleet
    first = await listing.list_anchors(after="", limit=1)
    rest = await listing.list_anchors(after="a", limit=10)
    assert [*first, *rest] == [HostAnchor("a", "old", fleet.broker_id), HostAnchor("b", "new", "")]


async def test_nobody_is_forgotten_unlogged(store: StoreHarness) -> None:
    """Where the event can't be written, all stays as it was."""
    fleet = store.stores.fleet
    await fleet.record_reports(HOST, "e", [Report(1, FULL)], stream=stream())
    known = await fleet.get_host(HOST)
    assert known is not None
    event = store.event(AuditEventType.HOST_FORGOTTEN)
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await store.stores.host_removal.forget_host(HOST, known.stream, store.clock.now(), [event])
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert await fleet.get_host(HOST) == known
