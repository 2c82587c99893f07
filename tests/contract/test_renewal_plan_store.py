"""What `RenewalPlanStore` and `RenewalChecks` promise, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.model import CertificateRecord, OrderState, RevocationReason
from certplane.broker.ports import OrderChange
from certplane.broker.renewal.model import (
    HeldUp,
    InForce,
    RecordedRequest,
    RenewalPlan,
    RequestedRenewal,
    RequestItem,
    Selection,
)
from certplane.broker.store import selected_rows
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.support.stores import StoreHarness

WEB1 = "spiffe://example.org/host/web1"
WEB2 = "spiffe://example.org/host/web2"
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def plan_of(record: CertificateRecord, **values: Any) -> RenewalPlan:
    """The CA's plan of a certificate, every field set."""
    return RenewalPlan(
        **{
            "certificate_id": record.certificate_id,
            "host": record.identity,
            "renew_time": record.not_before + 50 * DAY,
            "cause": RenewalCause.ISSUER,
            "reason": "the CA's window",
            "explanation_url": "https://ca.example/why",
            "window_start": record.not_before + 49 * DAY,
            "window_end": record.not_before + 51 * DAY,
            "next_check_time": record.not_before + 6 * HOUR,
            "check_failures": 2,
            "renewal_request_id": "request-7",
            **values,
        }
    )


async def in_force(store: StoreHarness, host: str = WEB1) -> list[InForce]:
    return list(await store.stores.renewal_plans.in_force(host, store.clock.now()))


async def ids_to_check(store: StoreHarness, limit: int = 100) -> list[str]:
    found = await store.stores.renewal_plans.to_check("acme", store.clock.now(), limit)
    assert all("BEGIN CERTIFICATE" in one.certificate_pem for one in found)
    return [one.certificate.certificate_id for one in found]


async def selected(store: StoreHarness, **values: Any) -> list[str]:
    found = await store.stores.renewal_plans.select(Selection(**values), store.clock.now())
    return [one.certificate_id for one in found]


async def test_a_stored_certificate_is_in_force_with_its_own_renewal_time(store: StoreHarness) -> None:
    """Delivered or not: its holder may have it any moment."""
    record = await store.issue()
    assert await in_force(store) == [
        InForce(
            certificate_id=record.certificate_id,
            host=WEB1,
            profile=record.profile,
            issuer=record.issuer,
            dns_names=record.dns_names,
            not_before=record.not_before,
            not_after=record.not_after,
            lifetime_renew_time=record.renew_time,
        )
    ]
    assert await in_force(store, WEB2) == []


async def test_a_plan_is_given_back_whole(store: StoreHarness) -> None:
    """And its time takes the place of the certificate's own."""
    record = await store.issue()
    plan = plan_of(record)
    await store.stores.renewal_plans.set_plans([plan])
    (found,) = await in_force(store)
    assert found.plan == plan
    assert found.renew_time == plan.renew_time


def rollouts_plan(record: CertificateRecord, now: datetime) -> RenewalPlan:
    """A rollout's, every field set."""
    return plan_of(
        record,
        renew_time=now,
        cause=RenewalCause.OPERATOR,
        renewal_request_id="",
        rollout_id="rollout-1",
        hold_activation=True,
        activate_by_time=now + 40 * DAY,
        new_key=True,
        to_issuer="other",
    )


async def test_a_rollout_s_plan_is_given_back_whole_and_ends_with_the_next_plan(store: StoreHarness) -> None:
    """Whoever plans anew asks for nothing of it."""
    record = await store.issue()
    plans = store.stores.renewal_plans
    wanted = rollouts_plan(record, store.clock.now())
    await plans.set_plans([wanted])
    (found,) = await in_force(store)
    assert found.plan == wanted
    assert await plans.planned([record.certificate_id]) == [wanted]
    assert await plans.replace_plan(wanted, replace(wanted, reason="the CA was asked"))
    await plans.set_plans([plan_of(record)])
    (found,) = await in_force(store)
    assert found.plan == plan_of(record)


async def test_a_broker_without_rollouts_leaves_nothing_of_one_in_its_own_plans(store: StoreHarness) -> None:
    """It doesn't know the columns, and leaves them: what it plans is still an operator's request, or the CA's window."""
    if store.place.kind == "memory":
        pytest.skip("there are no columns")
    record = await store.issue()
    await store.stores.renewal_plans.set_plans([rollouts_plan(record, store.clock.now())])
    for change in (
        "UPDATE renewal_plans SET renewal_request_id = 'r-1'",
        "UPDATE renewal_plans SET cause = 'issuer'",
    ):
        store.place.execute(change)
        (found,) = await in_force(store)
        assert found.plan is not None
        assert (found.plan.rollout_id, found.plan.hold_activation, found.plan.new_key) == ("", False, False)
        assert await store.stores.renewal_plans.planned([record.certificate_id]) == [found.plan]
        assert await store.stores.renewal_plans.replace_plan(found.plan, replace(found.plan, reason="again"))


async def test_a_certificate_has_one_plan_at_most(store: StoreHarness) -> None:
    """The later one holds."""
    record = await store.issue()
    await store.stores.renewal_plans.set_plans([plan_of(record)])
    later = plan_of(record, cause=RenewalCause.REVOKED, reason="revoked", window_start=None, window_end=None)
    await store.stores.renewal_plans.set_plans([later])
    (found,) = await in_force(store)
    assert found.plan == later


async def test_a_plan_that_says_nothing_of_the_next_check_keeps_what_the_ca_said(store: StoreHarness) -> None:
    """An operator's request doesn't end the checks, nor start them anew."""
    record = await store.issue()
    theirs = plan_of(record)
    await store.stores.renewal_plans.set_plans([theirs])
    wanted = RenewalPlan(
        record.certificate_id, WEB1, store.clock.now(), RenewalCause.OPERATOR, "for an operator", renewal_request_id="r"
    )
    await store.stores.renewal_plans.set_plans([wanted])
    (found,) = await in_force(store)
    assert found.plan == replace(
        wanted,
        window_start=theirs.window_start,
        window_end=theirs.window_end,
        next_check_time=theirs.next_check_time,
        check_failures=theirs.check_failures,
    )


async def test_plans_are_found_by_their_certificates(store: StoreHarness) -> None:
    """Those that there are, of any number of certificates."""
    records = [await store.issue() for _ in range(3)]
    plans = [plan_of(record) for record in records[:2]]
    await store.stores.renewal_plans.set_plans(plans)
    wanted = [*(record.certificate_id for record in records), *(f"none-{number}" for number in range(200))]
    found = await store.stores.renewal_plans.planned(wanted)
    assert sorted(found, key=lambda plan: plan.certificate_id) == plans
    assert await store.stores.renewal_plans.planned([]) == []


async def test_what_came_of_a_request_is_kept_whole(store: StoreHarness) -> None:
    """With its plans and events, and what held certificates up: asked again, nothing changes and the answer is the same."""
    requests, now = store.stores.renewal_plans, store.clock.now()
    record = await store.issue()
    held = (HeldUp("web1", "c1", "RATE_LIMITED: 2 in a day", "web", now), HeldUp("web2", "c2", "two hold it"))
    first = RequestedRenewal("r-1", 9, 2, now, held, 5)
    assert await requests.set_requested([plan_of(record)], "alice", first, now, [store.event()]) == first
    later = plan_of(record, renew_time=now)
    again = RequestedRenewal("r-1", 1, 0)
    assert await requests.set_requested([later], "alice", again, now, [store.event()]) == first
    assert await requests.planned([record.certificate_id]) == [plan_of(record)]
    assert len(await store.event_ids()) == 1
    assert await requests.find_request("alice", "r-1") == first
    assert await requests.find_request("bob", "r-1") is None
    assert await requests.set_requested([later], "bob", again, now) == again
    assert await requests.planned([record.certificate_id]) == [later]


async def test_what_a_request_was_for_is_followed(store: StoreHarness) -> None:
    """Its items by their numbers, in pages, each with what the database has of it by then."""
    requests, now = store.stores.renewal_plans, store.clock.now()
    records = [await store.issue(dns_names=(f"n{number}.example.org",)) for number in range(4)]
    items = [RequestItem(WEB1, record.certificate_id, now + HOUR) for record in records]
    items[3] = replace(items[3], planned=False)
    identity = RequestItem(WEB2, "", now + HOUR, serial_number="1f")
    plans = [plan_of(record, renewal_request_id="r-1") for record in records[:3]]
    asked = RequestedRenewal("r-1", 5, 4, now + HOUR)
    await requests.set_requested(plans, "alice", asked, now, reason="drill", items=[*items, identity])
    await store.issue(replaces_certificate_id=records[0].certificate_id)
    await store.stores.certificates.mark_revoked(records[1].certificate_id, RevocationReason.UNSPECIFIED, now, [])
    await requests.set_plans([replace(plans[2], renewal_request_id="r-2")])

    recorded = await requests.get_request("r-1", "")
    assert recorded == RecordedRequest("alice", "r-1", now, "drill", now + HOUR, 5)
    pages = [await requests.follow_items(recorded, after, 3) for after in (0, 3)]
    assert [[each.number for each in page] for page in pages] == [[1, 2, 3], [4, 5]]
    found = [each for page in pages for each in page]
    assert [each.item for each in found] == [*items, identity]
    assert [(each.in_force, each.plan_request_id) for each in found] == [
        (False, ""), (False, ""), (True, "r-2"), (True, ""), (False, ""),
    ]  # fmt: skip
    assert [bool(each.new_certificate_id) for each in found] == [True, False, False, False, False]
    assert [each.revoke_time for each in found] == [None, now, None, None, None]
    assert [(each.profile, each.dns_names) for each in found] == [
        *((record.profile, record.dns_names) for record in records), ("", ())
    ]  # fmt: skip


async def test_a_request_is_found_by_its_id(store: StoreHarness) -> None:
    """The asker's own, else the newest of that id; what was planned for an identity last is the newest request's."""
    requests, now = store.stores.renewal_plans, store.clock.now()
    for number, requester in enumerate(("alice", "bob")):
        items = [RequestItem(WEB1, "", now + number * HOUR, serial_number=f"{number}f")]
        time = now + timedelta(seconds=number)
        await requests.set_requested([], requester, RequestedRenewal("r-1", 1, 1), time, reason=requester, items=items)
    found = [await requests.get_request("r-1", name) for name in ("alice", "carol")]
    assert [each.requester for each in found] == ["alice", "bob"]
    assert await requests.get_request("r-2", "alice") is None
    assert await requests.identity_renewals([WEB1, WEB2]) == [
        ("1f", RenewalPlan("", WEB1, now + HOUR, RenewalCause.OPERATOR, "bob", renewal_request_id="r-1"))
    ]


async def test_a_request_whose_plans_can_not_be_set_is_not_kept(store: StoreHarness) -> None:
    """One transaction: asking again does it."""
    requests, now = store.stores.renewal_plans, store.clock.now()
    record = await store.issue()
    requested = RequestedRenewal("r-1", 1, 1, now)
    with store.audit_broken(), pytest.raises(RefusalError):
        await requests.set_requested([plan_of(record)], "alice", requested, now, [store.event()])
    assert await requests.find_request("alice", "r-1") is None
    assert await requests.planned([record.certificate_id]) == []


async def test_the_first_plan_is_taken_whole(store: StoreHarness) -> None:
    """Without a next check too: there is nothing of the CA to keep."""
    record = await store.issue()
    plan = plan_of(record, next_check_time=None)
    await store.stores.renewal_plans.set_plans([plan])
    (found,) = await in_force(store)
    assert found.plan == plan


async def test_several_plans_and_their_events_are_one_transaction(store: StoreHarness) -> None:
    """A plan for a certificate that isn't there undoes its neighbours and their event."""
    record = await store.issue()
    event = store.event(AuditEventType.RENEWAL_WINDOW_MOVED)
    with pytest.raises(RefusalError) as refused:
        await store.stores.renewal_plans.set_plans([plan_of(record), plan_of(record, certificate_id="none")], [event])
    assert refused.value.refusal.reason is Reason.STORE_UNAVAILABLE
    assert (await in_force(store))[0].plan is None
    assert await store.event_ids() == []
    await store.stores.renewal_plans.set_plans([plan_of(record)], [event])
    assert await store.event_ids() == [event.event_id]


async def test_nothing_is_planned_unlogged(store: StoreHarness) -> None:
    """Under fail_closed an event that can't be written leaves the plan as it was."""
    record = await store.issue()
    with store.audit_broken(), pytest.raises(RefusalError) as refused:
        await store.stores.renewal_plans.set_plans([plan_of(record)], [store.event()])
    assert refused.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert (await in_force(store))[0].plan is None


# In force


async def test_a_certificate_is_in_force_until_it_expires(store: StoreHarness) -> None:
    """The end of its validity is the end of it."""
    await store.issue(lasts=DAY)
    store.clock.advance(DAY - timedelta(microseconds=1))
    assert len(await in_force(store)) == 1
    store.clock.advance(timedelta(microseconds=1))
    assert await in_force(store) == []


async def test_a_revoked_certificate_is_not_in_force(store: StoreHarness) -> None:
    """Nobody should be using it."""
    record = await store.issue()
    await store.stores.certificates.mark_revoked(
        record.certificate_id, RevocationReason.SUPERSEDED, store.clock.now(), []
    )
    assert await in_force(store) == []
    assert await ids_to_check(store) == []
    assert await selected(store, all=True) == []


async def test_a_certificate_is_in_force_until_its_replacement_is_issued(store: StoreHarness) -> None:
    """An order that is open, or has failed, replaces nothing."""
    old = await store.issue()
    failed = await store.open_order(public_key_sha256="key-f", replaces_certificate_id=old.certificate_id)
    await store.stores.orders.change_order(failed, OrderChange(state=OrderState.FAILED))
    await store.open_order(public_key_sha256="key-o", replaces_certificate_id=old.certificate_id)
    assert [one.certificate_id for one in await in_force(store)] == [old.certificate_id]
    new = await store.issue(replaces_certificate_id=old.certificate_id)
    assert [one.certificate_id for one in await in_force(store)] == [new.certificate_id]


# Selection


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        pytest.param({}, "", id="nothing said is nothing selected"),
        pytest.param({"all": True}, "abc", id="all"),
        pytest.param({"hosts": (WEB1,)}, "ab", id="host"),
        pytest.param({"hosts": (WEB2, WEB1, WEB2)}, "abc", id="hosts, one twice"),
        pytest.param({"hosts": ("none",)}, "", id="unknown host"),
        pytest.param({"profiles": ("api",)}, "b", id="profile"),
        pytest.param({"issuers": ("other",)}, "c", id="issuer"),
        pytest.param({"dns_names": ("api.example.org", "none.example.org")}, "b", id="one of the names"),
        pytest.param({"certificate_ids": ("c", "a")}, "ac", id="certificates"),
        pytest.param({"certificate_ids": ("none",)}, "", id="unknown certificate"),
        pytest.param({"hosts": (WEB1,), "profiles": ("web",)}, "a", id="every field counts"),
        pytest.param({"all": True, "profiles": ("web",)}, "ac", id="all of a profile"),
        pytest.param({"certificate_ids": ("a", "b"), "hosts": (WEB2,)}, "", id="certificates of another host"),
    ],
)
async def test_a_selection_matches_every_field_that_is_set(
    store: StoreHarness, selection: dict[str, Any], expected: str
) -> None:
    """Sorted by host; what is selected is in force."""
    records = {
        "a": await store.issue(),
        "b": await store.issue(profile="api", dns_names=("api.example.org",)),
        "c": await store.issue(identity=WEB2, issuer="other"),
    }
    await store.issue(identity=WEB2, lasts=timedelta(microseconds=1))
    store.clock.advance(HOUR)
    names = {record.certificate_id: name for name, record in records.items()}
    if "certificate_ids" in selection:
        known = {name: record.certificate_id for name, record in records.items()}
        selection = {**selection, "certificate_ids": tuple(known.get(n, n) for n in selection["certificate_ids"])}
    assert "".join(names[one] for one in await selected(store, **selection)) == expected


# Checks


async def test_what_was_never_asked_about_is_to_be_checked(store: StoreHarness) -> None:
    """Oldest first, and no more than wanted; an operator's plan alone doesn't count as asked."""
    first = await store.issue()
    store.clock.advance(HOUR)
    second = await store.issue(identity=WEB2)
    await store.issue(issuer="other")
    operators = RenewalPlan(second.certificate_id, WEB2, store.clock.now(), RenewalCause.OPERATOR)
    await store.stores.renewal_plans.set_plans([operators])
    assert await ids_to_check(store) == [first.certificate_id, second.certificate_id]
    assert await ids_to_check(store, limit=1) == [first.certificate_id]
    assert await ids_to_check(store, limit=0) == []


async def test_a_certificate_is_to_be_checked_when_its_time_has_come(store: StoreHarness) -> None:
    """Not before; the one that waits longest comes first, after those that were never asked about."""
    late, early, others = await store.issue(), await store.issue(), await store.issue(issuer="other")
    await store.stores.renewal_plans.set_plans(
        [
            plan_of(late, next_check_time=store.clock.now() + 2 * HOUR),
            plan_of(early, next_check_time=store.clock.now() + HOUR),
            plan_of(others, next_check_time=store.clock.now() + HOUR),
        ]
    )
    assert await ids_to_check(store) == []
    store.clock.advance(HOUR)
    assert await ids_to_check(store) == [early.certificate_id]
    store.clock.advance(HOUR)
    new = await store.issue()
    assert await ids_to_check(store) == [new.certificate_id, early.certificate_id, late.certificate_id]
    assert await ids_to_check(store, limit=2) == [new.certificate_id, early.certificate_id]


async def test_a_plan_takes_the_place_of_the_one_that_was_read(store: StoreHarness) -> None:
    """From none to one to another, with an event each."""
    record = await store.issue()
    first = plan_of(record)
    second = replace(first, renew_time=store.clock.now(), window_start=None, next_check_time=None)
    assert await store.stores.renewal_plans.replace_plan(None, first, [store.event()])
    assert await store.stores.renewal_plans.replace_plan(first, second, [store.event()])
    (found,) = await in_force(store)
    assert found.plan == second
    assert len(await store.event_ids()) == 2


async def test_a_plan_that_was_not_seen_is_not_replaced(store: StoreHarness) -> None:
    """What an operator asked for while the CA was being asked stands, and nothing is audited."""
    record = await store.issue()
    operators = plan_of(record, cause=RenewalCause.OPERATOR, renew_time=store.clock.now())
    await store.stores.renewal_plans.set_plans([operators])
    theirs = plan_of(record, reason="the CA's")
    assert not await store.stores.renewal_plans.replace_plan(None, theirs, [store.event()])
    assert not await store.stores.renewal_plans.replace_plan(plan_of(record), theirs, [store.event()])
    (found,) = await in_force(store)
    assert found.plan == operators
    assert await store.event_ids() == []


async def test_of_two_plans_at_once_one_is_written(store: StoreHarness) -> None:
    """They meet in the writer; the second finds that it has seen another."""
    record = await store.issue()
    plans = [plan_of(record, reason=reason) for reason in ("one", "other")]
    done = await asyncio.gather(*(store.stores.renewal_plans.replace_plan(None, plan) for plan in plans))
    assert sorted(done) == [False, True]
    (found,) = await in_force(store)
    assert found.plan == plans[done.index(True)]


async def test_plans_end_with_the_time_of_their_certificates(store: StoreHarness) -> None:
    """The ones that are revoked, replaced or expired have none any more, so that the plans never outgrow the fleet."""
    old, kept, revoked = await store.issue(), await store.issue(), await store.issue()
    expired = [await store.issue(lasts=DAY) for _ in range(3)]
    plans = store.stores.renewal_plans
    await plans.set_plans([plan_of(record) for record in (old, kept, revoked, *expired)])
    new = await store.issue(replaces_certificate_id=old.certificate_id)
    await store.stores.certificates.mark_revoked(
        revoked.certificate_id, RevocationReason.SUPERSEDED, store.clock.now(), []
    )
    await plans.forget_expired(store.clock.now())
    left = [(kept.certificate_id, plan_of(kept).renew_time)]
    left += [(record.certificate_id, plan_of(record).renew_time) for record in expired]
    assert await plans.renew_times("", 100) == [*left, (new.certificate_id, None)]
    store.clock.advance(DAY)
    await plans.forget_expired(store.clock.now())
    assert await plans.renew_times("", 100) == [left[0], (new.certificate_id, None)]
    for gone in (old, revoked, expired[0]):
        assert not await plans.replace_plan(plan_of(gone), plan_of(gone, reason="again"))
        assert not await plans.replace_plan(None, plan_of(gone))


async def test_times_are_read_in_pages(store: StoreHarness) -> None:
    """Each begins after the last one of the page before; an operator's plan has a time too."""
    records = [await store.issue() for _ in range(3)]
    await store.stores.renewal_plans.set_plans(
        [RenewalPlan(records[1].certificate_id, WEB1, store.clock.now(), RenewalCause.OPERATOR)]
    )
    first = await store.stores.renewal_plans.renew_times("", 2)
    assert first == [(records[0].certificate_id, None), (records[1].certificate_id, store.clock.now())]
    assert await store.stores.renewal_plans.renew_times(first[-1][0], 2) == [(records[2].certificate_id, None)]
    assert await store.stores.renewal_plans.renew_times(records[2].certificate_id, 2) == []


async def test_what_a_clock_has_lost_is_found_again(store: StoreHarness) -> None:
    """One that ran ahead has everything expired; set right, all that is in force is to be found and checked."""
    records = [await store.issue() for _ in range(3)]
    await store.issue(replaces_certificate_id=records[0].certificate_id)
    plans = store.stores.renewal_plans
    await plans.forget_expired(store.clock.now() + 3650 * DAY)
    assert (await in_force(store), await selected(store, all=True), await ids_to_check(store)) == ([], [], [])
    assert await plans.adopt(store.clock.now()) == 3
    assert await plans.adopt(store.clock.now()) == 0
    assert len(await in_force(store)) == len(await selected(store, all=True)) == len(await ids_to_check(store)) == 3


async def test_a_large_selection_is_read_in_pages(store: StoreHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, each once, and by host, however many pages and certificates of one host there are."""
    monkeypatch.setattr(selected_rows, "_PAGE", 2)
    hosts = [f"spiffe://example.org/host/web{number % 3}" for number in range(11)]
    records = [await store.issue(identity=host, profile="api" if n == 5 else "web") for n, host in enumerate(hosts)]
    wanted = sorted((record.identity, record.certificate_id) for record in records)
    found = await store.stores.renewal_plans.select(Selection(all=True), store.clock.now())
    assert [(one.host, one.certificate_id) for one in found] == wanted
    assert await selected(store, profiles=("api",)) == [records[5].certificate_id]


async def test_what_a_compromise_or_an_issuer_picks(store: StoreHarness) -> None:
    """By serial number, key, age, and the CA's window: an open one, an ended one, not one that begins later or none."""
    first = await store.issue(key="key-of-two")
    store.clock.advance(HOUR)
    second, third = await store.issue(), await store.issue()
    now = store.clock.now()
    await store.stores.renewal_plans.set_plans(
        [
            plan_of(first, window_start=now - 2 * HOUR, window_end=now - HOUR),
            plan_of(second, window_start=now, window_end=now + HOUR),
            plan_of(third, window_start=now + HOUR, window_end=now + 2 * HOUR),
        ]
    )
    ids = [each.certificate_id for each in (first, second, third)]
    assert await selected(store, serial_numbers=(third.serial_number, "0")) == ids[2:]
    assert await selected(store, public_keys_sha256=("key-of-two",)) == ids[:1]
    assert await selected(store, issued_before=now) == ids[:1]
    assert await selected(store, window_open=True) == ids[:2]
    assert await selected(store, window_open=True, issued_before=now) == ids[:1]
    assert await selected(store, all=True, issued_before=now) == ids[:1]


async def test_labels_that_no_host_has_pick_nothing(store: StoreHarness) -> None:
    """Who makes a selection has looked them up; that nobody has them doesn't make it one of all."""
    record = await store.issue()
    assert await selected(store, labels=("ring=canary",), hosts=(WEB1,)) == [record.certificate_id]
    assert await selected(store, labels=("ring=typo",)) == []
    assert await selected(store, labels=("ring=typo",), all=True) == []
