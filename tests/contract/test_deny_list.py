"""What `DenyList` and `EnrollmentStore` promise, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.identity import standing
from certplane.broker.model import DenyEntry, EnrollmentReport, OrderState
from certplane.broker.ports import OrderChange
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness
from tests.support.waiting import until_in_time

NAME = "spiffe://example.org/host/web1"
ISSUER = "CN=Example Intermediate CA"


async def test_an_empty_list_denies_nobody(store: StoreHarness) -> None:
    """No entry, no refusal."""
    assert store.stores.deny_list.denied(NAME, ISSUER, "1f") is None
    assert list(await store.stores.deny_list.entries()) == []


@pytest.mark.parametrize(
    ("entry", "shut_out", "let_in"),
    [
        pytest.param(
            DenyEntry(name=NAME, reason="sold"),
            [(NAME, ISSUER, "1f"), (NAME, "other", "2f")],
            [("other", ISSUER, "1f")],
            id="by name",
        ),
        pytest.param(
            DenyEntry(issuer=ISSUER, serial_number="1f", reason="cloned"),
            [(NAME, ISSUER, "1f"), ("other", ISSUER, "1f")],
            [(NAME, ISSUER, "2f"), (NAME, "other", "1f")],
            id="by issuer and serial",
        ),
    ],
)
async def test_an_entry_shuts_out_what_it_names_and_nobody_else(
    store: StoreHarness,
    entry: DenyEntry,
    shut_out: list[tuple[str, str, str]],
    let_in: list[tuple[str, str, str]],
) -> None:
    """In force when `deny` returns, and until `allow` does."""
    await store.stores.deny_list.deny(entry, [store.event(AuditEventType.IDENTITY_DENIED)])
    expected = replace(entry, create_time=store.clock.now())
    assert [store.stores.deny_list.denied(*identity) for identity in shut_out] == [expected, expected]
    assert [store.stores.deny_list.denied(*identity) for identity in let_in] == [None] * len(let_in)
    assert await store.stores.deny_list.allow(entry, [store.event(AuditEventType.IDENTITY_ALLOWED)])
    assert [store.stores.deny_list.denied(*identity) for identity in shut_out] == [None, None]
    assert len(await store.event_ids()) == 2


async def test_allowing_what_is_not_denied_says_so(store: StoreHarness) -> None:
    """False, and other entries stay."""
    await store.stores.deny_list.deny(DenyEntry(name=NAME), [])
    assert not await store.stores.deny_list.allow(DenyEntry(name="other"), [])
    assert not await store.stores.deny_list.allow(DenyEntry(issuer=ISSUER, serial_number="1f"), [])
    assert store.stores.deny_list.denied(NAME, ISSUER, "1f")


async def test_only_one_of_two_lets_in(store: StoreHarness) -> None:
    """Of two who take back the same entry at once, the other one is told that there is none, and nothing is audited."""
    entry, deny_list = DenyEntry(name=NAME), store.stores.deny_list
    await deny_list.deny(entry, [])
    events = [store.event(AuditEventType.IDENTITY_ALLOWED) for _ in range(2)]
    assert sorted(await asyncio.gather(*(deny_list.allow(entry, [event]) for event in events))) == [False, True]
    assert len(await store.event_ids()) == 1


async def test_denying_twice_keeps_the_first_entry(store: StoreHarness) -> None:
    """Reason and time are the first one's; one `allow` undoes both."""
    first = DenyEntry(name=NAME, reason="sold")
    await store.stores.deny_list.deny(first, [])
    begun = store.clock.now()
    store.clock.advance(timedelta(days=1))
    await store.stores.deny_list.deny(DenyEntry(name=NAME, reason="lost"), [])
    assert list(await store.stores.deny_list.entries()) == [replace(first, create_time=begun)]
    await store.stores.deny_list.allow(DenyEntry(name=NAME), [])
    assert store.stores.deny_list.denied(NAME, "", "") is None


async def test_entries_are_listed_oldest_first(store: StoreHarness) -> None:
    """In the order in which they were made, whatever was removed between them."""
    for name in ("c", "a", "b"):
        await store.stores.deny_list.deny(DenyEntry(name=name), [])
    await store.stores.deny_list.allow(DenyEntry(name="a"), [])
    await store.stores.deny_list.deny(DenyEntry(name="a"), [])
    assert [entry.name for entry in await store.stores.deny_list.entries()] == ["c", "b", "a"]


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(DenyEntry(), id="nothing"),
        pytest.param(DenyEntry(issuer=ISSUER), id="issuer alone"),
        pytest.param(DenyEntry(serial_number="1f"), id="serial alone"),
        pytest.param(DenyEntry(name=NAME, issuer=ISSUER, serial_number="1f"), id="both"),
    ],
)
async def test_an_entry_that_could_be_misread_is_a_mistake(store: StoreHarness, entry: DenyEntry) -> None:
    """Denying is by a name, or by an issuer with a serial number."""
    with pytest.raises(ValueError, match="deny by"):
        await store.stores.deny_list.deny(entry, [])


async def test_a_denial_that_can_not_be_audited_is_not_made(store: StoreHarness) -> None:
    """`fail_closed` holds for operators too."""
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await store.stores.deny_list.deny(DenyEntry(name=NAME), [store.event()])
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert store.stores.deny_list.denied(NAME, "", "") is None


async def test_another_process_s_change_is_seen(store: StoreHarness) -> None:
    """A command beside the running broker denies and allows; the broker's memory follows."""
    if store.place.kind == "memory":
        pytest.skip("there is no other process")

    async def until_denied(expected: bool) -> None:
        def seen() -> bool:
            return bool(store.stores.deny_list.denied(NAME, ISSUER, "1f")) is expected

        await until_in_time(store.clock, seen, what="the change")

    async with store.place.open(store.clock, exclusive=False) as other:
        await other.deny_list.deny(DenyEntry(name=NAME), [])
        await until_denied(expected=True)
        await other.deny_list.allow(DenyEntry(name=NAME), [])
        await other.deny_list.deny(DenyEntry(name="somebody else"), [])
        await until_denied(expected=False)


async def test_a_report_replaces_the_one_before(store: StoreHarness) -> None:
    """Each report is audited; the identity has one."""
    report = EnrollmentReport(NAME, "0.1.0", (("os", "Debian 12"),), "1f", store.clock.now())
    for version in ("0.1.0", "0.2.0"):
        await store.stores.enrollments.record_report(replace(report, agent_version=version), [store.event()])
    assert len(await store.event_ids()) == 2


# Orders of whom is shut out

SERIAL = DenyEntry(issuer=ISSUER, serial_number="1f")
FINALIZING = OrderChange(state=OrderState.FINALIZING)


@pytest.mark.parametrize(
    ("entry", "facts", "ends"),
    [
        pytest.param(DenyEntry(name=NAME), {}, True, id="name"),
        pytest.param(DenyEntry(name="spiffe://example.org/host/web2"), {}, False, id="another name"),
        pytest.param(SERIAL, {"identity_issuer": ISSUER, "identity_serial": "1f"}, True, id="serial"),
        pytest.param(SERIAL, {"identity_issuer": "CN=Other", "identity_serial": "1f"}, False, id="another issuer"),
        pytest.param(SERIAL, {"identity_issuer": ISSUER, "identity_serial": "2f"}, False, id="another serial"),
        pytest.param(SERIAL, {"identity_serial": "1f"}, True, id="serial, of an older release"),
    ],
)
async def test_who_is_shut_out_has_no_open_orders(
    store: StoreHarness, entry: DenyEntry, facts: dict[str, str], ends: bool
) -> None:
    """They end in the same transaction, with an event each that says why; a later order isn't held up by them."""
    order = await store.open_order(identity=NAME, **facts)
    deny = store.event(AuditEventType.IDENTITY_DENIED)
    await store.stores.deny_list.deny(entry, [deny])

    found = await store.stores.orders.get_order(order.order_id)
    assert found is not None
    records = await store.stores.audit.tail(10)
    assert records[0]["event_id"] == deny.event_id
    if not ends:
        assert found == order
        assert len(records) == 1
        return
    assert (found.state, found.error) == (OrderState.FAILED, standing.shut_out())
    assert [(record["order_id"], record["reason_code"]) for record in records[1:]] == [
        (order.order_id, "IDENTITY_REVOKED")
    ]
    assert await store.stores.orders.unfinished_orders() == []
    assert (await store.open_order(identity=NAME, **facts)).order_id != order.order_id


async def test_what_the_ca_may_have_issued_stays_open(store: StoreHarness) -> None:
    """An order that is FINALIZING is followed to its end; one that has ended stays as it is."""
    await store.open_order(identity=NAME)
    (order,) = await store.stores.orders.unfinished_orders()
    await store.stores.orders.change_order(order, FINALIZING)
    await store.stores.deny_list.deny(DenyEntry(name=NAME), [store.event()])
    (found,) = await store.stores.orders.unfinished_orders()
    assert found.state is OrderState.FINALIZING
    assert len(await store.event_ids()) == 1


async def test_an_audit_log_that_fails_shuts_nobody_out(store: StoreHarness) -> None:
    """fail_closed: neither the entry nor the end of the orders stands without its events."""
    await store.open_order(identity=NAME)
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await store.stores.deny_list.deny(DenyEntry(name=NAME), [store.event()])
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert len(await store.stores.orders.unfinished_orders()) == 1
    assert await store.stores.deny_list.entries() == []


async def test_who_is_allowed_again_is_told_of(store: StoreHarness, other: StoreHarness) -> None:
    """So that hosts ask again for what they were refused: by whichever program the entry was removed; a new one is none."""
    allowed: list[str] = []
    adapter: Any = getattr(store.stores.deny_list, "_store", store.stores.deny_list)  # past a memory store's faults
    adapter.on_allowed = lambda: allowed.append("here")
    entry = DenyEntry(name="web1.example", reason="stolen")
    await store.stores.deny_list.deny(entry, [])
    await store.stores.deny_list.deny(DenyEntry(name="web2.example"), [])
    assert allowed == []
    await store.stores.deny_list.allow(entry, [])
    assert allowed == ["here"]
    await other.stores.deny_list.allow(DenyEntry(name="web2.example"), [])
    await store.stores.changes.look()
    assert allowed == ["here"] * 2
