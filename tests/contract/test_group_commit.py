"""What the writer promises of jobs that are committed together, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from certplane.broker.store.audit_records import event_row
from certplane.broker.store.batch import Done
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Statement
from certplane.errors import Reason, RefusalError
from tests.support.stores import StoreHarness
from tests.support.waiting import HANG, until

FAIL_AT_COMMIT = {
    "sqlite": """
        CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE late (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
    """,
    "postgresql": """
        CREATE TABLE parent (id INTEGER PRIMARY KEY);
        CREATE TABLE late (id INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED);
    """,
}


@pytest.fixture(autouse=True)
def _real_store(request: pytest.FixtureRequest) -> None:
    if request.getfixturevalue("store_place").kind == "memory":
        pytest.skip("a fake has no groups")


def statement(store: StoreHarness, sql: str) -> Statement:
    return Statement(sql if store.place.kind == "sqlite" else sql.replace("?", "%s"), (), {})


def denies(store: StoreHarness, name: str) -> Callable[[Session], Done[str]]:
    """A good change: an entry of the deny-list."""
    sql = "INSERT INTO deny_entries (name, issuer, serial_number, reason, create_time) VALUES (?, '', '', '', 0)"
    insert = statement(store, sql)

    def change(session: Session) -> Done[str]:
        session.execute(insert, (name,))
        return Done(name)

    return change


def breaks_constraint(store: StoreHarness) -> Callable[[Session], Done[str]]:
    """Writes a row, then one that the database rejects."""
    good, insert = denies(store, "half"), statement(store, "INSERT INTO keys VALUES (?, NULL, NULL, NULL)")

    def change(session: Session) -> Done[str]:
        good(session)
        session.execute(insert, ("key",))
        return Done("never")

    return change


def breaks_at_commit(store: StoreHarness) -> Callable[[Session], Done[str]]:
    """Writes rows that the database takes, and rejects when they are committed."""
    good, insert = denies(store, "half"), statement(store, "INSERT INTO late VALUES (?)")

    def change(session: Session) -> Done[str]:
        good(session)
        session.execute(insert, (7,))
        return Done("never")

    return change


def refuses(store: StoreHarness) -> Callable[[Session], Done[str]]:
    """Writes a row, then thinks better of it."""
    good = denies(store, "half")

    def change(session: Session) -> Done[str]:
        good(session)
        raise RefusalError(Reason.KEY_REUSED, "no")

    return change


def has_a_fault(store: StoreHarness) -> Callable[[Session], Done[str]]:
    """A mistake of the program."""
    good = denies(store, "half")

    def change(session: Session) -> Done[str]:
        good(session)
        raise ZeroDivisionError

    return change


@asynccontextmanager
async def one_group(store: StoreHarness) -> AsyncIterator[None]:
    """What is put in meanwhile is one group: the writer is held by a job before it."""
    entered, leave = threading.Event(), threading.Event()

    def hold(session: Session) -> Done[None]:
        entered.set()
        leave.wait(HANG)
        return Done(None)

    holder = asyncio.create_task(store.stores.writer.write(hold, ()))
    await until(entered.is_set)
    yield
    await asyncio.sleep(0.01)
    leave.set()
    await holder


async def write_together(
    store: StoreHarness, changes: Sequence[Callable[[Session], Done[str]] | None], *, same_event: bool = False
) -> list[Any]:
    """The outcomes of changes (None: an event alone) of one group, each with an event."""
    events = [store.event() for _ in changes]
    if same_event:
        events = [replace(event, event_id="same") if number in (1, 2) else event for number, event in enumerate(events)]
    async with one_group(store):
        waits = [
            asyncio.create_task(
                store.stores.writer.append([event_row(event)])
                if change is None
                else store.stores.writer.write(change, [event_row(event)])
            )
            for change, event in zip(changes, events, strict=True)
        ]
    return await asyncio.gather(*waits, return_exceptions=True)


async def names(store: StoreHarness) -> list[str]:
    return [entry.name for entry in await store.stores.deny_list.entries()]


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        pytest.param(breaks_constraint, Reason.STORE_UNAVAILABLE, id="constraint"),
        pytest.param(breaks_at_commit, Reason.STORE_UNAVAILABLE, id="at commit"),
        pytest.param(refuses, Reason.KEY_REUSED, id="refusal"),
        pytest.param(has_a_fault, ZeroDivisionError, id="fault of the program"),
    ],
)
@pytest.mark.parametrize("failure_mode", ["fail_closed", "fail_open"])
async def test_a_job_that_fails_between_good_ones_fails_alone(store: StoreHarness, bad: Any, error: Any) -> None:
    """Its neighbours' rows and events are durable, none of its own rows is, and only its caller hears of it."""
    store.place.execute(FAIL_AT_COMMIT[store.place.kind])
    results = await write_together(store, [denies(store, "first"), bad(store), denies(store, "last"), None])
    assert (results[0], results[2], results[3]) == ("first", "last", None)
    failure = results[1]
    if isinstance(error, Reason):
        assert isinstance(failure, RefusalError)
        assert failure.refusal.reason is error
    else:
        assert isinstance(failure, error)
    assert await names(store) == ["first", "last"]
    assert sorted(await store.event_ids()) == ["event-000001", "event-000003", "event-000004"]


@pytest.mark.parametrize(
    ("changes", "others"),
    [
        pytest.param([denies, denies, denies], ["n0", "n1"], id="changes"),
        pytest.param([None, None, None], [], id="events alone"),
        pytest.param([denies, None, None, denies], ["n0", "n3"], id="both"),
    ],
)
async def test_an_event_that_is_refused_is_its_own_job_s_failure(
    store: StoreHarness, changes: list[Any], others: list[str]
) -> None:
    """Two jobs with an event of the same id: one of them is AUDIT_UNAVAILABLE, the others stand."""
    made = [change and change(store, f"n{number}") for number, change in enumerate(changes)]
    results = await write_together(store, made, same_event=True)
    failures = [result for result in results if isinstance(result, RefusalError)]
    assert [failure.refusal.reason for failure in failures] == [Reason.AUDIT_UNAVAILABLE]
    assert isinstance(results[2], RefusalError)
    assert len(await store.event_ids()) == len(changes) - 1
    assert await names(store) == others


async def test_a_hundred_changes_of_one_group_are_all_durable(store: StoreHarness) -> None:
    """Each change and each event of a large group is there."""
    results = await write_together(store, [denies(store, f"n{number}") for number in range(100)])
    assert results == [f"n{number}" for number in range(100)]
    assert len(await names(store)) == len(await store.event_ids()) == 100


# A transaction that the database undid for another's sake


class UndoneAtFirst:
    """A good change whose transaction PostgreSQL undoes, as of a conflict with another, the first `times`."""

    def __init__(self, store: StoreHarness, name: str, times: int) -> None:
        self._good = denies(store, name)
        self._raise = Statement("DO $$ BEGIN RAISE serialization_failure; END $$", (), {})
        self._left = times
        self.runs = 0

    def __call__(self, session: Session) -> Done[str]:
        self.runs += 1
        done = self._good(session)
        if self._left:
            self._left -= 1
            session.execute(self._raise, ())
        return done


@pytest.fixture
def conflicting_store(store: StoreHarness) -> StoreHarness:
    if store.place.kind != "postgresql":
        pytest.skip("SQLite has one writer at a time")
    return store


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_transaction_that_was_undone_is_begun_again(
    conflicting_store: StoreHarness, neighbours: int, times: int
) -> None:
    """Nobody hears of a conflict that was over at the next try; each change and each event is there once."""
    store = conflicting_store
    undone = UndoneAtFirst(store, "undone", times)
    others = [denies(store, f"other-{number}") for number in range(neighbours)]
    outcomes = await write_together(store, [undone, *others])
    assert outcomes == ["undone", *(f"other-{number}" for number in range(neighbours))]
    assert sorted(await names(store)) == sorted(outcomes)
    assert len(await store.event_ids()) == 1 + neighbours
    assert undone.runs == times + 1


@pytest.mark.parametrize("neighbours", [0, 2])
async def test_a_transaction_that_is_always_undone_is_refused_in_the_end(
    conflicting_store: StoreHarness, neighbours: int
) -> None:
    """After a bounded number of tries its caller hears STORE_UNAVAILABLE; its neighbours are written."""
    store = conflicting_store
    undone = UndoneAtFirst(store, "undone", 1_000)
    others = [denies(store, f"other-{number}") for number in range(neighbours)]
    outcome, *rest = await write_together(store, [undone, *others])
    assert isinstance(outcome, RefusalError)
    assert outcome.refusal.reason is Reason.STORE_UNAVAILABLE
    assert rest == [f"other-{number}" for number in range(neighbours)]
    assert sorted(await names(store)) == rest
    assert undone.runs == (8 if neighbours else 4)


async def test_a_deadlock_costs_nobody_an_answer(conflicting_store: StoreHarness) -> None:
    """Two rows that a command locks the other way round: PostgreSQL ends the writer's transaction, which passes then."""
    store = conflicting_store
    for name in ("first", "second"):
        await store.stores.writer.write(denies(store, name), ())
    lock = "UPDATE deny_entries SET reason = %s WHERE name = %s"
    took_first, go_on = threading.Event(), threading.Event()
    runs = 0

    def change(session: Session) -> Done[str]:
        nonlocal runs
        runs += 1
        session.execute(Statement(lock, (), {}), ("writer", "first"))
        took_first.set()
        go_on.wait(HANG)
        session.execute(Statement(lock, (), {}), ("writer", "second"))
        return Done("written")

    async with await psycopg.AsyncConnection.connect(store.place.url) as command:
        await command.execute("SET deadlock_timeout = '1h'")  # so that it is the writer who is found in it
        writing = asyncio.create_task(store.stores.writer.write(change, ()))
        await until(took_first.is_set)
        await command.execute(lock, ("command", "second"))
        go_on.set()
        await command.execute(lock, ("command", "first"))  # waits until the writer's is undone
        await command.commit()
    assert await writing == "written"
    assert runs >= 2
    rows = store.place.query("SELECT reason FROM deny_entries ORDER BY name")
    assert rows == [("writer",), ("writer",)]
