"""Which certificate has taken the place of which, by the orders that have brought them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from sqlalchemy import Column, ScalarSelect, Table, select, text
from typing_extensions import override

from certplane.broker.rollouts.facts import Successor, Successors
from certplane.broker.store.audit_log import reading
from certplane.broker.store.schema import certificates, orders
from certplane.broker.store.session import Database
from certplane.broker.store.statements import HOSTS, hosts_parameters, limited_to

_ISSUED: Final = "state = 'ISSUED'"
"""Word for word the index's condition."""


def newest_successor(replaced: Column[str], of: Table) -> ScalarSelect[str]:
    """Within a statement over `of`: what has taken the place of certificate `replaced` last; NULL if nothing has."""
    return (
        select(orders.c.certificate_id)
        .where(orders.c.replaces_certificate_id == replaced, text(_ISSUED))
        .order_by(orders.c.create_time.desc())
        .suffix_with(limited_to(1))
        .correlate(of)
        .scalar_subquery()
    )


class SqlSuccessors(Successors):
    """`Successors` over the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        new, old = certificates.alias("new"), certificates.alias("old")
        ordered = orders.join(new, new.c.certificate_id == orders.c.certificate_id).join(
            old, old.c.certificate_id == orders.c.replaces_certificate_id
        )
        self._found = database.compiler(
            select(
                orders.c.replaces_certificate_id,
                new.c.certificate_id,
                new.c.serial_number,
                new.c.issuer,
                (new.c.public_key_sha256 == old.c.public_key_sha256).label("same_key"),
            )
            .select_from(ordered)
            .where(orders.c.replaces_certificate_id.in_(HOSTS), text(_ISSUED))
            .order_by(orders.c.create_time)
        )

    @override
    async def successors_of(self, certificate_ids: Collection[str]) -> Sequence[Successor]:
        with reading():
            which = hosts_parameters([*certificate_ids])
            rows = [row for some in which for row in await self._database.all(self._found, some)]
        newest = {
            old_id: Successor(old_id, new_id, serial_number, issuer, bool(same_key))
            for old_id, new_id, serial_number, issuer, same_key in rows
        }
        return [*newest.values()]
