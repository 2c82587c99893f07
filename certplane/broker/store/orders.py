"""Orders in the database: single flight, durable limits and the key ledger, each decided inside one transaction.

One broker's writer makes "look, then insert" safe. Of several brokers that share a database the unique index over open
orders decides: who comes second joins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from operator import itemgetter
from typing import Final

from sqlalchemy import bindparam, func, literal_column, select, text, update
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.issuance.events import because
from certplane.broker.issuance.outcome import still_answers
from certplane.broker.model import NO_PROGRESS, CertificateRecord, ChangeKind, KeyUse, Order, OrderDraft, OrderState
from certplane.broker.policy.limits import AHEAD
from certplane.broker.ports import CacheLook, DurableLimits, KeyLedger, OpenedOrder, OrderChange, OrderStore
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done, store_unavailable
from certplane.broker.store.cells import CERTIFICATE, ORDER
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.limits import LimitCheck
from certplane.broker.store.order_rows import SELECT_ORDER, UNFINISHED, OrderRows, holder_lives, order_not_found
from certplane.broker.store.plan_rows import PlanRows
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import certificates, keys, orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Row, limited_to
from certplane.broker.store.writer import Writer
from certplane.errors import Reason, RefusalError
from certplane.pki.names import names_sha256
from certplane.runtime.clock import Clock

_MOST_FAILED: Final = 16
"""Failed orders of one key that are looked at: its CSR was mended as often, and each may be the answer."""
_LAST_ENDED: Final = 32
"""Of a profile: most that fail say nothing of it, and one that does is soon among so many."""
_RANK: Final = {state: rank for rank, state in enumerate(OrderState)}


class SqlOrderStore(OrderStore):
    """`OrderStore` over the database."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        audit: SqlAuditLog,
        clock: Clock,
        new_id: Callable[[], str],
        *,
        holder: str,
        changes: ChangeLog,
    ) -> None:
        self.holder = holder
        self._database = database
        self._writer = writer
        self._audit = audit
        self._clock = clock
        self._new_id = new_id
        compiler = database.compiler
        self._limits = LimitCheck(compiler)
        self._changes = changes
        self._rows = OrderRows(compiler, changes)
        self._plans = PlanRows(compiler)
        row = SELECT_ORDER
        same_work = (
            orders.c.identity == bindparam("identity"),
            orders.c.profile_hash == bindparam("profile_hash"),
            orders.c.names_sha256 == bindparam("names_sha256"),
            orders.c.public_key_sha256 == bindparam("public_key_sha256"),
            orders.c.replaces_certificate_id == bindparam("replaces_certificate_id"),
        )
        self._by_id = compiler(row.where(orders.c.order_id == bindparam("order_id")))
        self._open_one = compiler(row.where(*same_work, orders.c.end_time.is_(None)))
        self._failed = compiler(
            row.where(
                *same_work[1:],
                # Not by the identity's own index: one that asks often has many orders, a key has few.
                orders.c.identity.concat(literal_column("''")) == bindparam("identity"),
                orders.c.state == bindparam("failed"),
                orders.c.retry_time > bindparam("now"),
                orders.c.update_time <= bindparam("until"),
            )
            .order_by(orders.c.create_time.desc(), orders.c.order_id.desc())
            .suffix_with(limited_to(_MOST_FAILED))
        )
        self._unfinished = compiler(row.where(text(UNFINISHED)).order_by(orders.c.create_time, orders.c.order_id))
        self._last_ended = compiler(
            row.where(orders.c.profile == bindparam("profile"), orders.c.end_time.is_not(None))
            .order_by(orders.c.end_time.desc(), orders.c.order_id.desc())
            .suffix_with(limited_to(_LAST_ENDED))
        )
        give_back = (
            update(orders)
            .where(text(UNFINISHED), orders.c.holder == bindparam("which"))
            .values(holder="", epoch=orders.c.epoch + 1)
        )
        self._give_back = compiler(give_back)
        self._give_back_one = compiler(give_back.where(orders.c.order_id == bindparam("one")))
        left = (text(UNFINISHED), orders.c.holder != bindparam("holder"), ~holder_lives(compiler))
        self._any_left = compiler(select(orders.c.order_id).where(*left).suffix_with(limited_to(1)))
        self._left = compiler(
            row.where(*left)
            .order_by(orders.c.create_time, orders.c.order_id)
            .suffix_with(limited_to())
            .with_for_update(skip_locked=True, of=orders)
        )
        self._newest_of_issuer = compiler(
            select(certificates.c.certificate_id, certificates.c.create_time)
            .where(
                certificates.c.public_key_sha256 == bindparam("public_key_sha256"),
                certificates.c.profile_hash == bindparam("profile_hash"),
                certificates.c.identity == bindparam("identity"),
                certificates.c.issuer == bindparam("issuer"),
                text("revoke_time IS NULL"),
            )
            .order_by(certificates.c.create_time.desc())
            .suffix_with(limited_to(1))
        )
        self._insert_certificate = compiler(compiler.insert(certificates), CERTIFICATE.names)
        self._key = compiler(_KEY)
        self._block_key = compiler(
            update(keys)
            .where(keys.c.public_key_sha256 == bindparam("key"))
            .values(block_time=func.coalesce(keys.c.block_time, bindparam("time"))),
        )
        self._insert_key = compiler(
            compiler.insert(keys).on_conflict_do_nothing(), ["public_key_sha256", "identity", "first_use_time"]
        )

    @override
    async def open_order(
        self,
        draft: OrderDraft,
        limits: DurableLimits,
        events: Sequence[AuditEvent],
        *,
        look: CacheLook | None = None,
    ) -> OpenedOrder | None:
        now = self._clock.now()
        fresh = Order(
            **{name: getattr(draft, name) for name in OrderDraft.__dataclass_fields__},
            order_id=self._new_id(),
            create_time=now,
            update_time=now,
            holder=self.holder,
            epoch=1,
        )

        def change(session: Session) -> Done[OpenedOrder | None]:
            known = self._usable_key(session, draft)
            joined = self._find(session, draft, now)
            if joined is not None:
                # Its own id: an earlier try of this very change was committed, and the answer was lost.
                return Done(OpenedOrder(joined, created=joined.order_id == fresh.order_id), audited=False)
            if known is not None and known[2] is not None:
                raise RefusalError(Reason.KEY_REUSED, "this key can't be used: make a new one")
            if look is not None and self._newest_cached(session, draft, look.issuers) != look.certificate_id:
                return Done(None, audited=False)
            order = replace(fresh, cause=self._limits.cause(session, draft, now))
            self._limits.check(session, order, limits, now)
            if not self._rows.add(session, order):
                joined = self._find(session, draft, now)
                if joined is None:  # it has ended in between
                    raise store_unavailable("another broker has just worked on an equal order")
                return Done(OpenedOrder(joined, created=False), audited=False)
            key = (draft.public_key_sha256, draft.identity, to_micros(now))
            if not session.execute(self._insert_key, key) and known is None:
                self._usable_key(session, draft)  # another broker has just met it, of another identity perhaps
            return Done(OpenedOrder(order, created=True), events=self._audit.encode(because(order, events)))

        return await self._writer.write(change, (), locks=self._limits.locks(draft, limits))

    def _usable_key(self, session: Session, draft: OrderDraft) -> Row | None:
        """What is known of the draft's key.

        Raises:
            RefusalError: KEY_REUSED: it is blocked, or another identity's.
        """
        known = session.one(self._key, {"public_key_sha256": draft.public_key_sha256})
        if known is not None and (known[1] is not None or known[0] != draft.identity):
            raise RefusalError(Reason.KEY_REUSED, "this key can't be used: make a new one")
        return known

    def _newest_cached(self, session: Session, draft: OrderDraft, issuers: Sequence[str]) -> str:
        """The newest certificate of the draft's key, as `CacheLook` names it."""
        values = {name: getattr(draft, name) for name in ("public_key_sha256", "profile_hash", "identity")}
        rows = [session.one(self._newest_of_issuer, {**values, "issuer": issuer}) for issuer in issuers]
        newest = max(filter(None, rows), key=itemgetter(1), default=None)
        return "" if newest is None else str(newest[0])

    @override
    async def change_order(self, order: Order, change: OrderChange, events: Sequence[AuditEvent] = ()) -> Order:
        """As the port describes, with these errors.

        Raises:
            RuntimeError: the change goes back, or to ISSUED, which only `finish_order` does.
        """
        if change.state is OrderState.ISSUED:
            raise RuntimeError("an order is issued by finish_order")
        now = self._clock.now()
        made: Order | None = None

        def write(session: Session) -> Done[Order]:
            nonlocal made
            found = self._rows.get(session, order.order_id)
            if found is not None and found == made:  # an earlier try was committed, and the answer was lost
                return Done(found)
            if found is None or found.epoch != order.epoch:
                raise order_not_found()
            if not (found.state.is_open or change == OrderChange(txt_records=change.txt_records)):
                raise order_not_found()
            changed = _changed(found, change, now)
            if _RANK[changed.state] < _RANK[found.state]:
                raise RuntimeError(f"an order doesn't go back from {found.state} to {changed.state}")
            made = self._rows.put(session, changed)
            if change.block_key:
                session.execute(
                    self._block_key,
                    self._block_key.arguments({"key": found.public_key_sha256, "time": to_micros(now)}),
                )
            return Done(made)

        return await self._writer.write(write, self._audit.encode(events))

    @override
    async def finish_order(self, order: Order, certificate: CertificateRecord, events: Sequence[AuditEvent]) -> Order:
        now = self._clock.now()

        def change(session: Session) -> Done[Order]:
            found = self._rows.get(session, order.order_id)
            if found is not None and found.state is OrderState.ISSUED:
                return Done(found, audited=False)
            if found is None or not found.state.is_open or found.epoch != order.epoch:
                raise order_not_found()
            values = CERTIFICATE.values(certificate)
            session.execute(self._insert_certificate, self._insert_certificate.arguments(values))
            finished = replace(
                found,
                state=OrderState.ISSUED,
                certificate_id=certificate.certificate_id,
                update_time=now,
                finalize_time=found.finalize_time or now,
            )
            finished = self._rows.put(session, finished)
            self._plans.begin(session, certificate, found.replaces_certificate_id)
            return Done(finished)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def take_orders(self, limit: int) -> Sequence[Order]:
        statement = self._left.at_most(limit)
        values = {"holder": self.holder, "clock": to_micros(self._clock.now())}
        with reading():
            if await self._database.one(self._any_left, values) is None:
                return []  # as nearly always: each broker asks each second

        taken: list[Order] = []

        def take(session: Session) -> Done[Sequence[Order]]:
            nonlocal taken
            # An earlier try may have been committed, and the answer lost: nobody would run what it took.
            before = [order for order in taken if self._rows.get(session, order.order_id) == order]
            left = map(ORDER.value, session.all(statement, values)[:limit])
            taken = [*before, *(self._rows.take(session, order, self.holder) for order in left)]
            return Done(taken)

        return await self._writer.write(take, ())

    @override
    async def give_back_orders(self, order_ids: Collection[str] | None = None) -> None:
        statement = self._give_back if order_ids is None else self._give_back_one
        which = [
            statement.arguments({"which": self.holder, "one": one})
            for one in ([""] if order_ids is None else order_ids)
        ]

        def give_back(session: Session) -> Done[None]:
            if sum(session.execute(statement, arguments) for arguments in which):
                self._changes.add_shared(session, ChangeKind.MEMBER, self.holder)
            return Done(None)

        await self._writer.write(give_back, ())

    @override
    async def get_order(self, order_id: str) -> Order | None:
        with reading():
            row = await self._database.one(self._by_id, {"order_id": order_id})
        return None if row is None else ORDER.value(row)

    @override
    async def last_ended(self, profile: str) -> Sequence[Order]:
        with reading():
            rows = await self._database.all(self._last_ended, {"profile": profile})
        return [ORDER.value(row) for row in rows]

    @override
    async def unfinished_orders(self) -> Sequence[Order]:
        with reading():
            rows = await self._database.all(self._unfinished, {})
        return [ORDER.value(row) for row in rows]

    @override
    async def note_progress(self, orders: Sequence[Order]) -> None:
        def note(session: Session) -> Done[None]:
            for order in orders:
                self._rows.note_progress(session, order)
            return Done(None)

        await self._writer.write(note, ())

    def _find(self, session: Session, draft: OrderDraft, now: datetime) -> Order | None:
        """The order of the same key that is open, or failed and not yet to be tried again."""
        values = {
            "identity": draft.identity,
            "profile_hash": draft.profile_hash,
            "names_sha256": names_sha256(draft.dns_names),
            "public_key_sha256": draft.public_key_sha256,
            "replaces_certificate_id": draft.replaces_certificate_id,
            "failed": str(OrderState.FAILED),
            "now": to_micros(now),
            "until": to_micros(now + AHEAD),
        }
        row = session.one(self._open_one, values)
        if row is not None:
            return ORDER.value(row)
        failed = map(ORDER.value, session.all(self._failed, values))
        return next((order for order in failed if still_answers(order, draft)), None)


class SqlKeyLedger(KeyLedger):
    """`KeyLedger` over the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._key = database.compiler(_KEY)

    @override
    async def key_use(self, public_key_sha256: str) -> KeyUse | None:
        with reading():
            row = await self._database.one(self._key, {"public_key_sha256": public_key_sha256})
        return None if row is None else KeyUse(row[0], blocked=row[1] is not None, spent=row[2] is not None)


_KEY: Final = select(keys.c.identity, keys.c.block_time, keys.c.spend_time).where(
    keys.c.public_key_sha256 == bindparam("public_key_sha256")
)


def _changed(order: Order, change: OrderChange, now: datetime) -> Order:
    """`order` with what `change` sets; `update_time` moves with the state."""
    values = {
        name: value
        for name in OrderChange.__dataclass_fields__
        if name != "block_key" and (value := getattr(change, name)) is not None
    }
    if change.state is not None and change.state is not order.state:
        values["update_time"] = now
        values["progress"] = NO_PROGRESS
        if change.state is OrderState.FINALIZING:
            values["finalize_time"] = now
    if change.issuer is not None:
        values["lane"] = values["turn_time"] = None  # another issuer's lane is another one
    if change.acme_order_url == "":
        values["places"] = ()  # they were for the CA's order that is given up
    return replace(order, **values)
