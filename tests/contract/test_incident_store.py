"""What `IncidentStore`, `IncidentReader` and `RolloutMembers` promise, asked of each kind of store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.incidents.model import Figures, Incident, Member
from certplane.broker.incidents.ports import place_of
from certplane.broker.model import CertificateRecord, RevocationReason
from certplane.broker.renewal.model import RenewalPlan, Selection, WindowMove
from certplane.errors import RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.fakes.clock import ManualClock
from tests.support.stores import StoreHarness

NOW = ManualClock().now()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
FIGURES = Figures(12, 9, 4, 3, 2, 1, 1, 1, 7, ("web1", "web2"))
INCIDENT = Incident("acme-20260319", "acme", NOW, explanation_url="https://ca.example/why")
OTHER = replace(INCIDENT, incident_id="other-20260319", issuer="other", open_time=NOW + HOUR)


def moved(record: CertificateRecord, **more: Any) -> WindowMove:
    values = {"explanation_url": "https://ca.example/why", "forward": True, **more}
    start = NOW - DAY
    made = WindowMove(record.certificate_id, record.identity, record.issuer, NOW, start, NOW - HOUR, record.renew_time)
    return replace(made, **values)


async def move(store: StoreHarness, record: CertificateRecord, **more: Any) -> WindowMove:
    """The CA moves its window, and it is planned anew."""
    plans, now = store.stores.renewal_plans, store.clock.now()
    found = await plans.find(record.certificate_id, now)
    plan = RenewalPlan(record.certificate_id, record.identity, now, RenewalCause.ISSUER, f"at {now}")
    one = moved(record, **more)
    assert await plans.replace_plan(found.plan, plan, move=one)
    return one


async def opened(store: StoreHarness, incident: Incident = INCIDENT, *records: CertificateRecord) -> Incident:
    assert await store.stores.incidents.record(None, incident, members=[each.certificate_id for each in records])
    return incident


async def test_a_move_is_kept_with_the_plan_or_not_at_all(store: StoreHarness) -> None:
    """Whole; of a plan that isn't replaced there is none."""
    incidents, plans = store.stores.incidents, store.stores.renewal_plans
    later, first = await store.issue(), await store.issue()
    moves = [await move(store, first), await move(store, later, move_time=NOW + HOUR, explanation_url="")]
    moves.sort(key=lambda each: each.certificate_id)
    assert await incidents.unassigned() == moves
    unseen = RenewalPlan(first.certificate_id, first.identity, NOW, RenewalCause.ISSUER)
    assert not await plans.replace_plan(None, unseen, move=moved(first, explanation_url="https://else.example"))
    assert await incidents.unassigned() == moves


async def test_a_certificate_has_its_last_move(store: StoreHarness) -> None:
    """Brought forward again it is one; put off it counts no more; put off without more before it never did."""
    incidents = store.stores.incidents
    record, quiet = await store.issue(), await store.issue()
    await move(store, record)
    again = await move(store, record, move_time=NOW + HOUR)
    await move(store, quiet, forward=False)
    assert await incidents.unassigned() == [again]
    await move(store, record, forward=False)
    assert await incidents.unassigned() == []


async def test_an_incident_is_found_whole(store: StoreHarness) -> None:
    """And changed on the version that was read."""
    incidents = store.stores.incidents
    assert await incidents.get_incident(INCIDENT.incident_id) is None
    before = await opened(store)
    assert await incidents.get_incident(INCIDENT.incident_id) == INCIDENT
    after = replace(
        before,
        version=2,
        deadline=NOW + DAY,
        explanation_url="",
        rollout_id="r-7",
        rollout_count=1,
        trouble="it says \N{SNOWMAN}",
        figures=FIGURES,
    )
    assert await incidents.record(before, after, events=[store.event()])
    assert await incidents.open_incidents() == [after]
    assert not await incidents.record(before, replace(after, figures=Figures()), events=[store.event()])
    assert await incidents.get_incident(INCIDENT.incident_id) == after
    assert len(await store.event_ids()) == 1


async def test_an_issuer_has_one_that_is_open(store: StoreHarness, other: StoreHarness) -> None:
    """Of two brokers that see it at once one writes; another issuer's is another, and so is one after it has ended."""
    await opened(store)
    theirs = other.stores.incidents
    assert not await theirs.record(None, INCIDENT)
    assert not await theirs.record(None, replace(INCIDENT, incident_id="acme-20260319-2"), events=[store.event()])
    assert await theirs.record(None, OTHER)
    assert await store.stores.incidents.open_incidents() == [INCIDENT, OTHER]
    assert await theirs.record(INCIDENT, replace(INCIDENT, version=2, close_time=NOW))
    assert not await theirs.record(None, INCIDENT), "its id is taken"
    assert await theirs.record(None, replace(INCIDENT, incident_id="acme-20260319-2"))
    assert len(await store.event_ids()) == 0


async def test_without_its_event_nothing_begins(store: StoreHarness) -> None:
    """Nothing unlogged."""
    record = await store.issue()
    mine = await move(store, record)
    with store.audit_broken(), pytest.raises(RefusalError):
        await store.stores.incidents.record(None, INCIDENT, members=[record.certificate_id], events=[store.event()])
    assert await store.stores.incidents.open_incidents() == []
    assert await store.stores.incidents.unassigned() == [mine]


async def test_members_with_what_became_of_them(store: StoreHarness) -> None:
    """In force, replaced, revoked, put off again: by their ids, a page at a time; those of no incident are none."""
    incidents = store.stores.incidents
    records = [await store.issue() for _ in range(5)]
    plain, replaced, revoked, put_off, free = records
    for record in records:
        await move(store, record)
    await opened(store, INCIDENT, *records[:4])
    assert [each.certificate_id for each in await incidents.unassigned()] == [free.certificate_id]
    new = await store.issue(replaces_certificate_id=replaced.certificate_id)
    await store.stores.certificates.mark_revoked(revoked.certificate_id, RevocationReason.SUPERSEDED, NOW, [])
    await move(store, put_off, forward=False, window_end=NOW + DAY)

    def member(record: CertificateRecord, **more: Any) -> Member:
        values = {"in_force": True, "move_time": NOW, "window_end": NOW - HOUR, **more}
        return Member(
            record.certificate_id,
            record.identity,
            not_after=record.not_after,
            serial_number=record.serial_number,
            profile=record.profile,
            dns_names=record.dns_names,
            **values,
        )

    expected = [
        member(plain),
        member(replaced, in_force=False, new_certificate_id=new.certificate_id),
        member(revoked, in_force=False, revoke_time=NOW),
        member(put_off, forward=False, window_end=NOW + DAY),
    ]
    assert await incidents.members(INCIDENT.incident_id, "", 10) == expected
    assert await incidents.members(INCIDENT.incident_id, "", 2) == expected[:2]
    assert await incidents.members(INCIDENT.incident_id, replaced.certificate_id, 10) == expected[2:]
    assert await incidents.members("none", "", 10) == []


async def test_more_join_and_stay_where_they_are(store: StoreHarness) -> None:
    """One that is of another incident by now isn't taken from it."""
    incidents = store.stores.incidents
    first, second = await store.issue(), await store.issue()
    for record in (first, second):
        await move(store, record)
    await opened(store, INCIDENT, first)
    await opened(store, OTHER, first, second)
    assert [each.certificate_id for each in await incidents.members(INCIDENT.incident_id, "", 9)] == [
        first.certificate_id
    ]
    assert [each.certificate_id for each in await incidents.members(OTHER.incident_id, "", 9)] == [
        second.certificate_id
    ]
    await move(store, first)
    assert len(await incidents.members(INCIDENT.incident_id, "", 9)) == 1, "brought forward again it is still its"


async def test_what_was_put_off_may_be_brought_forward_anew_after_the_end(store: StoreHarness) -> None:
    """A drill that is over, and another one next year."""
    incidents = store.stores.incidents
    drilled, replaced = await store.issue(), await store.issue()
    for record in (drilled, replaced):
        await move(store, record)
    before = await opened(store, INCIDENT, drilled, replaced)
    await move(store, drilled, forward=False)
    assert await incidents.record(before, replace(before, version=2, close_time=NOW))
    assert [each.certificate_id for each in await incidents.members(INCIDENT.incident_id, "", 9)] == [
        replaced.certificate_id
    ]
    again = await move(store, drilled)
    assert await incidents.unassigned() == [again]


async def test_a_ca_is_asked_about_all_of_its_certificates_now(store: StoreHarness) -> None:
    """Those that it was to be asked about later; what is due already stays as it is, and other CAs' does."""
    plans = store.stores.renewal_plans
    later, due, unasked = [await store.issue() for _ in range(3)]
    theirs = await store.issue(issuer="other")

    def planned(record: CertificateRecord, wait: timedelta) -> RenewalPlan:
        check = NOW + wait
        return RenewalPlan(record.certificate_id, record.identity, NOW, RenewalCause.ISSUER, next_check_time=check)

    await plans.set_plans([planned(later, HOUR), planned(due, -HOUR), planned(theirs, HOUR)])
    await store.stores.incidents.ask_now("acme", NOW)
    asked = [each.certificate.certificate_id for each in await plans.to_check("acme", NOW, 10)]
    assert asked == [unasked.certificate_id, due.certificate_id, later.certificate_id]
    assert await plans.to_check("other", NOW, 10) == []


async def test_which_a_rollout_has(store: StoreHarness) -> None:
    """Written with the incident's rollout, on the version that was read."""
    incidents = store.stores.incidents
    first, second = await store.issue(), await store.issue()
    for record in (first, second):
        await move(store, record)
    before = await opened(store, INCIDENT, first, second)
    after = replace(before, version=2, rollout_id="r-7", rollout_count=1)
    assert await incidents.give(before, after, [first.certificate_id])
    assert not await incidents.give(before, after, [second.certificate_id])
    assert await incidents.open_incidents() == [after]
    found = await incidents.members(INCIDENT.incident_id, "", 9)
    assert [each.rollout_id for each in found] == ["r-7", ""]


async def test_the_list_has_open_ones_first_then_the_newest(store: StoreHarness) -> None:
    """A page begins behind the place where the last one ended, whatever has ended since."""
    incidents = store.stores.incidents
    ended = []
    for number in range(3):
        one = replace(INCIDENT, incident_id=f"acme-{number}", open_time=NOW + number * HOUR)
        await opened(store, one)
        ended.append(replace(one, version=2, close_time=NOW + 9 * HOUR))
        assert await incidents.record(one, ended[-1])
    await opened(store, INCIDENT)
    await opened(store, OTHER)
    expected = [OTHER, INCIDENT, *reversed(ended)]
    assert await incidents.list_incidents(None, 10) == expected
    assert await incidents.list_incidents(None, 10, open_only=True) == expected[:2]
    after = None
    pages = []
    while page := await incidents.list_incidents(after, 1):
        pages += page
        after = place_of(page[-1])
    assert pages == expected
    assert await incidents.list_incidents(place_of(OTHER), 10, open_only=True) == [INCIDENT]


async def test_what_is_old_is_forgotten(store: StoreHarness) -> None:
    """Moves of no incident, and incidents that have ended with their certificates; none that is open."""
    incidents = store.stores.incidents
    records = [await store.issue() for _ in range(3)]
    old, young, member = records
    await move(store, old)
    await move(store, young, move_time=NOW + HOUR)
    await move(store, member)
    before = await opened(store, INCIDENT, member)
    await opened(store, OTHER)
    await incidents.forget(moved_before=NOW + HOUR, closed_before=NOW + DAY)
    assert [each.certificate_id for each in await incidents.unassigned()] == [young.certificate_id]
    assert await incidents.open_incidents() == [INCIDENT, OTHER]
    assert await incidents.record(before, replace(before, version=2, close_time=NOW + HOUR))
    await incidents.forget(moved_before=NOW, closed_before=NOW + HOUR)
    assert await incidents.get_incident(INCIDENT.incident_id) is not None
    await incidents.forget(moved_before=NOW, closed_before=NOW + DAY)
    assert await incidents.list_incidents(None, 10) == [OTHER]
    assert await incidents.members(INCIDENT.incident_id, "", 9) == []


async def test_an_incidents_certificates_can_be_selected(store: StoreHarness) -> None:
    """Those that are in force; other fields narrow it; an incident that isn't known has none."""
    records = [await store.issue() for _ in range(4)]
    for record in records[:3]:
        await move(store, record)
    await opened(store, INCIDENT, *records[:3])
    await store.issue(replaces_certificate_id=records[0].certificate_id)

    async def selected(**values: Any) -> list[str]:
        found = await store.stores.renewal_plans.select(Selection(**values), store.clock.now())
        return [one.certificate_id for one in found]

    of_incident = [record.certificate_id for record in records[1:3]]
    assert await selected(incident_id=INCIDENT.incident_id) == of_incident
    named = (records[2].certificate_id, records[3].certificate_id)
    assert await selected(incident_id=INCIDENT.incident_id, certificate_ids=named) == of_incident[1:]
    assert await selected(incident_id=INCIDENT.incident_id, profiles=("other",)) == []
    assert await selected(incident_id="unknown", all=True) == []
