"""This writer's chain of audit events (`certplane.broker.proof`), as it is written.

The group commit numbers events on the writer's thread, in the transaction that they stand in. A transaction that was
undone gives its numbers back. Of one whose end nobody knows (the connection was lost during the commit) they may be
durable or not: that chain stays as it is, and the writer goes on with a new one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from sqlalchemy import bindparam, select

from certplane.broker.proof.chain import ChainStart, Head, next_hash
from certplane.broker.store.audit_records import EventRow
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import audit_chains, audit_events
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, limited_to
from certplane.runtime.clock import Clock

COLUMNS: Final = ("event_id", "create_time", "record", "chain_id", "number", "hash", "body", "kind")
"""Of an insert, in this order."""

_START: Final = (
    "writer_id", "start_time", "after_chain_id", "after_number", "after_hash", "first_sequence"
)  # fmt: skip


class AuditChain:
    """This writer's chain. For the writer's thread."""

    def __init__(self, compiler: Compiler, writer_id: str, clock: Clock) -> None:
        self.writer_id = writer_id
        self._clock = clock
        self._newest = compiler(
            select(audit_events.c.sequence, audit_events.c.chain_id, audit_events.c.number, audit_events.c.hash)
            .order_by(audit_events.c.sequence.desc())
            .suffix_with(limited_to(1))
        )
        insert = compiler.insert(audit_chains).values({name: bindparam(name) for name in _START})
        self._insert = compiler(insert.returning(audit_chains.c.chain_id))
        self.head: Head | None = None
        """None: the next event begins a chain. Whoever undoes a transaction sets it to what it was before."""

    def begin(self, session: Session) -> None:
        """Begin a chain, in the transaction that is open, unless there is one."""
        if self.head is not None:
            return
        sequence, *after = session.one(self._newest, {}) or (0, None, None, None)
        chain_id, number, digest = after if after[0] is not None else (0, 0, b"")
        start = ChainStart(0, self.writer_id, to_micros(self._clock.now()), chain_id, number, digest)
        row = session.one(self._insert, {**dataclasses.asdict(start), "first_sequence": sequence + 1})
        assert row is not None
        start = dataclasses.replace(start, chain_id=row[0])
        self.head = Head(start.chain_id, 0, start.genesis)

    def link(self, rows: Sequence[EventRow]) -> list[object]:
        """The values of `COLUMNS` for rows that come next, one row after the other; the chain has begun."""
        assert self.head is not None
        chain_id, number, digest = self.head
        values: list[object] = []
        for row in rows:
            number += 1
            digest = next_hash(digest, number, row)
            event_id, create_time, record, body, kind, _ = row
            values += (event_id, create_time, record, chain_id, number, digest, body, kind)
        self.head = Head(chain_id, number, digest)
        return values
