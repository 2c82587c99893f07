"""The ledger of the CAs' limits: a row for each bucket of which places are taken, and one for each that waits for it.

A place is taken in every bucket of an order or in none, by one transaction that has a lock of each (`locks`), with the
order's row, which says what it has taken: who runs the order next has the places with it.

Whether a place that is there is kept for somebody more urgent is looked at for half a minute after it came. Later it is
anybody's: one that waits and doesn't ask (its turn among its broker's orders takes long, say) keeps up nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BindParameter, bindparam, delete, exists, or_, select, tuple_
from typing_extensions import override

from certplane.broker.budget import gcra
from certplane.broker.budget.model import (
    FULL,
    SAME_NAMES_WITHIN,
    Bucket,
    BucketKey,
    Claim,
    Need,
    Shortage,
    Urgency,
)
from certplane.broker.budget.places import bucket_of, shortage_of, taken, taken_needs
from certplane.broker.budget.ports import BudgetLedger, PlaceTry
from certplane.broker.model import Order
from certplane.broker.store.batch import Done
from certplane.broker.store.budget_reader import (
    BUCKET_COLUMNS,
    KEY_COLUMNS,
    SqlBudgetReader,
    bucket_of_row,
    still_waits,
)
from certplane.broker.store.campaign_schema import budget_buckets, budget_waits
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.locks import lock_key
from certplane.broker.store.order_rows import OrderRows, order_not_found
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_KEPT_FOR: Final = timedelta(seconds=30)
"""How long a place is kept for who is more urgent."""
_LONGEST_TOLD: Final = timedelta(days=31)
"""No CA's limit lasts longer: the clock was set back since."""
_AT_ONCE: Final = 8
"""Buckets of one question: an order of one name at a public CA has four."""
_FORGET_EACH: Final = 32
"""Takes between two removals of what is full again."""
_FORGET_AFTER: Final = timedelta(hours=1)
_FORGOTTEN: Final = 64
"""Rows of one removal: some milliseconds of the writer at most."""

_WAIT: Final = ("bucket_id", "order_id", "issuer", "rank", "expire_time", "free_time")


class SqlBudget(SqlBudgetReader, BudgetLedger):
    """`BudgetLedger` and `BudgetReader` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, changes: ChangeLog) -> None:
        super().__init__(database, clock)
        self._writer = writer
        compiler = database.compiler
        self._rows = OrderRows(compiler, changes)
        self._waiting: set[str] = set()
        """Orders that have waited, as was written here: the rows of others' are removed with time."""
        self._takes = 0
        self._passed = ""
        """The last order whose waits were looked at, while a look at all of them is under way."""
        some: list[BindParameter[str]] = [bindparam(f"id_{number}") for number in range(_AT_ONCE)]
        bucket, wait = budget_buckets.c, budget_waits.c
        self._buckets = compiler(
            select(*(bucket[name] for name in BUCKET_COLUMNS)).where(or_(*(bucket.bucket_id == each for each in some)))
        )
        changing = ("label", "since", "full_time", "told_until", "free_time")
        put = compiler.insert(budget_buckets).values(
            {name: bindparam(name) for name in ("bucket_id", *BUCKET_COLUMNS, "free_time")}
        )
        self._put = compiler(
            put.on_conflict_do_update(
                index_elements=["bucket_id"], set_={name: put.excluded[name] for name in changing}
            )
        )
        waits = compiler.insert(budget_waits).values({name: bindparam(name) for name in _WAIT})
        self._wait = compiler(
            waits.on_conflict_do_update(
                index_elements=["bucket_id", "order_id"], set_={name: waits.excluded[name] for name in _WAIT[2:]}
            )
        )
        self._waits_no_more = compiler(delete(budget_waits).where(wait.order_id == bindparam("which")))
        counts = still_waits(compiler)
        others, held_up = budget_waits.alias("others"), budget_buckets.alias("held_up")
        mine = tuple_(bindparam("rank"), bindparam("expire_time"), bindparam("order_id"))
        self._ahead = compiler(
            select(wait.order_id)
            .join(orders, counts)
            .where(
                wait.bucket_id == bindparam("bucket_id"),
                tuple_(wait.rank, wait.expire_time, wait.order_id) < mine,
                ~exists()
                .where(others.c.order_id == wait.order_id)
                .where(held_up.c.bucket_id == others.c.bucket_id, held_up.c.free_time > bindparam("now")),
            )
            .suffix_with(limited_to())
        )
        this_ca = bucket.directory_url == bindparam("directory_url")
        over = select(bucket.bucket_id).where(this_ca, bucket.full_time < bindparam("since"))
        waits_still = exists().where(
            orders.c.order_id == wait.order_id, orders.c.end_time.is_(None), orders.c.acme_order_url == ""
        )
        self._next_waits = compiler(
            select(wait.order_id, waits_still)
            .where(wait.order_id > bindparam("after"))
            .order_by(wait.order_id)
            .suffix_with(limited_to(_FORGOTTEN))
        )
        self._forget = compiler(
            # What is over is asked twice: of the row as it is once nobody else writes on it, too.
            delete(budget_buckets).where(
                bucket.bucket_id.in_(over.suffix_with(limited_to(_FORGOTTEN))), bucket.full_time < bindparam("since")
            )
        )

    @override
    async def take_places(self, order: Order, claim: Claim) -> PlaceTry:
        now = self._clock.now()

        def take(session: Session) -> Done[PlaceTry]:
            found = self._get(session, order)
            if found.places:
                return Done(PlaceTry(found))
            needs = self._needed(session, claim, now)
            buckets = self._read(session, needs, now)
            shortage = self._shortage(session, needs, buckets, claim.urgency, now)
            if shortage is not None:
                self._write_waits(session, order, needs, claim.urgency, shortage.free_time)
                return Done(PlaceTry(found, shortage))
            free_times = {}
            changed = taken(needs, buckets, now)
            for need in needs:
                if (bucket := changed.get(need.key)) is not None:
                    self._write(session, bucket, need)
                    free_times[need.key] = gcra.free_time(bucket.level, need.limit.rate)
            if order.order_id in self._waiting:
                session.execute(self._waits_no_more, self._waits_no_more.arguments({"which": order.order_id}))
            self._forget_some(session, claim, now)
            if not changed:
                return Done(PlaceTry(found))
            places = tuple(key.digest for key in changed)
            made = self._rows.put(session, replace(found, places=places, update_time=now))
            return Done(PlaceTry(made, free_times=free_times))

        done = await self._writer.write(take, (), locks=_locks(claim.needs))
        (self._waiting.discard if done.shortage is None else self._waiting.add)(order.order_id)
        return done

    @override
    async def give_back(self, needs: Sequence[Need]) -> None:
        now = self._clock.now()

        def write(session: Session) -> Done[None]:
            self._put_back(session, needs, now)
            return Done(None)

        await self._writer.write(write, (), locks=_locks(needs))

    @override
    async def correct(self, order: Order, claim: Claim, refused: Sequence[Need], until: datetime) -> PlaceTry:
        now = self._clock.now()
        said = {need.key for need in refused}

        def write(session: Session) -> Done[PlaceTry]:
            found = self._get(session, order)
            elsewhere = [need for need in taken_needs(claim.needs, found.places) if need.key not in said]
            self._put_back(session, elsewhere, now)
            buckets = self._read(session, refused, now)
            for need in refused:
                level = gcra.emptied(need.limit.rate, now, until)
                self._write(session, replace(buckets[need.key], level=level, told_until=until), need)
            self._write_waits(session, order, claim.needs, claim.urgency, until)
            last = refused[-1]
            shortage = Shortage(last.limit, last.key, last.label, until, told=True)
            return Done(PlaceTry(self._rows.put(session, replace(found, places=(), update_time=now)), shortage))

        done = await self._writer.write(write, (), locks=_locks([*claim.needs, *refused]))
        self._waiting.add(order.order_id)
        return done

    @override
    async def count(self, needs: Sequence[Need]) -> None:
        now = self._clock.now()

        def write(session: Session) -> Done[None]:
            buckets = self._read(session, needs, now)
            changed = taken(needs, buckets, now)
            for need in needs:
                self._write(session, changed[need.key], need)
            return Done(None)

        await self._writer.write(write, (), locks=_locks(needs, all_of_them=True))

    def _get(self, session: Session, order: Order) -> Order:
        found = self._rows.get(session, order.order_id)
        if found is None or found.epoch != order.epoch or not found.state.is_open:
            raise order_not_found()
        return found

    def _needed(self, session: Session, claim: Claim, now: datetime) -> Sequence[Need]:
        """What the order needs, without what a certificate of the same names exempts it from."""
        if not any(need.unless_known for need in claim.needs):
            return claim.needs
        asked = {
            "names_sha256": claim.names_sha256,
            "issuer": claim.issuer,
            "since": to_micros(now - SAME_NAMES_WITHIN),
        }
        if session.one(self._known, asked) is None:
            return claim.needs
        return [need for need in claim.needs if not need.unless_known]

    def _read(self, session: Session, needs: Sequence[Need], now: datetime) -> Mapping[BucketKey, Bucket]:
        """The buckets of `needs`: one that has no row is full."""
        ids = [need.key.digest for need in needs]
        rows: dict[BucketKey, Bucket] = {}
        for start in range(0, len(ids), _AT_ONCE):
            part = ids[start : start + _AT_ONCE]
            values = {f"id_{number}": part[min(number, len(part) - 1)] for number in range(_AT_ONCE)}
            rows.update((bucket.key, bucket) for bucket in map(bucket_of_row, session.all(self._buckets, values)))
        found = {}
        for need in needs:
            bucket = bucket_of(need, rows)
            told = bucket.told_until
            if told is not None and told - now > _LONGEST_TOLD:
                told = None
            level = gcra.sane(bucket.level, need.limit.rate, now, told)
            if gcra.whole_time(level, need.limit.rate) <= now:
                told = None
            found[need.key] = replace(bucket, level=level, told_until=told)
            if level != bucket.level:  # at once, or it would be as far away at the next look
                self._write(session, found[need.key], need)
        return found

    def _shortage(
        self,
        session: Session,
        needs: Sequence[Need],
        buckets: Mapping[BucketKey, Bucket],
        urgency: Urgency,
        now: datetime,
    ) -> Shortage | None:
        """Why there is no place for the order; None if there is one in each of its buckets."""
        found = shortage_of(needs, buckets, now)
        if found is not None:
            return found
        for need in needs:
            level, rate = buckets[need.key].level, need.limit.rate
            free = gcra.free_time(level, rate)
            if need.takes and now - free <= _KEPT_FOR and level is not FULL:
                left = gcra.places_left(level, rate, now)
                values = {
                    "bucket_id": need.key.digest,
                    "rank": urgency.rank,
                    "expire_time": to_micros(urgency.expire_time),
                    "order_id": urgency.order_id,
                    "now": to_micros(now),
                }
                ahead = len(session.all(self._ahead.at_most(left), values))
                if ahead >= left:
                    return Shortage(need.limit, need.key, need.label, now, ahead=ahead)
        return None

    def _write_waits(
        self, session: Session, order: Order, needs: Sequence[Need], urgency: Urgency, free_time: datetime
    ) -> None:
        for need in needs:
            if need.takes:
                values = {
                    "bucket_id": need.key.digest,
                    "order_id": order.order_id,
                    "issuer": order.issuer,
                    "rank": urgency.rank,
                    "expire_time": to_micros(urgency.expire_time),
                    "free_time": to_micros(free_time),
                }
                session.execute(self._wait, self._wait.arguments(values))

    def _put_back(self, session: Session, needs: Sequence[Need], now: datetime) -> None:
        buckets = self._read(session, needs, now)
        for need in needs:
            bucket = buckets[need.key]
            self._write(session, replace(bucket, level=gcra.give_back(bucket.level, need.limit.rate)), need)

    def _write(self, session: Session, bucket: Bucket, need: Need) -> None:
        told = bucket.told_until
        values: dict[str, Any] = {
            "bucket_id": need.key.digest,
            **dict(zip(KEY_COLUMNS, need.key, strict=True)),
            "label": need.label,
            "since": to_micros(bucket.level.since),
            "full_time": to_micros(bucket.level.full_time),
            "told_until": None if told is None else to_micros(told),
            "free_time": to_micros(gcra.free_time(bucket.level, need.limit.rate)),
        }
        session.execute(self._put, self._put.arguments(values))

    def _forget_some(self, session: Session, claim: Claim, now: datetime) -> None:
        """Of the buckets those that are full, and of the orders that waited those that don't, some at a time."""
        self._takes += 1
        if self._takes % _FORGET_EACH:
            return
        about = {"directory_url": claim.needs[0].key.directory_url, "since": to_micros(now - _FORGET_AFTER)}
        session.execute(self._forget, self._forget.arguments(about))
        rows = session.all(self._next_waits, {"after": self._passed})
        self._passed = rows[-1][0] if rows else ""
        for order_id in {order_id for order_id, waits in rows if not waits}:
            session.execute(self._waits_no_more, self._waits_no_more.arguments({"which": order_id}))


def _locks(needs: Sequence[Need], *, all_of_them: bool = False) -> Sequence[int]:
    """Of the buckets that are changed; failures of a name are counted by who has met one, and looked at by others."""
    return sorted({lock_key("budget", need.key.digest) for need in needs if need.takes or all_of_them})
