"""What `Upkeep` promises, asked of the fake, of SQLite and of PostgreSQL."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from certplane.broker.fleet.model import HostStream
from certplane.broker.model import CertificateRecord, EnrollmentReport, Order, OrderState, RevocationReason, TxtRecord
from certplane.broker.ports import OrderChange, PruneBefore
from certplane.broker.renewal.model import RecordedRequest, RenewalPlan, RequestedRenewal, RequestItem
from certplane.broker.rollouts import words
from certplane.broker.watches.model import ServiceWatch
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import CertificateState, CertificateStatus, HostFacts, RenewalCause, Report
from tests.support.rollouts import a_rollout
from tests.support.stores import StoreHarness

DAY = timedelta(days=1)
KEEP = 30 * DAY
LIFE = 90 * DAY
MANY = 1000


async def prune(store: StoreHarness, most: int = MANY, keep: timedelta = KEEP) -> dict[str, int]:
    """What was removed, without tables of which nothing was."""
    now = store.clock.now()
    removed = await store.stores.upkeep.prune(PruneBefore(now, now - keep, now - keep), most)
    return {table: count for table, count in removed.items() if count}


async def orders_left(store: StoreHarness, *orders: Order | CertificateRecord) -> list[bool]:
    return [await store.stores.orders.get_order(order.order_id) is not None for order in orders]


async def fail(store: StoreHarness, order: Order, **changes: Any) -> None:
    error = Refusal(Reason.ISSUER_REJECTED, "no")
    values = {"retry_time": store.clock.now() + DAY, **changes}
    change = OrderChange(state=OrderState.FAILED, error=error, **values)
    await store.stores.orders.change_order(order, change)


async def test_an_empty_store(store: StoreHarness) -> None:
    """Nothing is removed of nothing, and it has a size all the same."""
    assert await prune(store) == {}
    assert await store.stores.upkeep.size() >= 0


async def test_old_events_go_in_batches_oldest_first(store: StoreHarness) -> None:
    """What is younger stays, and a batch is no larger than it was asked for."""
    await store.stores.audit.append([store.event() for _ in range(5)])
    await store.seal()
    store.clock.advance(KEEP + DAY)
    await store.stores.audit.append([store.event() for _ in range(3)])
    assert await prune(store, 2) == {"audit_events": 2}
    assert (await store.event_ids())[0] == "event-000003"
    assert [await prune(store, 2) for _ in range(3)] == [{"audit_events": 2}, {"audit_events": 1}, {}]
    assert await store.event_ids() == ["event-000006", "event-000007", "event-000008"]


async def test_events_of_a_clock_that_went_ahead_hold_up_no_others(store: StoreHarness) -> None:
    """However many there are: what stands after them, and is old, shows that they are."""
    years = timedelta(days=3650)
    store.clock.jump(years)
    await store.stores.audit.append([store.event() for _ in range(5)])
    await store.seal()
    store.clock.jump(-years)
    await store.stores.audit.append([store.event() for _ in range(3)])
    await store.seal()
    store.clock.advance(KEEP + DAY)
    await store.stores.audit.append([store.event()])
    assert sum([(await prune(store, 2)).get("audit_events", 0) for _ in range(6)]) == 8
    assert await store.event_ids() == ["event-000009"]


async def test_events_of_a_clock_that_is_ahead_hold_up_no_other_broker(
    store: StoreHarness, other: StoreHarness
) -> None:
    """Nothing shows that they are old; they go when their own time comes."""
    if store.place.kind == "memory":
        pytest.skip("its two stores are one broker's")
    years = timedelta(days=3650)
    store.clock.jump(years)
    await store.stores.audit.append([store.event() for _ in range(5)])
    await store.seal()
    store.clock.jump(-years)
    await other.stores.audit.append([other.event() for _ in range(3)])
    await other.seal()
    store.clock.advance(KEEP + DAY)
    assert sum([(await prune(store, 2)).get("audit_events", 0) for _ in range(6)]) == 3
    assert await store.event_ids() == [f"event-00000{number}" for number in range(1, 6)]
    store.clock.jump(years)
    assert sum([(await prune(store, 2)).get("audit_events", 0) for _ in range(4)]) == 5


async def test_events_without_a_checkpoint_stay(store: StoreHarness) -> None:
    """Nothing would prove what comes after them, nor one half of a segment the other."""
    await store.stores.audit.append([store.event() for _ in range(4)])
    store.clock.advance(KEEP)
    await store.stores.audit.append([store.event() for _ in range(2)])
    await store.seal()
    store.clock.advance(DAY)
    assert await prune(store) == {}
    store.clock.advance(KEEP)
    assert await prune(store) == {"audit_events": 6}


async def test_events_of_releases_without_chains_go_by_their_time(store: StoreHarness) -> None:
    """As ever."""
    await store.stores.audit.append([store.event() for _ in range(3)])
    unchained = "UPDATE audit_events SET chain_id = NULL, number = NULL, hash = NULL"
    if store.place.kind == "memory":
        store.stores.database.connection.execute(unchained)
    else:
        store.place.execute(unchained)
    store.clock.advance(KEEP + DAY)
    assert await prune(store) == {"audit_events": 3}


async def test_what_is_kept_for_good_stays(store: StoreHarness) -> None:
    """Either kind by itself."""
    await store.stores.audit.append([store.event()])
    await store.seal()
    await store.issue()
    store.clock.advance(LIFE + KEEP + DAY)
    now = store.clock.now()
    assert await store.stores.upkeep.prune(PruneBefore(now), MANY) == {}
    assert await store.stores.upkeep.prune(PruneBefore(now, audit=now - KEEP), MANY) == {"audit_events": 1}
    removed = await store.stores.upkeep.prune(PruneBefore(now, ended=now - KEEP), MANY)
    assert (removed["certificates"], removed["orders"]) == (1, 1)


async def test_a_certificate_goes_with_its_order_and_its_plan(store: StoreHarness) -> None:
    """When it has been expired for long enough, and not a moment before; its key stays known."""
    record = await store.issue(key="key-1", lasts=LIFE)
    await store.stores.renewal_plans.set_plans(
        [RenewalPlan(record.certificate_id, record.identity, record.renew_time, RenewalCause.LIFETIME)], []
    )
    store.clock.advance(LIFE + KEEP)
    assert await prune(store) == {}
    store.clock.advance(DAY)
    assert await prune(store) == {"certificates": 1, "orders": 1}
    assert await store.stores.certificates.get_certificate(record.certificate_id) is None
    assert await orders_left(store, record) == [False]
    use = await store.stores.keys.key_use("key-1")
    assert use is not None
    assert use.identity == record.identity


async def test_a_revoked_certificate_goes_too_and_its_key_stays_blocked(store: StoreHarness) -> None:
    """A key that was compromised is never used again, however long ago."""
    record = await store.issue(key="key-1")
    now = store.clock.now()
    await store.stores.certificates.mark_revoked(record.certificate_id, RevocationReason.KEY_COMPROMISE, now, [])
    store.clock.advance(LIFE + KEEP + DAY)
    assert await prune(store) == {"certificates": 1, "orders": 1}
    use = await store.stores.keys.key_use("key-1")
    assert use is not None
    assert (use.blocked, use.spent) == (True, True)


async def test_what_replaced_a_valid_certificate_stays_with_it(store: StoreHarness) -> None:
    """A short one in the place of a long one: without its order the long one would seem to be in force again."""
    old = await store.issue(lasts=398 * DAY)
    new = await store.issue(lasts=6 * DAY, replaces_certificate_id=old.certificate_id)
    store.clock.advance(6 * DAY + KEEP + DAY)
    assert await prune(store) == {}
    assert await orders_left(store, old, new) == [True, True]
    store.clock.advance(398 * DAY)
    assert await prune(store) == {"certificates": 2, "orders": 2}


async def with_open_order(store: StoreHarness) -> Order:
    return await store.open_order()


async def with_records(store: StoreHarness) -> Order:
    order = await store.open_order()
    await fail(store, order, txt_records=(TxtRecord("example.org", "_acme-challenge.example.org", "value"),))
    return order


async def with_a_time_to_come_back(store: StoreHarness) -> Order:
    order = await store.open_order()
    await fail(store, order, retry_time=store.clock.now() + 400 * DAY)
    return order


@pytest.mark.parametrize("make", [with_open_order, with_records, with_a_time_to_come_back])
async def test_orders_that_somebody_needs_stay(
    store: StoreHarness, make: Callable[[StoreHarness], Awaitable[Order]]
) -> None:
    """One that is open, one whose records still stand in the DNS, one that a call may still join."""
    order = await make(store)
    store.clock.advance(200 * DAY)
    assert await prune(store) == {}
    assert await orders_left(store, order) == [True]


async def test_a_failed_order_goes_when_it_is_old(store: StoreHarness) -> None:
    """It has no certificate to wait for."""
    order = await store.open_order()
    await fail(store, order)
    store.clock.advance(KEEP - DAY)
    assert await prune(store) == {}
    store.clock.advance(2 * DAY)
    assert await prune(store) == {"orders": 1}
    assert await orders_left(store, order) == [False]


@pytest.mark.parametrize("keep", [timedelta(), timedelta(hours=1), 7 * DAY])
async def test_what_the_limits_count_stays(store: StoreHarness, keep: timedelta) -> None:
    """Orders of eight days, failed or issued, whatever is asked for."""
    order = await store.open_order(public_key_sha256="key-f")
    await fail(store, order)
    record = await store.issue(lasts=DAY)
    store.clock.advance(8 * DAY - timedelta(hours=1))
    assert await prune(store, keep=keep) == {}
    assert await orders_left(store, order, record) == [True, True]
    store.clock.advance(2 * DAY)
    assert await prune(store, keep=keep) == {"certificates": 1, "orders": 2}


async def test_batches(store: StoreHarness) -> None:
    """As many as asked for, until nothing is left, whatever the size of one statement."""
    for _ in range(70):
        await store.issue(lasts=DAY)
    store.clock.advance(KEEP + 2 * DAY)
    counts = [(await prune(store, 66)).get("certificates", 0) for _ in range(3)]
    assert counts == [66, 4, 0]


def stream(host: str, seen: datetime) -> HostStream:
    return HostStream(host, HostFacts("1.2.0"), "1f", seen + 365 * DAY, "192.0.2.1", seen, seen)


async def test_a_host_that_is_gone_for_long_is_forgotten(store: StoreHarness) -> None:
    """With what it reported; one that was heard stays with all of it."""
    fleet = store.stores.fleet
    report = Report(1, CertificateStatus("web", CertificateState.SERVING))
    for host in ("gone", "here"):
        await fleet.record_reports(host, "e", [report], stream=stream(host, store.clock.now()))
        await store.stores.enrollments.record_report(EnrollmentReport(host, "1.2.0", (), "1f", store.clock.now()), [])
    store.clock.advance(KEEP + DAY)
    await fleet.record_stream(stream("here", store.clock.now()))
    await store.stores.enrollments.record_report(EnrollmentReport("here", "1.2.0", (), "1f", store.clock.now()), [])
    assert await prune(store) == {"host_streams": 1, "enrollment_reports": 1}
    assert await fleet.get_host("gone") is None
    here = await fleet.get_host("here")
    assert here is not None
    assert (here.certificates, here.acknowledged_sequence) == ((report.certificate,), 1)
    again = await fleet.record_reports("gone", "e", [report], stream=stream("gone", store.clock.now()))
    assert again.new == (report,), "one that comes back is heard from the beginning"


async def test_services_that_are_gone_are_forgotten(store: StoreHarness) -> None:
    """With what was recorded of their watching, so long after they were seen last; one that is seen stays."""
    watches, now = store.stores.watches, store.clock.now()
    gone = ServiceWatch("gone", "", 0, "", "1f", now + DAY, "192.0.2.1", now, now, now)
    await watches.record_watches([gone, replace(gone, identity="here")])
    store.clock.advance(KEEP + DAY)
    await watches.record_watches([replace(gone, identity="here", last_seen_time=store.clock.now(), end_time=None)])
    assert await prune(store) == {"certificate_watchers": 1}
    assert [each.identity for each in await watches.watches_of(["gone", "here"])] == ["here"]


async def test_old_rollouts_are_forgotten(store: StoreHarness) -> None:
    """With their certificates, so long after they ended; one that is under way stays, however old it is."""
    rollouts = store.stores.rollouts
    for name, ends in (("r1", True), ("r2", False), ("r3", True)):
        rollout, items = a_rollout(1, 1, rollout_id=name)
        await rollouts.create(rollout, items)
        if ends:
            assert await rollouts.save(rollout, words.abort(rollout, "op", "no", store.clock.now()))
            store.clock.advance(KEEP)
    store.clock.advance(timedelta(hours=1))
    assert await prune(store) == {"rollouts": 1}
    assert [await rollouts.get(name) is None for name in ("r1", "r2", "r3")] == [True, False, False]
    assert [len(await rollouts.items(name)) for name in ("r1", "r2", "r3")] == [0, 2, 2]
    store.clock.advance(DAY * 2)
    assert await prune(store) == {"rollouts": 1}
    store.clock.advance(KEEP * 9)
    assert await prune(store) == {}


async def test_old_renewal_requests_are_forgotten(store: StoreHarness) -> None:
    """They are kept so that asking again changes nothing; nobody repeats a call after so long. Their items go too."""
    for name in ("first", "second"):
        items = [RequestItem("web1.example", "", store.clock.now(), serial_number="1f")] * 2
        await store.stores.renewal_plans.set_requested(
            [], "op", RequestedRenewal(name, 1, 1), store.clock.now(), items=items
        )
        store.clock.advance(KEEP)
    store.clock.advance(DAY)
    assert await prune(store, 1) == {"renewal_requests": 1}
    store.clock.advance(-2 * DAY)
    assert await prune(store) == {}
    assert await store.stores.renewal_plans.find_request("op", "first") is None
    assert await store.stores.renewal_plans.find_request("op", "second") is not None
    left = [RecordedRequest("op", name, store.clock.now(), "", None) for name in ("first", "second")]
    assert [len(await store.stores.renewal_plans.follow_items(each, 0, 9)) for each in left] == [0, 2]


async def test_size(store: StoreHarness) -> None:
    """It grows with what is written."""
    before = await store.stores.upkeep.size()
    for _ in range(20):
        await store.stores.audit.append([store.event(reason="x" * 5_000) for _ in range(20)])
    assert await store.stores.upkeep.size() > before
