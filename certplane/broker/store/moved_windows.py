"""Rows of windows that CAs have moved: one for each certificate, of its last move.

A window that was brought forward has a row until it is forgotten, also after its certificate was replaced: an incident
counts its certificates by these. A window that was put off has one only if it was brought forward before.

Synchronous, for the writer's thread, inside its transactions.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, update

from certplane.broker.renewal.model import WindowMove
from certplane.broker.store.campaign_schema import moved_windows
from certplane.broker.store.cells import Columns
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler

MOVE: Final = Columns(WindowMove)


class MoveRows:
    """Writes them."""

    def __init__(self, compiler: Compiler) -> None:
        names = [name for name in MOVE.names if name != "certificate_id"]
        insert = compiler.insert(moved_windows).values({name: bindparam(name) for name in MOVE.names})
        # The incident that it is of stays: brought forward twice, it is still that one's.
        again = insert.on_conflict_do_update(
            index_elements=["certificate_id"], set_={name: insert.excluded[name] for name in names}
        )
        self._forward = compiler(again)
        self._put_off = compiler(
            update(moved_windows).where(moved_windows.c.certificate_id == bindparam("which")), names
        )

    def note(self, session: Session, move: WindowMove) -> None:
        """Keep what a CA has done."""
        statement = self._forward if move.forward else self._put_off
        values = MOVE.values(move)
        session.execute(statement, statement.arguments({**values, "which": move.certificate_id}))
