"""A database server that is lost, replaced, restored or made read-only under a running broker: real servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from certplane.broker.model import DenyEntry
from certplane.broker.store import postgresql
from certplane.errors import OperationError, Reason, RefusalError
from certplane.sandbox.postgres import PostgresCluster
from tests.fakes.clock import ManualClock
from tests.support.database_servers import DATABASE, SYNCHRONOUS, ServerPair, server_pair, url_of
from tests.support.parts import need_part
from tests.support.stores import NO_LIMITS, StoreHarness, StorePlace, draft
from tests.support.waiting import until

pytestmark = pytest.mark.integration

READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = on"
WRITABLE = "ALTER SYSTEM RESET default_transaction_read_only"
RELOAD = "SELECT pg_reload_conf()"


@pytest_asyncio.fixture
async def pair(tmp_path: Path) -> AsyncIterator[ServerPair]:
    """A primary whose commits wait for its standby."""
    async with server_pair(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[PostgresCluster, StorePlace]]:
    """A server of the test's own, to stop and to restore."""
    async with PostgresCluster(part=need_part("postgresql")) as cluster:
        await cluster.create_database(DATABASE)
        yield cluster, StorePlace("postgresql", tmp_path / "broker.db", url_of(cluster))


def denied(name: str) -> DenyEntry:
    return DenyEntry(name=name, reason="stolen")


async def only_read(cluster: PostgresCluster) -> bool:
    async with await psycopg.AsyncConnection.connect(cluster.url()) as connection:
        return await (await connection.execute("SHOW transaction_read_only")).fetchone() == ("on",)


async def names(stores: Any) -> set[str]:
    return {entry.name for entry in await stores.deny_list.entries()}


async def patiently(store: StoreHarness, write: Any) -> Any:
    """What a caller does: the same again, until it is acknowledged."""

    async def once() -> Any:
        with contextlib.suppress(RefusalError):
            return await write() or True
        return None

    return await until(once, what="an acknowledged write")


_BACK_OFF = 0.05
"""Seconds before a refused caller asks again, which is load and no wait for anything."""


class Callers:
    """Callers that write all the time, and remember what was acknowledged."""

    def __init__(self, store: StoreHarness) -> None:
        self._store = store
        self.events: list[str] = []
        self.orders: dict[str, str] = {}
        self.refusals: list[Reason] = []
        self._ended = asyncio.Event()

    async def run(self, number: int) -> None:
        count = 0
        while not self._ended.is_set():
            count += 1
            try:
                if number % 2:
                    event = self._store.event()
                    await self._store.stores.audit.append([event])
                    self.events.append(event.event_id)
                else:
                    key = f"key-{number}-{count}"
                    opening = draft(public_key_sha256=key)
                    opened = await self._store.stores.orders.open_order(opening, NO_LIMITS, [])
                    self.orders[key] = opened.order.order_id
            except RefusalError as error:
                self.refusals.append(error.refusal.reason)
                await asyncio.sleep(_BACK_OFF)

    def end(self) -> None:
        self._ended.set()

    @property
    def acknowledged(self) -> int:
        return len(self.events) + len(self.orders)


async def test_promotion_under_load_loses_and_doubles_nothing(
    pair: ServerPair, caplog: pytest.LogCaptureFixture
) -> None:
    """The primary dies while callers write, its standby is promoted: all that was acknowledged is there, once."""
    caplog.set_level(logging.INFO, "certplane.store")
    async with pair.place.open(ManualClock()) as stores:
        callers = Callers(store := StoreHarness(pair.place, ManualClock(), stores))
        async with asyncio.TaskGroup() as running:
            for number in range(8):
                running.create_task(callers.run(number))
            await until(lambda: callers.acknowledged > 200, what="load")
            pair.primary.crash()
            await until(lambda: callers.refusals, what="a caller that is refused")
            before = callers.acknowledged
            await pair.standby.promote()
            await until(lambda: callers.acknowledged > before + 200, what="load on the new primary")
            callers.end()
        stored = await store.event_ids()
        assert set(callers.events) - set(stored) == set()
        assert len(stored) == len(set(stored))
        orders = {order.public_key_sha256: order.order_id for order in await stores.orders.unfinished_orders()}
        assert callers.orders.items() <= orders.items()
        assert set(callers.refusals) <= {Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE}
        assert f"writing goes on at 127.0.0.1:{pair.standby.port}" in caplog.text
        with (
            pytest.raises(OperationError, match="a broker uses this database"),  # the lock is held at the new primary
            postgresql.alone(pair.place.url, timedelta(seconds=5), "store.url", empty=False),
        ):
            pass


async def test_a_primary_that_was_demoted_is_left(pair: ServerPair, caplog: pytest.LogCaptureFixture) -> None:
    """A server that takes no writes any more, and still has the broker's connections, is left for the new primary."""
    caplog.set_level(logging.INFO, "certplane.store")
    async with pair.place.open(ManualClock()) as stores:
        await stores.deny_list.deny(denied("before.example"), [])
        assert await names(stores) == {"before.example"}
        await pair.primary.execute(READ_ONLY)
        await pair.primary.execute(RELOAD)
        # Before the promotion, after which a commit here would wait for the standby that it has no more.
        await until(lambda: only_read(pair.primary), what="a server that has read its settings")
        await pair.standby.promote()
        store = StoreHarness(pair.place, ManualClock(), stores)
        await patiently(store, lambda: stores.deny_list.deny(denied("after.example"), []))
        assert await names(stores) == {"before.example", "after.example"}  # read where it was written
        await stores.changes.look()
        assert stores.changes.current
        assert f"the server at 127.0.0.1:{pair.primary.port} can only be read now; it is left" in caplog.text
        assert f"writing goes on at 127.0.0.1:{pair.standby.port}" in caplog.text
        assert f"it reads at 127.0.0.1:{pair.standby.port}" in caplog.text


async def test_a_broker_starts_at_whichever_server_is_the_primary(pair: ServerPair, tmp_path: Path) -> None:
    """The order of the hosts doesn't matter, nor does one that is gone; a standby alone is refused with a remedy."""
    turned = StorePlace("postgresql", tmp_path / "broker.db", url_of(pair.standby, pair.primary))
    async with turned.open(ManualClock()) as stores:
        await stores.deny_list.deny(denied("first.example"), [])
    alone = StorePlace("postgresql", tmp_path / "broker.db", url_of(pair.standby))
    with pytest.raises(OperationError, match=r"can only be read: a standby") as caught:
        async with alone.open(ManualClock()):
            pass
    assert "all servers that may become it" in str(caught.value)
    pair.primary.crash()
    with pytest.raises(OperationError) as caught:
        async with pair.place.open(ManualClock()):
            pass
    assert "\n" not in str(caught.value)
    assert "read-only" in str(caught.value)  # what is wrong with each of the hosts
    assert "refused" in str(caught.value)
    await pair.standby.promote()
    async with pair.place.open(ManualClock()) as stores:
        assert await names(stores) == {"first.example"}


async def test_a_database_that_is_read_only_for_a_while_refuses_writes(
    server: tuple[PostgresCluster, StorePlace], caplog: pytest.LogCaptureFixture
) -> None:
    """Each write is refused with a time to come back, what was read is read on; then all goes on by itself."""
    cluster, place = server
    async with place.open(ManualClock()) as stores:
        store = StoreHarness(place, ManualClock(), stores)
        order = await store.open_order()
        assert await stores.orders.get_order(order.order_id) == order
        await cluster.execute(READ_ONLY)
        await cluster.execute(RELOAD)

        async def refused() -> Any:
            try:
                await store.open_order(public_key_sha256=f"key-{next(store.numbers)}")
            except RefusalError as error:
                return error.refusal
            return None

        refusal = await until(refused, what="a server that has read its settings")
        assert refusal.reason is Reason.STORE_UNAVAILABLE
        assert refusal.retry_after is not None
        found = await asyncio.gather(*(stores.orders.unfinished_orders() for _ in range(16)))  # over each connection
        before = len(found[0])
        assert "can only be read: a standby, or default_transaction_read_only is on" in caplog.text
        await cluster.execute(WRITABLE)
        await cluster.execute(RELOAD)
        await patiently(store, lambda: store.open_order(public_key_sha256="key-after"))
        assert len(await stores.orders.unfinished_orders()) == before + 1


async def test_a_database_that_is_gone_for_a_while_is_waited_for(server: tuple[PostgresCluster, StorePlace]) -> None:
    """Writes and reads are refused while it is gone, none hangs, and what was acknowledged is there afterwards."""
    cluster, place = server
    async with place.open(ManualClock()) as stores:
        callers = Callers(store := StoreHarness(place, ManualClock(), stores))
        async with asyncio.TaskGroup() as running:
            for number in range(4):
                running.create_task(callers.run(number))
            await until(lambda: callers.acknowledged > 50, what="load")
            await cluster.stop()
            await until(lambda: len(callers.refusals) > 20, what="callers that are refused")
            await stores.changes.look()
            assert not stores.ready()  # health says so
            await cluster.start()
            before = callers.acknowledged
            await until(lambda: callers.acknowledged > before + 50, what="load")
            callers.end()
        await stores.changes.look()
        assert stores.ready()
        stored = await store.event_ids()
        assert set(callers.events) - set(stored) == set()
        assert len(stored) == len(set(stored))
        orders = {order.public_key_sha256: order.order_id for order in await stores.orders.unfinished_orders()}
        assert callers.orders.items() <= orders.items()


async def test_a_database_restored_to_yesterday_is_taken_as_it_is(server: tuple[PostgresCluster, StorePlace]) -> None:
    """What decides in memory is as the restored rows say, also of what this broker wrote itself; then it writes on."""
    cluster, place = server
    async with place.open(ManualClock()) as stores, place.open(ManualClock(), exclusive=False) as beside:
        await stores.deny_list.deny(denied("own.yesterday"), [])
        await beside.deny_list.deny(denied("other.yesterday"), [])
        store = StoreHarness(place, ManualClock(), stores)
        order = await store.open_order(public_key_sha256="key-yesterday")
        await cluster.stop()
        await cluster.keep_copy()
        await cluster.start()
        await patiently(store, lambda: stores.deny_list.deny(denied("own.today"), []))
        lost = await store.open_order(public_key_sha256="key-today")
        await patiently(store, lambda: stores.audit.append([store.event()]))
        await stores.changes.look()
        assert stores.deny_list.denied("own.today", "", "") is not None
        await cluster.stop()
        await cluster.restore_copy()
        await cluster.start()

        async def reread() -> bool:
            await stores.changes.look()
            return stores.changes.current and stores.deny_list.denied("own.today", "", "") is None

        await until(reread, what="the deny-list as the database has it")
        assert stores.deny_list.denied("own.yesterday", "", "") is not None
        assert stores.deny_list.denied("other.yesterday", "", "") is not None
        assert await stores.orders.get_order(order.order_id) == order
        assert await stores.orders.get_order(lost.order_id) is None
        again = await patiently(store, lambda: store.open_order(public_key_sha256="key-today"))
        assert again.order_id != lost.order_id
        event = store.event()
        await patiently(store, lambda: stores.audit.append([event]))
        assert await store.event_ids() == [event.event_id]


# Standbys that may lack what was acknowledged


async def test_an_asynchronous_standby_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The start says what could be lost and what to set, also to a user who may not see which standbys there are."""
    async with server_pair(tmp_path, {}) as pair:
        async with pair.place.open(ManualClock()):
            pass
        assert """synchronous_standby_names = 'ANY 1 ("standby")' there""" in caplog.text
        caplog.clear()
        await pair.primary.execute("CREATE ROLE broker LOGIN")
        await pair.primary.execute(f"ALTER DATABASE {DATABASE} OWNER TO broker")
        await pair.primary.create_database("broker")
        await pair.primary.execute("ALTER DATABASE broker OWNER TO broker")
        url = pair.primary.url("broker").replace("certplane@", "broker@")
        async with StorePlace("postgresql", tmp_path / "b.db", url).open(ManualClock()):
            pass
        assert "synchronous_standby_names = 'ANY 1 (*)' there" in caplog.text


async def test_a_synchronous_standby_is_no_warning(pair: ServerPair, caplog: pytest.LogCaptureFixture) -> None:
    """Where a commit waits for the standby, nothing is said."""
    async with pair.place.open(ManualClock()):
        pass
    assert "standby" not in caplog.text


async def test_writes_that_wait_for_a_standby_are_explained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A start at a primary whose synchronous standby is gone waits at its first commit; before, the log says for what."""
    async with PostgresCluster(part=need_part("postgresql"), settings=SYNCHRONOUS) as cluster:
        await cluster.create_database(DATABASE)
        place = StorePlace("postgresql", tmp_path / "broker.db", url_of(cluster))

        async def start() -> None:
            async with place.open(ManualClock()):
                pass

        starting = asyncio.create_task(start())
        await until(
            lambda: "no standby of synchronous_standby_names (standby) is connected" in caplog.text, by=starting
        )
        async with PostgresCluster(part=need_part("postgresql"), standby_of=cluster):
            await starting


async def test_a_commit_that_no_standby_has_is_not_passed_over(
    pair: ServerPair, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator who ends the wait for a standby has the server acknowledge a commit alone: the log says so."""
    async with pair.place.open(ManualClock()) as stores:
        await pair.standby.stop()
        waiting = asyncio.create_task(stores.deny_list.deny(denied("host.example"), []))

        async def ended() -> bool:
            async with await psycopg.AsyncConnection.connect(pair.primary.url(), autocommit=True) as connection:
                query = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                return await (await connection.execute(query)).fetchone() is not None

        await until(ended, by=waiting)
        await waiting
        assert "the database warns: canceling wait for synchronous replication" in caplog.text
