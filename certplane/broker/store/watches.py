"""Services that watch their certificates, in the database: what they have, and at which broker each of them watches."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, delete, null, select, text, tuple_
from typing_extensions import override

from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import PLAN, Columns
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.members import is_alive
from certplane.broker.store.renewal_plans import plan_from_row
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import certificate_watchers, certificates, renewal_plans
from certplane.broker.store.selected_rows import in_force
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, Statement, chunks, hosts_parameters, numbered
from certplane.broker.store.writer import Writer
from certplane.broker.watches.model import HeldByService, ServiceWatch
from certplane.broker.watches.ports import HeldCertificates, WatchStore
from certplane.runtime.clock import Clock

_HELD: Final = Columns(HeldByService)
_WATCH: Final = Columns(ServiceWatch)


class SqlServiceWatches(HeldCertificates, WatchStore):
    """`HeldCertificates` and `WatchStore` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, broker_id: str, changes: ChangeLog) -> None:
        self.broker_id = broker_id
        self._database = database
        self._writer = writer
        self._clock = clock
        self._changes = changes
        compiler = database.compiler
        held = [certificates.c[name] for name in _HELD.names]
        plans = renewal_plans.c
        planned = renewal_plans.join(certificates, certificates.c.certificate_id == plans.certificate_id)
        self._standing = compiler(
            select(*held, *(plans[name] for name in PLAN.names))
            .select_from(planned)
            .where(in_force(renewal_plans), plans.host.in_(HOSTS))
        )
        self._revoked = compiler(
            select(*held).where(
                text("revoke_time IS NOT NULL"),  # word for word the index's condition
                certificates.c.not_after > bindparam("now"),
                certificates.c.forget_time.is_(null()),
                certificates.c.identity.in_(HOSTS),
            )
        )
        watches = certificate_watchers.c
        self._of_services = compiler(
            select(*(watches[name] for name in _WATCH.names))
            .where(watches.identity.in_(HOSTS))
            .order_by(watches.identity, watches.broker_id)
        )
        self._put = functools.cache(self._putting)
        # Row by row what nobody else removes in this moment: two brokers that wait for each other would be in a ring.
        left = select(watches.identity, watches.broker_id).where(
            watches.identity == bindparam("identity"),
            watches.broker_id != bindparam("own"),
            ~is_alive(compiler, watches.broker_id),
        )
        self._remove = compiler(
            delete(certificate_watchers).where(
                tuple_(watches.identity, watches.broker_id).in_(left.with_for_update(skip_locked=True))
            )
        )

    @override
    async def held_by(self, identities: Collection[str], now: datetime) -> Sequence[HeldByService]:
        found: list[HeldByService] = []
        width = len(_HELD.names)
        with reading():
            for some in hosts_parameters(sorted(identities)):
                values = {**some, "now": to_micros(now)}
                standing = await self._database.all(self._standing, values)
                found += (replace(_HELD.value(row[:width]), plan=plan_from_row(row[width:])) for row in standing)
                found += map(_HELD.value, await self._database.all(self._revoked, values))
        return found

    @override
    async def record_watches(self, watches: Sequence[ServiceWatch], telling: Collection[str] = ()) -> None:
        # In one order at all brokers: of two that write the same rows in different order each would wait for the other.
        ours = sorted((replace(one, broker_id=self.broker_id) for one in watches), key=lambda one: one.identity)
        rows = [_WATCH.of(one) for one in ours]

        def change(session: Session) -> Done[None]:
            for some in chunks(rows):
                session.execute(self._put(len(some)), tuple(cell for row in some for cell in row))
            clock = to_micros(self._clock.now())
            for one in ours:
                values = {"identity": one.identity, "own": self.broker_id, "clock": clock}
                session.execute(self._remove, self._remove.arguments(values))
            for identity in sorted(telling):
                self._changes.add_shared(session, ChangeKind.WATCH, identity)
            return Done(None)

        if rows:
            await self._writer.write(change, ())

    @override
    async def watches_of(self, identities: Collection[str]) -> Sequence[ServiceWatch]:
        with reading():
            which = hosts_parameters(sorted(identities))
            rows = [row for some in which for row in await self._database.all(self._of_services, some)]
        return [_WATCH.value(row) for row in rows]

    def _putting(self, count: int) -> Statement:
        insert = self._database.compiler.insert(certificate_watchers).values(numbered(_WATCH.names, count))
        changing = {name: insert.excluded[name] for name in _WATCH.names if name not in ("identity", "broker_id")}
        statement = self._database.compiler(
            insert.on_conflict_do_update(index_elements=["identity", "broker_id"], set_=changing)
        )
        assert statement.names == tuple(f"{name}_{n}" for n in range(count) for name in _WATCH.names)
        return statement
