"""What issuers are not to be asked for, a row each: few, short-lived, and read whole by a broker that starts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, or_, select, tuple_
from typing_extensions import override

from certplane.broker.issuance.holds import LONGEST_HOLD, HoldKey, HoldStore, IssuerHold, key_text
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import issuer_holds
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer

_HOLD: Final = Columns(IssuerHold)
_KEY: Final = ("issuer", "directory_url", "scope", "names_sha256")
_REMOVE_AT_ONCE: Final = 512
"""Rows of one transaction: some milliseconds of the writer."""


class SqlHoldStore(HoldStore):
    """`HoldStore` over the database."""

    def __init__(self, database: Database, writer: Writer, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._changes = changes
        compiler = database.compiler
        rows = select(*(issuer_holds.c[name] for name in _HOLD.names))
        this = [issuer_holds.c[name] == bindparam(name) for name in _KEY]
        self._all = compiler(rows.order_by(*(issuer_holds.c[name] for name in _KEY)))
        self._one = compiler(rows.where(*this))
        insert = compiler.insert(issuer_holds).values({name: bindparam(name) for name in _HOLD.names})
        put = insert.on_conflict_do_update(
            index_elements=[*_KEY],
            set_={name: insert.excluded[name] for name in _HOLD.names if name not in _KEY},
            where=or_(
                issuer_holds.c.until < insert.excluded.until,
                issuer_holds.c.until >= bindparam("too_late"),
                issuer_holds.c.retry_epoch.not_in(("", insert.excluded.retry_epoch)),
            ),
        )
        self._put = compiler(put)
        # Not one that has taken its place meanwhile.
        self._delete = compiler(delete(issuer_holds).where(*this, issuer_holds.c.until == bindparam("until")))
        key = [issuer_holds.c[name] for name in _KEY]
        over = select(*key).where(issuer_holds.c.until <= bindparam("now")).order_by(issuer_holds.c.until)
        self._delete_over = compiler(
            delete(issuer_holds).where(tuple_(*key).in_(over.suffix_with(limited_to(_REMOVE_AT_ONCE))))
        )

    @override
    async def holds(self) -> Sequence[IssuerHold]:
        with reading():
            rows = await self._database.all(self._all, {})
        return [_HOLD.value(row) for row in rows]

    @override
    async def find_hold(self, key: HoldKey) -> IssuerHold | None:
        with reading():
            row = await self._database.one(self._one, dict(zip(_KEY, key, strict=True)))
        return None if row is None else _HOLD.value(row)

    @override
    async def write_holds(self, holds: Collection[IssuerHold], ended: Collection[IssuerHold], now: datetime) -> None:
        times = {"now": to_micros(now), "too_late": to_micros(now + LONGEST_HOLD)}
        writes = [(self._put, hold) for hold in holds] + [(self._delete, hold) for hold in ended]

        def change(session: Session) -> Done[None]:
            session.execute(self._delete_over, self._delete_over.arguments(times))
            for statement, hold in writes:
                if session.execute(statement, statement.arguments({**_HOLD.values(hold), **times})):
                    self._changes.add_shared(session, ChangeKind.HOLD, key_text(hold.key))
            return Done(None)

        await self._writer.write(change, ())
