"""How other brokers hear that a profile's condition is another: the orders are the rows, there are no others."""

from __future__ import annotations

from collections.abc import Collection

from typing_extensions import override

from certplane.broker.issuance.condition import ConditionTeller
from certplane.broker.model import ChangeKind
from certplane.broker.store.batch import Done
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.session import Session
from certplane.broker.store.writer import Writer


class SqlConditionTeller(ConditionTeller):
    """`ConditionTeller` over the change feed."""

    def __init__(self, writer: Writer, changes: ChangeLog) -> None:
        self._writer = writer
        self._changes = changes

    @override
    async def tell_conditions(self, profiles: Collection[str]) -> None:
        def change(session: Session) -> Done[None]:
            for profile in profiles:
                self._changes.add_shared(session, ChangeKind.CONDITION, profile)
            return Done(None)

        await self._writer.write(change, ())
