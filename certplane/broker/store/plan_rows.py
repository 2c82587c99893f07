"""Rows of renewal plans: each certificate in force has one, from its issue until it is in force no longer.

So the table is as long as the fleet, however long the history of its certificates: what is asked of the certificates in
force begins here. A row is written and dropped in the transaction that issues, replaces or revokes; an expired one is
dropped soon after (`SqlRenewalPlanStore.forget_expired`). One without a cause is of a certificate for which nothing is
planned yet.

Synchronous, for the writer's thread, inside its transactions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import BindParameter, and_, bindparam, case, delete, literal_column, null, select

from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.store.cells import CERTIFICATE, PLAN
from certplane.broker.store.schema import certificates, renewal_plans
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Statement, chunks

UNPLANNED: Final[dict[str, Any]] = {
    "cause": "",
    "reason": "",
    "explanation_url": "",
    "check_failures": 0,
    "renewal_request_id": "",
}
"""What a row has for a certificate for which nothing is planned."""
BEGUN: Final = ("certificate_id", "identity", "renew_time", "issuer", "not_after")
"""Of a certificate: what its row is made of."""
_OF_THE_CA: Final = ("window_start", "window_end", "next_check_time", "check_failures")
"""What a plan that isn't the CA's leaves as it was."""


class PlanRows:
    """Writes them."""

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self._set = functools.cache(self._compile_set)
        columns = ("certificate_id", "host", "renew_time", "issuer", "not_after", *UNPLANNED)
        self._begin = compiler(compiler.insert(renewal_plans).on_conflict_do_nothing(), columns)
        self._end = compiler(delete(renewal_plans).where(renewal_plans.c.certificate_id == bindparam("certificate_id")))

    def begin(self, session: Session, certificate: CertificateRecord, replaced_id: str) -> None:
        """The certificate is in force, and the one that it replaces (empty: none) is no more."""
        values = CERTIFICATE.values(certificate)
        self.adopt(session, [values[name] for name in BEGUN])
        if replaced_id:
            self.end(session, replaced_id)

    def adopt(self, session: Session, row: Sequence[object]) -> None:
        """A certificate in force, by its columns `BEGUN`, has a row from now on, if it had none."""
        values = dict(zip(("certificate_id", "host", *BEGUN[2:]), row, strict=True))
        session.execute(self._begin, self._begin.arguments({**values, **UNPLANNED}))

    def end(self, session: Session, certificate_id: str) -> None:
        """The certificate is in force no longer."""
        session.execute(self._end, (certificate_id,))

    def set(self, session: Session, plans: Sequence[RenewalPlan]) -> None:
        """Replace plans; the database refuses one of a certificate that isn't there.

        What the CA said is kept where a new plan has no `next_check_time`.
        """
        for some in chunks(plans):
            rows = map(PLAN.of, some)
            session.execute(self._set(len(some)), tuple(cell for row in rows for cell in (*row, row[0], row[0])))

    def _compile_set(self, count: int) -> Statement:
        names = PLAN.names
        rows: list[dict[str, Any]] = []
        for n in range(count):
            row: dict[str, Any] = {name: bindparam(f"{name}_{n}") for name in names}
            which: BindParameter[str] = bindparam(f"certificate_id_{n}")
            for name in ("issuer", "not_after"):  # NULL, and refused, where there is no such certificate
                of = select(certificates.c[name]).where(certificates.c.certificate_id == which)
                row[name] = of.scalar_subquery()
            rows.append(row)
        insert = self._compiler.insert(renewal_plans).values(rows)
        theirs = {name: insert.excluded[name] for name in names if name != "certificate_id"}
        # Of a row without a cause the CA has said nothing: there is nothing to keep.
        planned = renewal_plans.c.cause != literal_column("''")
        unsaid = and_(insert.excluded.next_check_time.is_(null()), planned)
        kept = {name: case((unsaid, renewal_plans.c[name]), else_=theirs[name]) for name in _OF_THE_CA}
        statement = self._compiler(insert.on_conflict_do_update(index_elements=["certificate_id"], set_=theirs | kept))
        assert statement.names == tuple(
            f"{name}_{n}" for n in range(count) for name in (*names, "certificate_id", "certificate_id")
        )
        return statement
