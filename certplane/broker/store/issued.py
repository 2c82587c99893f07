"""Issued certificates for the index of the fleet: of which issuer and key what hosts use is, and what services have."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, bindparam, exists, func, or_, select, tuple_
from typing_extensions import override

from certplane.broker.fleet.model import IssuedCertificate
from certplane.broker.fleet.ports import IssuedCertificates
from certplane.broker.store.audit_log import reading
from certplane.broker.store.cells import Columns
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import certificates, renewal_plans
from certplane.broker.store.session import Database
from certplane.broker.store.statements import HOSTS, hosts_parameters

_ISSUED: Final = Columns(IssuedCertificate)


class SqlIssuedCertificates(IssuedCertificates):
    """`IssuedCertificates` over the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        compiler = database.compiler
        columns = [certificates.c[name] for name in _ISSUED.names]
        self._by_id = compiler(select(*columns).where(certificates.c.certificate_id.in_(HOSTS)))
        own, later = certificates.c, certificates.alias("later").c
        superseded = exists().where(
            later.identity == own.identity,
            later.create_time >= own.create_time,  # what the index finds
            tuple_(later.create_time, later.certificate_id) > tuple_(own.create_time, own.certificate_id),
            later.profile == own.profile,
        )
        usable = and_(own.revoke_time.is_(None), own.not_after > bindparam("now"))
        plans = renewal_plans.c
        planned = func.coalesce(plans.renew_time, own.renew_time).label("renew_time")
        self._of_identities = compiler(
            select(*(planned if column.name == "renew_time" else column for column in columns))
            .outerjoin_from(certificates, renewal_plans, plans.certificate_id == own.certificate_id)
            .where(own.identity.in_(HOSTS), own.forget_time.is_(None), or_(usable, ~superseded))
            .order_by(own.identity, own.profile, own.create_time.desc(), own.certificate_id.desc())
        )

    @override
    async def find_issued(self, certificate_ids: Collection[str]) -> Sequence[IssuedCertificate]:
        with reading():
            which = hosts_parameters(sorted(certificate_ids))
            rows = [row for some in which for row in await self._database.all(self._by_id, some)]
        return [_ISSUED.value(row) for row in rows]

    @override
    async def issued_to(self, identities: Collection[str], now: datetime) -> Sequence[IssuedCertificate]:
        with reading():
            which = ({**some, "now": to_micros(now)} for some in hosts_parameters(sorted(identities)))
            rows = [row for some in which for row in await self._database.all(self._of_identities, some)]
        return [_ISSUED.value(row) for row in rows]
