"""What `HeldCertificates` and `WatchStore` promise, asked of SQLite in memory and on disk, and of PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from certplane.broker.members.model import Member
from certplane.broker.model import CertificateRecord, ChangeKind, RevocationReason
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.watches.model import HeldByService, ServiceWatch
from certplane.fleet_report.model import RenewalCause
from tests.support.stores import StoreHarness

DAY = timedelta(days=1)
T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
API, JOBS = "spiffe://example/service/api", "spiffe://example/service/jobs"


def in_short(record: CertificateRecord, plan: RenewalPlan | None = None) -> HeldByService:
    names = [name for name in HeldByService.__dataclass_fields__ if name != "plan"]
    return HeldByService(**{name: getattr(record, name) for name in names}, plan=plan)


def watch(identity: str = API, **changes: Any) -> ServiceWatch:
    first = ServiceWatch(identity, "", 1, "api/1.2", "1f", T0 + DAY, "192.0.2.1", T0, T0)
    return replace(first, **changes)


async def held(store: StoreHarness, *identities: str) -> list[HeldByService]:
    found = await store.stores.watches.held_by(identities, store.clock.now())
    return sorted(found, key=lambda each: each.certificate_id)


async def test_what_is_in_force_is_held_with_its_plan(store: StoreHarness) -> None:
    """Of each service what is in force, with the plan that holds; others' certificates are others'."""
    planned = await store.issue(identity=API, profile="web")
    plain = await store.issue(identity=API, profile="mail")
    jobs = await store.issue(identity=JOBS)
    await store.issue(identity="web1.example")
    plan = RenewalPlan(planned.certificate_id, API, T0, RenewalCause.OPERATOR, "drill", renewal_request_id="r-1")
    await store.stores.renewal_plans.set_plans([plan])
    assert await held(store, API) == [in_short(planned, plan), in_short(plain)]
    assert await held(store, API, JOBS) == [in_short(planned, plan), in_short(plain), in_short(jobs)]
    assert await held(store, "none") == []


async def test_what_is_over_is_not_held(store: StoreHarness) -> None:
    """One that has expired, or that another one has replaced, is told to nobody."""
    await store.issue(identity=API, lasts=DAY)
    old = await store.issue(identity=API, profile="web")
    new = await store.issue(identity=API, profile="web", replaces_certificate_id=old.certificate_id)
    store.clock.advance(2 * DAY)
    assert await held(store, API) == [in_short(new)]


async def test_what_was_revoked_is_held_until_its_end(store: StoreHarness) -> None:
    """A revoked certificate is there with when and why, replaced or not, until it would have expired."""
    old = await store.issue(identity=API, profile="web")
    new = await store.issue(identity=API, profile="web", replaces_certificate_id=old.certificate_id)
    revoke = store.stores.certificates.mark_revoked
    revoked = await revoke(old.certificate_id, RevocationReason.KEY_COMPROMISE, store.clock.now(), [])
    assert await held(store, API) == [in_short(revoked), in_short(new)]
    store.clock.advance(91 * DAY)
    assert await held(store, API) == []


async def test_a_watch_is_kept_as_it_was_recorded_last(store: StoreHarness) -> None:
    """One row of a service at a broker, this one's whatever it says; as many services as are asked for."""
    watches = store.stores.watches
    await watches.record_watches([watch(f"service-{number:03d}", broker_id="another") for number in range(150)])
    ended = watch("service-007", watch_count=0, last_seen_time=T0 + DAY, end_time=T0 + DAY, client_version="")
    await watches.record_watches([ended])
    found = {each.identity: each for each in await watches.watches_of([f"service-{n:03d}" for n in range(150)])}
    assert len(found) == 150
    assert found["service-007"] == replace(ended, broker_id=watches.broker_id)
    assert found["service-008"] == watch("service-008", broker_id=watches.broker_id)
    assert list(await watches.watches_of([])) == []
    await watches.record_watches([])


async def test_what_a_broker_that_is_gone_has_left_is_removed(store: StoreHarness) -> None:
    """Once the service watches elsewhere; what a living broker says stays, and so does what is of other services."""
    behind = [getattr(part, "_store", part) for part in (store.stores.watches, store.stores.members)]  # without faults
    watches, members = behind
    own = watches.broker_id
    for broker_id in ("gone", "living"):
        watches.broker_id = members.broker_id = broker_id
        await members.renew(Member(broker_id, "m", "a", "1", T0, "p", "t", "c"), DAY if broker_id == "living" else -DAY)
        await watches.record_watches([watch(), watch(JOBS)] if broker_id == "gone" else [watch()])
    watches.broker_id = members.broker_id = own
    await watches.record_watches([watch()])
    found = [(each.identity, each.broker_id) for each in await watches.watches_of([API, JOBS])]
    assert sorted(found) == sorted([(API, own), (API, "living"), (JOBS, "gone")])


async def test_others_hear_of_what_is_told(store: StoreHarness) -> None:
    """That a service watches, or doesn't any more, is in the change feed where brokers share a database; else nothing."""
    await store.stores.watches.record_watches([watch(), watch(JOBS)], [API])
    if store.place.kind == "postgresql":
        rows = store.place.query("SELECT key FROM changes WHERE kind = 'watch'")
        assert rows == [(API,)]
    else:
        assert store.place.kind in ("memory", "sqlite")
    assert ChangeKind.WATCH == "watch"


async def test_a_service_that_is_forgotten_watches_no_more(store: StoreHarness) -> None:
    """With its plans goes what was recorded of its watching, and its certificates are in force no longer."""
    await store.issue(identity=API)
    await store.stores.watches.record_watches([watch()])
    assert await store.stores.host_removal.forget_host(API, None, store.clock.now(), [])
    assert list(await store.stores.watches.watches_of([API])) == []
    assert await held(store, API) == []
