"""`Client`: a program's calls at the broker."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import timedelta
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from certplane.caller.calls import BrokerCalls
from certplane.caller.connection import Connection
from certplane.caller.keeping import Keeping
from certplane.caller.news import AskAgain, NewsFeed
from certplane.caller.ordering import ORDER_PATIENCE, Ordering, Wanted, names_for
from certplane.caller.settings import load_settings
from certplane.caller.stored import CertificateStore, new_pending
from certplane.caller.unreachable import CallerFiles
from certplane.caller.values import Certificate, CertificateNews, Identity, IssuedCertificate, Order, RevocationReason
from certplane.pki.keys import KeyType
from certplane.pki.names import canonical_dns_name
from certplane.rpc.channel import target_from_url
from certplane.rpc.proxy import ProxyUse
from certplane.runtime.clock import Clock, SystemClock

StrPath = str | PathLike[str]


class Client:
    """Calls at a broker, as one identity. An async context manager; on one event loop.

        async with Client.from_config("client.yml") as client:
            issued = await client.issue(profile="api")

    The identity's files are read again when they change: a renewed identity is used from the next call on. A call that
    reaches no broker, or is refused with a time to come back (RetryInfo), is repeated within its time, at another
    broker first where there are several; every call is safe to repeat. What a method raises is `RefusalError` (the
    broker's word: `reason`, `retry_after`, `request_id`; docs/errors.md) or `OperationError` (no broker was reached in
    time, or what answered is none), if it says nothing else.

    Args:
        url: `https://host[:port]` of the broker, or a list of several of one fleet.
        identity: Paths of the identity's certificate with its chain and of its private key, both PEM. The key is closed
            to others than this user (0600), or root's and readable by a group of this user's (0640).
        server_ca: Path of the CAs that the broker's certificate may come from, PEM.
        timeout: How long a call may take, its repetitions included, where it has no time of its own.
        proxy: Whether the environment's proxy is used (docs/configuration.md, "Proxies").
        clock: Where time comes from; for tests.

    Raises:
        ValueError: `url` is empty, or isn't `https://host[:port]`.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        identity: tuple[StrPath, StrPath],
        server_ca: StrPath,
        timeout: timedelta = timedelta(seconds=30),
        proxy: ProxyUse = ProxyUse.NONE,
        clock: Clock | None = None,
    ) -> None:
        urls = [url] if isinstance(url, str) else list(url)
        if not urls:
            raise ValueError("a client needs the URL of a broker")
        for each in urls:
            target_from_url(each)
        self._clock = clock or SystemClock()
        self._rng = random.SystemRandom()
        files = CallerFiles(chain=Path(identity[0]), key=Path(identity[1]), server_cas=Path(server_ca))
        self._connection = Connection(urls, files, timeout=timeout, clock=self._clock, proxy=proxy, rng=self._rng)
        self._calls = BrokerCalls(self._connection)
        self._ordering = Ordering(self._calls, self._clock, self._rng)
        self._news = NewsFeed(self._connection)

    @classmethod
    def from_config(cls, path: StrPath) -> Self:
        """A client as client.yml says (docs/configuration.md); relative paths in it begin at its folder. Blocks.

        Args:
            path: The file.

        Raises:
            ConfigurationError: everything that is wrong with the file.
        """
        return cls(**configured(path))

    async def __aenter__(self) -> Self:
        """Read the identity and the CAs; nothing is sent.

        Raises:
            ConfigurationError: a file is missing, can't be read, or isn't what it should be.
        """
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection, calls and streams included."""
        await self._news.close()
        await self._connection.close()

    async def identity(self) -> Identity:
        """Whom the broker takes this program for, and what policy gives it (GetIdentity)."""
        return await self._calls.identity()

    async def issue(
        self,
        profile: str,
        *,
        dns_names: Sequence[str] = (),
        key_type: KeyType = KeyType.EC_P256,
        replaces: str = "",
        timeout: timedelta = ORDER_PATIENCE,
    ) -> IssuedCertificate:
        """A certificate with a new private key, made here (IssueCertificate, RenewCertificate).

        The key is in memory alone: where this process dies meanwhile the certificate is lost, and asking again makes
        another order. `CertificateKeeper` keeps keys.

        Args:
            profile: A profile that policy gives to this program.
            dns_names: The names to ask for; default: the profile's, as the broker tells them.
            key_type: What the key is.
            replaces: `certificate_id` of the certificate that this one takes the place of; empty for a first one.
            timeout: How long to wait for the order, all tries included.

        Raises:
            OrderFailedError: the order ended without a certificate; `retry_time` says when asking again is of use.
            OrderUnderWayError: the time is over, the order isn't.
            RefusalError: the broker refused, or sent a certificate that isn't for this key and these names.
            OperationError: no broker was reached in time.
            CertplaneError: `dns_names` has what is no DNS name.
        """
        names = canonical_names(dns_names) or names_for(await self.identity(), profile)
        pending = new_pending(profile, names, replaces=replaces, key_type=key_type)
        certificate = await self._ordering.obtain(pending.wanted, timeout)
        return IssuedCertificate(certificate, pending.private_key_pem)

    async def order(self, order_id: str) -> Order:
        """An order of this program, with its certificate when it is ISSUED (GetOrder).

        Args:
            order_id: The broker's name for it.
        """
        return await self._calls.order(order_id)

    async def watch_order(self, order_id: str) -> AsyncGenerator[Order, None]:
        """An order as it is, and after each change, until it has ended (WatchOrder). A lost connection ends it too.

        Args:
            order_id: The broker's name for it.
        """
        async with aclosing(self._calls.watch_order(order_id)) as states:
            async for state in states:
                yield state

    async def certificate(self, certificate_id: str) -> Certificate:
        """A certificate of this program, with its PEM (GetCertificate).

        Args:
            certificate_id: The broker's name for it.
        """
        return await self._calls.certificate(certificate_id)

    async def certificates(
        self, *, profile: str = "", include_unusable: bool = False
    ) -> AsyncGenerator[Certificate, None]:
        """This program's certificates, newest first, without PEM, fetched page by page (ListCertificates).

        Args:
            profile: Only this profile's; all if empty.
            include_unusable: Revoked and expired ones too.
        """
        async with aclosing(self._calls.certificates(profile=profile, include_unusable=include_unusable)) as found:
            async for certificate in found:
                yield certificate

    async def revoke(self, certificate_id: str, reason: RevocationReason = RevocationReason.UNSPECIFIED) -> Certificate:
        """Revoke a certificate of this program at the CA (RevokeCertificate). Its key is spent.

        Args:
            certificate_id: The broker's name for it.
            reason: KEY_COMPROMISE blocks the key for good.

        Returns:
            The certificate with its `revoke_time`, without PEM.
        """
        return await self._calls.revoke(certificate_id, reason)

    async def watch_certificates(self) -> AsyncGenerator[CertificateNews, None]:
        """What becomes of this program's certificates, without an end (WatchMyCertificates).

        First the newest of each profile and key as it is, then each change. Who reads slowly gets the latest of each
        certificate. The stream comes back by itself after any end; a broker that has none tells nothing. All watchers
        and keepers of a client share one stream.
        """
        waiting: dict[str, CertificateNews] = {}
        told = asyncio.Event()

        def hear(news: CertificateNews | AskAgain) -> None:
            if isinstance(news, CertificateNews):
                waiting.pop(news.certificate_id, None)
                waiting[news.certificate_id] = news
                told.set()

        end = self._news.listen(hear)
        try:
            while True:
                await told.wait()
                told.clear()
                while waiting:
                    yield waiting.pop(next(iter(waiting)))
        finally:
            end()

    def _keep(self, store: CertificateStore, profile: str, dns_names: tuple[str, ...], key_type: KeyType) -> Keeping:
        """The machinery of a keeper of this client."""
        return Keeping(
            _Source(self._calls, self._ordering),
            self._news,
            store,
            profile=profile,
            dns_names=dns_names,
            key_type=key_type,
            clock=self._clock,
            rng=self._rng,
        )


def configured(path: StrPath) -> dict[str, Any]:
    """The arguments of a client that client.yml describes. Blocks.

    Raises:
        ConfigurationError: everything that is wrong with the file.
    """
    settings = load_settings(Path(path))
    identity = settings.identity
    return {
        "url": [str(url) for url in settings.broker.all_urls],
        "identity": (settings.path(identity.cert), settings.path(identity.key)),
        "server_ca": settings.path(settings.broker.server_ca_bundle),
        "timeout": settings.timeout,
        "proxy": settings.broker.proxy,
    }


def canonical_names(dns_names: Sequence[str]) -> tuple[str, ...]:
    """Names as the broker compares them: lower case, A-labels, sorted, each once.

    Raises:
        DnsNameError: one isn't a DNS name.
    """
    return tuple(sorted({canonical_dns_name(name) for name in dns_names}))


class _Source:
    """`keeping.Source` of a client."""

    def __init__(self, calls: BrokerCalls, ordering: Ordering) -> None:
        self.identity = calls.identity
        self.certificate = calls.certificate
        self._ordering = ordering

    async def obtain(self, wanted: Wanted, timeout: timedelta = ORDER_PATIENCE) -> Certificate:
        return await self._ordering.obtain(wanted, timeout)
