"""What orders of several brokers decide together: whose turn a lane is, and which TXT records are still needed.

Whether a lane is free is looked at under a lock of that lane (`locks`); the unique index over turns is what makes sure.
Who has to wait says so in its row, and is followed in order of age. That is one order a broker, since a broker's others
queue in its memory: what an earlier one has said, which doesn't ask any more, must hold up nobody.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from sqlalchemy import and_, bindparam, or_, select, text, tuple_, update
from typing_extensions import override

from certplane.broker.model import Order, TxtRecord
from certplane.broker.ports import LaneTry, SharedOrders
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import ORDER
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.locks import lock_key
from certplane.broker.store.order_rows import SELECT_ORDER, UNFINISHED, OrderRows, holder_lives, order_not_found
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_AT_ONCE: Final = 8
"""Records of one question: an order of one name has one or two."""


class SqlSharedOrders(SharedOrders):
    """`SharedOrders` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, *, holder: str, changes: ChangeLog) -> None:
        self.holder = holder
        self._database = database
        self._writer = writer
        self._clock = clock
        compiler = database.compiler
        self._rows = OrderRows(compiler, changes)
        age = tuple_(orders.c.create_time, orders.c.order_id)
        older = age < tuple_(bindparam("create_time"), bindparam("order_id"))
        waits_elsewhere = and_(older, orders.c.holder != bindparam("holder"), holder_lives(compiler))
        self._before = compiler(
            select(orders.c.order_id)
            .where(
                orders.c.lane == bindparam("lane"),
                orders.c.order_id != bindparam("order_id"),
                or_(orders.c.turn_time.is_not(None), waits_elsewhere),
            )
            # The one that has its turn first, then the oldest.
            .order_by(orders.c.turn_time.is_(None), orders.c.create_time)
            .suffix_with(limited_to(1))
        )
        self._alone = compiler(
            update(orders)
            .where(
                orders.c.lane == bindparam("where"), orders.c.holder == bindparam("whose"), orders.c.turn_time.is_(None)
            )
            .values(lane=None)
        )
        self._listing = compiler(
            SELECT_ORDER.where(
                text(UNFINISHED),
                orders.c.order_id != bindparam("but"),
                or_(*(orders.c.txt_records.contains(bindparam(f"value_{number}")) for number in range(_AT_ONCE))),
            )
        )

    @override
    async def take_lane(self, order: Order, lane: str) -> LaneTry:
        now = self._clock.now()
        values = {
            "lane": lane,
            "order_id": order.order_id,
            "create_time": to_micros(order.create_time),
            "holder": self.holder,
            "clock": to_micros(now),
        }
        mine = self._alone.arguments({"where": lane, "whose": self.holder})

        def take(session: Session) -> Done[LaneTry]:
            found = self._get(session, order)
            if found.turn_time is not None or not found.state.is_open:
                return Done(LaneTry(found, ""))
            before = session.one(self._before, values)
            if before is None:
                return Done(LaneTry(self._rows.put(session, replace(found, lane=lane, turn_time=now)), ""))
            if found.lane != lane:
                session.execute(self._alone, mine)
                found = self._rows.put(session, replace(found, lane=lane))
            return Done(LaneTry(found, str(before[0])))

        return await self._writer.write(take, (), locks=[lock_key("lane", lane)])

    @override
    async def leave_lane(self, order: Order) -> Order:
        def leave(session: Session) -> Done[Order]:
            found = self._get(session, order)
            if found.lane is not None:
                found = self._rows.put(session, replace(found, lane=None, turn_time=None))
            return Done(found)

        return await self._writer.write(leave, ())

    def _get(self, session: Session, order: Order) -> Order:
        found = self._rows.get(session, order.order_id)
        if found is None or found.epoch != order.epoch:
            raise order_not_found()
        return found

    @override
    async def needed_records(self, records: Sequence[TxtRecord], *, but: str = "") -> Collection[tuple[str, str]]:
        return await self._listed(records, but, still_open=True)

    @override
    async def leaving_records(self, records: Sequence[TxtRecord]) -> Collection[tuple[str, str]]:
        return await self._listed(records, "", still_open=False)

    async def _listed(self, records: Sequence[TxtRecord], but: str, *, still_open: bool) -> Collection[tuple[str, str]]:
        """Those of `records` that other orders than `but` list which are open, or have ended."""
        wanted = {(record.name, record.value) for record in records}
        found: set[tuple[str, str]] = set()
        texts = sorted({value for _, value in wanted})
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            values = {f"value_{number}": some[min(number, len(some) - 1)] for number in range(_AT_ONCE)}
            with reading():
                rows = await self._database.all(self._listing, {"but": but, **values})
            listing = (order for order in map(ORDER.value, rows) if order.state.is_open is still_open)
            found.update((record.name, record.value) for order in listing for record in order.txt_records)
        return found & wanted
