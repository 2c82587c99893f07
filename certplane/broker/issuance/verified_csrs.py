"""The last verified CSRs, so that a caller that asks again costs a look-up, or the check of one signature.

Safe because what a CSR says depends on nothing but its octets: what may be issued for it is asked each time. Refusals
aren't kept, and are always `parse_csr`'s. For one thread.
"""

from __future__ import annotations

from collections.abc import Collection

from certplane.pki.csr import MAX_CSR_LENGTH, CertificateRequest, decode_csr, parse_csr
from certplane.pki.csr_again import CsrCut, VerifiedCsr
from certplane.pki.pem import PemError
from certplane.runtime.remembered import Remembered

_SHARE = 4
"""A caller may fill a fourth of the memory: as many keys at once has no host."""
_KEY_OCTETS = 1024
"""A public key in OpenSSL, about."""
_OCTETS = 4096
"""Of one entry on average, text and DER: a CSR of some fifty names."""


class VerifiedCsrs:
    """`parse_csr` with a memory of `size` CSRs."""

    def __init__(self, size: int) -> None:
        share = max(1, size // _SHARE)
        self._texts: Remembered[str, CertificateRequest] = Remembered(
            entries=size, octets=size * _OCTETS, of_one_owner=share
        )
        self._said: Remembered[bytes, VerifiedCsr] = Remembered(entries=size, octets=size * _OCTETS, of_one_owner=share)

    def __len__(self) -> int:
        return len(self._texts)

    def parse(self, pem: str, *, known: Collection[str] | None = None, owner: str = "") -> CertificateRequest:
        """As `parse_csr`; `owner` is whose share of the memory it takes."""
        request = self._texts.get(pem)
        if request is None:
            request = self._said_before(pem)
            if request is None:
                request = parse_csr(pem, known=known)
                verified = VerifiedCsr.of(request)
                if verified is not None:
                    self._said.put(verified.said, verified, 2 * len(request.der) + _KEY_OCTETS, owner)
            self._texts.put(pem, request, len(pem) + len(request.der), owner)
        return request

    def _said_before(self, pem: str) -> CertificateRequest | None:
        """The request, if only its signature is new; None where that is for `parse_csr` to say."""
        if len(pem) > MAX_CSR_LENGTH:
            return None
        try:
            der = decode_csr(pem)
        except PemError:
            return None
        cut = CsrCut.of(der)
        verified = self._said.get(cut.said) if cut is not None else None
        return verified.again(der, cut) if verified is not None and cut is not None else None
