"""A registration authority that answers what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from certplane.broker.issuance.commands import IssueCommand, IssueResult
from certplane.broker.issuance.revocation import RevokedByOperator
from certplane.broker.model import Caller, CertificateRecord, Order, OrderState, RevocationReason
from certplane.broker.ports import CertificateQuery
from certplane.errors import RefusalError

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def sample_order(**changes: object) -> Order:
    order = Order(
        identity="web1.example",
        profile="web",
        profile_hash="p" * 64,
        dns_names=("a.example", "b.example"),
        public_key_sha256="k" * 64,
        csr_der=b"csr",
        issuer="default",
        request_id="r-1",
        order_id="order-1",
        create_time=NOW,
        update_time=NOW + timedelta(seconds=5),
    )
    return replace(order, **changes)  # type: ignore[arg-type]  # a test's own fields


def sample_certificate(**changes: object) -> CertificateRecord:
    record = CertificateRecord(
        certificate_id="certificate-1",
        order_id="order-1",
        identity="web1.example",
        profile="web",
        profile_hash="p" * 64,
        issuer="default",
        dns_names=("a.example", "b.example"),
        public_key_sha256="k" * 64,
        serial_number="1f",
        certificate_pem="LEAF\n",
        chain_pem="CHAIN\n",
        not_before=NOW,
        not_after=NOW + timedelta(days=90),
        renew_time=NOW + timedelta(days=60),
        create_time=NOW,
    )
    return replace(record, **changes)  # type: ignore[arg-type]  # a test's own fields


class FakeAuthority:
    """Records what it was asked; `error` is raised by every call, `results` is what orders look like one by one."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.results = [IssueResult(sample_order(state=OrderState.ISSUED), sample_certificate(), "order")]
        self.certificates: list[CertificateRecord] = [sample_certificate()]
        self.commands: list[tuple[Caller, IssueCommand]] = []
        self.asked: list[tuple[object, ...]] = []
        self.delay = asyncio.Event()
        self.delay.set()
        self.watch_gate: asyncio.Event | None = None
        """Unset, it holds a watch back after its first result."""
        self.cancelled = 0

    async def issue(self, caller: Caller, command: IssueCommand) -> IssueResult:
        self.commands.append((caller, command))
        try:
            await self.delay.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self._fail()
        return self.results[0]

    async def get_order(self, caller: Caller, request_id: str, order_id: str) -> IssueResult:
        self.asked.append(("get_order", caller.name, request_id, order_id))
        self._fail()
        return self.results[0]

    async def watch_order(self, caller: Caller, request_id: str, order_id: str) -> AsyncIterator[IssueResult]:
        self.asked.append(("watch_order", caller.name, request_id, order_id))
        try:
            for number, result in enumerate(self.results):
                if number and self.watch_gate is not None:
                    await self.watch_gate.wait()
                self._fail()
                yield result
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def get_certificate(self, caller: Caller, request_id: str, certificate_id: str) -> CertificateRecord:
        self.asked.append(("get_certificate", caller.name, request_id, certificate_id))
        self._fail()
        return self.certificates[0]

    async def list_certificates(self, caller: Caller, query: CertificateQuery) -> Sequence[CertificateRecord]:
        self.asked.append(("list_certificates", caller.name, query))
        self._fail()
        ids = [record.certificate_id for record in self.certificates]
        start = ids.index(query.after) + 1 if query.after else 0
        return self.certificates[start : start + query.limit]

    async def revoke(
        self, caller: Caller, request_id: str, certificate_id: str, reason: RevocationReason
    ) -> CertificateRecord:
        self.asked.append(("revoke", caller.name, request_id, certificate_id, reason))
        self._fail()
        return replace(self.certificates[0], revoke_time=NOW, revocation_reason=reason)

    async def revoke_of_anybody(
        self, caller: Caller, request_id: str, certificate_id: str, reason: RevocationReason, why: str
    ) -> RevokedByOperator:
        self.asked.append(("revoke_of_anybody", caller.name, request_id, certificate_id, reason, why))
        self._fail()
        record = self.certificates[0]
        revoked = replace(record, revoke_time=record.revoke_time or NOW, revocation_reason=reason)
        return RevokedByOperator(revoked, was_revoked=record.revoke_time is not None)

    def _fail(self) -> None:
        if isinstance(self.error, RefusalError):
            raise RefusalError.of(self.error.refusal)
        if self.error is not None:
            raise self.error
