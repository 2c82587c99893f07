"""What `CertificateStore` and `KeyLedger` promise, asked of the fake, of SQLite and of PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from certplane.broker.events import AuditEventType
from certplane.broker.model import CertificateRecord, KeyUse, RevocationReason
from certplane.broker.ports import CertificateQuery
from certplane.errors import Reason, RefusalError
from tests.support.stores import NO_LIMITS, StoreHarness, draft

WEB1 = "spiffe://example.org/host/web1"
WEB2 = "spiffe://example.org/host/web2"


async def cached(store: StoreHarness, record: CertificateRecord, **other: str) -> CertificateRecord | None:
    values = {
        name: getattr(record, name) for name in ("identity", "profile_hash", "issuer", "public_key_sha256")
    } | other
    found: CertificateRecord | None = await store.stores.certificates.find_cached(**values)
    return found


async def test_a_certificate_is_found_by_its_key(store: StoreHarness) -> None:
    """The cache gives back the whole record."""
    record = await store.issue()
    assert await cached(store, record) == record


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"identity": WEB2}, id="identity"),
        pytest.param({"profile_hash": "other"}, id="profile hash"),
        pytest.param({"issuer": "other"}, id="issuer"),
        pytest.param({"public_key_sha256": "other"}, id="key"),
    ],
)
async def test_the_cache_asks_for_all_of_its_key(store: StoreHarness, other: dict[str, str]) -> None:
    """One part that differs is a miss."""
    assert await cached(store, await store.issue(), **other) is None


async def test_what_was_revoked_lately_is_found(store: StoreHarness) -> None:
    """Of every identity, oldest first, and only what could still be used."""
    records = [await store.issue(), await store.issue(identity=WEB2), await store.issue()]
    await store.issue()
    times = []
    for record in records:
        store.clock.advance(timedelta(hours=1))
        times.append(store.clock.now())
        await store.stores.certificates.mark_revoked(
            record.certificate_id, RevocationReason.SUPERSEDED, store.clock.now(), []
        )

    async def since(time: datetime) -> list[str]:
        found = await store.stores.certificates.revoked_since(time, store.clock.now())
        assert all(record.revoke_time is not None and record.revoke_time >= time for record in found)
        return [record.certificate_id for record in found]

    ids = [record.certificate_id for record in records]
    assert await since(times[0]) == ids
    assert await since(times[1]) == ids[1:]
    assert await since(times[2] + timedelta(microseconds=1)) == []
    store.clock.advance(records[0].not_after - store.clock.now())
    assert await since(times[0]) == []


async def test_the_cache_gives_the_newest_that_is_not_revoked(store: StoreHarness) -> None:
    """Of several certificates of one key the newest counts; a revoked one doesn't."""
    first = await store.issue(key="key-a")
    store.clock.advance(timedelta(days=1))
    second = await store.issue(key="key-a")
    assert await cached(store, first) == second
    await store.stores.certificates.mark_revoked(
        second.certificate_id, RevocationReason.SUPERSEDED, store.clock.now(), []
    )
    assert await cached(store, first) == first


async def test_the_cache_gives_nothing_for_a_blocked_key(store: StoreHarness) -> None:
    """A key that was compromised has no answer, though another certificate of it stands."""
    first = await store.issue(key="key-a")
    store.clock.advance(timedelta(days=1))
    second = await store.issue(key="key-a")
    await store.stores.certificates.mark_revoked(
        second.certificate_id, RevocationReason.KEY_COMPROMISE, store.clock.now(), []
    )
    standing = await store.stores.certificates.get_certificate(first.certificate_id)
    assert standing is not None
    assert standing.revoke_time is None
    assert await cached(store, first) is None


async def test_the_cache_also_gives_what_is_due_or_expired(store: StoreHarness) -> None:
    """Whether a certificate still serves is the caller's to decide."""
    record = await store.issue(lasts=timedelta(days=6))
    store.clock.advance(timedelta(days=7))
    assert await cached(store, record) == record


async def test_an_unknown_certificate_is_none(store: StoreHarness) -> None:
    """Reading what isn't there is no error."""
    assert await store.stores.certificates.get_certificate("none") is None


# Pages


async def ids(store: StoreHarness, **query: Any) -> list[str]:
    records = await store.stores.certificates.list_certificates(CertificateQuery(**{"identity": WEB1, **query}))
    return [record.certificate_id for record in records]


async def test_a_page_is_of_one_identity_newest_first(store: StoreHarness) -> None:
    """Others' certificates are not listed."""
    mine = []
    for _ in range(3):
        mine.append((await store.issue()).certificate_id)
        await store.issue(identity=WEB2)
        store.clock.advance(timedelta(seconds=1))
    assert await ids(store) == mine[::-1]
    assert await ids(store, identity="spiffe://example.org/host/none") == []


async def test_pages_follow_each_other_without_gap_or_repeat(store: StoreHarness) -> None:
    """Also when certificates were stored at the same moment."""
    made = [(await store.issue()).certificate_id for _ in range(5)]
    seen: list[str] = []
    while page := await ids(store, limit=2, after=seen[-1] if seen else ""):
        assert len(page) <= 2
        seen += page
    assert seen == made[::-1]


async def test_a_page_after_another_s_or_unknown_certificate_is_empty(store: StoreHarness) -> None:
    """A page token that isn't the caller's own shows nothing."""
    await store.issue()
    theirs = await store.issue(identity=WEB2)
    assert await ids(store, after=theirs.certificate_id) == []
    assert await ids(store, after="none") == []


async def test_a_page_can_be_of_one_profile(store: StoreHarness) -> None:
    """Other profiles' certificates are left out, on every page."""
    web = [(await store.issue()).certificate_id, (await store.issue()).certificate_id]
    await store.issue(profile="db")
    assert await ids(store, profile="web") == web[::-1]
    assert await ids(store, profile="web", after=web[1]) == [web[0]]


async def test_a_page_can_be_of_usable_certificates(store: StoreHarness) -> None:
    """Neither revoked nor expired at the given time; expiry is the first moment at which it isn't usable."""
    short = await store.issue(lasts=timedelta(days=6))
    gone = await store.issue()
    usable = await store.issue()
    await store.stores.certificates.mark_revoked(
        gone.certificate_id, RevocationReason.UNSPECIFIED, store.clock.now(), []
    )
    before, at = short.not_after - timedelta(microseconds=1), short.not_after
    assert await ids(store, usable_at=before) == [usable.certificate_id, short.certificate_id]
    assert await ids(store, usable_at=at) == [usable.certificate_id]
    assert await ids(store, usable_at=at, profile="web", after=usable.certificate_id) == []


# Marks


async def test_the_first_delivery_counts(store: StoreHarness) -> None:
    """A later one changes nothing but is audited."""
    record = await store.issue()
    assert record.deliver_time is None
    store.clock.advance(timedelta(minutes=1))
    first = store.clock.now()
    await store.stores.certificates.mark_delivered(record.certificate_id, first, [store.event()])
    await store.stores.certificates.mark_delivered(record.certificate_id, first + timedelta(1), [store.event()])
    found = await store.stores.certificates.get_certificate(record.certificate_id)
    assert found is not None
    assert found.deliver_time == first
    assert len(await store.event_ids()) == 2


async def test_the_first_revocation_counts(store: StoreHarness) -> None:
    """Time and reason stay those of the first one."""
    record = await store.issue()
    first = store.clock.now()
    for reason in (RevocationReason.SUPERSEDED, RevocationReason.CESSATION_OF_OPERATION):
        revoked = await store.stores.certificates.mark_revoked(
            record.certificate_id, reason, store.clock.now(), [store.event()]
        )
        assert (revoked.revoke_time, revoked.revocation_reason) == (first, RevocationReason.SUPERSEDED)
        store.clock.advance(timedelta(minutes=1))
    assert await store.stores.certificates.get_certificate(record.certificate_id) == revoked


@pytest.mark.parametrize("method", ["mark_delivered", "mark_revoked"])
async def test_an_unknown_certificate_can_not_be_marked(store: StoreHarness, method: str) -> None:
    """CERTIFICATE_NOT_FOUND, and no event of it is written."""
    arguments: list[Any] = ["none", store.clock.now(), [store.event()]]
    if method == "mark_revoked":
        arguments.insert(1, RevocationReason.UNSPECIFIED)
    with pytest.raises(RefusalError) as caught:
        await getattr(store.stores.certificates, method)(*arguments)
    assert caught.value.refusal.reason is Reason.CERTIFICATE_NOT_FOUND
    assert await store.event_ids() == []


async def test_a_hand_out_that_can_not_be_audited_is_not_recorded(store: StoreHarness) -> None:
    """`fail_closed`: AUDIT_UNAVAILABLE, and the certificate stays undelivered."""
    record = await store.issue()
    with store.audit_broken(), pytest.raises(RefusalError) as caught:
        await store.stores.certificates.mark_delivered(record.certificate_id, store.clock.now(), [store.event()])
    assert caught.value.refusal.reason is Reason.AUDIT_UNAVAILABLE
    assert await store.stores.certificates.get_certificate(record.certificate_id) == record


# Keys


async def test_an_unseen_key_is_unknown(store: StoreHarness) -> None:
    """Nothing is known of a key before its first order."""
    assert await store.stores.keys.key_use("key-a") is None


async def test_a_key_is_known_from_its_first_order(store: StoreHarness) -> None:
    """It belongs to that order's identity."""
    await store.stores.orders.open_order(draft(), NO_LIMITS, [])
    assert await store.stores.keys.key_use("key-a") == KeyUse(WEB1, blocked=False)


@pytest.mark.parametrize(
    ("reasons", "blocked"),
    [
        pytest.param([RevocationReason.KEY_COMPROMISE], True, id="compromise"),
        pytest.param([RevocationReason.SUPERSEDED], False, id="another reason"),
        pytest.param([RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE], True, id="compromise, told late"),
    ],
)
async def test_a_compromised_key_is_blocked(
    store: StoreHarness, reasons: list[RevocationReason], blocked: bool
) -> None:
    """Every revocation spends the key, only keyCompromise blocks it, also if it was revoked for another reason before."""
    record = await store.issue(key="key-a")
    for reason in reasons:
        await store.stores.certificates.mark_revoked(record.certificate_id, reason, store.clock.now(), [])
    assert await store.stores.keys.key_use("key-a") == KeyUse(WEB1, blocked=blocked, spent=True)


async def test_keys_of_certificates_are_blocked_together(store: StoreHarness) -> None:
    """Those alone, however many; the first time stays, and the certificates stay as they are."""
    keys, certificates = store.stores.keys, store.stores.certificates
    records = [await store.issue(key=f"key-{number}") for number in range(3)]
    ids = [record.certificate_id for record in records[:2]]
    event = store.event(AuditEventType.ROLLOUT_KEYS_BLOCKED)
    for events in ([event], []):  # asked again, as after a kill
        await certificates.block_keys([*ids, "nothing"], store.clock.now(), events)

    uses = [await keys.key_use(record.public_key_sha256) for record in records]
    assert [use is not None and use.blocked for use in uses] == [True, True, False]
    assert await certificates.get_certificate(ids[0]) == records[0]
    assert await cached(store, records[0]) is None
    assert (await store.event_ids()).count(event.event_id) == 1


async def test_what_nobody_was_given_of_compromised_keys(store: StoreHarness) -> None:
    """Of each such key, however late it was told; not what somebody has, nor of keys that are blocked or spent alone."""
    certificates = store.stores.certificates
    superseded, compromised = RevocationReason.SUPERSEDED, RevocationReason.KEY_COMPROMISE
    told: dict[str, list[RevocationReason]] = {"a": [compromised], "b": [superseded, compromised], "c": [superseded]}
    later: dict[str, CertificateRecord] = {}
    given = await store.issue(key="a", profile_hash="third")
    await certificates.mark_delivered(given.certificate_id, store.clock.now(), [])
    for key, reasons in told.items():
        first, later[key] = await store.issue(key=key), await store.issue(key=key, profile_hash="other")
        for reason in reasons:
            await certificates.mark_revoked(first.certificate_id, reason, store.clock.now(), [])
    blocked = await store.issue(key="d")
    await certificates.block_keys([blocked.certificate_id], store.clock.now(), [])

    began = store.clock.now()

    async def found(now: datetime = began, since: datetime = began, limit: int = 10) -> list[CertificateRecord]:
        records = await certificates.undelivered_of_compromised_keys(since, now, limit)
        return sorted(records, key=lambda record: record.certificate_id)

    assert await found() == [later["a"], later["b"]]
    assert await found(since=began + timedelta(hours=1)) == []
    assert len(await found(limit=1)) == 1
    assert await found(now=later["b"].not_after) == []
    await certificates.mark_revoked(later["a"].certificate_id, compromised, store.clock.now(), [])
    assert await found() == [later["b"]]


async def test_the_certificates_of_one_key(store: StoreHarness) -> None:
    """Those of the identity that are of use: not another's, nor of another key, revoked or expired."""
    first, second = await store.issue(key="key-a"), await store.issue(key="key-a", profile_hash="other")
    await store.issue(key="key-b")

    async def found(identity: str = WEB1, now: datetime | None = None) -> list[str]:
        records = await store.stores.certificates.usable_of_key(identity, "key-a", now or store.clock.now())
        return [record.certificate_id for record in records]

    assert await found() == [first.certificate_id, second.certificate_id]
    assert await found("web2") == []
    assert await found(now=first.not_after) == []
    now = store.clock.now()
    await store.stores.certificates.mark_revoked(first.certificate_id, RevocationReason.SUPERSEDED, now, [])
    assert await found() == [second.certificate_id]


@pytest.mark.parametrize(
    ("by_holder", "withdrawn"),
    [
        pytest.param([True], True, id="holder"),
        pytest.param([False], False, id="operator"),
        pytest.param([True, False], False, id="holder, then operator"),
        pytest.param([False, True], False, id="operator, then holder"),
        pytest.param([True, True], True, id="holder again"),
    ],
)
async def test_who_has_revoked_is_kept(store: StoreHarness, by_holder: list[bool], withdrawn: bool) -> None:
    """What an operator has revoked, first or later, isn't only its holder's wish."""
    record = await store.issue(key="key-a")
    reason, now = RevocationReason.SUPERSEDED, store.clock.now()
    for mine in by_holder:
        await store.stores.certificates.mark_revoked(record.certificate_id, reason, now, [], by_holder=mine)
    found = await store.stores.certificates.get_certificate(record.certificate_id)
    assert found is not None
    assert found.withdrawn is withdrawn


async def test_a_spent_key_gets_no_order(store: StoreHarness) -> None:
    """Neither anew nor with another profile; what is open for it can be joined, and ends by being asked again."""
    record = await store.issue(key="key-a")
    order = await store.open_order(public_key_sha256="key-a")
    reason, now = RevocationReason.SUPERSEDED, store.clock.now()
    await store.stores.certificates.mark_revoked(record.certificate_id, reason, now, [])
    assert (await store.open_order(public_key_sha256="key-a")).order_id == order.order_id
    with pytest.raises(RefusalError) as caught:
        await store.open_order(public_key_sha256="key-a", profile_hash="other")
    assert caught.value.refusal.reason is Reason.KEY_REUSED
