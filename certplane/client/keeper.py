"""`CertificateKeeper`: one certificate kept fresh for as long as a program runs."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from certplane.caller.folder import FolderStore
from certplane.caller.serving import LiveContext
from certplane.caller.stored import MemoryStore
from certplane.caller.values import IssuedCertificate
from certplane.client.client import Client, StrPath, canonical_names
from certplane.errors import CertplaneError
from certplane.pki.keys import KeyType


class CertificateKeeper:
    """Keeps one certificate of a program fresh. An async context manager, inside of its client's.

        async with CertificateKeeper(client, profile="api", folder="tls") as keeper:
            server = await asyncio.start_server(handle, port=8443, ssl=keeper.ssl_context())

    It renews at the time that the broker names, and at once when an operator asks for it, the certificate is revoked or
    policy gives other names. Each certificate has a new key, which is kept before it is asked for. While the broker is
    away, or refuses, the certificate in use stays in use and the keeper tries again: after 1 min to 1 h, or when the
    broker says; `last_error` says why.

    With a folder (made 0700, key 0600) it goes on where a process that died has stopped: with the same certificate, and
    with an order that was under way, so that there is no second one. `current/` in it has `privkey.pem`, `cert.pem`,
    `chain.pem` and `fullchain.pem`, switched together; whoever reads two of them resolves the link `current` once.
    Without a folder key and certificate are in memory alone, and each start of the program makes an order, which counts
    against the CA's limits.

    Args:
        client: Whose identity asks; open.
        profile: A profile that policy gives to it.
        folder: Where key and certificate are kept, for this profile alone; in memory if None. One process has it.
        dns_names: The names to ask for; default: the profile's, as the broker tells them, also when they change.
        key_type: What new keys are.
        wait: How long entering waits for a first certificate, where none is kept that is valid.

    Raises:
        CertplaneError: `dns_names` has what is no DNS name.
    """

    def __init__(
        self,
        client: Client,
        *,
        profile: str,
        folder: StrPath | None = None,
        dns_names: Sequence[str] = (),
        key_type: KeyType = KeyType.EC_P256,
        wait: timedelta = timedelta(minutes=10),
    ) -> None:
        store = MemoryStore() if folder is None else FolderStore(Path(folder), profile)
        self._keeping = client._keep(store, profile, canonical_names(dns_names), key_type)  # noqa: SLF001 - its other half
        self._wait = wait

    async def __aenter__(self) -> Self:
        """Have a certificate that is in force, then keep it fresh.

        Raises:
            RefusalError: the broker refused, and no waiting mends it; or the order failed, and did so until `wait` was
                over.
            OperationError: there was no certificate within `wait`; or the folder can't be used, or is another keeper's.
        """
        await self._keeping.start(self._wait)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the keeping; contexts go on with the certificate that they have."""
        await self._keeping.close()

    @property
    def current(self) -> IssuedCertificate:
        """The certificate in use, with its key.

        Raises:
            RuntimeError: the keeper isn't open.
        """
        return self._keeping.current

    @property
    def next_renewal(self) -> datetime:
        """When it is renewed, as far as is known now (UTC); not in the future where that is at once."""
        return self._keeping.next_renewal

    @property
    def last_error(self) -> CertplaneError | None:
        """Why the last try to renew failed; None after one that succeeded."""
        return self._keeping.error

    def ssl_context(self) -> ssl.SSLContext:
        """A server's TLS context (TLS 1.2 and later) that presents the certificate in use, also after it has changed.

        For connections that begin after a change; those that are open are left alone. Settings are the caller's own, to
        be made before the server starts: ALPN, the CAs of client certificates, versions, ciphers, options. It is used
        from any thread. Each call makes another context.

        Raises:
            ssl.SSLError: OpenSSL refuses key or certificate.
        """
        context = LiveContext(self.current)
        self._keeping.on_change(context.present)
        return context

    def on_change(self, callback: Callable[[IssuedCertificate], Awaitable[object] | object]) -> Callable[[], None]:
        """Have a function called after each change, on the event loop, contexts that were made before it first.

        Args:
            callback: Given the new certificate with its key. What it returns is awaited, if that can be; the keeper
                waits for its end. An error in it is logged, and the certificate stays.

        Returns:
            What ends it.
        """
        return self._keeping.on_change(callback)

    def renew(self) -> None:
        """Renew now, whatever is due. Returns at once: `on_change` tells of the new certificate."""
        self._keeping.renew()
