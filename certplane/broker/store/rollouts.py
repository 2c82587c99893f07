"""Rollouts in the database: a row each, and one for each certificate of it.

A rollout's row is written with the version that it is to have, and only where it still has the one before: so of two
who decide at once, a broker and an operator, say, one is refused and reads again. Its items are written in the
transaction of its row, which decides for them too.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, exists, literal_column, or_, select, text, tuple_, update
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import ChangeKind
from certplane.broker.renewal.model import HostActivation
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutItem, RolloutState
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace, RolloutStore
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.campaign_schema import rollout_items, rollouts
from certplane.broker.store.cells import Columns
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, Compiler, Statement, chunks, hosts_parameters, limited_to, numbered
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_ROLLOUT: Final = Columns(Rollout)
_ITEM: Final = Columns(RolloutItem)
_GIVEN: Final = ("rollout_id", "created_by", "request_id", "spec", "create_time", "incident_id")
"""Columns of a rollout that never change: a spec may name ten thousand certificates, and is written once."""
_COLUMNS: Final = tuple(rollout_items.c.keys())
_FIXED: Final = (
    "rollout_id",
    "certificate_id",
    "host",
    "profile",
    "issuer",
    "dns_names",
    "not_after",
    "ring",
    "certificate_name",
)
"""Columns of an item that never change."""
_PAGE: Final = 512
"""Rows of one read: one or two milliseconds of the loop."""
_NEVER: Final = 2**62
"""Later than every time."""
_LAST_RING: Final = 2**31


class SqlRolloutStore(RolloutStore):
    """`RolloutStore` over the database."""

    def __init__(
        self, database: Database, writer: Writer, audit: SqlAuditLog, clock: Clock, changes: ChangeLog
    ) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        self._clock = clock
        self._changes = changes
        compiler = database.compiler
        rows, items = rollouts.c, rollout_items.c
        every = select(*(rows[name] for name in _ROLLOUT.names))
        self._one = compiler(every.where(rows.rollout_id == bindparam("which")))
        asked = (rows.created_by == bindparam("created_by"), rows.request_id == bindparam("request_id"))
        self._find = compiler(every.where(*asked))
        self._open = compiler(every.where(text("end_time IS NULL")).order_by(rows.create_time, rows.rollout_id))
        behind = tuple_(rows.create_time, rows.rollout_id) < tuple_(bindparam("time"), bindparam("which"))
        page = (
            every.where(rows.create_time <= bindparam("time"), behind)  # what an index finds
            .order_by(rows.create_time.desc(), rows.rollout_id.desc())
            .suffix_with(limited_to(_PAGE))
        )
        # All of an age: which of them have ended is looked at when they are read; nearly all have.
        self._listed = {False: compiler(page.where(text("end_time IS NULL"))), True: compiler(page)}
        insert = compiler.insert(rollouts).values({name: bindparam(name) for name in _ROLLOUT.names})
        self._insert = compiler(insert.on_conflict_do_nothing(index_elements=["created_by", "request_id"]))
        self._change = compiler(
            update(rollouts)
            .where(rows.rollout_id == bindparam("which"), rows.version == bindparam("before"))
            .values({name: bindparam(name) for name in _ROLLOUT.names if name not in _GIVEN})
        )
        self._set_items = functools.cache(lambda count: _setting(compiler, count))
        of_rollout = select(*(items[name] for name in _ITEM.names)).where(items.rollout_id == bindparam("which"))
        self._items = compiler(
            of_rollout.where(items.certificate_id > bindparam("after"))
            .order_by(items.certificate_id)
            .suffix_with(limited_to(_PAGE))
        )
        self._in_place = compiler(
            of_rollout.where(
                items.place == bindparam("at"),
                items.certificate_id > bindparam("after"),
                items.ring >= bindparam("first_ring"),
                items.ring <= bindparam("last_ring"),
            )
            .order_by(items.certificate_id)
            .suffix_with(limited_to())
        )
        self._held_hosts = compiler(
            select(items.host).where(
                items.rollout_id == bindparam("which"), items.place == literal_column(str(ItemState.HELD.place))
            )
        )
        joined = rollout_items.join(rollouts, rows.rollout_id == items.rollout_id)
        self._open_items = compiler(
            select(*(items[name] for name in _ITEM.names))
            .select_from(joined)
            .where(items.certificate_id.in_(HOSTS), rows.end_time.is_(None))
        )
        released = and_(
            items.release_time.is_not(None), _is_one_of(ItemState.RELEASED, ItemState.SILENT, ItemState.FAILED)
        )
        ended = and_(rows.end_time.is_not(None), _is_one_of(ItemState.HELD, ItemState.FAILED))
        # What another rollout that is under way has is that one's to release: it is told once, and not both.
        theirs, them = rollout_items.alias("theirs"), rollouts.alias("them")
        taken = exists(
            select(literal_column("1"))
            .select_from(theirs.join(them, them.c.rollout_id == theirs.c.rollout_id))
            .where(
                theirs.c.certificate_id == items.certificate_id,
                theirs.c.rollout_id != items.rollout_id,
                theirs.c.state != literal_column(f"'{ItemState.SKIPPED}'"),
                them.c.end_time.is_(None),
            )
        )
        abandoned = and_(items.release_time.is_(None), or_(ended, _is_one_of(ItemState.SKIPPED)), ~taken)
        self._activations = compiler(
            select(items.host, items.new_certificate_id, items.rollout_id, items.release_time)
            .select_from(joined)
            .where(
                items.host.in_(HOSTS),
                items.new_certificate_id != literal_column("''"),
                items.not_after > bindparam("now"),
                or_(released, abandoned),
            )
        )
        # What was ordered when a rollout ended, or passed it over, comes to its host all the same, held for a rollout
        # that looks no more.
        late = and_(
            orders.c.replaces_certificate_id == items.certificate_id, orders.c.state == literal_column("'ISSUED'")
        )
        self._late = compiler(
            select(items.host, orders.c.certificate_id, items.rollout_id)
            .select_from(joined.join(orders, late))
            .where(
                items.host.in_(HOSTS),
                items.new_certificate_id == literal_column("''"),
                items.not_after > bindparam("now"),
                or_(
                    and_(
                        rows.end_time.is_not(None),
                        _is_one_of(ItemState.WAITING, ItemState.REQUESTED, ItemState.FAILED),
                    ),
                    _is_one_of(ItemState.SKIPPED),
                ),
                ~taken,
            )
        )

    @override
    async def create(
        self, rollout: Rollout, items: Sequence[RolloutItem], events: Sequence[AuditEvent] = ()
    ) -> Rollout:
        arguments = self._insert.arguments(_ROLLOUT.values(rollout))
        asked = {"created_by": rollout.created_by, "request_id": rollout.request_id}

        def change(session: Session) -> Done[Rollout]:
            if session.execute(self._insert, arguments) != 1:
                first = session.one(self._find, asked)
                assert first is not None
                return Done(_ROLLOUT.value(first), audited=False)
            self._write_items(session, items)
            self._changes.add_shared(session, ChangeKind.ROLLOUT, rollout.rollout_id)
            return Done(rollout)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def save(
        self, before: Rollout, after: Rollout, items: Sequence[RolloutItem] = (), events: Sequence[AuditEvent] = ()
    ) -> bool:
        which = {"which": after.rollout_id, "before": before.version}
        arguments = self._change.arguments(_ROLLOUT.values(after) | which)
        ends = after.state.has_ended and not before.state.has_ended

        def change(session: Session) -> Done[bool]:
            if not session.execute(self._change, arguments):
                row = session.one(self._one, which)
                # As it is to be: an earlier try was committed, and the answer was lost.
                return Done(row is not None and _ROLLOUT.value(row) == after, audited=False)
            self._write_items(session, items)
            self._changes.add_shared(session, ChangeKind.ROLLOUT, after.rollout_id)
            hosts = {item.host for item in items if item.state is ItemState.RELEASED and item.new_certificate_id}
            if ends:
                hosts.update(row[0] for row in session.all(self._held_hosts, which))
            for host in sorted(hosts):
                self._changes.add_shared(session, ChangeKind.ACTIVATION, host)
            return Done(True)

        return await self._writer.write(change, self._audit.encode(events))

    def _write_items(self, session: Session, items: Sequence[RolloutItem]) -> None:
        for some in chunks(items):
            rows = [_ITEM.values(item) | {"place": item.state.place} for item in some]
            cells = [row[name] for row in rows for name in _COLUMNS]
            session.execute(self._set_items(len(some)), tuple(cells))

    @override
    async def get(self, rollout_id: str) -> Rollout | None:
        return await self._read(self._one, {"which": rollout_id})

    @override
    async def find(self, created_by: str, request_id: str) -> Rollout | None:
        return await self._read(self._find, {"created_by": created_by, "request_id": request_id})

    async def _read(self, statement: Statement, values: dict[str, object]) -> Rollout | None:
        with reading():
            row = await self._database.one(statement, values)
        return None if row is None else _ROLLOUT.value(row)

    @override
    async def open_rollouts(self) -> Sequence[Rollout]:
        with reading():
            return [_ROLLOUT.value(row) for row in await self._database.all(self._open, {})]

    @override
    async def list(self, states: Collection[RolloutState], after: RolloutPlace | None, limit: int) -> Sequence[Rollout]:
        found: list[Rollout] = []
        for ended in (False, True):
            time, which = _NEVER, ""
            if after is not None:
                if after.has_ended > ended:
                    continue
                if after.has_ended == ended:
                    time, which = to_micros(after.create_time), after.rollout_id
            while len(found) < limit:
                with reading():
                    rows = await self._database.all(self._listed[ended], {"time": time, "which": which})
                read = [_ROLLOUT.value(row) for row in rows]
                found += [one for one in read if one.state.has_ended is ended and (not states or one.state in states)]
                if len(rows) < _PAGE:
                    break
                time, which = to_micros(read[-1].create_time), read[-1].rollout_id
        return found[:limit]

    @override
    async def items(self, rollout_id: str) -> Sequence[RolloutItem]:
        found: list[RolloutItem] = []
        after = ""
        with reading():
            while True:
                rows = await self._database.all(self._items, {"which": rollout_id, "after": after})
                found += map(_ITEM.value, rows)
                if len(rows) < _PAGE:
                    return found
                after = found[-1].certificate_id

    @override
    async def list_items(
        self,
        rollout_id: str,
        states: Collection[ItemState],
        ring: int | None,
        after: ItemPlace | None,
        limit: int,
    ) -> Sequence[RolloutItem]:
        most = max(0, limit)
        found: list[RolloutItem] = []
        first, last = (0, _LAST_RING) if ring is None else (ring, ring)
        for state in sorted(states or ItemState, key=lambda state: state.place):
            if len(found) >= most or (after is not None and state.place < after.place):
                continue
            behind = after.certificate_id if after is not None and state.place == after.place else ""
            values = {"which": rollout_id, "at": state.place, "after": behind, "first_ring": first, "last_ring": last}
            with reading():
                rows = await self._database.all(self._in_place.at_most(most - len(found)), values)
            found += map(_ITEM.value, rows)
        return found[:most]

    @override
    async def open_items_of(self, certificate_ids: Collection[str]) -> Sequence[RolloutItem]:
        with reading():
            which = hosts_parameters(sorted(set(certificate_ids)))
            rows = [row for some in which for row in await self._database.all(self._open_items, some)]
        return [_ITEM.value(row) for row in rows]

    @override
    async def activations_of(self, hosts: Collection[str]) -> Sequence[HostActivation]:
        found: list[HostActivation] = []
        with reading():
            for some in hosts_parameters(sorted(set(hosts))):
                values = {**some, "now": to_micros(self._clock.now())}
                for host, certificate_id, rollout_id, release_time in await self._database.all(
                    self._activations, values
                ):
                    found.append(HostActivation(host, certificate_id, rollout_id, abandoned=release_time is None))
                for host, certificate_id, rollout_id in await self._database.all(self._late, values):
                    found.append(HostActivation(host, certificate_id, rollout_id, abandoned=True))
        return found


def _is_one_of(*states: ItemState) -> ColumnElement[bool]:
    return rollout_items.c.state.in_([literal_column(f"'{state}'") for state in states])


def _setting(compiler: Compiler, count: int) -> Statement:
    """Adds so many items, or changes what may change of those that are there."""
    insert = compiler.insert(rollout_items).values(numbered(_COLUMNS, count))
    theirs: dict[str, Any] = {name: insert.excluded[name] for name in _COLUMNS if name not in _FIXED}
    statement = compiler(insert.on_conflict_do_update(index_elements=["rollout_id", "certificate_id"], set_=theirs))
    assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in _COLUMNS)
    return statement
