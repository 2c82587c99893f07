"""A CSR that differs from a verified one in its signature alone: all that is left to check is that signature.

A client that makes its CSR anew for the same key and names sends other octets each time, since ECDSA signatures differ,
and says the same. What a CSR says depends on nothing but the octets that are signed and the signature's algorithm, so
both are compared octet by octet, and the rest of the structure must be exactly as DER has it: nothing behind it,
lengths in their shortest form, a signature of whole octets. Whatever is different in any way is no match, and is
`parse_csr`'s to judge, as is a signature that doesn't fit: this module refuses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from certplane.pki.csr import CertificateRequest
from certplane.pki.der import BIT_STRING, SEQUENCE, DerError, read_element


@dataclass(frozen=True, slots=True)
class CsrCut:
    """A CSR's DER, cut: `said` is what it says (signed octets and algorithm), `signed` the first part of it."""

    said: bytes
    signed: bytes
    signature: bytes

    @classmethod
    def of(cls, der: bytes) -> Self | None:
        """The cut; None if `der` isn't exactly SEQUENCE {info, algorithm, BIT STRING of whole octets}."""
        try:
            whole = read_element(der)
            info = read_element(der, whole.content, whole.end)
            algorithm = read_element(der, info.end, whole.end)
            signature = read_element(der, algorithm.end, whole.end)
        except DerError:
            return None
        if whole.tag != SEQUENCE or whole.end != len(der) or signature.end != whole.end:
            return None
        if signature.tag != BIT_STRING or signature.value[:1] != b"\0":
            return None
        return cls(der[info.start : algorithm.end], info.encoded, der[signature.content + 1 : signature.end])


@dataclass(frozen=True, slots=True)
class VerifiedCsr:
    """A CSR that passed every check, and the check of a signature (signature, signed octets) with its key."""

    request: CertificateRequest
    said: bytes
    _verify: Callable[[bytes, bytes], None]

    @classmethod
    def of(cls, request: CertificateRequest) -> Self | None:
        """What `parse_csr` has let through; None if it can't be matched by others."""
        cut = CsrCut.of(request.der)
        csr = x509.load_der_x509_csr(request.der)
        key, parameters, digest = csr.public_key(), csr.signature_algorithm_parameters, csr.signature_hash_algorithm
        if cut is None or csr.tbs_certrequest_bytes != cut.signed or digest is None:
            return None
        if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(parameters, ec.ECDSA):
            return cls(request, cut.said, lambda signature, signed: key.verify(signature, signed, parameters))
        if isinstance(key, rsa.RSAPublicKey) and isinstance(parameters, padding.PKCS1v15):
            return cls(request, cut.said, lambda signature, signed: key.verify(signature, signed, parameters, digest))
        return None

    def again(self, der: bytes, cut: CsrCut) -> CertificateRequest | None:
        """The request of another CSR (`der`, cut) that says the same, its signature verified; None if it doesn't."""
        if cut.said != self.said:
            return None
        try:
            self._verify(cut.signature, cut.signed)
        except InvalidSignature:
            return None
        return replace(self.request, der=der, sha256=hashlib.sha256(der).hexdigest())
