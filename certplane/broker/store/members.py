"""The brokers that share a database, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, bindparam, cast, delete, func, select
from typing_extensions import override

from certplane.broker.members.model import Member
from certplane.broker.members.ports import MemberStore
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import brokers
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Compiler
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_MEMBER: Final = Columns(Member)
_MICROSECOND: Final = timedelta(microseconds=1)


def database_time(compiler: Compiler) -> ColumnElement[int]:
    """The time of whoever decides about leases, in microseconds: the server's, or on SQLite the parameter `clock`."""
    if compiler.driver == "sqlite":
        return bindparam("clock")
    return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)


class SqlMemberStore(MemberStore):
    """`MemberStore` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, broker_id: str) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self.broker_id = broker_id
        compiler = database.compiler
        now = database_time(compiler)
        insert = compiler.insert(brokers).values(
            **{name: bindparam(name) for name in _MEMBER.names if name != "lease_until"},
            lease_until=now + bindparam("span"),
        )
        changing = ("policy_hash", "trust_hash", "configuration_hash", "stream_count", "lease_until")
        self._stood = compiler(
            select(brokers.c.broker_id).where(
                brokers.c.broker_id == bindparam("broker_id"), brokers.c.lease_until > now
            )
        )
        self._upsert = compiler(
            insert.on_conflict_do_update(
                index_elements=["broker_id"], set_={name: insert.excluded[name] for name in changing}
            )
        )
        self._remove = compiler(delete(brokers).where(brokers.c.broker_id == bindparam("which")))
        self._remove_ended = compiler(delete(brokers).where(brokers.c.lease_until <= now - bindparam("span")))
        columns = [brokers.c[name] for name in _MEMBER.names]
        self._living = compiler(
            select(*columns).where(brokers.c.lease_until > now).order_by(brokers.c.start_time, brokers.c.broker_id)
        )

    @override
    async def renew(self, member: Member, span: timedelta) -> bool:
        values = {**self._values(), **_MEMBER.values(replace(member, broker_id=self.broker_id))}
        values["span"] = span // _MICROSECOND

        def change(session: Session) -> Done[bool]:
            stood = session.one(self._stood, values) is not None
            session.execute(self._upsert, self._upsert.arguments(values))
            session.execute(self._remove_ended, self._remove_ended.arguments(values))
            return Done(stood)

        return await self._writer.write(change, ())

    @override
    async def leave(self) -> None:
        def change(session: Session) -> Done[None]:
            session.execute(self._remove, self._remove.arguments({"which": self.broker_id}))
            return Done(None)

        await self._writer.write(change, ())

    @override
    async def living(self) -> Sequence[Member]:
        with reading():
            rows = await self._database.all(self._living, self._values())
        return [_MEMBER.value(row) for row in rows]

    def _values(self) -> dict[str, Any]:
        return {"clock": to_micros(self._clock.now())}
