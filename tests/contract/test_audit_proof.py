"""Whoever changes the audit log in its database is found out: of SQLite and PostgreSQL, and of an exported file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.broker import metrics
from certplane.broker.events import AuditEventType
from certplane.broker.proof.chain import Chain, ChainStart, Head, next_hash
from certplane.broker.proof.lines import LinesError
from certplane.broker.proof.sealing import Sealing
from certplane.broker.proof.verify import Finding
from tests.fakes.audit import FakeMeter
from tests.support.audit_log import KEYS, OTHER_SECRET, Signer, exported, sealing, verified, verified_lines
from tests.support.stores import StoreHarness, StorePlace

EVENTS = 10
"""Of the first chain: checkpoints at 4, 8 and 10."""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def store_place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """Where rows can be changed behind the broker's back."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    return StorePlace(request.param, tmp_path / "broker.db", url)


@pytest_asyncio.fixture
async def log(store: StoreHarness, other: StoreHarness) -> AsyncIterator[StoreHarness]:
    """Chain 1 with ten events, and chain 2, another broker's, with five that stand between the last of those."""
    seals, theirs = sealing(store), sealing(other)
    for count in (4, 4):
        await store.stores.audit.append([store.event() for _ in range(count)])
        await seals.seal_own()
    for _ in range(2):
        await other.stores.audit.append([other.event(), other.event()])
        await store.stores.audit.append([store.event()])
    await other.stores.audit.append([other.event(AuditEventType.POLICY_LOADED, reason="\udcff")])
    await theirs.seal_own()
    await seals.seal_own()
    yield store


def said(found: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.kind.value, finding.event_id) for finding in found]


def change(log: StoreHarness, sql: str) -> None:
    """Behind the broker's back; `@` is the number of an event of chain 1."""
    log.place.execute(sql.replace("@", "chain_id = 1 AND number"))


async def test_a_log_that_nobody_has_changed(log: StoreHarness) -> None:
    """In the database and as a file: all is proven, up to its last event."""
    for found, result in (await verified(log), verified_lines(await exported(log))):
        assert found == []
        assert (result.event_count, result.chain_count, result.checkpoint_count) == (15, 2, 4)
        assert (result.signed_sequence, result.unchained_event_count) == (15, 0)


TAMPERED = {
    "changed": ("UPDATE audit_events SET create_time = create_time + 1 WHERE @ = 6", [("changed", 6)]),
    "another event": ("UPDATE audit_events SET event_id = 'forged' WHERE @ = 6", [("changed", "forged")]),
    "text instead of octets": ("UPDATE audit_events SET body = NULL, record = '[]' WHERE @ = 6", [("changed", 6)]),
    "hash": ("UPDATE audit_events SET hash = (SELECT hash FROM audit_events WHERE @ = 1) WHERE @ = 6", [("changed", 6), ("changed", 7)]),
    "removed": ("DELETE FROM audit_events WHERE @ = 6", [("missing", 7)]),
    "several removed": ("DELETE FROM audit_events WHERE @ IN (5, 6, 7)", [("missing", 8)]),
    "the first removed": ("DELETE FROM audit_events WHERE @ <= 2", [("missing", 3)]),
    "moved": ("UPDATE audit_events SET sequence = 900 WHERE @ = 6", [("moved", 6)]),
    "doubled": ("INSERT INTO audit_events (event_id, create_time, record, chain_id, number, hash, body) SELECT 'twice', create_time, record, chain_id, number, hash, body FROM audit_events WHERE chain_id = 1 AND number = 6", [("doubled", "twice")]),
    "cut off": ("DELETE FROM audit_events WHERE @ >= 10", [("truncated", "")]),
    "a chain that others knew": ("DELETE FROM audit_events WHERE chain_id = 1; DELETE FROM audit_chains WHERE chain_id = 1; DELETE FROM audit_checkpoints WHERE chain_id = 1", [("truncated", "")]),
    "its end, with the checkpoints": ("DELETE FROM audit_events WHERE @ >= 8; DELETE FROM audit_checkpoints WHERE @ >= 8", [("truncated", "")]),
    "of no chain": ("INSERT INTO audit_events (event_id, create_time, record) SELECT 'late', create_time + 90000000000, '{}' FROM audit_events WHERE chain_id = 1 AND number = 6", [("added", "late")]),
    "of a chain that is not there": ("INSERT INTO audit_events (event_id, create_time, record, chain_id, number, hash) SELECT 'alien', create_time, '{}', 77, 1, hash FROM audit_events WHERE chain_id = 1 AND number = 6", [("added", "alien")]),
    "a checkpoint's time": ("UPDATE audit_checkpoints SET time = time + 1 WHERE @ = 8", [("checkpoint_invalid", 8)]),
    "a checkpoint's hash": ("UPDATE audit_checkpoints SET hash = (SELECT hash FROM audit_checkpoints WHERE @ = 4) WHERE @ = 8", [("checkpoint_invalid", 8)]),
    "a checkpoint's signature": ("UPDATE audit_checkpoints SET signature = NULL WHERE @ = 8", [("checkpoint_invalid", 8)]),
    "retention without a checkpoint": ("DELETE FROM audit_events WHERE @ <= 6; UPDATE audit_chains SET pruned_number = 6 WHERE chain_id = 1", [("checkpoint_invalid", "")]),
    "where a chain began": ("UPDATE audit_chains SET after_number = 7 WHERE chain_id = 2", None),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
async def test_what_was_changed_is_found_and_named(log: StoreHarness, what: str) -> None:
    """Each event by its id, and nothing else with it; in a file that is exported afterwards too."""
    sql, expected = TAMPERED[what]
    first = (await log.event_ids())[0]
    assert first == "event-000001"
    change(log, sql)
    found, _ = await verified(log)
    if expected is None:
        assert {kind for kind, _ in said(found)} == {"changed"}
    else:
        ids = dict(enumerate(_ids_of_chain_1(), 1))
        assert said(found) == [(kind, which if isinstance(which, str) else ids[which]) for kind, which in expected]
    assert said(verified_lines(await exported(log))[0]) == said(found)


def _ids_of_chain_1() -> list[str]:
    return [f"event-{number:06d}" for number in (1, 2, 3, 4, 5, 6, 7, 8, 11, 14)]


async def test_hashes_that_were_made_anew_are_found_at_the_checkpoint(log: StoreHarness) -> None:
    """Who can write the database can compute hashes, and not sign."""
    change(log, "UPDATE audit_events SET create_time = 5 WHERE @ = 6")
    await _hash_anew(log, 6)
    found, result = await verified(log)
    at_checkpoints = ["event-000008", "event-000008", "event-000014"]  # another chain began after the first of them
    assert said(found) == [("changed", event_id) for event_id in at_checkpoints]
    assert result.checkpoint_count == 2


async def _hash_anew(log: StoreHarness, number: int) -> None:
    events = await log.stores.audit_proof.events(0, 100, chain_id=1)
    before = {event.number: event.hash for event in events}
    for event in events[number - 1 :]:
        before[event.number] = next_hash(before[event.number - 1], event.number, event)
        octets = before[event.number].hex()
        literal = f"x'{octets}'" if log.place.kind == "sqlite" else f"'\\x{octets}'::bytea"
        change(log, f"UPDATE audit_events SET hash = {literal} WHERE @ = {event.number}")  # noqa: S608 - of the test


async def test_a_key_that_was_changed_or_lost(log: StoreHarness) -> None:
    """One that is not trusted is named; without any, chains are held together by their hashes alone."""
    other = Signer(OTHER_SECRET).public_keys
    found, result = await verified(log, other)
    assert {kind for kind, _ in said(found)} == {"checkpoint_key_unknown"}
    assert (len(found), result.checkpoint_count, result.signed_sequence) == (4, 0, 0)
    found, result = await verified(log, [])
    assert (found, result.checkpoint_count, result.signed_sequence) == ([], 0, 0)
    assert (await verified(log, [*other, *KEYS]))[0] == []


async def test_a_new_key_signs_and_the_old_one_is_still_trusted(log: StoreHarness) -> None:
    """The secret has both, the new one first."""
    await log.stores.audit.append([log.event()])
    secret = f"{OTHER_SECRET}\n{sealing.__defaults__[0]}"  # type: ignore[index]
    await sealing(log, secret).seal_own()
    found, result = await verified(log, Signer(secret).public_keys)
    assert (found, result.checkpoint_count, result.signed_sequence) == ([], 5, 16)
    assert {finding.kind for finding in (await verified(log))[0]} == {"checkpoint_key_unknown"}


async def test_what_retention_leaves_is_proven(log: StoreHarness) -> None:
    """In the middle of a segment's removal, and after it."""
    change(log, "UPDATE audit_chains SET pruned_number = 8 WHERE chain_id = 1; DELETE FROM audit_events WHERE @ <= 5")
    for _ in range(2):
        for found, _ in (await verified(log), verified_lines(await exported(log))):
            assert found == []
        change(log, "DELETE FROM audit_events WHERE @ <= 8; DELETE FROM audit_checkpoints WHERE @ < 8")


async def test_what_changes_while_it_is_read(log: StoreHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that became durable behind the reader, a chain that began, a segment that went: nothing is wrong."""
    proof = log.stores.audit_proof
    read, chains = proof.events, proof.chains
    held = {6, 9}

    async def events(after: int, limit: int, *, chain_id: int | None = None) -> list[object]:
        found = await read(after, limit, chain_id=chain_id)
        return [event for event in found if chain_id is not None or event.sequence not in held]

    async def first_chain() -> list[Chain]:
        return [chain for chain in await chains() if chain.start.chain_id == 1]

    monkeypatch.setattr(type(proof), "events", lambda _self, *a, **k: events(*a, **k))
    monkeypatch.setattr(type(proof), "chains", lambda _self: first_chain())
    found, result = await verified(log)
    assert (found, result.event_count, result.chain_count) == ([], 15, 2)


async def test_the_end_of_a_program_is_sealed_by_another(log: StoreHarness, other: StoreHarness) -> None:
    """What was killed has left an end without a checkpoint; what was changed there since is told, and not signed."""
    await log.stores.audit.append([log.event(), log.event()])
    seals = sealing(other)
    await _a_while(log, seals)
    found, result = await verified(log)
    assert (found, result.signed_sequence) == ([], 17)
    assert await other.stores.audit_proof.ended() == []


async def test_an_end_that_was_changed_is_not_sealed(
    log: StoreHarness, other: StoreHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told in the log of the broker that found it."""
    await log.stores.audit.append([log.event(), log.event()])
    change(log, "UPDATE audit_events SET create_time = 7 WHERE @ = 12")
    meter = FakeMeter()
    seals = sealing(other, meter=meter)
    assert meter.levels[metrics.AUDIT_UNPROVEN] == 0
    await _a_while(log, seals)
    assert "the audit log was changed" in caplog.text
    assert seals.changed.startswith("event event-000017 of chain 1 does not follow")
    assert meter.labelled[metrics.AUDIT_UNPROVEN, (("why", "changed"),)] == 1
    assert said((await verified(log))[0]) == [("changed", "event-000017")]


async def _a_while(log: StoreHarness, seals: object) -> None:
    log.clock.advance(timedelta(hours=2))
    await seals._seal_ended()  # type: ignore[attr-defined]


@pytest_asyncio.fixture
async def day(log: StoreHarness, other: StoreHarness) -> StoreHarness:
    """The log after a day of both brokers: they write, and sign, each hour."""
    seals, theirs = sealing(log), sealing(other)
    for _ in range(24):
        log.clock.advance(timedelta(hours=1))
        for store, seal in ((log, seals), (other, theirs)):
            await store.stores.audit.append([store.event(), store.event()])
            await seal.seal_own()
    return log


async def test_signatures_that_were_all_taken_away(day: StoreHarness) -> None:
    """Who can't sign could change what he likes then, if nobody missed them; in a file too."""
    for sql in ("UPDATE audit_checkpoints SET signature = NULL, key_id = ''", "DELETE FROM audit_checkpoints"):
        assert (await verified(day, []))[0] == []
        change(day, sql)
        for found, _ in (await verified(day), verified_lines(await exported(day))):
            assert said(found) == [("checkpoint_invalid", "")]
            assert "no checkpoint is signed" in found[0].text


async def test_signatures_of_one_chain_that_were_taken_away(day: StoreHarness) -> None:
    """Others have signed what stands behind for hours: it is told from which event on they are missing."""
    assert (await verified(day))[0] == []
    change(day, "DELETE FROM audit_checkpoints WHERE @ > 30")
    found, _ = await verified(day)
    assert said(found) == [("checkpoint_invalid", "")]
    assert day.place.query("SELECT number FROM audit_events WHERE sequence = " + str(found[0].sequence)) == [(31,)]  # noqa: S608
    change(day, "DELETE FROM audit_checkpoints WHERE @ > 0")
    assert said((await verified(day))[0]) == [("checkpoint_invalid", "")]


async def test_signatures_that_a_broker_was_made_to_give(day: StoreHarness, other: StoreHarness) -> None:
    """Hashes made anew, and the chain shown to a broker as one that nobody has sealed yet."""
    change(day, "DELETE FROM audit_checkpoints WHERE @ > 10; UPDATE audit_events SET create_time = 5 WHERE @ = 20")
    await _hash_anew(day, 20)
    seals = sealing(other)
    day.clock.advance(timedelta(hours=2))
    await seals._seal_ended()
    found, result = await verified(day)
    assert said(found) == [("checkpoint_invalid", (await day.event_ids())[result.signed_sequence - 3])]
    assert "signed hours after" in found[0].text


async def test_a_broker_signs_what_it_wrote(log: StoreHarness) -> None:
    """Not what stands in its database by then, hashes and all."""
    seals = sealing(log)
    await log.stores.audit.append([log.event()])
    change(log, "UPDATE audit_events SET create_time = 5 WHERE @ = 11")
    await _hash_anew(log, 11)
    await seals.seal_own()
    assert said((await verified(log))[0]) == [("changed", (await log.event_ids())[-1])]


async def test_power_that_was_away_for_a_weekend(log: StoreHarness, other: StoreHarness) -> None:
    """Ends are sealed days later, and nobody signed meanwhile: that is how it should be."""
    await log.stores.audit.append([log.event(), log.event()])
    await other.stores.audit.append([other.event()])
    await sealing(other).seal_own()
    log.clock.advance(timedelta(days=3))
    await other.stores.audit.append([other.event()])
    await sealing(other)._seal_ended()
    for _ in range(9):
        log.clock.advance(timedelta(hours=1))
        await other.stores.audit.append([other.event()])
        await sealing(other).seal_own()
    assert (await verified(log))[0] == []


async def test_a_key_that_came_later(store: StoreHarness, other: StoreHarness) -> None:
    """Brokers get it one after the other: what one has written without it is not held against it."""
    unsigned = Sealing(store.stores.audit_proof, store.clock, None, FakeMeter())
    for hours in (0, 8):
        store.clock.advance(timedelta(hours=hours))
        await store.stores.audit.append([store.event()])
        await unsigned.seal_own()
    for hour in range(15):
        store.clock.advance(timedelta(hours=1))
        await other.stores.audit.append([other.event()])
        await sealing(other).seal_own()
        if hour < 5:
            await store.stores.audit.append([store.event()])
    await unsigned.seal_own(ended=True)
    assert (await verified(store))[0] == []


async def test_a_chain_that_a_lost_answer_ended_is_sealed(log: StoreHarness) -> None:
    """Its broker lives and writes another one; nobody has to wait for its stop."""
    await log.stores.audit.append([log.event()])
    log.stores.writer._commit._audit.head = None
    await log.stores.audit.append([log.event()])
    assert await log.stores.audit_proof.ended() == []
    await _a_while(log, sealing(log))
    await sealing(log).seal_own()
    assert (await verified(log))[1].checkpoint_count == 6
    assert await log.stores.audit_proof.ended() == []


async def test_a_stop_seals_the_own_end(log: StoreHarness) -> None:
    """With or without something new."""
    seals = sealing(log)
    await log.stores.audit.append([log.event()])
    for _ in range(2):
        await seals.seal_own(ended=True)
    assert (await verified(log))[1].signed_sequence == 16
    assert log.place.query("SELECT end_time IS NULL FROM audit_chains ORDER BY chain_id") in (
        [(0,), (1,)],
        [(False,), (True,)],
    )


@pytest.mark.parametrize("secret", ["", "short", "bm90MzI="])
async def test_what_can_not_be_signed_is_not_sealed(
    log: StoreHarness, caplog: pytest.LogCaptureFixture, secret: str
) -> None:
    """An unsigned checkpoint would pass for one whose signature was taken away; the cause is told once."""
    await log.stores.audit.append([log.event()])
    seals = sealing(log, secret)
    for _ in range(2):
        await seals.seal_own()
    assert len([record for record in caplog.records if "audit.checkpoint_key_secret" in record.getMessage()]) == 1
    assert (await verified(log))[1].checkpoint_count == 4


async def test_events_of_before_are_counted(log: StoreHarness) -> None:
    """They stand before the chains, and prove nothing."""
    log.place.execute(
        "UPDATE audit_events SET chain_id = NULL, number = NULL, hash = NULL, create_time = 1 WHERE chain_id = 1; DELETE FROM audit_chains WHERE chain_id = 1; DELETE FROM audit_checkpoints WHERE chain_id = 1; UPDATE audit_chains SET after_chain_id = 0"
    )
    found, result = await verified(log)
    assert {kind for kind, _ in said(found)} == {"changed"}, "another beginning is another chain"
    assert result.unchained_event_count == 10


async def test_a_file_that_was_changed(log: StoreHarness) -> None:
    """What people are shown, its end, its lines."""
    whole = await exported(log)
    shown = [
        line.replace('"event_type":"certificate_authorized"', '"event_type":"certificate_denied"', 1) for line in whole
    ]
    assert {kind for kind, _ in said(verified_lines(shown)[0])} == {"changed"}
    assert said(verified_lines(whole[:-1])[0]) == [("truncated", "")]
    assert ("truncated", "") in said(verified_lines([*whole[:-4], whole[-1]])[0])
    part = [
        json.dumps({**json.loads(whole[0]), "partial": True}),
        *whole[1:7],
        *whole[10:15],
        '{"end":{"eventCount":5}}',
    ]
    assert verified_lines(part)[0] == []
    for number, line in ((1, "{}"), (3, "[]"), (3, "{"), (9, '{"event":1}'), (4, '{"chain":{}}')):
        with pytest.raises(LinesError, match="audit log"):
            verified_lines([*whole[: number - 1], line, *whole[number:]])
    with pytest.raises(LinesError, match="empty"):
        verified_lines([])


async def test_a_lost_answer_begins_another_chain(store: StoreHarness) -> None:
    """Whether the events of a commit are there nobody knows then: no number is given twice, and none is missing."""
    await store.stores.audit.append([store.event()])
    store.stores.writer._commit._audit.head = None
    await store.stores.audit.append([store.event(), store.event()])
    found, result = await verified(store)
    assert (found, result.chain_count, result.event_count) == ([], 2, 3)


def test_a_genesis_is_of_its_chain_alone() -> None:
    """Whatever differs in how a chain begins, its hashes do."""
    start = ChainStart(1, "w", 2, 3, 4, b"5")
    others = [
        ChainStart(9, "w", 2, 3, 4, b"5"), ChainStart(1, "x", 2, 3, 4, b"5"), ChainStart(1, "w", 9, 3, 4, b"5"),
        ChainStart(1, "w", 2, 9, 4, b"5"), ChainStart(1, "w", 2, 3, 9, b"5"), ChainStart(1, "w", 2, 3, 4, b"9"),
    ]  # fmt: skip
    assert len({each.genesis for each in (start, *others)}) == 7
    assert Head(1, 0, start.genesis) == (1, 0, start.genesis)
