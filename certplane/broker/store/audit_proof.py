"""The rows that prove the audit log: chains, checkpoints, and events as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, and_, bindparam, exists, or_, select, update
from typing_extensions import override

from certplane.broker.proof.chain import Chain, ChainStart, Head, LoggedEvent
from certplane.broker.proof.checkpoints import Checkpoint
from certplane.broker.proof.ports import AuditProof
from certplane.broker.store.audit_log import AuditRows, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.members import is_alive
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import audit_chains, audit_checkpoints, audit_events
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import Row, limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_START: Final = ("chain_id", "writer_id", "start_time", "after_chain_id", "after_number", "after_hash")
_CHECKPOINT: Final = ("chain_id", "number", "sequence", "time", "hash", "key_id", "signature")
_SOME: Final = 16
"""Ended chains that are sealed at a time."""
_GRACE: Final = 3_600_000_000
"""Microseconds for which a chain is left alone: a command, or a broker that has no lease yet, may still write it."""


class SqlAuditProof(AuditProof):
    """`AuditProof` over the database."""

    def __init__(self, database: Database, writer: Writer, rows: AuditRows, clock: Clock) -> None:
        self._database = database
        self._writer = writer
        self._rows = rows
        self._clock = clock
        compiler = database.compiler
        columns = [audit_events.c[name] for name in LoggedEvent._fields]
        after: BindParameter[Any] = bindparam("after")
        which: BindParameter[Any] = bindparam("chain_id")
        events = select(*columns).where(audit_events.c.sequence > after).order_by(audit_events.c.sequence)
        self._events = compiler(events.suffix_with(limited_to()))
        self._of_chain = compiler(events.where(audit_events.c.chain_id == which).suffix_with(limited_to()))
        self._newest = compiler(
            select(audit_events.c.sequence).order_by(audit_events.c.sequence.desc()).suffix_with(limited_to(1))
        )
        self._newest_of_chain = compiler(
            select(audit_events.c.sequence)
            .where(audit_events.c.chain_id == which)
            .order_by(audit_events.c.sequence.desc())
            .suffix_with(limited_to(1))
        )
        chain = (audit_chains.c[name] for name in (*_START, "first_sequence", "pruned_number"))
        chains = select(*chain).order_by(audit_chains.c.chain_id)
        self._chains = compiler(chains.where(audit_chains.c.chain_id > after).suffix_with(limited_to()))
        self._chain = compiler(chains.where(audit_chains.c.chain_id == which))
        of, later = audit_chains.c, audit_chains.alias("later").c
        before: BindParameter[Any] = bindparam("before")
        ended = and_(of.writer_id != bindparam("me"), ~is_alive(compiler, of.writer_id))
        # A lost answer: its writer lives, and writes another one.
        left = exists().where(later.chain_id > of.chain_id, later.writer_id == of.writer_id, later.start_time < before)
        self._ended = compiler(
            chains.where(of.end_time.is_(None), of.start_time < before, or_(ended, left)).suffix_with(limited_to())
        )
        of = audit_checkpoints.c
        checkpoints = select(*(of[name] for name in _CHECKPOINT))
        number: BindParameter[Any] = bindparam("number")
        self._checkpoints = compiler(
            checkpoints.where(of.chain_id >= which, or_(of.chain_id > which, of.number > number))
            .order_by(of.chain_id, of.number)
            .suffix_with(limited_to())
        )
        self._last = compiler(
            checkpoints.where(of.chain_id == which).order_by(of.number.desc()).suffix_with(limited_to(1))
        )
        insert = compiler.insert(audit_checkpoints).values({name: bindparam(name) for name in _CHECKPOINT})
        self._insert = compiler(insert.on_conflict_do_nothing())
        self._end = compiler(
            update(audit_chains)
            .where(and_(audit_chains.c.chain_id == bindparam("which"), audit_chains.c.end_time.is_(None)))
            .values(end_time=bindparam("time"))
        )

    @override
    async def head(self, last: Head | None) -> tuple[Head, int] | None:
        def change(session: Session) -> Done[tuple[Head, int] | None]:
            # On the writer's thread and in its turn: what has a number is durable, or part of this transaction.
            head = self._rows.head
            if head is None or head == last:
                return Done(None)
            # The hash is this program's own: one that is read would be signed though it was changed since.
            row = session.one(self._newest_of_chain, {"chain_id": head.chain_id})
            return Done((head, 0 if row is None else row[0]))

        return await self._writer.write(change, ())

    @override
    async def newest(self) -> int:
        with reading():
            row = await self._database.one(self._newest, {})
        return int(row[0]) if row is not None else 0

    @override
    async def chains(self) -> Sequence[Chain]:
        found: list[Chain] = []
        statement = self._chains.at_most(1024)
        while True:
            with reading():
                rows = await self._database.all(statement, {"after": found[-1].start.chain_id if found else 0})
            found += map(_chain, rows)
            if len(rows) < 1024:
                return found

    @override
    async def chain(self, chain_id: int) -> Chain | None:
        with reading():
            row = await self._database.one(self._chain, {"chain_id": chain_id})
        return None if row is None else _chain(row)

    @override
    async def ended(self) -> Sequence[Chain]:
        now = to_micros(self._clock.now())
        values = {"before": now - _GRACE, "me": self._rows.writer_id, "clock": now}
        with reading():
            rows = await self._database.all(self._ended.at_most(_SOME), values)
        return [_chain(row) for row in rows]

    @override
    async def checkpoints(self, after: tuple[int, int], limit: int) -> Sequence[Checkpoint]:
        with reading():
            values = {"chain_id": after[0], "number": after[1]}
            rows = await self._database.all(self._checkpoints.at_most(limit), values)
        return [Checkpoint(*row) for row in rows[:limit]]

    @override
    async def last_checkpoint(self, chain_id: int) -> Checkpoint | None:
        with reading():
            row = await self._database.one(self._last, {"chain_id": chain_id})
        return None if row is None else Checkpoint(*row)

    @override
    async def events(self, after: int, limit: int, *, chain_id: int | None = None) -> Sequence[LoggedEvent]:
        statement = self._events if chain_id is None else self._of_chain
        with reading():
            rows = await self._database.all(statement.at_most(limit), {"after": after, "chain_id": chain_id})
        return [LoggedEvent(*row) for row in rows[:limit]]

    @override
    async def seal(self, checkpoint: Checkpoint | None, *, ended: int | None = None) -> None:
        values = {} if checkpoint is None else {name: getattr(checkpoint, name) for name in _CHECKPOINT}
        end = {"which": ended, "time": to_micros(self._clock.now())}

        def change(session: Session) -> Done[None]:
            if values:
                session.execute(self._insert, self._insert.arguments(values))
            if ended is not None:
                session.execute(self._end, self._end.arguments(end))
            return Done(None)

        await self._writer.write(change, ())


def _chain(row: Row) -> Chain:
    *start, first_sequence, pruned_number = row
    return Chain(ChainStart(*start), first_sequence, pruned_number)
