"""The identity ledger: in the database, answered from memory.

Other programs write it too (`certplane-broker identity allow` beside a running broker, another broker): the change feed
says whose row to read again.

Memory decides what a call means as long as nothing is to be written; a write decides again inside its transaction,
about the row as it is committed (`certplane.broker.identity.first_use`). Each row counts its changes, and is written
only over the count that was decided about: where another writer was faster, the new row is decided about.

Of a large fleet the rows are read a page at a time, and kept packed until somebody asks for the identity: a start with
a hundred thousand takes a fifth of the time and of the memory that their values would. A row that can't be read is
found when it is taken in: a start refuses it, and a running broker isn't ready until it is mended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import bindparam, literal_column, select
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.events import AuditEvent
from certplane.broker.identity.first_use import Verdict, activated, contested, judge
from certplane.broker.model import ChangeKind, DenyEntry, IdentityUse, KnownIdentity
from certplane.broker.ports import ChangeFollower, IdentityLedger, Meter
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done, store_unavailable
from certplane.broker.store.cells import IDENTITY_USE, decode_json, encode_json
from certplane.broker.store.change_feed import ChangeLog, SqlChangeFeed
from certplane.broker.store.deny_list import DenyRows
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import identities
from certplane.broker.store.session import Database, Fault, Session, SqlError
from certplane.broker.store.statements import HOSTS, Row, hosts_parameters, limited_to
from certplane.broker.store.writer import Writer

_log = logging.getLogger("certplane.store")

_PAGE: Final = 2048
"""Rows that are read, and taken in before the event loop has its turn: some milliseconds."""

_RETIRED, _CONTEST = map([column.name for column in identities.c].index, ("retired", "contest"))
_pack: Final = msgspec.msgpack.Encoder().encode
_unpack: Final = msgspec.msgpack.Decoder(tuple).decode

_UNREADABLE: Final = "what is stored of this identity can't be read; an operator of the broker has to mend the database"

_Numbered = tuple[int, KnownIdentity | None]
"""An identity and the number of its last change; 0 and None before the first."""


class SqlIdentityLedger(IdentityLedger, ChangeFollower):
    """`IdentityLedger` over the database, and what an operator settles in it."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        audit: SqlAuditLog,
        meter: Meter,
        *,
        changes: ChangeLog,
        feed: SqlChangeFeed,
    ) -> None:
        """Empty until the feed's first look."""
        self._database = database
        self._writer = writer
        self._audit = audit
        self._meter = meter
        self._changes = changes
        self._feed = feed
        self._known: dict[str, KnownIdentity] = {}
        self._packed: dict[str, bytes] = {}
        """Rows as they were read, of those that nobody has asked for since; of no name that `_known` has."""
        self._numbers: dict[str, int] = {}
        self._contested: set[str] = set()
        self._settled = False
        """Whether one of these isn't any more, and nobody was told."""
        self.on_settled: Callable[[], None] = lambda: None
        """Called when an operator, at whatever broker or beside it, has settled who holds a contested identity."""
        self.on_contested: Callable[[str], None] = lambda _name: None
        """Called with the name of an identity that this program has found contested; others are told by the feed."""
        compiler = database.compiler
        self._deny_rows = DenyRows(compiler, changes)
        row = select(identities)
        self._by_name = compiler(row.where(identities.c.name == bindparam("name")))
        self._by_names = compiler(row.where(identities.c.name.in_(HOSTS)))
        self._all = compiler(row.order_by(identities.c.name))
        self._page = compiler(
            row.where(identities.c.name > bindparam("after")).order_by(identities.c.name).suffix_with(limited_to(_PAGE))
        )
        insert = compiler.insert(identities)
        self._put = compiler(
            insert.on_conflict_do_update(
                index_elements=["name"],
                set_={column.name: insert.excluded[column.name] for column in identities.c if not column.primary_key},
                where=identities.c.change_sequence == insert.excluded.change_sequence - literal_column("1"),
            ),
            [column.name for column in identities.c],
        )
        feed.follow(ChangeKind.IDENTITY, self, what="the identities", vital=True)

    @override
    def known(self, name: str) -> KnownIdentity | None:
        known = self._known.get(name)
        if known is None and (packed := self._packed.get(name)) is not None:
            try:
                known = _from_row(_unpack(packed))[1]
            except Exception as error:
                # It stays packed: who has such a row doesn't pass for one who is new.
                _log.exception("the row of an identity can't be read", extra={"fields": {"name": name}})
                raise store_unavailable(_UNREADABLE) from error
            self._known[name] = known
            del self._packed[name]
        return known

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
        self.on_contested(name)
        return known

    @override
    async def count_displacement(self, name: str, time: datetime) -> None:

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            if known is None:
                return None
            return replace(known, displaced_count=known.displaced_count + 1, displace_time=time)

        await self._change(name, decide, ())

    async def identities(self) -> Sequence[KnownIdentity]:
        """All that are known, by name."""
        with reading():
            rows = await self._database.all(self._all, {})
        return [_from_row(row)[1] for row in rows]

    async def settle(
        self,
        seen: KnownIdentity,
        settled: KnownIdentity,
        denied: Sequence[DenyEntry],
        allowed: Sequence[DenyEntry],
        events: Sequence[AuditEvent],
    ) -> bool:
        """Put `settled` in the place of `seen`, and change the deny-list with it, in one durable transaction.

        False, and nothing is changed, if the identity's certificates or its contest aren't those of `seen` any more.
        Counts of displaced streams are kept, whatever `settled` says. Open orders of whom it shuts out end as with
        `DenyList.deny`.

        Raises:
            RefusalError: STORE_UNAVAILABLE, or AUDIT_UNAVAILABLE under `fail_closed`.
        """

        def decide(known: KnownIdentity | None) -> KnownIdentity | None:
            if known is None or not _same_certificates(known, seen):
                return None
            return replace(settled, displaced_count=known.displaced_count, displace_time=known.displace_time)

        def beside(session: Session) -> list[AuditEvent]:
            for entry in allowed:
                self._deny_rows.delete(session, entry)
            return [event for entry in denied for event in self._deny_rows.insert(session, entry)]

        known = await self._change(seen.name, decide, events, beside)
        if denied or allowed:  # our own changes aren't told, and are seen before they are acknowledged
            await self._feed.reread(ChangeKind.DENY_ENTRY)
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
            while True:  # until no other writer comes between; each turn is another one's change
                row = session.one(self._by_name, {"name": name})
                found: _Numbered = (0, None) if row is None else _from_row(row)
                if made is not None and found == made:  # an earlier try was committed, and the answer was lost
                    return Done(found)
                known = decide(found[1])
                if known is None:
                    return Done(found, audited=False)
                made = (found[0] + 1, known)
                if session.execute(self._put, _row(*made)):
                    break
            self._changes.add(session, ChangeKind.IDENTITY, name)
            return Done(made, events=(*recorded, *self._audit.encode(beside(session))))

        number, known = await self._writer.write(change, recorded)
        if known is not None:
            self._take(number, known)
            self._note()
        return known

    @override
    async def changed(self, keys: Collection[str]) -> None:
        for names in hosts_parameters([*keys]):
            self._take_all(await self._database.all(self._by_names, names))
        self._note()

    @override
    async def reread(self, since: datetime) -> None:
        after = ""
        while rows := await self._database.all(self._page, {"after": after}):
            self._take_all(rows)
            after = rows[-1][0]
        self._note()

    def _take_all(self, rows: Sequence[Row]) -> None:
        """Into memory, as they are.

        Raises:
            SqlError: one can't be read.
        """
        for row in rows:
            name, number = row[0], row[-1]
            if row[_RETIRED] is not None or row[_CONTEST] is not None:
                _check_texts(row)
            if self._is_news(name, number, contested=row[_CONTEST] is not None):
                self._known.pop(name, None)
                self._packed[name] = _pack(row)

    def _take(self, number: int, known: KnownIdentity) -> None:
        """Into memory, unless what is there is newer: a look may have begun before our own change."""
        name = known.name
        if self._is_news(name, number, contested=known.contest is not None):
            self._packed.pop(name, None)
            self._known[name] = known

    def _is_news(self, name: str, number: int, *, contested: bool) -> bool:
        if number < self._numbers.get(name, 0):
            return False
        self._numbers[name] = number
        if contested:
            self._contested.add(name)
        elif name in self._contested:
            self._contested.discard(name)
            self._settled = True
        return True

    def _note(self) -> None:
        self._meter.level(metrics.IDENTITIES_CONTESTED, len(self._contested))
        if self._settled:
            self._settled = False
            self.on_settled()


def _same_certificates(one: KnownIdentity, other: KnownIdentity) -> bool:
    return (one.active, one.retired, one.contest) == (other.active, other.retired, other.contest)


def _row(number: int, known: KnownIdentity) -> Row:
    """The columns of an identity in the table's order."""
    return (
        known.name,
        *IDENTITY_USE.of(known.active),
        to_micros(known.newest),
        encode_json([IDENTITY_USE.of(use) for use in known.retired]) if known.retired else None,
        None if known.contest is None else encode_json(IDENTITY_USE.of(known.contest)),
        known.displaced_count,
        None if known.displace_time is None else to_micros(known.displace_time),
        number,
    )


def _check_texts(row: Row) -> None:
    """What may be wrong with a row in a table whose columns have types: a fifth of the work of reading it whole."""
    try:
        for text in (row[_RETIRED], row[_CONTEST]):
            if text is not None:
                decode_json(text)
    except ValueError as error:
        raise SqlError(Fault.OTHER, f"the row of {row[0]} can't be read ({error})") from error


def _from_row(row: Row) -> tuple[int, KnownIdentity]:
    name, *active, newest, retired, contest, displaced_count, displace_time, number = row
    known = KnownIdentity(
        name,
        IDENTITY_USE.value(active),
        from_micros(newest),
        tuple(map(IDENTITY_USE.value, decode_json(retired or "[]"))),
        None if contest is None else IDENTITY_USE.value(decode_json(contest)),
        displaced_count,
        None if displace_time is None else from_micros(displace_time),
    )
    return number, known
