"""What `DenyList` and `EnrollmentStore` promise, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.model import AuditEventType, DenyEntry, EnrollmentReport
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness

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


async def test_another_process_s_change_is_seen_within_a_second(store: StoreHarness) -> None:
    """A command beside the running broker denies and allows; the broker's memory follows."""
    if store.place.kind == "fake":
        pytest.skip("there is no other process")

    async def until_denied(expected: bool) -> None:
        for _ in range(2):  # of half a second of the store's clock each
            while not store.clock.sleepers:  # noqa: ASYNC110 - the clock has no event for it
                await asyncio.sleep(0.001)
            store.clock.advance(timedelta(milliseconds=500))
            for _ in range(200):
                if bool(store.stores.deny_list.denied(NAME, ISSUER, "1f")) is expected:
                    return
                await asyncio.sleep(0.005)
        pytest.fail("not seen")

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
