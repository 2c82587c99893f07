"""A broker as a keeper sees it: `keeping.Source` and `keeping.News` in memory, on a test's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from certplane.caller.news import AskAgain
from certplane.caller.ordering import Wanted
from certplane.caller.values import Certificate, CertificateNews, Identity
from certplane.errors import CertplaneError, Reason, RefusalError
from certplane.pki.chain import leaf_facts
from tests.fakes.clock import ManualClock
from tests.support.lineages import LocalIssuer

LIFETIME = timedelta(days=90)
RENEW_AFTER = timedelta(days=60)


class FakeSource:
    """Issues for each key once, at once; `failure` is raised instead, `gate` holds what is asked.

    `wanted` has each request that came, `issued` each certificate that was made.
    """

    def __init__(self, clock: ManualClock, **profiles: tuple[str, ...]) -> None:
        self._clock = clock
        self.profiles = profiles or {"api": ("api.example",)}
        self.failure: CertplaneError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.lifetime = LIFETIME
        self.renew_after: timedelta | None = RENEW_AFTER
        self.wanted: list[Wanted] = []
        self.issued: dict[str, Certificate] = {}
        self.identities = 0
        self.spent_keys: set[str] = set()

    async def identity(self) -> Identity:
        self.identities += 1
        if self.failure is not None:
            raise self.failure
        now = self._clock.now()
        return Identity(
            name="api.certplane.test",
            kind="service",
            label="api",
            serial_number="1f",
            expire_time=now + timedelta(days=1),
            profiles=tuple(self.profiles),
            dns_names=dict(self.profiles),
            roles=(),
            broker_time=now,
            broker_version="0",
        )

    async def obtain(self, wanted: Wanted, timeout: timedelta = LIFETIME) -> Certificate:
        self.wanted.append(wanted)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        if wanted.public_key_sha256 in self.spent_keys:
            raise RefusalError(Reason.KEY_REUSED, "spent")
        if wanted.public_key_sha256 not in self.issued:
            self.issued[wanted.public_key_sha256] = self._made(wanted)
        return self.issued[wanted.public_key_sha256]

    async def certificate(self, certificate_id: str) -> Certificate:
        if self.failure is not None:
            raise self.failure
        return next(each for each in self.issued.values() if each.certificate_id == certificate_id)

    def _made(self, wanted: Wanted) -> Certificate:
        now = self._clock.now()
        made = LocalIssuer(now=now).issue(wanted.csr_pem, lifetime=self.lifetime)
        facts = leaf_facts(made.certificate_pem)
        return Certificate(
            certificate_id=f"c{len(self.issued) + 1}",
            profile=wanted.profile,
            dns_names=facts.dns_names,
            serial_number=facts.serial_number,
            issuer="fake",
            public_key_sha256=facts.public_key_sha256,
            not_before=facts.not_before,
            not_after=facts.not_after,
            renew_time=None if self.renew_after is None else now + self.renew_after,
            certificate_pem=made.certificate_pem,
            chain_pem=made.chain_pem,
        )


class FakeNews:
    """`tell` is a broker's word."""

    def __init__(self, *, live: bool = True) -> None:
        self.live = live
        self.known: dict[str, CertificateNews] = {}
        self.listeners: list[Callable[[CertificateNews | AskAgain], None]] = []

    def listen(self, listener: Callable[[CertificateNews | AskAgain], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        for news in self.known.values():
            listener(news)
        return lambda: self.listeners.remove(listener)

    def tell(self, news: CertificateNews | AskAgain) -> None:
        if isinstance(news, CertificateNews):
            self.known[news.certificate_id] = news
        for listener in list(self.listeners):
            listener(news)
