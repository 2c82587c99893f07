"""The deny-list: in the database, answered from memory.

Other programs may write it (`certplane-broker identity deny` beside a running broker): the change feed says when to
read it again. Our own changes are read back before they are acknowledged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import bindparam, delete, select, text
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.identity.standing import shut_out
from certplane.broker.issuance.events import denied_order
from certplane.broker.model import ChangeKind, DenyEntry, OrderState
from certplane.broker.ports import ChangeFollower, DenyList
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import DENY_ENTRY, ORDER
from certplane.broker.store.change_feed import ChangeLog, SqlChangeFeed
from certplane.broker.store.order_rows import SELECT_ORDER, OrderRows
from certplane.broker.store.schema import deny_entries, orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Compiler
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock


class DenyRows:
    """How entries are written, for whoever writes them inside a transaction of its own.

    Who is shut out has no open orders any more: they end in the same transaction, but for those that the CA may have
    issued for.
    """

    def __init__(self, compiler: Compiler, changes: ChangeLog) -> None:
        self._changes = changes
        self._orders = OrderRows(compiler, changes)
        row = SELECT_ORDER.where(
            text("end_time IS NULL"),  # word for word the index's condition
            orders.c.state != bindparam("finalizing"),
        ).with_for_update()
        self._open_of_name = compiler(row.where(orders.c.identity == bindparam("name")))
        self._open_of_serial = compiler(
            row.where(
                orders.c.identity_serial == bindparam("serial_number"),
                orders.c.identity_issuer.in_((bindparam("issuer"), "")),
            )
        )
        self._insert = compiler(compiler.insert(deny_entries).on_conflict_do_nothing(), DENY_ENTRY.names)
        self._delete = compiler(
            delete(deny_entries).where(
                deny_entries.c.name == bindparam("name"),
                deny_entries.c.issuer == bindparam("issuer"),
                deny_entries.c.serial_number == bindparam("serial_number"),
            )
        )

    def insert(self, session: Session, entry: DenyEntry) -> list[AuditEvent]:
        """Add a dated entry, one that stands stays as it is, and end open orders; the events of these."""
        if entry.create_time is None:
            raise ValueError("an entry is dated before it is written")
        time = entry.create_time
        if session.execute(self._insert, DENY_ENTRY.of(entry)):
            self._changes.add(session, ChangeKind.DENY_ENTRY, _key(entry))
        values = {"name": entry.name, "issuer": entry.issuer, "serial_number": entry.serial_number}
        values["finalizing"] = str(OrderState.FINALIZING)
        refusal = shut_out()
        ended = []
        for row in session.all(self._open_of_name if entry.name else self._open_of_serial, values):
            order = ORDER.value(row)
            failed = replace(order, state=OrderState.FAILED, update_time=time, error=refusal, retry_time=time)
            self._orders.put(session, failed)
            ended.append(denied_order(order, refusal, time))
        return ended

    def delete(self, session: Session, entry: DenyEntry) -> bool:
        """Remove the entry of the same name, or issuer and serial; whether there was one."""
        found = session.execute(self._delete, (entry.name, entry.issuer, entry.serial_number)) > 0
        if found:
            self._changes.add(session, ChangeKind.DENY_ENTRY, _key(entry))
        return found


def _key(entry: DenyEntry) -> str:
    return entry.name or f"{entry.serial_number} {entry.issuer}"


class SqlDenyList(DenyList, ChangeFollower):
    """`DenyList` over the database."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        audit: SqlAuditLog,
        clock: Clock,
        *,
        changes: ChangeLog,
        feed: SqlChangeFeed,
    ) -> None:
        """Empty until the feed's first look."""
        self._database = database
        self._writer = writer
        self._audit = audit
        self._clock = clock
        self._feed = feed
        self._by_name: dict[str, DenyEntry] = {}
        self._by_serial: dict[tuple[str, str], DenyEntry] = {}
        columns = (deny_entries.c[name] for name in DENY_ENTRY.names)
        self._all = database.compiler(select(*columns).order_by(deny_entries.c.entry_id))
        self._rows = DenyRows(database.compiler, changes)
        self.on_allowed: Callable[[], None] = lambda: None
        """Called when an entry is gone, whoever removed it."""
        feed.follow(ChangeKind.DENY_ENTRY, self, what="the deny-list", vital=True)

    @override
    def denied(self, name: str, issuer: str, serial_number: str) -> DenyEntry | None:
        denied = self._by_name.get(name) or self._by_serial.get((issuer, serial_number))
        if denied is not None or issuer or not serial_number:
            return denied
        return next((entry for (_, serial), entry in self._by_serial.items() if serial == serial_number), None)

    @override
    async def deny(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> None:
        """An entry that stands stays as it is.

        Raises:
            ValueError: neither a name alone nor an issuer with a serial number.
        """
        if bool(entry.name) == bool(entry.issuer and entry.serial_number):
            raise ValueError("deny by a name, or by an issuer and a serial number")
        dated = replace(entry, create_time=entry.create_time or self._clock.now())
        recorded = self._audit.encode(events)

        def change(session: Session) -> Done[None]:
            ended = self._rows.insert(session, dated)
            return Done(None, events=(*recorded, *self._audit.encode(ended)))

        await self._writer.write(change, recorded)
        await self._feed.reread(ChangeKind.DENY_ENTRY)

    @override
    async def allow(self, entry: DenyEntry, events: Sequence[AuditEvent]) -> bool:
        removed = False

        def change(session: Session) -> Done[bool]:
            nonlocal removed
            # `or`: an earlier try of this change may have been committed, and the answer lost.
            removed = self._rows.delete(session, entry) or removed
            return Done(removed, audited=removed)

        found = await self._writer.write(change, self._audit.encode(events))
        await self._feed.reread(ChangeKind.DENY_ENTRY)
        return found

    @override
    async def entries(self) -> Sequence[DenyEntry]:
        with reading():
            rows = await self._database.all(self._all, {})
        return [DENY_ENTRY.value(row) for row in rows]

    @override
    async def changed(self, keys: Collection[str]) -> None:
        await self._read()  # it is short

    @override
    async def reread(self, since: datetime) -> None:
        await self._read()

    async def _read(self) -> None:
        rows = await self._database.all(self._all, {})
        entries = [DENY_ENTRY.value(row) for row in rows]
        before = self._by_name.keys() | self._by_serial.keys()
        self._by_name = {entry.name: entry for entry in entries if entry.name}
        self._by_serial = {(entry.issuer, entry.serial_number): entry for entry in entries if entry.serial_number}
        if before - self._by_name.keys() - self._by_serial.keys():
            self.on_allowed()
