"""Which certificates are in force, and those of them that an operator's selection picks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import ColumnElement, Table, and_, bindparam, exists, null, select, text, tuple_

from certplane.broker.renewal.model import Candidate, Selected, Selection
from certplane.broker.store.campaign_schema import moved_windows
from certplane.broker.store.cells import decode_names
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, orders, renewal_plans
from certplane.broker.store.session import Database
from certplane.broker.store.statements import HOSTS, Compiler, Row, hosts_parameters, limited_to

_PAGE: Final = 512
"""Rows of one read where all are wanted: a few milliseconds of the read thread, one or two of the loop."""


def in_force(dated: Table) -> ColumnElement[bool]:
    """Of a row of `certificates`; conditions of partial indexes stand word for word.

    `dated` is the table whose `not_after` is looked at: the one that the query begins with, or PostgreSQL might begin
    with the index of the other.
    """
    replacement = exists().where(
        orders.c.replaces_certificate_id == certificates.c.certificate_id, text("state = 'ISSUED'")
    )
    return and_(
        text("revoke_time IS NULL"),
        certificates.c.forget_time.is_(null()),
        dated.c.not_after > bindparam("now"),
        ~replacement,
    )


class SelectedRows:
    """Reads what a selection picks."""

    def __init__(self, compiler: Compiler) -> None:
        """Compile its statements."""
        plans = renewal_plans.c
        planned = renewal_plans.join(certificates, certificates.c.certificate_id == plans.certificate_id)
        selected = (
            select(
                plans.certificate_id,
                plans.host,
                certificates.c.profile,
                certificates.c.issuer,
                certificates.c.dns_names,
                certificates.c.serial_number,
                certificates.c.public_key_sha256,
                certificates.c.create_time,
                plans.window_start,
                plans.renew_time,
                plans.renewal_request_id,
            )
            .select_from(planned)
            .where(in_force(renewal_plans))
        )
        by_host = (plans.host, plans.certificate_id)
        self._of_hosts = compiler(selected.where(plans.host.in_(HOSTS)))
        self._of_ids = compiler(selected.where(plans.certificate_id.in_(HOSTS)))
        self._after = compiler(
            selected.where(
                plans.host >= bindparam("host"),  # what an index finds; SQLite's reads a pair by its first
                tuple_(*by_host) > tuple_(bindparam("host"), bindparam("certificate_id")),
            )
            .order_by(*by_host)
            .suffix_with(limited_to())
        )
        self._of_incident = compiler(
            select(moved_windows.c.certificate_id).where(moved_windows.c.incident_id == bindparam("incident_id"))
        )

    async def read(self, database: Database, selection: Selection, now: datetime) -> list[Selected]:
        """Those in force, by host; by the narrowest index: certificates, then hosts, then all, a page at a time."""
        if selection == Selection() or (selection.labels and not selection.hosts):
            return []
        now_values = {"now": to_micros(now)}
        matches = selection.matcher(now)
        ids = await self._ids(database, selection)
        found: list[Selected] = []
        if ids is not None or selection.hosts:
            statement = self._of_hosts if ids is None else self._of_ids
            for some in hosts_parameters(sorted(set(selection.hosts if ids is None else ids))):
                rows = await database.all(statement, {**some, **now_values})
                found += sorted(_matching(rows, matches), key=_place)
            return sorted(found, key=_place)  # of hosts it is sorted already
        host = certificate_id = ""
        while True:
            place = {"host": host, "certificate_id": certificate_id, **now_values}
            rows = await database.all(self._after.at_most(_PAGE), place)
            found += _matching(rows, matches)
            if len(rows) < _PAGE:
                return found
            certificate_id, host = rows[-1][:2]

    async def _ids(self, database: Database, selection: Selection) -> Sequence[str] | None:
        """The certificates that are named, or are of the incident that is; None if neither is."""
        if not selection.incident_id:
            return selection.certificate_ids or None
        rows = await database.all(self._of_incident, {"incident_id": selection.incident_id})
        named = frozenset(selection.certificate_ids)
        return [row[0] for row in rows if not named or row[0] in named]


def _place(one: Selected) -> tuple[str, str]:
    return (one.host, one.certificate_id)


def _matching(rows: Sequence[Row], matches: Callable[[Candidate], bool]) -> Iterator[Selected]:
    for row in rows:
        certificate_id, host, profile, issuer, names, serial_number, key, created, window, renew_time, request_id = row
        start = None if window is None else from_micros(window)
        one = Candidate(
            certificate_id, host, profile, issuer, decode_names(names), serial_number, key, from_micros(created), start
        )
        if matches(one):
            yield Selected(one.certificate_id, one.host, from_micros(renew_time), request_id)
