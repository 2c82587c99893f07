"""Lists of orders for operators: pages in the order of age, from the index that the question allows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import BindParameter, Column, Select, bindparam, func, select, text, tuple_
from typing_extensions import override

from certplane.broker.issuance.listing import OrderListing, OrderPage, OrderPlace, OrderQuery
from certplane.broker.model import Order
from certplane.broker.store.audit_log import reading
from certplane.broker.store.cells import ORDER
from certplane.broker.store.order_rows import SELECT_ORDER
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Database
from certplane.broker.store.statements import Statement, limited_to
from certplane.pki.names import names_sha256

_AT_ONCE: Final = 256
"""Rows of one question: some milliseconds of the loop."""
_MOST_LOOKED_AT: Final = 2048
"""Rows for one page, whatever the filter: the answer then says where to go on."""
_IDS_AT_ONCE: Final = 64
_NEVER: Final = 2**62
"""Later than every time."""


class SqlOrderListing(OrderListing):
    """`OrderListing` over the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        compiler = database.compiler
        is_open = text("end_time IS NULL AND (end_time IS NULL OR txt_records IS NOT NULL)")  # the index's condition
        mine = orders.c.identity == bindparam("identity")
        self._open = compiler(_page(orders.c.create_time).where(is_open))
        self._ended = compiler(_page(orders.c.end_time).where(orders.c.end_time >= bindparam("oldest")))
        self._open_of_identity = compiler(_page(orders.c.create_time).where(mine, text("end_time IS NULL")))
        self._ended_of_identity = compiler(
            _page(orders.c.create_time).where(
                mine, orders.c.create_time >= bindparam("oldest"), orders.c.end_time.is_not(None)
            )
        )
        ids: list[BindParameter[str]] = [bindparam(f"id_{number}") for number in range(_IDS_AT_ONCE)]
        self._by_ids = compiler(SELECT_ORDER.where(orders.c.order_id.in_(ids)))
        self._count_open = compiler(select(func.count()).select_from(orders).where(is_open))
        names: list[BindParameter[str]] = [bindparam(f"names_{number}") for number in range(_IDS_AT_ONCE)]
        self._spent = compiler(
            select(orders.c.names_sha256, func.count())
            .where(
                orders.c.names_sha256.in_(names),
                orders.c.create_time > bindparam("since"),
                orders.c.cause != "issuer",  # as the CA counts, and `store.limits`
                text("(end_time IS NULL OR finalize_time IS NOT NULL)"),  # word for word the index's condition
            )
            .group_by(orders.c.names_sha256)
        )

    @override
    async def page(self, query: OrderQuery, after: OrderPlace | None, limit: int) -> OrderPage:
        if query.order_ids:
            return await self._of_ids(query, after, limit)
        found: list[Order] = []
        looked_at = 0
        place = after or OrderPlace()
        while True:
            rows, more = await self._rows(query, place)
            for order in rows:
                place = query.place(order)
                if query.picks(order):
                    found.append(order)
                    if len(found) == limit:
                        return OrderPage(found, place)
            looked_at += len(rows)
            if not more:
                if place.ended or query.open_only:
                    return OrderPage(found, None)
                place = OrderPlace(ended=True)
            elif looked_at >= _MOST_LOOKED_AT:
                return OrderPage(found, place)

    async def _rows(self, query: OrderQuery, place: OrderPlace) -> tuple[list[Order], bool]:
        """The next orders of its part of the list, and whether there may be more there."""
        oldest = query.oldest
        values: dict[str, object] = {
            "time": _NEVER if place.time is None else to_micros(place.time),
            "order_id": place.order_id,
            "oldest": 0 if oldest is None else to_micros(oldest),
        }
        statement = self._statement(query, ended=place.ended)
        if query.by_age:
            values["identity"] = next(iter(query.identities))
        with reading():
            rows = await self._database.all(statement, values)
        return [ORDER.value(row) for row in rows], len(rows) == _AT_ONCE

    def _statement(self, query: OrderQuery, *, ended: bool) -> Statement:
        if query.by_age:
            return self._ended_of_identity if ended else self._open_of_identity
        return self._ended if ended else self._open

    async def _of_ids(self, query: OrderQuery, after: OrderPlace | None, limit: int) -> OrderPage:
        found: list[Order] = []
        ids = sorted(query.order_ids)
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            values = {f"id_{number}": some[min(number, len(some) - 1)] for number in range(_IDS_AT_ONCE)}
            with reading():
                rows = await self._database.all(self._by_ids, values)
            found += [order for row in rows if query.picks(order := ORDER.value(row))]
        found.sort(key=lambda order: _place_key(query.place(order)), reverse=True)
        if after is not None:
            found = [order for order in found if _place_key(query.place(order)) < _place_key(after)]
        return OrderPage(found[:limit], query.place(found[limit - 1]) if len(found) > limit else None)

    @override
    async def count_open(self) -> int:
        with reading():
            row = await self._database.one(self._count_open, {})
        return 0 if row is None else int(row[0])

    @override
    async def count_certificates(
        self, names: Collection[tuple[str, ...]], since: datetime
    ) -> Mapping[tuple[str, ...], int]:
        hashes = {each: names_sha256(each) for each in names}
        found: dict[str, int] = {}
        wanted = [*hashes.values()]
        for start in range(0, len(wanted), _IDS_AT_ONCE):
            some = wanted[start : start + _IDS_AT_ONCE]
            values = {f"names_{number}": some[min(number, len(some) - 1)] for number in range(_IDS_AT_ONCE)}
            with reading():
                found |= dict(await self._database.all(self._spent, {**values, "since": to_micros(since)}))
        return {each: found.get(digest, 0) for each, digest in hashes.items()}


def _page(time: Column[int]) -> Select[Any]:
    """Rows before a place, newest first."""
    before = tuple_(time, orders.c.order_id) < tuple_(bindparam("time"), bindparam("order_id"))
    newest = SELECT_ORDER.where(before).order_by(time.desc(), orders.c.order_id.desc())
    return newest.suffix_with(limited_to(_AT_ONCE))


def _place_key(place: OrderPlace) -> tuple[bool, int, str]:
    """Sorts places from the last to the first."""
    return not place.ended, _NEVER if place.time is None else to_micros(place.time), place.order_id
