"""`Broker` and `OrderFollower` in memory: orders that move one state with each look, and errors on demand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certplane.agent.model import IdentityView, IssuedCertificate, OrderView, Version
from certplane.errors import CertplaneError, Reason, Refusal, RefusalError
from certplane.runtime.clock import Clock
from tests.support.lineages import LocalIssuer


@dataclass
class _Order:
    order_id: str
    csr_pem: str
    states: list[str]
    error: Refusal | None = None
    retry_time: datetime | None = None
    certificate: IssuedCertificate | None = field(default=None, repr=False)


class FakeBroker:
    """A broker that gives everybody everything.

    Attributes:
        states: what a new order passes through before it ends; empty: it is issued at once.
        trouble: what is in the way of open orders.
        failure: makes new orders end FAILED with it, and `retry_time`.
        errors: raised by the next calls, one each, before they do anything.
        issue_errors: the same for calls that want a certificate.
        watch_errors: the same for those that follow an order.
        stall: an order's watch waits here before each further state, if set.
        lifetime: of what is issued.
        contest_time: since when the identity is contested, as `get_identity` says.
    """

    def __init__(self, clock: Clock, issuer: LocalIssuer) -> None:
        self.states: list[str] = []
        self.trouble = ""
        self.wait_time: datetime | None = None
        self.waits = False
        """Whether orders stay as they are, and watches of them end."""
        self.failure: Refusal | None = None
        self.retry_time: datetime | None = None
        self.errors: list[CertplaneError] = []
        self.issue_errors: list[CertplaneError] = []
        self.watch_errors: list[CertplaneError] = []
        self.stall: asyncio.Event | None = None
        self.lifetime = timedelta(days=90)
        self.profiles: tuple[str, ...] = ("web",)
        self.contest_time: datetime | None = None
        self.profile_names: dict[str, tuple[str, ...]] = {}
        self.revoked: dict[str, datetime] = {}
        self.calls: list[str] = []
        self.issued: list[str] = []
        self.reports: list[str] = []
        self.identities: list[Version] = []
        self._clock = clock
        self._issuer = issuer
        self._orders: dict[str, _Order] = {}
        self._by_request: dict[tuple[str, str, str], str] = {}
        self._numbers = itertools.count(1)

    async def issue(self, *, profile: str, csr_pem: str, replaces_certificate_id: str, wait: timedelta) -> OrderView:
        self._begin("issue")
        if self.issue_errors:
            raise self.issue_errors.pop(0)
        if profile not in self.profiles:
            raise RefusalError(Reason.PROFILE_NOT_ALLOWED, "this identity has no such profile")
        if replaces_certificate_id and replaces_certificate_id not in self.issued:
            raise RefusalError(Reason.CERTIFICATE_NOT_FOUND, "there is no such certificate")
        key = (profile, csr_pem, replaces_certificate_id)
        order_id = self._by_request.get(key)
        if order_id is None or self._may_try_again(self._orders[order_id]):
            order_id = f"order-{next(self._numbers)}"
            states = [*self.states, "FAILED" if self.failure else "ISSUED"]
            self._orders[order_id] = _Order(order_id, csr_pem, states, self.failure, self.retry_time)
            self._by_request[key] = order_id
        return self._look(self._orders[order_id])

    async def watch_order(self, order_id: str, wait: timedelta) -> AsyncGenerator[OrderView, None]:
        self._begin("watch_order")
        if self.watch_errors:
            raise self.watch_errors.pop(0)
        order = self._known(order_id)
        yield self._look(order)
        while len(order.states) > 1 and not self.waits:
            if self.stall is not None:
                try:
                    async with asyncio.timeout(wait.total_seconds()):
                        await self.stall.wait()
                except TimeoutError:
                    return
            self._advance(order)
            yield self._look(order)

    async def get_identity(self) -> IdentityView:
        self._begin("get_identity")
        identity = self._in_use()
        return IdentityView(
            name="web1.example",
            kind="host",
            label="web1",
            serial_number=identity.serial_number,
            expire_time=identity.not_after,
            profiles=self.profiles,
            broker_time=self._clock.now(),
            broker_version="0.1.0",
            contest_time=self.contest_time,
            profile_names=self.profile_names,
        )

    async def revoke_time(self, certificate_id: str) -> datetime | None:
        self._begin("revoke_time")
        if certificate_id not in self.issued:
            raise RefusalError(Reason.CERTIFICATE_NOT_FOUND, "there is no such certificate")
        return self.revoked.get(certificate_id)

    async def report_enrollment(self, identity_serial_number: str) -> None:
        self._begin("report_enrollment")
        self.reports.append(identity_serial_number)

    async def refresh(self) -> bool:
        return False

    async def use_identity(self, identity: Version) -> None:
        self.identities.append(identity)

    async def close(self) -> None:
        self.calls.append("close")

    def _begin(self, call: str) -> None:
        self._in_use()
        self.calls.append(call)
        if self.errors:
            raise self.errors.pop(0)

    def _in_use(self) -> Version:
        if not self.identities:
            raise RuntimeError("use_identity comes before any call")
        return self.identities[-1]

    def _may_try_again(self, order: _Order) -> bool:
        if order.states != ["FAILED"]:
            return False
        return order.retry_time is None or order.retry_time <= self._clock.now()

    def _known(self, order_id: str) -> _Order:
        if order_id not in self._orders:
            raise RefusalError(Reason.ORDER_NOT_FOUND, "there is no such order")
        return self._orders[order_id]

    def _advance(self, order: _Order) -> None:
        if len(order.states) > 1:
            del order.states[0]

    def _look(self, order: _Order) -> OrderView:
        state = order.states[0]
        if state == "ISSUED" and order.certificate is None:
            certificate_id = f"certificate-{len(self.issued) + 1}"
            self.issued.append(certificate_id)
            order.certificate = self._issuer.issue(
                order.csr_pem,
                lifetime=self.lifetime,
                certificate_id=certificate_id,
                renew_time=self._clock.now() + self.lifetime * 2 / 3,
            )
        failed = state == "FAILED"
        return OrderView(
            order_id=order.order_id,
            state=state,
            certificate=order.certificate,
            error=order.error if failed else None,
            retry_time=order.retry_time if failed else None,
            trouble="" if failed or state == "ISSUED" else self.trouble,
            wait_time=None if failed or state == "ISSUED" else self.wait_time,
        )
