"""The same for programs without an event loop: `SyncClient` and `SyncCertificateKeeper`.

One thread of the client's own runs the event loop; methods wait for it and may be called from any other thread.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from certplane.caller.ordering import ORDER_PATIENCE
from certplane.caller.values import Certificate, CertificateNews, Identity, IssuedCertificate, Order, RevocationReason
from certplane.client.client import Client, StrPath, configured
from certplane.client.keeper import CertificateKeeper
from certplane.errors import CertplaneError
from certplane.pki.keys import KeyType
from certplane.rpc.proxy import ProxyUse

T = TypeVar("T")


class _Loop:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="certplane-client", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is cancelled where waiting for it is interrupted."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a callback must not wait for its own client")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, work: Callable[[], T]) -> T:
        """The result of a function that belongs on the loop."""

        async def run() -> T:
            return work()

        return self.run(run())

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """What a generator yields."""

        async def following() -> tuple[T, ...]:
            async for item in items:
                return (item,)
            return ()

        try:
            while found := self.run(following()):
                yield found[0]
        finally:
            self.run(items.aclose())

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class SyncClient:
    """`Client` for programs without an event loop. A context manager; from any thread.

        with SyncClient.from_config("client.yml") as client:
            issued = client.issue(profile="api")

    A process that forks makes its client afterwards. Errors are `Client`'s.

    Args:
        url: As for `Client`.
        identity: As for `Client`.
        server_ca: As for `Client`.
        timeout: As for `Client`.
        proxy: As for `Client`.

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
    ) -> None:
        self._client = Client(url, identity=identity, server_ca=server_ca, timeout=timeout, proxy=proxy)
        self._running: _Loop | None = None

    @classmethod
    def from_config(cls, path: StrPath) -> Self:
        """A client as client.yml says; see `Client.from_config`.

        Args:
            path: The file.

        Raises:
            ConfigurationError: everything that is wrong with the file.
        """
        return cls(**configured(path))

    def __enter__(self) -> Self:
        """Read the identity and the CAs; nothing is sent.

        Raises:
            ConfigurationError: a file is missing, can't be read, or isn't what it should be.
        """
        self._running = _Loop()
        try:
            self._running.run(self._client.__aenter__())
        except BaseException:
            self._running.close()
            self._running = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the connection and the thread, calls and streams included."""
        loop, self._running = self._loop, None
        try:
            loop.run(self._client.__aexit__(kind, value, traceback))
        finally:
            loop.close()

    @property
    def _loop(self) -> _Loop:
        if self._running is None:
            raise RuntimeError("the client is not open: use `with SyncClient(...)`")
        return self._running

    def identity(self) -> Identity:
        """Whom the broker takes this program for; see `Client.identity`."""
        return self._loop.run(self._client.identity())

    def issue(
        self,
        profile: str,
        *,
        dns_names: Sequence[str] = (),
        key_type: KeyType = KeyType.EC_P256,
        replaces: str = "",
        timeout: timedelta = ORDER_PATIENCE,
    ) -> IssuedCertificate:
        """A certificate with a new private key, made here; see `Client.issue`.

        Args:
            profile: A profile that policy gives to this program.
            dns_names: The names to ask for; default: the profile's, as the broker tells them.
            key_type: What the key is.
            replaces: `certificate_id` of the certificate that this one takes the place of; empty for a first one.
            timeout: How long to wait for the order, all tries included.

        Raises:
            OrderFailedError: the order ended without a certificate.
            OrderUnderWayError: the time is over, the order isn't.
            RefusalError: the broker refused, or sent a certificate that isn't for this key and these names.
            OperationError: no broker was reached in time.
            CertplaneError: `dns_names` has what is no DNS name.
        """
        return self._loop.run(
            self._client.issue(profile, dns_names=dns_names, key_type=key_type, replaces=replaces, timeout=timeout)
        )

    def order(self, order_id: str) -> Order:
        """An order of this program; see `Client.order`.

        Args:
            order_id: The broker's name for it.
        """
        return self._loop.run(self._client.order(order_id))

    def watch_order(self, order_id: str) -> Iterator[Order]:
        """An order as it is, and after each change, until it has ended; see `Client.watch_order`.

        Args:
            order_id: The broker's name for it.
        """
        return self._loop.iterate(self._client.watch_order(order_id))

    def certificate(self, certificate_id: str) -> Certificate:
        """A certificate of this program, with its PEM; see `Client.certificate`.

        Args:
            certificate_id: The broker's name for it.
        """
        return self._loop.run(self._client.certificate(certificate_id))

    def certificates(self, *, profile: str = "", include_unusable: bool = False) -> Iterator[Certificate]:
        """This program's certificates, newest first, without PEM; see `Client.certificates`.

        Args:
            profile: Only this profile's; all if empty.
            include_unusable: Revoked and expired ones too.
        """
        return self._loop.iterate(self._client.certificates(profile=profile, include_unusable=include_unusable))

    def revoke(self, certificate_id: str, reason: RevocationReason = RevocationReason.UNSPECIFIED) -> Certificate:
        """Revoke a certificate of this program at the CA; see `Client.revoke`.

        Args:
            certificate_id: The broker's name for it.
            reason: KEY_COMPROMISE blocks the key for good.

        Returns:
            The certificate with its `revoke_time`, without PEM.
        """
        return self._loop.run(self._client.revoke(certificate_id, reason))

    def watch_certificates(self) -> Iterator[CertificateNews]:
        """What becomes of this program's certificates, without an end; see `Client.watch_certificates`."""
        return self._loop.iterate(self._client.watch_certificates())


class SyncCertificateKeeper:
    """`CertificateKeeper` for programs without an event loop. A context manager, inside of its client's.

        with SyncCertificateKeeper(client, profile="api", folder="tls") as keeper:
            server.socket = keeper.ssl_context().wrap_socket(server.socket, server_side=True)

    Args:
        client: Whose identity asks; open.
        profile: As for `CertificateKeeper`.
        folder: As for `CertificateKeeper`.
        dns_names: As for `CertificateKeeper`.
        key_type: As for `CertificateKeeper`.
        wait: As for `CertificateKeeper`.

    Raises:
        CertplaneError: `dns_names` has what is no DNS name.
    """

    def __init__(
        self,
        client: SyncClient,
        *,
        profile: str,
        folder: StrPath | None = None,
        dns_names: Sequence[str] = (),
        key_type: KeyType = KeyType.EC_P256,
        wait: timedelta = timedelta(minutes=10),
    ) -> None:
        self._loop = loop = client._loop  # noqa: SLF001 - its other half
        self._keeper = loop.call(
            lambda: CertificateKeeper(
                client._client,  # noqa: SLF001 - as above
                profile=profile,
                folder=folder,
                dns_names=dns_names,
                key_type=key_type,
                wait=wait,
            )
        )

    def __enter__(self) -> Self:
        """Have a certificate that is in force, then keep it fresh.

        Raises:
            RefusalError: as `CertificateKeeper` does.
            OperationError: as `CertificateKeeper` does.
        """
        self._loop.run(self._keeper.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the keeping; contexts go on with the certificate that they have."""
        self._loop.run(self._keeper.__aexit__(kind, value, traceback))

    @property
    def current(self) -> IssuedCertificate:
        """The certificate in use, with its key.

        Raises:
            RuntimeError: the keeper isn't open.
        """
        return self._keeper.current

    @property
    def next_renewal(self) -> datetime:
        """When it is renewed, as far as is known now (UTC); not in the future where that is at once."""
        return self._loop.call(lambda: self._keeper.next_renewal)

    @property
    def last_error(self) -> CertplaneError | None:
        """Why the last try to renew failed; None after one that succeeded."""
        return self._keeper.last_error

    def ssl_context(self) -> ssl.SSLContext:
        """A server's TLS context that presents the certificate in use; see `CertificateKeeper.ssl_context`.

        Raises:
            ssl.SSLError: OpenSSL refuses key or certificate.
        """
        return self._loop.call(self._keeper.ssl_context)

    def on_change(self, callback: Callable[[IssuedCertificate], object]) -> Callable[[], None]:
        """Have a function called after each change, on the client's own thread: it must not wait for the client.

        Args:
            callback: Given the new certificate with its key. An error in it is logged, and the certificate stays.

        Returns:
            What ends it.
        """
        end = self._loop.call(lambda: self._keeper.on_change(callback))
        return lambda: self._loop.call(end)

    def renew(self) -> None:
        """Renew now, whatever is due. Returns at once: `on_change` tells of the new certificate."""
        self._loop.call(self._keeper.renew)
