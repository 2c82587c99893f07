"""What `OrderStore` promises, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.model import OrderCause, OrderState, RevocationReason, TxtRecord
from certplane.broker.ports import DurableLimits, OrderChange
from certplane.errors import ProblemDocument, Reason, Refusal, RefusalError, Violation
from tests.support.stores import NO_LIMITS, StoreHarness, certificate, draft

HOUR = timedelta(hours=1)

REFUSAL = Refusal(
    Reason.ISSUER_RATE_LIMITED,
    "the CA wants fewer orders",
    retry_after=timedelta(hours=3, microseconds=7),
    violations=(Violation("csr_pem", "odd \u2028 text"),),
    problems=(
        ProblemDocument("urn:ietf:params:acme:error:rateLimited", "too many", 429),
        ProblemDocument("urn:ietf:params:acme:error:dns", "no TXT", None, "example.org"),
    ),
)


async def refused(waiting: Any) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await waiting
    return caught.value.refusal


# Opening and joining


async def test_a_new_order_is_pending_and_holds_its_draft(store: StoreHarness) -> None:
    """What was asked for is in the order, which is PENDING, created now, and can be read back."""
    opened = await store.stores.orders.open_order(draft(replaces_certificate_id="old"), NO_LIMITS, [store.event()])
    order = opened.order
    assert opened.created
    assert order.key == draft(replaces_certificate_id="old").key
    assert (order.csr_der, order.request_id) == (b"\x30\x00csr", "request-1")
    assert order.state is OrderState.PENDING
    assert order.create_time == order.update_time == store.clock.now()
    assert await store.stores.orders.get_order(order.order_id) == order


async def test_events_of_a_new_order_name_it(store: StoreHarness) -> None:
    """The events that authorise an order are stored with it and carry its id."""
    opened = await store.stores.orders.open_order(draft(), NO_LIMITS, [store.event(), store.event(order_id="other")])
    records = await store.stores.audit.tail(10)
    assert [record["order_id"] for record in records] == [opened.order.order_id, "other"]


async def test_equal_orders_are_joined_and_not_audited_again(store: StoreHarness) -> None:
    """The second draft of one key gets the first one's order, and its events are not written."""
    first = await store.stores.orders.open_order(draft(), NO_LIMITS, [store.event()])
    second = await store.stores.orders.open_order(draft(request_id="request-2"), NO_LIMITS, [store.event()])
    assert second.order == first.order
    assert not second.created
    assert await store.event_ids() == ["event-000001"]


async def test_callers_at_once_get_one_order(store: StoreHarness) -> None:
    """Of many equal drafts at the same moment exactly one makes the order."""
    opened = await asyncio.gather(*(store.stores.orders.open_order(draft(), NO_LIMITS, []) for _ in range(20)))
    assert len({one.order.order_id for one in opened}) == 1
    assert [one.created for one in opened].count(True) == 1


@pytest.mark.parametrize(
    "different",
    [
        pytest.param({"profile_hash": "other"}, id="profile hash"),
        pytest.param({"dns_names": ("example.org",)}, id="names"),
        pytest.param({"public_key_sha256": "key-b"}, id="key"),
        pytest.param({"replaces_certificate_id": "other"}, id="certificate replaced"),
        pytest.param({"identity": "spiffe://example.org/host/web2", "public_key_sha256": "key-b"}, id="caller"),
    ],
)
async def test_a_different_key_of_work_is_another_order(store: StoreHarness, different: dict[str, Any]) -> None:
    """Each part of an order's key tells two orders apart."""
    first = await store.open_order()
    second = await store.stores.orders.open_order(draft(**different), NO_LIMITS, [])
    assert second.created
    assert second.order.order_id != first.order_id


async def test_a_hundred_long_names_fit_into_an_order(store: StoreHarness) -> None:
    """The index of open orders takes the largest name set that a certificate can have."""
    names = tuple(sorted(f"{number:03d}.{'a' * 60}.{'b' * 60}.{'c' * 60}.example.org" for number in range(100)))
    first = await store.stores.orders.open_order(draft(dns_names=names), NO_LIMITS, [])
    second = await store.stores.orders.open_order(draft(dns_names=names), NO_LIMITS, [])
    assert first.order.dns_names == names
    assert second.order == first.order


async def test_a_failed_order_is_joined_until_it_may_be_tried_again(store: StoreHarness) -> None:
    """Before a failed order's retry_time its key gets that order; from then on a new one."""
    order = await store.open_order()
    failed = OrderChange(state=OrderState.FAILED, error=REFUSAL, retry_time=store.clock.now() + HOUR)
    await store.stores.orders.change_order(order, failed)
    store.clock.advance(HOUR - timedelta(microseconds=1))
    again = await store.stores.orders.open_order(draft(), NO_LIMITS, [])
    assert not again.created
    assert again.order.error == REFUSAL
    store.clock.advance(timedelta(microseconds=1))
    later = await store.stores.orders.open_order(draft(), NO_LIMITS, [])
    assert later.created
    assert later.order.order_id != order.order_id


async def test_a_failed_order_without_a_retry_time_is_not_joined(store: StoreHarness) -> None:
    """An order that failed with no word on when to come back makes way at once."""
    order = await store.open_order()
    await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED, error=REFUSAL))
    assert (await store.stores.orders.open_order(draft(), NO_LIMITS, [])).created


async def test_an_issued_order_is_not_joined(store: StoreHarness) -> None:
    """What has been issued is the cache's to find."""
    record = await store.issue(key="key-a")
    opened = await store.stores.orders.open_order(draft(), NO_LIMITS, [])
    assert opened.created
    assert opened.order.order_id != record.order_id


# Keys


async def test_a_key_belongs_to_the_identity_that_used_it_first(store: StoreHarness) -> None:
    """Another identity with the same key is refused, and nothing is written."""
    await store.open_order()
    other = draft(identity="spiffe://example.org/host/web2")
    refusal = await refused(store.stores.orders.open_order(other, NO_LIMITS, [store.event()]))
    assert refusal.reason is Reason.KEY_REUSED
    assert "web1" not in refusal.message
    assert await store.event_ids() == []
    assert len(await store.stores.orders.unfinished_orders()) == 1


async def test_a_key_stays_its_owner_s_after_the_order_has_ended(store: StoreHarness) -> None:
    """The ledger outlives the order."""
    await store.issue(key="key-a")
    other = draft(identity="spiffe://example.org/host/web2")
    assert (await refused(store.stores.orders.open_order(other, NO_LIMITS, []))).reason is Reason.KEY_REUSED


async def test_a_blocked_key_is_refused_even_where_an_order_is_open(store: StoreHarness) -> None:
    """After a report of a compromised key no order of it is made or joined."""
    record = await store.issue(key="key-a")
    await store.open_order()
    await store.stores.certificates.mark_revoked(
        record.certificate_id, RevocationReason.KEY_COMPROMISE, store.clock.now(), []
    )
    assert (await refused(store.stores.orders.open_order(draft(), NO_LIMITS, []))).reason is Reason.KEY_REUSED


async def test_an_ending_can_block_the_key(store: StoreHarness) -> None:
    """For what a CA may have issued and nobody stored: the order ends and its key is spent, in one transaction."""
    order = await store.open_order()
    failed = await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED, block_key=True))
    assert failed.state is OrderState.FAILED
    use = await store.stores.keys.key_use(failed.public_key_sha256)
    assert use is not None
    assert (use.identity, use.blocked) == (failed.identity, True)
    assert (await refused(store.stores.orders.open_order(draft(), NO_LIMITS, []))).reason is Reason.KEY_REUSED


# Limits


@pytest.mark.parametrize(
    ("limits", "second", "third", "window"),
    [
        pytest.param(
            DurableLimits(per_identity_per_hour=2), {"profile": "db"}, {"profile": "mail"}, HOUR, id="identity"
        ),
        pytest.param(DurableLimits(per_identity_profile_per_hour=2), {}, {}, HOUR, id="identity and profile"),
        pytest.param(DurableLimits(new_keys_per_identity_profile_per_day=2), {}, {}, 24 * HOUR, id="new keys"),
        pytest.param(DurableLimits(certificates_per_identity_profile_per_day=2), {}, {}, 24 * HOUR, id="certificates"),
        pytest.param(
            DurableLimits(certificates_per_name_set_per_week=2),
            {"identity": "spiffe://example.org/host/web2", "profile": "db"},
            {"identity": "spiffe://example.org/host/web3", "profile": "mail"},
            7 * 24 * HOUR,
            id="name set, whoever's",
        ),
    ],
)
async def test_a_reached_limit_refuses_until_the_window_frees_a_place(
    store: StoreHarness, limits: DurableLimits, second: dict[str, Any], third: dict[str, Any], window: timedelta
) -> None:
    """The order over a limit is refused, named, and told the exact time; then it is made."""
    await store.open_order(public_key_sha256="key-1", limits=limits)
    store.clock.advance(timedelta(minutes=10))
    await store.open_order(public_key_sha256="key-2", limits=limits, **second)
    store.clock.advance(timedelta(minutes=5))
    late = draft(public_key_sha256="key-3", **third)
    refusal = await refused(store.stores.orders.open_order(late, limits, [store.event()]))
    assert refusal.reason is Reason.RATE_LIMITED
    assert refusal.retry_after == window - timedelta(minutes=15)
    (violation,) = refusal.violations
    assert getattr(limits, violation.subject) == 2
    assert await store.event_ids() == []
    store.clock.advance(refusal.retry_after)
    assert (await store.stores.orders.open_order(late, limits, [])).created


@pytest.mark.parametrize(
    ("limits", "other"),
    [
        pytest.param(
            DurableLimits(per_identity_per_hour=1), {"identity": "spiffe://example.org/host/web2"}, id="identity"
        ),
        pytest.param(DurableLimits(per_identity_profile_per_hour=1), {"profile": "db"}, id="profile"),
        pytest.param(DurableLimits(new_keys_per_identity_profile_per_day=1), {"profile": "db"}, id="new keys"),
        pytest.param(DurableLimits(certificates_per_identity_profile_per_day=1), {"profile": "db"}, id="certificates"),
        pytest.param(
            DurableLimits(certificates_per_name_set_per_week=1), {"dns_names": ("example.org",)}, id="name set"
        ),
    ],
)
async def test_a_limit_protects_neighbours(store: StoreHarness, limits: DurableLimits, other: dict[str, Any]) -> None:
    """What one identity or profile has used up is not missing to another."""
    await store.open_order(limits=limits)
    assert (await store.stores.orders.open_order(draft(public_key_sha256="key-b", **other), limits, [])).created


async def test_joining_is_no_new_order_to_a_limit(store: StoreHarness) -> None:
    """A caller over its limit still gets the order that is open."""
    limits = DurableLimits(per_identity_per_hour=1)
    order = await store.open_order(limits=limits)
    assert (await store.stores.orders.open_order(draft(), limits, [])).order == order


async def test_a_key_that_was_used_today_is_not_a_new_key(store: StoreHarness) -> None:
    """Trying again with the same key isn't stopped by the limit on new keys."""
    limits = DurableLimits(new_keys_per_identity_profile_per_day=1)
    order = await store.open_order(limits=limits)
    await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))
    assert (await store.stores.orders.open_order(draft(), limits, [])).created
    other = draft(public_key_sha256="key-b")
    assert (await refused(store.stores.orders.open_order(other, limits, []))).reason is Reason.RATE_LIMITED


CERTIFICATES = [
    pytest.param(DurableLimits(certificates_per_identity_profile_per_day=1), id="profile"),
    pytest.param(DurableLimits(certificates_per_name_set_per_week=1), id="name set"),
]


@pytest.mark.parametrize("limits", CERTIFICATES)
@pytest.mark.parametrize(
    ("states", "counts"),
    [
        pytest.param([], True, id="open"),
        pytest.param([OrderState.FAILED], False, id="failed before"),
        pytest.param([OrderState.FINALIZING, OrderState.FAILED], True, id="failed after the finalisation"),
    ],
)
async def test_a_limit_on_certificates_counts_what_may_be_one(
    store: StoreHarness, limits: DurableLimits, states: list[OrderState], counts: bool
) -> None:
    """Whatever its key, an order that is open or was finalised; one that failed before has cost the CA no certificate."""
    order = await store.open_order(limits=limits)
    for state in states:
        await store.stores.orders.change_order(order, OrderChange(state=state))
    again = draft(replaces_certificate_id="another")  # of the same key
    if counts:
        refusal = await refused(store.stores.orders.open_order(again, limits, []))
        assert refusal.reason is Reason.RATE_LIMITED
    else:
        assert (await store.stores.orders.open_order(again, limits, [])).created


async def test_renewals_far_from_due_have_a_limit(store: StoreHarness) -> None:
    """Beside all others; an ordinary order isn't one."""
    limits = DurableLimits(early_renewals_per_identity_profile_per_day=1)
    await store.open_order(limits=limits, replaces_certificate_id="a", cause=OrderCause.EARLY)
    early = draft(replaces_certificate_id="b", cause=OrderCause.EARLY)
    refusal = await refused(store.stores.orders.open_order(early, limits, []))
    assert [violation.subject for violation in refusal.violations] == ["early_renewals_per_identity_profile_per_day"]
    assert (await store.stores.orders.open_order(draft(replaces_certificate_id="b"), limits, [])).created


ASKED_FOR = [cause for cause in OrderCause if cause.asked_for]
ALL_LIMITS = DurableLimits(1, 1, 1, 1, 1, 1, 2)


@pytest.mark.parametrize("cause", ASKED_FOR)
async def test_what_was_asked_for_is_held_up_by_its_own_limit_alone(store: StoreHarness, cause: OrderCause) -> None:
    """The others may all be reached; and it uses up nothing of them, but for the CA's certificates of the name set."""
    for number, facts in enumerate(({"cause": OrderCause.ORDINARY}, {"cause": cause}, {"cause": cause})):
        await store.issue(key=f"key-{number}", limits=ALL_LIMITS, replaces_certificate_id=f"r{number}", **facts)
    third = draft(public_key_sha256="key-3", cause=cause, replaces_certificate_id="r3")
    refusal = await refused(store.stores.orders.open_order(third, ALL_LIMITS, []))
    assert [violation.subject for violation in refusal.violations] == ["asked_for_per_identity_profile_per_hour"]
    limits = DurableLimits(2, 2, 2, 2, 2, None, 2)
    assert (await store.stores.orders.open_order(draft(public_key_sha256="key-4"), limits, [])).created


@pytest.mark.parametrize("cause", [*ASKED_FOR, OrderCause.WITHDRAWN])
@pytest.mark.parametrize("replaces", ["certificate-1", ""], ids=["renewal", "without saying of what"])
@pytest.mark.parametrize("issued", [True, False], ids=["issued", "open"])
async def test_what_was_asked_for_once_is_taken_once(
    store: StoreHarness, cause: OrderCause, replaces: str, issued: bool
) -> None:
    """Another key makes no second one of it: that is an ordinary order. A try that failed has taken nothing."""
    facts: dict[str, Any] = {"cause": cause, "ask_time": store.clock.now(), "replaces_certificate_id": replaces}
    store.clock.advance(timedelta(seconds=1))
    failed = await store.open_order(public_key_sha256="key-0", **facts)
    await store.stores.orders.change_order(failed, OrderChange(state=OrderState.FAILED))
    if issued:
        await store.issue(key="key-1", **facts)
    else:
        assert (await store.open_order(public_key_sha256="key-1", **facts)).cause is cause
    assert (await store.open_order(public_key_sha256="key-2", **facts)).cause is OrderCause.ORDINARY


@pytest.mark.parametrize("newest", [True, False], ids=["the newest", "an older one"])
async def test_an_order_that_names_nothing_takes_the_newest_certificate(store: StoreHarness, *, newest: bool) -> None:
    """Else each certificate would be worth two renewals; an older one, of another lineage, keeps its own."""
    record = await store.issue(key="key-0")
    store.clock.advance(timedelta(seconds=1))
    if not newest:
        await store.issue(key="key-other")
        store.clock.advance(timedelta(seconds=1))
    wanted: dict[str, Any] = {"cause": OrderCause.DUE, "ask_time": store.clock.now()}
    store.clock.advance(timedelta(seconds=1))
    await store.issue(key="key-1", **wanted)
    order = await store.open_order(public_key_sha256="key-2", replaces_certificate_id=record.certificate_id, **wanted)
    assert order.cause is (OrderCause.ORDINARY if newest else OrderCause.DUE)


async def test_why_an_order_is_wanted_is_in_the_event_that_authorised_it(store: StoreHarness) -> None:
    """As the store has judged it, and what it replaces: an auditor asks why."""
    wanted: dict[str, Any] = {"cause": OrderCause.OPERATOR, "ask_time": store.clock.now()}
    store.clock.advance(timedelta(seconds=1))
    for key in ("key-1", "key-2"):
        one = draft(public_key_sha256=key, replaces_certificate_id="certificate-1", **wanted)
        await store.stores.orders.open_order(one, NO_LIMITS, [store.event()])
    recorded = await store.stores.audit.tail(10)
    assert [record["cause"] for record in recorded] == ["operator", "ordinary"]
    assert {record["replaces_certificate_id"] for record in recorded} == {"certificate-1"}


async def test_no_limit_is_too_high_to_be_counted_to(store: StoreHarness) -> None:
    """Beyond what a database takes for a number, too."""
    limits = DurableLimits(**dict.fromkeys(DurableLimits.__dataclass_fields__, 10**30))
    await store.open_order(limits=limits)
    await store.open_order(public_key_sha256="key-b", limits=limits)


@pytest.mark.parametrize(
    ("limits", "window"),
    [
        pytest.param(DurableLimits(per_identity_per_hour=1), HOUR, id="an hour"),
        pytest.param(DurableLimits(new_keys_per_identity_profile_per_day=1), 24 * HOUR, id="a day"),
        pytest.param(DurableLimits(certificates_per_name_set_per_week=1), 7 * 24 * HOUR, id="a week"),
    ],
)
async def test_what_a_clock_that_was_ahead_has_dated_does_not_count_for_good(
    store: StoreHarness, limits: DurableLimits, window: timedelta
) -> None:
    """A little ahead it counts as ever; of far ahead nothing is known."""
    store.clock.advance(timedelta(minutes=30))
    await store.open_order(limits=limits)
    store.clock.advance(-timedelta(minutes=30))
    late = draft(public_key_sha256="key-b")
    refusal = await refused(store.stores.orders.open_order(late, limits, []))
    assert refusal.retry_after == window + timedelta(minutes=30)
    store.clock.advance(-timedelta(days=30))
    assert (await store.stores.orders.open_order(late, limits, [])).created


async def test_a_failure_that_a_clock_ahead_has_dated_does_not_answer_for_good(store: StoreHarness) -> None:
    """Its CA's word was for an hour, and not for a year and an hour."""
    store.clock.advance(timedelta(days=365))
    order = await store.open_order()
    failed = OrderChange(state=OrderState.FAILED, error=REFUSAL, retry_time=store.clock.now() + HOUR)
    await store.stores.orders.change_order(order, failed)
    store.clock.advance(-timedelta(days=365))
    assert (await store.stores.orders.open_order(draft(), NO_LIMITS, [])).created


async def test_what_its_holder_has_revoked_is_replaced_from_the_cas_budget(store: StoreHarness) -> None:
    """Its own limits don't hold it up; the certificates of the name set do, of which one is kept for it."""
    limits = DurableLimits(9, 9, 1, 1, 1, 1, 1)
    await store.issue(key="key-0", limits=limits)
    withdrawn = {"cause": OrderCause.WITHDRAWN}
    await store.issue(key="key-1", limits=limits, replaces_certificate_id="r1", **withdrawn)
    third = draft(public_key_sha256="key-2", replaces_certificate_id="r2", **withdrawn)
    refusal = await refused(store.stores.orders.open_order(third, limits, []))
    assert [violation.subject for violation in refusal.violations] == ["certificates_per_name_set_per_week"]


async def test_a_refusal_names_each_limit_its_value_and_its_end(store: StoreHarness) -> None:
    """In the message, which every place shows, and in the violations."""
    limits = DurableLimits(per_identity_per_hour=1, certificates_per_name_set_per_week=1)
    await store.open_order(limits=limits)
    refusal = await refused(store.stores.orders.open_order(draft(public_key_sha256="key-b"), limits, []))
    assert refusal.message == (
        "the broker's limit is reached: rate_limits.per_identity_per_hour (at most 1 in an hour), "
        "rate_limits.certificates_per_name_set_per_week (at most 1 in a week); the next is possible at "
        "2026-11-30T12:00:00Z; the week is of exactly these names, whichever hosts have them, as public CAs count; a "
        "renewal that is due, or that an operator asks for (`certplanectl renew`), isn't held up by it; to allow more, "
        "raise it in broker.yml (0 is no limit) and reload the broker"
    )
    assert [violation.description for violation in refusal.violations] == [
        "at most 1 in an hour, until 2026-11-23T13:00:00Z",
        "at most 1 in a week, until 2026-11-30T12:00:00Z",
    ]
    assert refusal.retry_after == timedelta(days=7)


async def test_ended_orders_count(store: StoreHarness) -> None:
    """A limit counts orders that were made, whatever became of them."""
    limits = DurableLimits(per_identity_per_hour=1)
    await store.issue()
    assert (await refused(store.stores.orders.open_order(draft(), limits, []))).reason is Reason.RATE_LIMITED


async def test_callers_at_once_can_not_pass_a_limit_together(store: StoreHarness) -> None:
    """Of many different drafts at the same moment as many become orders as the limit allows."""
    limits = DurableLimits(per_identity_per_hour=3)
    drafts = [draft(public_key_sha256=f"key-{number}") for number in range(10)]
    results = await asyncio.gather(
        *(store.stores.orders.open_order(one, limits, []) for one in drafts), return_exceptions=True
    )
    assert sum(isinstance(result, RefusalError) for result in results) == 7
    assert len(await store.stores.orders.unfinished_orders()) == 3


# Changes and ends


async def test_a_change_writes_what_it_names_and_leaves_the_rest(store: StoreHarness) -> None:
    """Fields that are None stay; update_time moves with the state alone."""
    order = await store.open_order()
    records = (TxtRecord("example.org", "_acme-challenge.example.org", "value-1", "id-7", "dns/one"),)
    store.clock.advance(timedelta(seconds=1))
    first = await store.stores.orders.change_order(
        order, OrderChange(acme_order_url="https://ca.example/1", txt_records=records), [store.event()]
    )
    assert (first.update_time, first.state) == (order.update_time, OrderState.PENDING)
    second = await store.stores.orders.change_order(order, OrderChange(state=OrderState.VALIDATING))
    assert second.update_time == store.clock.now()
    assert (second.acme_order_url, second.txt_records) == ("https://ca.example/1", records)
    assert await store.stores.orders.get_order(order.order_id) == second
    assert await store.event_ids() == ["event-000001"]


async def test_an_error_is_read_back_as_it_was_written(store: StoreHarness) -> None:
    """A refusal with its violations, problem documents and times survives the store."""
    order = await store.open_order()
    change = OrderChange(state=OrderState.FAILED, error=REFUSAL, retry_time=store.clock.now() + HOUR)
    await store.stores.orders.change_order(order, change)
    found = await store.stores.orders.get_order(order.order_id)
    assert found is not None
    assert found.error == REFUSAL
    assert found.retry_time == store.clock.now() + HOUR


async def test_an_unknown_order_can_not_be_changed(store: StoreHarness) -> None:
    """ORDER_NOT_FOUND, and no event of it is written."""
    change = store.stores.orders.change_order(
        replace(await store.open_order(), order_id="none"), OrderChange(state=OrderState.FAILED), [store.event()]
    )
    assert (await refused(change)).reason is Reason.ORDER_NOT_FOUND
    assert await store.event_ids() == []


@pytest.mark.parametrize("end", [OrderState.ISSUED, OrderState.FAILED])
async def test_an_ended_order_takes_a_change_of_its_txt_records_alone(store: StoreHarness, end: OrderState) -> None:
    """Records are removed after the end; nothing else of an ended order changes."""
    order = await store.open_order()
    records = (TxtRecord("example.org", "_acme-challenge.example.org", "value-1"),)
    await store.stores.orders.change_order(order, OrderChange(txt_records=records))
    if end is OrderState.ISSUED:
        await store.stores.orders.finish_order(
            order, certificate(order, "certificate-1", store.clock.now(), timedelta(days=90)), []
        )
    else:
        await store.stores.orders.change_order(order, OrderChange(state=end))
    for change in (OrderChange(state=OrderState.FAILED), OrderChange(txt_records=(), acme_order_url="x")):
        refusal = await refused(store.stores.orders.change_order(order, change))
        assert refusal.reason is Reason.ORDER_NOT_FOUND
    changed = await store.stores.orders.change_order(order, OrderChange(txt_records=()))
    assert (changed.txt_records, changed.state) == ((), end)


async def test_an_order_does_not_go_back(store: StoreHarness) -> None:
    """A state before the present one is a mistake of the program."""
    order = await store.open_order()
    await store.stores.orders.change_order(order, OrderChange(state=OrderState.FINALIZING))
    with pytest.raises(RuntimeError):
        await store.stores.orders.change_order(order, OrderChange(state=OrderState.VALIDATING))
    found = await store.stores.orders.get_order(order.order_id)
    assert found is not None
    assert found.state is OrderState.FINALIZING


async def test_finishing_stores_the_certificate_and_issues_the_order(store: StoreHarness) -> None:
    """Certificate, state and events are one; the certificate can be read back whole."""
    order = await store.open_order()
    store.clock.advance(timedelta(minutes=1))
    record = certificate(order, "certificate-1", store.clock.now(), timedelta(days=90))
    finished = await store.stores.orders.finish_order(order, record, [store.event()])
    assert (finished.state, finished.certificate_id) == (OrderState.ISSUED, "certificate-1")
    assert finished.update_time == store.clock.now()
    assert await store.stores.certificates.get_certificate("certificate-1") == record
    assert await store.event_ids() == ["event-000001"]


async def test_finishing_again_changes_nothing(store: StoreHarness) -> None:
    """The order keeps its first certificate, and is audited once."""
    order = await store.open_order()
    record = certificate(order, "certificate-1", store.clock.now(), timedelta(days=90))
    first = await store.stores.orders.finish_order(order, record, [store.event()])
    other = certificate(order, "certificate-2", store.clock.now(), timedelta(days=90))
    assert await store.stores.orders.finish_order(order, other, [store.event()]) == first
    assert await store.stores.certificates.get_certificate("certificate-2") is None
    assert await store.event_ids() == ["event-000001"]


async def test_a_failed_order_can_not_be_finished(store: StoreHarness) -> None:
    """ORDER_NOT_FOUND, and no certificate is stored."""
    order = await store.open_order()
    await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))
    record = certificate(order, "certificate-1", store.clock.now(), timedelta(days=90))
    assert (await refused(store.stores.orders.finish_order(order, record, []))).reason is Reason.ORDER_NOT_FOUND
    assert await store.stores.certificates.get_certificate("certificate-1") is None


async def test_unfinished_orders_are_the_open_ones_and_those_with_records_oldest_first(store: StoreHarness) -> None:
    """What a start must pick up: open orders, and ended ones that still list TXT records."""
    left, failed, pending = [await store.open_order(public_key_sha256=f"key-{number}") for number in range(3)]
    records = OrderChange(txt_records=(TxtRecord("example.org", "_acme-challenge.example.org", "value-1"),))
    await store.stores.orders.change_order(left, records)
    for order in (left, failed):
        await store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED))
    store.clock.advance(timedelta(seconds=1))
    late = await store.open_order(public_key_sha256="key-late")
    found = [order.order_id for order in await store.stores.orders.unfinished_orders()]
    assert found == [left.order_id, pending.order_id, late.order_id]
    assert failed.order_id not in found


async def test_an_unknown_order_is_none(store: StoreHarness) -> None:
    """Reading what isn't there is no error."""
    assert await store.stores.orders.get_order("none") is None


# The audit modes


async def test_fail_closed_makes_no_order_that_can_not_be_audited(store: StoreHarness) -> None:
    """AUDIT_UNAVAILABLE, no order, and the key isn't taken."""
    with store.audit_broken():
        refusal = await refused(store.stores.orders.open_order(draft(), NO_LIMITS, [store.event()]))
    assert refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert refusal.retry_after is not None
    assert await store.stores.orders.unfinished_orders() == []
    assert await store.stores.keys.key_use("key-a") is None


async def test_fail_closed_leaves_an_order_as_it_was(store: StoreHarness) -> None:
    """A change whose event can't be written is not made."""
    order = await store.open_order()
    with store.audit_broken():
        change = store.stores.orders.change_order(order, OrderChange(state=OrderState.FAILED), [store.event()])
        assert (await refused(change)).reason is Reason.AUDIT_UNAVAILABLE
    assert await store.stores.orders.get_order(order.order_id) == order


async def test_what_has_no_event_needs_no_audit_log(store: StoreHarness) -> None:
    """A change without events is made while the audit log can't be written."""
    order = await store.open_order()
    with store.audit_broken():
        changed = await store.stores.orders.change_order(order, OrderChange(acme_order_url="x"))
    assert changed.acme_order_url == "x"


@pytest.mark.parametrize("failure_mode", ["fail_open"])
async def test_fail_open_makes_the_order_all_the_same(store: StoreHarness) -> None:
    """The order is durable; its event is not in the log, for it was spilled."""
    with store.audit_broken():
        opened = await store.stores.orders.open_order(draft(), NO_LIMITS, [store.event()])
    assert opened.created
    assert await store.stores.orders.get_order(opened.order.order_id) == opened.order
    assert await store.event_ids() == []
    await store.stores.audit.append([store.event()])
    assert await store.event_ids() == ["event-000002"]
