"""The ledger of the CAs' limits as it is, for who looks: what is taken, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from sqlalchemy import ColumnElement, and_, bindparam, select, text, true
from typing_extensions import override

from certplane.broker.budget.model import SAME_NAMES_WITHIN, Bucket, BucketKey, LedgerState, Level, Urgency, Waiter
from certplane.broker.budget.ports import BudgetReader
from certplane.broker.store.audit_log import reading
from certplane.broker.store.campaign_schema import budget_buckets, budget_waits
from certplane.broker.store.order_rows import holder_lives
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Database
from certplane.broker.store.statements import Compiler, Row, limited_to
from certplane.runtime.clock import Clock

KEY_COLUMNS: Final = ("directory_url", "account", "limit_name", "subject")
"""Of a bucket, as `BucketKey` has them."""
BUCKET_COLUMNS: Final = (*KEY_COLUMNS, "label", "since", "full_time", "told_until")
"""For `bucket_of_row`."""

_OVER: Final = timedelta(hours=1)
"""So long ago a bucket was full again: no lag of a CA makes it another one."""
_LOOP_AT_ONCE: Final = 512
"""Rows that are read before the event loop has its turn: some 3 ms."""


def bucket_of_row(row: Row) -> Bucket:
    """The bucket of a row of `BUCKET_COLUMNS`."""
    *key, label, since, full_time, told = row
    level = Level(from_micros(since), from_micros(full_time))
    return Bucket(BucketKey(*key), label, level, None if told is None else from_micros(told))


def still_waits(compiler: Compiler) -> ColumnElement[bool]:
    """Whether a row of `budget_waits` counts, by its order's; on SQLite all that is open is this broker's."""
    wait = budget_waits.c
    return and_(
        orders.c.order_id == wait.order_id,
        orders.c.issuer == wait.issuer,
        orders.c.end_time.is_(None),
        orders.c.acme_order_url == "",
        orders.c.places.is_(None),
        holder_lives(compiler) if compiler.driver == "postgresql" else true(),
    )


class SqlBudgetReader(BudgetReader):
    """`BudgetReader` over the database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        compiler = database.compiler
        bucket, wait = budget_buckets.c, budget_waits.c
        self._known = compiler(
            select(orders.c.order_id)
            .where(
                orders.c.names_sha256 == bindparam("names_sha256"),
                orders.c.create_time > bindparam("since"),
                orders.c.issuer == bindparam("issuer"),
                text("(end_time IS NULL OR finalize_time IS NOT NULL)"),  # word for word the index's condition
                orders.c.state == "ISSUED",
            )
            .suffix_with(limited_to(1))
        )
        this_ca = bucket.directory_url == bindparam("directory_url")
        self._taken = compiler(
            select(*(bucket[name] for name in BUCKET_COLUMNS)).where(this_ca, bucket.full_time > bindparam("since"))
        )
        self._waiters = compiler(
            select(
                wait.order_id,
                wait.issuer,
                wait.rank,
                wait.expire_time,
                wait.free_time,
                *(bucket[n] for n in KEY_COLUMNS),
            )
            .select_from(budget_buckets)
            .join(budget_waits, wait.bucket_id == bucket.bucket_id)
            .join(orders, still_waits(compiler))
            .where(this_ca)
        )

    @override
    async def state(self, directory_urls: Collection[str]) -> LedgerState:
        now = self._clock.now()
        buckets: dict[BucketKey, Bucket] = {}
        waiting: dict[str, Waiter] = {}
        for url in sorted(set(directory_urls)):
            about = {"directory_url": url, "since": to_micros(now - _OVER), "clock": to_micros(now)}
            with reading():
                found = await self._database.all(self._taken, about)
                waits = await self._database.all(self._waiters, about)
            for number, row in enumerate(found):
                bucket = bucket_of_row(row)
                buckets[bucket.key] = bucket
                if number % _LOOP_AT_ONCE == 0:
                    await asyncio.sleep(0)
            for number, (order_id, issuer, rank, expire, free, *key) in enumerate(waits):
                if number % _LOOP_AT_ONCE == 0:
                    await asyncio.sleep(0)
                known = waiting.get(order_id)
                keys = (*(known.keys if known is not None else ()), BucketKey(*key))
                urgency = Urgency(rank, from_micros(expire), order_id)
                waiting[order_id] = Waiter(order_id, issuer, keys, urgency, from_micros(free))
        return LedgerState(now, buckets, sorted(waiting.values(), key=lambda waiter: waiter.urgency))

    @override
    async def known_names(self, issuers: Collection[str], names_sha256: Collection[str]) -> Collection[str]:
        since = to_micros(self._clock.now() - SAME_NAMES_WITHIN)
        known = set()
        for digest in names_sha256:
            for issuer in issuers:
                with reading():
                    row = await self._database.one(
                        self._known, {"names_sha256": digest, "issuer": issuer, "since": since}
                    )
                if row is not None:
                    known.add(digest)
                    break
        return known
