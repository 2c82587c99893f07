"""The retry epoch of brokers that share a database: one of the values that they have in common."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import bindparam, or_, select
from typing_extensions import override

from certplane.broker.issuance.epoch import EpochInForce, EpochStore
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.members import database_time
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import brokers, shared_values
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_NAME: Final = "retry_epoch"
_MICROSECOND: Final = timedelta(microseconds=1)


class SqlEpochStore(EpochStore):
    """`EpochStore` over the database. Times are the database's."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, broker_id: str, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self.broker_id = broker_id
        self._changes = changes
        compiler = database.compiler
        now = database_time(compiler)
        this = shared_values.c.name == bindparam("name")
        self._in_force = compiler(select(shared_values.c.value, now - shared_values.c.change_time).where(this))
        self._others = compiler(
            select(brokers.c.broker_id)
            .where(brokers.c.lease_until > now, brokers.c.broker_id != bindparam("broker_id"))
            .suffix_with(limited_to(1))
        )
        insert = compiler.insert(shared_values).values(
            name=bindparam("name"), value=bindparam("fresh"), change_time=now
        )
        put = {"value": insert.excluded.value, "change_time": insert.excluded.change_time}
        self._replace = compiler(
            insert.on_conflict_do_update(
                index_elements=["name"], set_=put, where=shared_values.c.value == bindparam("before")
            )
        )
        time = shared_values.c.change_time
        self._move = compiler(
            insert.on_conflict_do_update(
                index_elements=["name"],
                set_=put,
                # A clock that was set back must not keep it where it is.
                where=or_(time <= insert.excluded.change_time - bindparam("rest"), time > insert.excluded.change_time),
            )
        )

    @override
    async def begin(self, fresh: str) -> str:
        values = self._values(fresh=fresh, broker_id=self.broker_id)

        def change(session: Session) -> Done[str]:
            row = session.one(self._in_force, values)
            if row is not None and session.one(self._others, values) is not None:
                return Done(str(row[0]))
            before = {**values, "before": row[0] if row is not None else ""}
            if session.execute(self._replace, self._replace.arguments(before)):
                self._changes.add_shared(session, ChangeKind.RETRY_EPOCH, "")
                return Done(fresh)
            row = session.one(self._in_force, values)  # of one that starts at the same time
            return Done(str(row[0]) if row is not None else fresh)

        return await self._writer.write(change, ())

    @override
    async def current(self) -> str:
        with reading():
            row = await self._database.one(self._in_force, self._values())
        return "" if row is None else str(row[0])

    @override
    async def move(self, fresh: str, rest: timedelta) -> EpochInForce:
        values = self._values(fresh=fresh, rest=rest // _MICROSECOND)

        def change(session: Session) -> Done[EpochInForce]:
            if session.execute(self._move, self._move.arguments(values)):
                self._changes.add_shared(session, ChangeKind.RETRY_EPOCH, "")
                return Done(EpochInForce(fresh, timedelta()))
            row = session.one(self._in_force, values)
            assert row is not None
            return Done(EpochInForce(str(row[0]), max(int(row[1]), 1) * _MICROSECOND))

        return await self._writer.write(change, ())

    def _values(self, **more: Any) -> dict[str, Any]:
        return {"name": _NAME, "clock": to_micros(self._clock.now()), **more}
