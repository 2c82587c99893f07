"""What operators ask of brokers, a row for each broker that is asked: few, and gone within minutes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from sqlalchemy import bindparam, delete, select, update
from typing_extensions import override

from certplane.broker.members.requests import STALE, BrokerAnswer, BrokerRequest, BrokerRequestStore
from certplane.broker.model import ChangeKind
from certplane.broker.store.audit_log import reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import Cells, Columns, decode_json, encode_json
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import broker_requests
from certplane.broker.store.session import Database, Session
from certplane.broker.store.writer import Writer
from certplane.runtime.clock import Clock

_REQUEST: Final = Columns(BrokerRequest)
_ANSWER: Final = Cells(BrokerAnswer)


class SqlBrokerRequests(BrokerRequestStore):
    """`BrokerRequestStore` over the database."""

    def __init__(self, database: Database, writer: Writer, clock: Clock, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._clock = clock
        self._changes = changes
        compiler = database.compiler
        self._insert = compiler(compiler.insert(broker_requests), _REQUEST.names)
        self._remove = compiler(delete(broker_requests).where(broker_requests.c.create_time < bindparam("before")))
        rows = select(*(broker_requests.c[name] for name in _REQUEST.names))
        self._asked = compiler(
            rows.where(
                broker_requests.c.broker_id == bindparam("broker_id"), broker_requests.c.answer.is_(None)
            ).order_by(broker_requests.c.create_time)
        )
        self._answer = compiler(
            update(broker_requests)
            .where(broker_requests.c.request_key == bindparam("which"), broker_requests.c.answer.is_(None))
            .values(answer=bindparam("said"))
        )
        self._answered = compiler(
            select(broker_requests.c.answer).where(
                broker_requests.c.request_key == bindparam("which"), broker_requests.c.answer.is_not(None)
            )
        )

    @override
    async def ask(self, requests: Sequence[BrokerRequest]) -> None:
        before = self._remove.arguments({"before": to_micros(self._clock.now() - STALE)})

        def change(session: Session) -> Done[None]:
            session.execute(self._remove, before)
            for request in requests:
                session.execute(self._insert, self._insert.arguments(_REQUEST.values(request)))
                self._changes.add_shared(session, ChangeKind.BROKER_REQUEST, request.broker_id)
            return Done(None)

        await self._writer.write(change, ())

    @override
    async def asked_of(self, broker_id: str) -> Sequence[BrokerRequest]:
        with reading():
            rows = await self._database.all(self._asked, {"broker_id": broker_id})
        return [_REQUEST.value(row) for row in rows]

    @override
    async def answer(self, request_key: str, answer: BrokerAnswer) -> None:
        arguments = self._answer.arguments({"which": request_key, "said": encode_json(_ANSWER.of(answer))})

        def change(session: Session) -> Done[None]:
            if session.execute(self._answer, arguments):
                self._changes.add_shared(session, ChangeKind.BROKER_REQUEST, request_key)
            return Done(None)

        await self._writer.write(change, ())

    @override
    async def answers(self, request_keys: Collection[str]) -> Mapping[str, BrokerAnswer]:
        found: dict[str, BrokerAnswer] = {}
        for key in request_keys:
            with reading():
                row = await self._database.one(self._answered, {"which": key})
            if row is not None:
                found[key] = _ANSWER.value(decode_json(row[0]))
        return found
