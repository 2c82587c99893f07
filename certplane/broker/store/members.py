"""The brokers that share a database, a row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, bindparam, cast, delete, exists, func, select
from typing_extensions import override

from certplane.broker.members.model import Member, Renewal
from certplane.broker.members.ports import DatabaseClock, MemberStore
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import SCHEMA_REVISION, brokers, leases
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Compiler
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_MEMBER: Final = Columns(Member)
_MICROSECOND: Final = timedelta(microseconds=1)
_NO_NEWS: Final = {"broker_id", "start_time", "stream_count", "clock_skew", "lease_until"}
_SAID: Final = tuple(name for name in _MEMBER.names if name not in _NO_NEWS)
"""What others hear of when it changes."""


def database_time(compiler: Compiler) -> ColumnElement[int]:
    """The time of whoever decides about leases, in microseconds: the server's, or on SQLite the parameter `clock`."""
    if compiler.driver == "sqlite":
        return bindparam("clock")
    return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)


def is_alive(compiler: Compiler, broker_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a broker's lease stands, by the database's time."""
    return exists().where(brokers.c.broker_id == broker_id, brokers.c.lease_until > database_time(compiler))


class SqlMemberStore(MemberStore, DatabaseClock):
    """`MemberStore` and `DatabaseClock` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, broker_id: str, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self._changes = changes
        self.broker_id = broker_id
        compiler = database.compiler
        now = database_time(compiler)
        insert = compiler.insert(brokers).values(
            **{name: bindparam(name) for name in _MEMBER.names if name != "lease_until"},
            lease_until=now + bindparam("span"),
        )
        changing = (*_SAID, "stream_count", "clock_skew", "lease_until")
        self._before = compiler(
            select(brokers.c.lease_until > now, *(brokers.c[name] for name in _SAID)).where(
                brokers.c.broker_id == bindparam("broker_id")
            )
        )
        self._upsert = compiler(
            insert.on_conflict_do_update(
                index_elements=["broker_id"], set_={name: insert.excluded[name] for name in changing}
            ).returning(brokers.c.lease_until)
        )
        self._remove = compiler(delete(brokers).where(brokers.c.broker_id == bindparam("which")))
        # One that renews it in this moment, or was stopped while it did, isn't waited for: two that were both late
        # would wait for each other, and a lease must not end for what another broker does.
        ended = select(brokers.c.broker_id).where(
            brokers.c.lease_until <= now, brokers.c.broker_id != bindparam("broker_id")
        )
        self._remove_ended = compiler(
            delete(brokers).where(brokers.c.broker_id.in_(ended.with_for_update(skip_locked=True)))
        )
        self._time = compiler(select(now))
        self._roles = compiler(select(leases.c.holder, leases.c.role).order_by(leases.c.role))
        columns = [brokers.c[name] for name in _MEMBER.names]
        self._living = compiler(
            select(*columns).where(brokers.c.lease_until > now).order_by(brokers.c.start_time, brokers.c.broker_id)
        )

    @override
    async def renew(self, member: Member, span: timedelta) -> Renewal:
        values = {
            **self._values(),
            **_MEMBER.values(replace(member, broker_id=self.broker_id, schema_revision=SCHEMA_REVISION)),
        }
        values["span"] = span // _MICROSECOND
        ended = False

        def change(session: Session) -> Done[Renewal]:
            nonlocal ended
            stood, *said = session.one(self._before, values) or (False,)
            # Kept over the tries of this change: the lease that the second one finds may be the first one's.
            ended = ended or not stood
            row = session.one(self._upsert, values)
            assert row is not None
            gone = session.execute(self._remove_ended, self._remove_ended.arguments(values))
            if gone or not stood or said != [values[name] for name in _SAID]:
                self._changes.add_shared(session, ChangeKind.MEMBER, self.broker_id)
            return Done(Renewal(not ended, from_micros(row[0] - values["span"]), removed=gone > 0))

        return await self._writer.write(change, ())

    @override
    async def end(self, broker_id: str) -> bool:
        def change(session: Session) -> Done[bool]:
            left = session.execute(self._remove, self._remove.arguments({"which": broker_id})) > 0
            if left:
                self._changes.add_shared(session, ChangeKind.MEMBER, broker_id)
            return Done(left)

        return await self._writer.write(change, ())

    @override
    async def leave(self) -> None:
        await self.end(self.broker_id)

    @override
    async def living(self) -> Sequence[Member]:
        with reading():
            rows = await self._database.all(self._living, self._values())
        return [_MEMBER.value(row) for row in rows]

    @override
    async def roles(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        with reading():
            for holder, role in await self._database.all(self._roles, {}):
                found.setdefault(holder, []).append(role)
        return found

    @override
    async def time(self) -> datetime:
        with reading():
            row = await self._database.one(self._time, self._values())
        assert row is not None
        return from_micros(row[0])

    def _values(self) -> dict[str, Any]:
        return {"clock": to_micros(self._clock.now())}
