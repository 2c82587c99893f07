"""The internal CA's certificates that clients are verified against, as what verifies by them takes them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import Store

from certplane.pki.bundle import BundleError, CaBundle

_MAX_CHAINS: Final = 64
"""Presented chains of which is remembered what leads to a bundle: nearly all hosts present the same."""


class TrustBundle:
    """The internal CA's certificates that clients are verified against. Immutable, but for what it remembers.

    `hash` is over the certificates' content, whatever their order and the comments between them.
    """

    def __init__(self, certificates: tuple[x509.Certificate, ...]) -> None:
        if not certificates:
            raise BundleError("holds no certificate")
        self.certificates = certificates
        self._leading: OrderedDict[bytes, tuple[x509.Certificate, ...]] = OrderedDict()
        self.hash = hashlib.sha256(b"".join(sorted({_fingerprint(entry) for entry in certificates}))).hexdigest()

    @classmethod
    def from_pem(cls, pem: bytes) -> TrustBundle:
        """The bundle of a PEM file (`certplane.pki.bundle`).

        Raises:
            BundleError: no certificate in it, or something else than certificates of CAs.
        """
        return cls(CaBundle.from_pem(pem).certificates)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What `anchor_of` says of its certificates."""
        return frozenset(map(anchor_of, self.certificates))

    @cached_property
    def store(self) -> Store:
        """The anchors as the verifier takes them."""
        return Store(list(self.certificates))

    @cached_property
    def by_subject(self) -> Mapping[x509.Name, Sequence[x509.Certificate]]:
        """The anchors by their names."""
        return by_subject(self.certificates)

    def leading(
        self, chain_pem: bytes, find: Callable[[], tuple[x509.Certificate, ...]]
    ) -> tuple[x509.Certificate, ...]:
        """The CAs of a presented chain that lead here, as `find` says; it isn't asked for the last few again."""
        found = self._leading.get(chain_pem)
        if found is None:
            found = self._leading[chain_pem] = find()
            if len(self._leading) > _MAX_CHAINS:
                self._leading.popitem(last=False)
        self._leading.move_to_end(chain_pem)
        return found


def anchor_of(certificate: x509.Certificate) -> str:
    """What stays of a CA when its certificate is renewed: SHA-256 over its name and its key."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(certificate.subject.public_bytes() + key).hexdigest()


def by_subject(certificates: Iterable[x509.Certificate]) -> Mapping[x509.Name, Sequence[x509.Certificate]]:
    """The certificates by their names."""
    found: dict[x509.Name, list[x509.Certificate]] = {}
    for certificate in certificates:
        found.setdefault(certificate.subject, []).append(certificate)
    return found


def _fingerprint(certificate: x509.Certificate) -> bytes:
    return certificate.fingerprint(hashes.SHA256())
