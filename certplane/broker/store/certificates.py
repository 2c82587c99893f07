"""Certificates in the database. `find_cached` answers most calls: one indexed read in the event loop.

What never changes in a row is kept of those that were found last, so that the read fetches the certificate's id and
what may be another by now: the row decides on every call whether there is an answer, whoever has revoked, and when it
was handed out first.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)
from typing_extensions import override

from certplane.broker.events import AuditEvent
from certplane.broker.model import CertificateRecord, ChangeKind, RevocationReason
from certplane.broker.ports import CertificateQuery, CertificateStore
from certplane.broker.renewal.ports import KeyBlocks, RevokedCertificates
from certplane.broker.store.audit_log import SqlAuditLog, reading
from certplane.broker.store.batch import Done
from certplane.broker.store.cells import CERTIFICATE
from certplane.broker.store.change_feed import ChangeLog
from certplane.broker.store.plan_rows import PlanRows
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import certificates, keys, orders
from certplane.broker.store.session import Database, Session
from certplane.broker.store.statements import HOSTS, hosts_parameters, limited_to
from certplane.broker.store.writer import Writer
from certplane.errors import Reason, RefusalError
from certplane.runtime.remembered import Remembered

_IDS_AT_ONCE: Final = 64
_KEPT: Final = 2048
"""Answers that were found last, for those who ask again and again; some 8 MB."""
_KEPT_OCTETS: Final = 16 << 20
_RECORD_OCTETS: Final = 1024
"""A record without its PEM, about."""


class SqlCertificateStore(CertificateStore, RevokedCertificates, KeyBlocks):
    """`CertificateStore` over the database."""

    def __init__(self, database: Database, writer: Writer, audit: SqlAuditLog, changes: ChangeLog) -> None:
        self._database = database
        self._writer = writer
        self._audit = audit
        self._changes = changes
        self._plans = PlanRows(database.compiler)
        compiler = database.compiler
        row = select(*(certificates.c[name] for name in CERTIFICATE.names))
        newest = (certificates.c.create_time.desc(), certificates.c.certificate_id.desc())
        unusable_key = exists().where(
            keys.c.public_key_sha256 == bindparam("public_key_sha256"),
            or_(keys.c.identity != bindparam("identity"), keys.c.block_time.is_not(None)),
        )
        self._kept: Remembered[tuple[str, str, str, str], tuple[CertificateRecord, int | None]] = Remembered(
            entries=_KEPT, octets=_KEPT_OCTETS, of_one_owner=_KEPT // 8
        )
        """Of a question of `find_cached`: its last answer, and the `deliver_time` of it as the column has it."""
        self._cached, self._cached_now = (
            compiler(
                columns.where(
                    ~unusable_key,
                    certificates.c.public_key_sha256 == bindparam("public_key_sha256"),
                    certificates.c.profile_hash == bindparam("profile_hash"),
                    certificates.c.identity == bindparam("identity"),
                    certificates.c.issuer == bindparam("issuer"),
                    text("revoke_time IS NULL"),  # word for word the index's condition
                )
                # By the time alone: with the id as well the planner goes through an identity's whole history in that
                # order, instead of using the index that is made for this. No two of one key are of one microsecond.
                .order_by(certificates.c.create_time.desc())
                .suffix_with(limited_to(1))
            )
            for columns in (row, select(certificates.c.certificate_id, certificates.c.deliver_time))
        )
        which = certificates.c.certificate_id == bindparam("certificate_id")
        self._by_id = compiler(row.where(which))
        place = tuple_(certificates.c.create_time, certificates.c.certificate_id)
        before = certificates.alias("before")
        mark = select(before.c.create_time, before.c.certificate_id).where(
            before.c.certificate_id == bindparam("after"), before.c.identity == certificates.c.identity
        )
        # One statement for each combination, so that each has the plan that its index allows.
        conditions: dict[str, ColumnElement[bool]] = {
            "profile": certificates.c.profile == bindparam("profile"),
            "usable": and_(certificates.c.revoke_time.is_(None), certificates.c.not_after > bindparam("usable_at")),
            "after": place < mark.correlate(certificates).scalar_subquery(),
        }
        page = row.where(certificates.c.identity == bindparam("identity")).order_by(*newest).suffix_with(limited_to())
        # One statement for each combination, so that each has the plan that its index allows.
        self._pages = {
            wanted: compiler(page.where(*(c for c, want in zip(conditions.values(), wanted, strict=True) if want)))
            for wanted in itertools.product((False, True), repeat=3)
        }
        self._newest = compiler(row.order_by(*newest).suffix_with(limited_to()))
        ids: list[BindParameter[str]] = [bindparam(f"id_{number}") for number in range(_IDS_AT_ONCE)]
        self._superseded = compiler(
            select(orders.c.replaces_certificate_id).where(
                orders.c.replaces_certificate_id.in_(ids), text("state = 'ISSUED'")
            )
        )
        self._revoked = compiler(
            row.where(
                text("revoke_time IS NOT NULL"),  # word for word the index's condition
                certificates.c.revoke_time >= bindparam("since"),
                certificates.c.not_after > bindparam("now"),
            ).order_by(certificates.c.revoke_time, certificates.c.certificate_id)
        )
        self._of_key = compiler(
            row.where(
                certificates.c.public_key_sha256 == bindparam("public_key_sha256"),
                certificates.c.identity == bindparam("identity"),
                text("revoke_time IS NULL"),  # word for word the index's condition
                certificates.c.not_after > bindparam("now"),
            ).order_by(certificates.c.create_time)
        )
        # The limit, which is never reached, has PostgreSQL begin with these: there are few.
        compromised = (
            select(keys.c.public_key_sha256)
            .where(keys.c.compromise_time >= bindparam("since"))
            .suffix_with(text("LIMIT 1000000"))
        )
        self._undelivered = compiler(
            row.where(
                certificates.c.public_key_sha256.in_(compromised),
                text("revoke_time IS NULL"),  # word for word the index's condition
                certificates.c.deliver_time.is_(None),
                certificates.c.not_after > bindparam("now"),
            ).suffix_with(limited_to())  # in no order: for one PostgreSQL would go through all certificates in it
        )
        change = update(certificates).where(which)
        self._deliver = compiler(
            change.values(deliver_time=func.coalesce(certificates.c.deliver_time, bindparam("time")))
        )
        self._revoke = compiler(
            change.values(
                revoke_time=func.coalesce(certificates.c.revoke_time, bindparam("time")),
                revocation_reason=func.coalesce(certificates.c.revocation_reason, bindparam("reason")),
                # Revoked by its holder alone: an operator's word, before or after, is an operator's.
                withdrawn=case(
                    (certificates.c.revoke_time.is_(None), bindparam("by_holder")),
                    else_=certificates.c.withdrawn * bindparam("by_holder"),
                ),
            )
        )
        insert_key = compiler.insert(keys)
        ends = ("block_time", "spend_time", "compromise_time")
        of = select(certificates.c.public_key_sha256).where(certificates.c.certificate_id.in_(HOSTS))
        self._block_keys = compiler(
            update(keys)
            .where(keys.c.public_key_sha256.in_(of))
            .values(block_time=func.coalesce(keys.c.block_time, bindparam("time")))
        )
        self._end_key = compiler(
            insert_key.on_conflict_do_update(
                index_elements=["public_key_sha256"],
                set_={name: func.coalesce(keys.c[name], insert_key.excluded[name]) for name in ends},
            ),
            ["public_key_sha256", "identity", "first_use_time", *ends],
        )

    @override
    async def find_cached(
        self, identity: str, profile_hash: str, issuer: str, public_key_sha256: str
    ) -> CertificateRecord | None:
        values = {
            "identity": identity,
            "profile_hash": profile_hash,
            "issuer": issuer,
            "public_key_sha256": public_key_sha256,
        }
        question = (identity, profile_hash, issuer, public_key_sha256)
        kept = self._kept.get(question)
        with reading():
            if kept is not None:
                now = await self._database.one(self._cached_now, values)
                if now is None:
                    return None
                if now == (kept[0].certificate_id, kept[1]):
                    return kept[0]
            row = await self._database.one(self._cached, values)
        if row is None:
            return None
        record = CERTIFICATE.value(row)
        delivered = None if record.deliver_time is None else to_micros(record.deliver_time)
        octets = len(record.certificate_pem) + len(record.chain_pem) + _RECORD_OCTETS
        self._kept.put(question, (record, delivered), octets, identity)
        return record

    @override
    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        with reading():
            row = await self._database.one(self._by_id, {"certificate_id": certificate_id})
        return None if row is None else CERTIFICATE.value(row)

    @override
    async def list_certificates(self, query: CertificateQuery) -> Sequence[CertificateRecord]:
        statement = self._pages[bool(query.profile), query.usable_at is not None, bool(query.after)]
        values = {
            "identity": query.identity,
            "profile": query.profile,
            "usable_at": None if query.usable_at is None else to_micros(query.usable_at),
            "after": query.after,
        }
        with reading():
            rows = await self._database.all(statement.at_most(query.limit), values)
        return [CERTIFICATE.value(row) for row in rows[: max(0, query.limit)]]

    async def newest_certificates(self, limit: int) -> Sequence[CertificateRecord]:
        """The newest certificates of all identities: for an operator at the database, not for a caller."""
        with reading():
            rows = await self._database.all(self._newest.at_most(limit), {})
        return [CERTIFICATE.value(row) for row in rows[: max(0, limit)]]

    async def superseded(self, certificate_ids: Sequence[str]) -> Collection[str]:
        """Those of them that another certificate has taken the place of: for an operator at the database."""
        found: set[str] = set()
        for start in range(0, len(certificate_ids), _IDS_AT_ONCE):
            some = certificate_ids[start : start + _IDS_AT_ONCE]
            values = {f"id_{number}": some[min(number, len(some) - 1)] for number in range(_IDS_AT_ONCE)}
            with reading():
                found.update(row[0] for row in await self._database.all(self._superseded, values))
        return found

    @override
    async def revoked_since(self, time: datetime, now: datetime) -> Sequence[CertificateRecord]:
        with reading():
            rows = await self._database.all(self._revoked, {"since": to_micros(time), "now": to_micros(now)})
        return [CERTIFICATE.value(row) for row in rows]

    @override
    async def usable_of_key(self, identity: str, public_key_sha256: str, now: datetime) -> Sequence[CertificateRecord]:
        values = {"identity": identity, "public_key_sha256": public_key_sha256, "now": to_micros(now)}
        with reading():
            rows = await self._database.all(self._of_key, values)
        return [CERTIFICATE.value(row) for row in rows]

    @override
    async def undelivered_of_compromised_keys(
        self, since: datetime, now: datetime, limit: int
    ) -> Sequence[CertificateRecord]:
        values = {"since": to_micros(since), "now": to_micros(now)}
        with reading():
            rows = await self._database.all(self._undelivered.at_most(limit), values)
        return [CERTIFICATE.value(row) for row in rows[: max(0, limit)]]

    @override
    async def mark_delivered(self, certificate_id: str, time: datetime, events: Sequence[AuditEvent]) -> None:
        """As the port describes, with these errors.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND too.
        """
        arguments = self._deliver.arguments({"certificate_id": certificate_id, "time": to_micros(time)})

        def change(session: Session) -> Done[None]:
            if session.execute(self._deliver, arguments) == 0:
                raise _not_found()
            return Done(None)

        await self._writer.write(change, self._audit.encode(events))

    @override
    async def mark_revoked(
        self,
        certificate_id: str,
        reason: RevocationReason,
        time: datetime,
        events: Sequence[AuditEvent],
        *,
        by_holder: bool = False,
    ) -> CertificateRecord:
        """As the port describes, with these errors.

        Raises:
            RefusalError: CERTIFICATE_NOT_FOUND too.
        """
        micros = to_micros(time)
        values = {"certificate_id": certificate_id, "time": micros, "reason": str(reason), "by_holder": int(by_holder)}
        arguments = self._revoke.arguments(values)

        def change(session: Session) -> Done[CertificateRecord]:
            session.execute(self._revoke, arguments)
            row = session.one(self._by_id, {"certificate_id": certificate_id})
            if row is None:
                raise _not_found()
            record = CERTIFICATE.value(row)
            blocked = micros if reason is RevocationReason.KEY_COMPROMISE else None
            session.execute(
                self._end_key, (record.public_key_sha256, record.identity, micros, blocked, micros, blocked)
            )
            self._plans.end(session, certificate_id)
            self._changes.add(session, ChangeKind.CERTIFICATE_REVOKED, certificate_id)
            return Done(record)

        return await self._writer.write(change, self._audit.encode(events))

    @override
    async def block_keys(self, certificate_ids: Sequence[str], time: datetime, events: Sequence[AuditEvent]) -> None:
        micros = to_micros(time)
        arguments = [self._block_keys.arguments({**some, "time": micros}) for some in hosts_parameters(certificate_ids)]

        def change(session: Session) -> Done[None]:
            for each in arguments:
                session.execute(self._block_keys, each)
            return Done(None)

        await self._writer.write(change, self._audit.encode(events))


def _not_found() -> RefusalError:
    return RefusalError(Reason.CERTIFICATE_NOT_FOUND, "there is no such certificate")
