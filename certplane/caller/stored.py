"""What a keeper keeps, as values and as a port: the pending key, and the certificate in use.

The key of a request is kept before its CSR is sent, so that a request that was sent always finds its key again: after a
process has died the same CSR is sent, which joins the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from typing_extensions import override

from certplane.caller.ordering import Wanted
from certplane.caller.values import IssuedCertificate
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem, public_key_sha256


@dataclass(frozen=True, slots=True)
class Pending:
    """A request under way, with its key (PKCS#8, PEM)."""

    wanted: Wanted
    private_key_pem: bytes = field(repr=False)


def new_pending(profile: str, dns_names: tuple[str, ...], *, replaces: str, key_type: KeyType) -> Pending:
    """A request with a new key."""
    key = generate_private_key(key_type)
    wanted = Wanted(
        profile=profile,
        csr_pem=build_csr(key, sans=dns_names),
        public_key_sha256=public_key_sha256(key.public_key()),
        dns_names=dns_names,
        replaces=replaces,
    )
    return Pending(wanted, private_key_pem(key))


class CertificateStore(Protocol):
    """Where one certificate and its key are kept. Each method may block; for one thread at a time."""

    def open(self) -> None:
        """Take it for this process alone, and tidy up what a crash has left.

        Raises:
            OperationError: another process has it, or the place can't be used.
        """
        ...

    def load(self) -> tuple[IssuedCertificate | None, Pending | None]:
        """The certificate in use, and the request under way.

        Raises:
            OperationError: the place can't be read.
        """
        ...

    def begin(self, pending: Pending) -> None:
        """Keep a request in place of what was pending; durable on return.

        Raises:
            OperationError: it can't be written.
        """
        ...

    def put(self, issued: IssuedCertificate) -> None:
        """Have this certificate be the one in use, at once and whole; nothing is pending then.

        Raises:
            OperationError: it can't be written; the one before is in use still.
        """
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class MemoryStore(CertificateStore):
    """Nothing outlives the process: after a restart there is a new key, and a new order."""

    def __init__(self) -> None:
        self._issued: IssuedCertificate | None = None
        self._pending: Pending | None = None

    @override
    def open(self) -> None:
        pass

    @override
    def load(self) -> tuple[IssuedCertificate | None, Pending | None]:
        return self._issued, self._pending

    @override
    def begin(self, pending: Pending) -> None:
        self._pending = pending

    @override
    def put(self, issued: IssuedCertificate) -> None:
        self._issued, self._pending = issued, None

    @override
    def close(self) -> None:
        pass
