"""Who does what is done once for all brokers of a database, a row each."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sqlalchemy import bindparam, or_, update
from typing_extensions import override

from certplane.broker.members.ports import RoleStore
from certplane.broker.model import ChangeKind
from certplane.broker.store.batch import Done
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.members import is_alive
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import leases
from certplane.broker.store.session import Database, Session
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock


class SqlRoleStore(RoleStore):
    """`RoleStore` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, *, broker_id: str, changes: ChangeLog) -> None:
        self._writer = writer
        self._clock = clock
        self._broker_id = broker_id
        self._changes = changes
        compiler = database.compiler
        alive = is_alive(compiler, leases.c.holder)
        insert = compiler.insert(leases).values(role=bindparam("role"), holder="", epoch=0)
        # A role's row is locked before it is asked who has it: of two who come at once, the second must find the
        # first one's lease, which may be younger than a statement that has waited for the row.
        self._lock = compiler(insert.on_conflict_do_update(index_elements=["role"], set_={"epoch": leases.c.epoch}))
        self._take = compiler(
            update(leases)
            .where(leases.c.role == bindparam("which"), or_(leases.c.holder == bindparam("me"), ~alive))
            .values(holder=bindparam("me"), epoch=leases.c.epoch + 1)
            .returning(leases.c.epoch)
        )
        self._give_back = compiler(
            update(leases)
            .where(leases.c.role == bindparam("which"), leases.c.holder == bindparam("me"))
            .values(holder="")
        )

    @override
    async def take(self, roles: Collection[str]) -> Mapping[str, int]:
        def change(session: Session) -> Done[Mapping[str, int]]:
            epochs = {}
            for role in sorted(roles):  # in one order, so that two don't wait for each other
                values = {"role": role, "which": role, **self._values()}
                session.execute(self._lock, self._lock.arguments(values))
                taken = session.one(self._take, values)
                if taken is not None:
                    epochs[role] = int(taken[0])
            return Done(epochs)

        return await self._writer.write(change, ()) if roles else {}

    @override
    async def give_back(self, roles: Collection[str]) -> None:
        def change(session: Session) -> Done[None]:
            for role in sorted(roles):
                session.execute(self._give_back, self._give_back.arguments({"which": role, **self._values()}))
            self._changes.add_shared(session, ChangeKind.MEMBER, self._broker_id)
            return Done(None)

        if roles:
            await self._writer.write(change, ())

    def _values(self) -> dict[str, object]:
        return {"me": self._broker_id, "clock": to_micros(self._clock.now())}
