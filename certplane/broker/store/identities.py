"""The identity ledger: in the database, answered from memory.

Several brokers, and `certplane-broker identity allow` beside a running one, write it. Each change takes the next number
of one counter, whose row stays locked until the commit: numbers become visible in their order. So twice a second the
rows with a number above the last one that was read are read, usually none, however many identities there are.

Memory decides what a call means as long as nothing is to be written; a write decides again inside its transaction,
about the row as it is committed (`certplane.broker.identity.first_use`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import bindparam, select
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.identity.first_use import Verdict, activated, contested, judge
from certplane.broker.model import AuditEvent, DenyEntry, IdentityUse, KnownIdentity
from certplane.broker.ports import IdentityLedger, IdentityRegister, Meter
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.deny_list import DenyRows
from certplane.broker.store.rows import IDENTITY_COLUMNS, identity_from_row, identity_values
from certplane.broker.store.schema import identities, identity_changes
from certplane.broker.store.session import Database, Session, SqlError
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.store")

_LOOK: Final = timedelta(milliseconds=500)
"""Half of the second that the port allows."""

_Numbered = tuple[int, KnownIdentity | None]
"""An identity and the number of its last change; 0 and None before the first."""


class SqlIdentityLedger(IdentityLedger, IdentityRegister):
    """`IdentityLedger` and `IdentityRegister` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, clock: Clock, meter: Meter) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        self._clock = clock
        self._meter = meter
        self._known: dict[str, KnownIdentity] = {}
        self._numbers: dict[str, int] = {}
        self._contested: set[str] = set()
        self._seen = 0
        self._current = True
        self._refreshing = asyncio.Lock()
        compiler = database.compiler
        self._deny_rows = DenyRows(compiler)
        row = select(identities.c.change_sequence, *(identities.c[name] for name in IDENTITY_COLUMNS))
        self._by_name = compiler(row.where(identities.c.name == bindparam("name")))
        self._changed = compiler(
            row.where(identities.c.change_sequence > bindparam("seen")).order_by(identities.c.change_sequence)
        )
        self._all = compiler(row.order_by(identities.c.name))
        first = compiler.insert(identity_changes).values(counter_id=1, last_sequence=1)
        self._count = compiler(
            first.on_conflict_do_update(
                index_elements=["counter_id"], set_={"last_sequence": identity_changes.c.last_sequence + 1}
            )
        )
        self._last = compiler(select(identity_changes.c.last_sequence))
        insert = compiler.insert(identities)
        columns = (*IDENTITY_COLUMNS, "change_sequence")
        self._put = compiler(
            insert.on_conflict_do_update(
                index_elements=["name"], set_={name: insert.excluded[name] for name in columns[1:]}
            ),
            columns,
        )

    @property
    def current(self) -> bool:
        """Whether the last look at the database worked; if not, what is in memory stays in force."""
        return self._current

    @override
    def known(self, name: str) -> KnownIdentity | None:
        return self._known.get(name)

    @override
    async def activate(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            return activated(known, name, use) if judge(known, use) is Verdict.ACTIVATE else None

        known = await self._change(name, decide, events)
        if known is None:
            raise RuntimeError("an identity that isn't known is activated by its first use")
        return known

    @override
    async def contest(self, name: str, use: IdentityUse, events: Sequence[AuditEvent]) -> KnownIdentity:
        """As the port describes, with these errors.

        Raises:
            RuntimeError: the identity isn't known.
        """

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            if known is None:
                raise RuntimeError("an identity that isn't known has no retired certificate")
            return contested(known, use) if judge(known, use) is Verdict.CONTEST else None

        known = await self._change(name, decide, events)
        if known is None:
            raise RuntimeError("a contested identity is known")
        return known

    @override
    async def count_displacement(self, name: str, time: datetime) -> None:

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            if known is None:
                return None
            return replace(known, displaced_count=known.displaced_count + 1, displace_time=time)

        await self._change(name, decide, ())

    @override
    async def identities(self) -> Sequence[KnownIdentity]:
        with reading():
            rows = await self._database.all(self._all, {})
        return [identity_from_row(row[1:]) for row in rows]

    @override
    async def settle(
        self,
        seen: KnownIdentity,
        settled: KnownIdentity,
        denied: Sequence[DenyEntry],
        allowed: Sequence[DenyEntry],
        events: Sequence[AuditEvent],
    ) -> bool:

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            if known is None or not _same_certificates(known, seen):
                return None
            return replace(settled, displaced_count=known.displaced_count, displace_time=known.displace_time)

        def beside(session: Session) -> list[AuditEvent]:
            for entry in allowed:
                self._deny_rows.delete(session, entry)
            return [event for entry in denied for event in self._deny_rows.insert(session, entry)]

        known = await self._change(seen.name, decide, events, beside)
        return known is not None and _same_certificates(known, settled)

    async def _change(
        self,
        name: str,
        decide: Callable[[KnownIdentity | None], KnownIdentity | None],
        events: Sequence[AuditEvent],
        beside: Callable[[Session], Sequence[AuditEvent]] = lambda _session: (),
    ) -> KnownIdentity | None:
        """The identity after `decide` was asked about its row; None from it changes nothing, and the row is answered.

        `beside` writes what else belongs to a change, and says which events that has.
        """
        recorded = self._audit.encode(events)
        made: _Numbered | None = None

        def change(session: Session) -> Done[_Numbered]:
            nonlocal made
            # First of all: whoever else changes an identity waits here, so that the row isn't decided about twice.
            session.execute(self._count, self._count.arguments({}))
            row = session.one(self._by_name, {"name": name})
            found: _Numbered = (0, None) if row is None else (row[0], identity_from_row(row[1:]))
            if made is not None and found == made:  # an earlier try was committed, and the answer was lost
                return Done(found)
            known = decide(found[1])
            if known is None:
                return Done(found, audited=False)
            last = session.one(self._last, {})
            if last is None:
                raise RuntimeError("the counter of changes is gone")
            made = (int(last[0]), known)
            values = {**identity_values(known), "change_sequence": made[0]}
            session.execute(self._put, self._put.arguments(values))
            return Done(made, events=(*recorded, *self._audit.encode(beside(session))))

        number, known = await self._writer.write(change, recorded)
        if known is not None:
            self._take(number, known)
            self._note()
        return known

    async def refresh(self) -> None:
        """Read what has changed; on a failure what is in memory stays in force."""
        async with self._refreshing:
            try:
                for number, *row in await self._database.all(self._changed, {"seen": self._seen}):
                    self._take(number, identity_from_row(tuple(row)))
                    self._seen = number
            except Exception as error:  # noqa: BLE001 - of ours too: or nobody would look again, and nothing show it
                if self._current:
                    fault = None if isinstance(error, SqlError) else error
                    _log.error("the identities can't be read, the last ones stay in force: %s", error, exc_info=fault)
                self._current = False
            else:
                self._current = True
            self._note()

    def _take(self, number: int, known: KnownIdentity) -> None:
        """Into memory, unless what is there is newer: a look may have begun before our own change."""
        name = known.name
        if number < self._numbers.get(name, 0):
            return
        self._known[name] = known
        self._numbers[name] = number
        if known.contest is None:
            self._contested.discard(name)
        else:
            self._contested.add(name)

    def _note(self) -> None:
        self._meter.level(metrics.IDENTITIES_CONTESTED, len(self._contested))

    async def watch(self) -> None:
        """Keep what is in memory current, until cancelled."""
        while True:
            await self._clock.sleep(_LOOK)
            await self.refresh()


def _same_certificates(one: KnownIdentity, other: KnownIdentity) -> bool:
    return (one.active, one.retired, one.contest) == (other.active, other.retired, other.contest)
