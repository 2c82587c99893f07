"""What notifiers were told, and the messages that wait for them: a few rows each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import bindparam, delete, func, select, update
from typing_extensions import override

from certplane.broker.notify.model import Message, Told
from certplane.broker.notify.ports import Outbox, Records, Standing, Waiting
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Columns
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import notification_outbox, notification_troubles, shared_values
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import limited_to
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_MESSAGE: Final = Columns(Message)
_TOLD: Final = Columns(Told)
_NAME: Final = "notifications"
"""The row of `shared_values` that changes with each record; it has the digests' times too."""


class _Shared(msgspec.Struct):
    """Its value, as JSON; times are whole microseconds since 1970 UTC."""

    number: int = 0
    digests: dict[str, int] = msgspec.field(default_factory=dict)


class SqlOutbox(Outbox):
    """`Outbox` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        compiler = database.compiler
        outbox, troubles = notification_outbox, notification_troubles
        self._shared = compiler(select(shared_values.c.value).where(shared_values.c.name == bindparam("name")))
        begin = compiler.insert(shared_values).values({c.name: bindparam(c.name) for c in shared_values.c})
        self._begin = compiler(begin.on_conflict_do_nothing())
        self._go_on = compiler(
            update(shared_values)
            .where(shared_values.c.name == bindparam("this"), shared_values.c.value == bindparam("revision"))
            .values(value=bindparam("value"), change_time=bindparam("change_time"))
        )
        every = select(*(troubles.c[name] for name in _TOLD.names))
        self._told = compiler(every.order_by(troubles.c.notifier, troubles.c.cause))
        tell = compiler.insert(troubles).values({name: bindparam(name) for name in _TOLD.names})
        key = ("notifier", "cause")
        changed = {name: tell.excluded[name] for name in _TOLD.names if name not in key}
        self._tell = compiler(tell.on_conflict_do_update(index_elements=[*key], set_=changed))
        self._end = compiler(delete(troubles).where(*(troubles.c[name] == bindparam(name) for name in key)))
        self._count = compiler(select(outbox.c.notifier, func.count()).group_by(outbox.c.notifier))
        columns = (*_MESSAGE.names, "attempts", "error")
        self._add = compiler(compiler.insert(outbox).values({name: bindparam(name) for name in columns}))
        self._waiting = compiler(
            select(
                *(outbox.c[name] for name in _MESSAGE.names),
                outbox.c.attempts,
                outbox.c.next_attempt_time,
                outbox.c.error,
            )
            .where(outbox.c.notifier == bindparam("notifier"))
            .order_by(outbox.c.message_id)
            .suffix_with(limited_to())
        )
        this = outbox.c.message_id == bindparam("this")
        self._claim = compiler(
            update(outbox)
            .where(this, outbox.c.attempts == bindparam("before"))
            .values(attempts=outbox.c.attempts + 1, next_attempt_time=bindparam("until"))
        )
        self._retry = compiler(
            update(outbox).where(this).values(next_attempt_time=bindparam("until"), error=bindparam("why"))
        )
        self._remove = compiler(delete(outbox).where(this))

    @override
    async def standing(self) -> Standing:
        with reading():
            # First, so that what is read after it is of that revision or later: then `record` refuses it.
            row = await self._database.one(self._shared, {"name": _NAME})
            told = await self._database.all(self._told, {})
            waiting = await self._database.all(self._count, {})
        revision = "" if row is None else str(row[0])
        digests = _shared(revision).digests
        return Standing(
            revision,
            [_TOLD.value(each) for each in told],
            {notifier: from_micros(time) for notifier, time in digests.items()},
            {notifier: int(count) for notifier, count in waiting},
        )

    @override
    async def record(self, records: Records, revision: str) -> bool:
        digests = {notifier: to_micros(time) for notifier, time in records.digests.items()}
        value = msgspec.json.encode(_Shared(_shared(revision).number + 1, digests)).decode()
        shared: dict[str, object] = {"name": _NAME, "this": _NAME, "value": value, "revision": revision}
        shared["change_time"] = to_micros(self._clock.now())

        def change(session: Session) -> Done[bool]:
            statement = self._go_on if revision else self._begin
            if not session.execute(statement, statement.arguments(shared)):
                return Done(False)
            for told in records.told:
                session.execute(self._tell, self._tell.arguments(_TOLD.values(told)))
            for over in records.over:
                session.execute(self._end, self._end.arguments(_TOLD.values(over)))
            for message in records.messages:
                values = {**_MESSAGE.values(message), "attempts": 0, "error": ""}
                session.execute(self._add, self._add.arguments(values))
            return Done(True)

        return await self._writer.write(change, ())

    @override
    async def waiting(self, notifier: str, most: int) -> Sequence[Waiting]:
        with reading():
            rows = await self._database.all(self._waiting.at_most(most), {"notifier": notifier})
        columns = len(_MESSAGE.names)
        return [
            Waiting(
                _MESSAGE.value(row[:columns]),
                row[columns],
                None if row[columns + 1] is None else from_micros(row[columns + 1]),
                row[columns + 2],
            )
            for row in rows[:most]
        ]

    @override
    async def claim(self, waiting: Waiting, until: datetime) -> bool:
        values = {"this": waiting.message.message_id, "before": waiting.attempts, "until": to_micros(until)}

        def change(session: Session) -> Done[bool]:
            return Done(session.execute(self._claim, self._claim.arguments(values)) == 1)

        return await self._writer.write(change, ())

    @override
    async def finish(self, message_id: str, retry: tuple[datetime, str] | None) -> None:
        values: dict[str, object] = {"this": message_id}
        if retry is not None:
            values |= {"until": to_micros(retry[0]), "why": retry[1]}
        statement = self._remove if retry is None else self._retry

        def change(session: Session) -> Done[None]:
            session.execute(statement, statement.arguments(values))
            return Done(None)

        await self._writer.write(change, ())


def _shared(revision: str) -> _Shared:
    return msgspec.json.decode(revision, type=_Shared) if revision else _Shared()
