"""Rows of orders: every write of a running order passes through `OrderRows.put`.

It is fenced: each take of an order raises its epoch, and a write says under which one it was decided. What a broker
writes that was stopped for longer than its lease, and whose orders others have taken, finds no row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from sqlalchemy import ColumnElement, bindparam, exists, select, update

from certplane.broker.model import NO_PROGRESS, ChangeKind, Order, OrderDraft
from certplane.broker.store.cells import ORDER
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.members import database_time
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import brokers, orders
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler
from certplane.errors import Reason, RefusalError
from certplane.pki.names import names_sha256

_FIXED: Final = frozenset(OrderDraft.__dataclass_fields__) - {"issuer"} | {"order_id", "create_time"}
_CHANGING: Final = ("end_time", *(name for name in ORDER.names if name not in _FIXED))

SELECT_ORDER: Final = select(*(orders.c[name] for name in ORDER.names))
"""Rows for `ORDER.value`."""
UNFINISHED: Final = "(end_time IS NULL OR txt_records IS NOT NULL)"
"""Word for word the condition of the index of what a start, or the heir of another broker, picks up."""


class OrderRows:
    """How orders are written, inside the transaction of whoever writes them."""

    def __init__(self, compiler: Compiler, changes: ChangeLog) -> None:
        self._changes = changes
        # Locked on PostgreSQL, so that no other program changes it between this look and what is written after it.
        self._locked = compiler(SELECT_ORDER.where(orders.c.order_id == bindparam("order_id")).with_for_update())
        self._insert = compiler(compiler.insert(orders).on_conflict_do_nothing(), [column.name for column in orders.c])
        self._update = compiler(
            update(orders).where(orders.c.order_id == bindparam("which"), orders.c.epoch == bindparam("decided_under")),
            _CHANGING,
        )
        self._note = compiler(
            update(orders)
            .where(
                orders.c.order_id == bindparam("which"),
                orders.c.epoch == bindparam("decided_under"),
                orders.c.state == bindparam("same_state"),
            )
            .values(progress=bindparam("at"))
        )

    def get(self, session: Session, order_id: str) -> Order | None:
        """The order, to be changed by this transaction alone."""
        row = session.one(self._locked, {"order_id": order_id})
        return None if row is None else ORDER.value(row)

    def add(self, session: Session, order: Order) -> bool:
        """Write a new order; False if another broker has just opened an equal one."""
        if not session.execute(self._insert, self._insert.arguments(_values(order))):
            return False
        self._changes.add_shared(session, ChangeKind.ORDER, order.order_id)
        return True

    def put(self, session: Session, order: Order) -> Order:
        """Write what may change of an order; returned is what stands there then: without a lane if all is over.

        Raises:
            RefusalError: ORDER_NOT_FOUND: the row is gone, or the order was taken since.
        """
        return self._put(session, order, order.epoch)

    def note_progress(self, session: Session, order: Order) -> None:
        """Write what an order is at, unless it was taken or went on."""
        values = {
            "which": order.order_id,
            "decided_under": order.epoch,
            "same_state": str(order.state),
            "at": ORDER.values(order)["progress"],
        }
        if session.execute(self._note, self._note.arguments(values)):
            self._changes.add_shared(session, ChangeKind.ORDER, order.order_id)

    def take(self, session: Session, order: Order, holder: str) -> Order:
        """Let `holder` run the order from now on.

        Raises:
            RefusalError: ORDER_NOT_FOUND, as `put`.
        """
        taken = replace(order, holder=holder, epoch=order.epoch + 1)
        if taken.turn_time is None:
            taken = replace(taken, lane=None)  # it waits where its new broker has its turn for it
        return self._put(session, taken, order.epoch)

    def _put(self, session: Session, order: Order, decided_under: int) -> Order:
        if not (order.state.is_open or order.txt_records):
            order = replace(order, lane=None, turn_time=None)
        if not order.state.is_open:
            order = replace(order, progress=NO_PROGRESS, places=())
        values = {**_values(order), "which": order.order_id, "decided_under": decided_under}
        if not session.execute(self._update, self._update.arguments(values)):
            raise order_not_found()
        self._changes.add_shared(session, ChangeKind.ORDER, order.order_id)
        return order


def holder_lives(compiler: Compiler) -> ColumnElement[bool]:
    """Whether the broker that has an order has a lease; `clock` is a parameter on SQLite."""
    lives = brokers.c.lease_until > database_time(compiler)
    return exists().where(brokers.c.broker_id == orders.c.holder, lives)


def order_not_found() -> RefusalError:
    """The refusal of a change to an order that isn't open."""
    return RefusalError(Reason.ORDER_NOT_FOUND, "there is no such open order")


def _values(order: Order) -> dict[str, Any]:
    return {
        **ORDER.values(order),
        "names_sha256": names_sha256(order.dns_names),
        "end_time": None if order.state.is_open else to_micros(order.update_time),
    }
