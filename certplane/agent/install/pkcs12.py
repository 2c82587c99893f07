"""Key, certificate and chain in one encrypted file (RFC 7292), as Java and Windows programs read them.

Encrypted with what is current, PBES2 with AES-256-CBC and an HMAC of SHA-256, which Java reads since 8u301, OpenSSL
since 1.1.0 and Windows since Server 2019; the RC2 and 3DES of old files are not written. The password is read whenever
it is needed, and is part of no message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import PrivateFormat, load_pem_private_key, pkcs12

from certplane.agent.install.material import Part
from certplane.errors import OperationError

_ROUNDS = 20_000
"""Of PBKDF2: OpenSSL 3's own number is 2048, and readers (Java) refuse millions. The file's mode guards it first."""


@dataclass(frozen=True, slots=True)
class Pkcs12Maker:
    """Makes the file of one certificate. `password`: reads it, raising `CertplaneError`; it blocks."""

    password: Callable[[], bytes]
    friendly_name: str

    def make(self, files: Mapping[Part, bytes]) -> bytes:
        """The file for a version's PEM files; other bytes each time.

        Raises:
            OperationError: its key is of a kind that the format doesn't have.
            CertplaneError: the password can't be read.
        """
        key = load_pem_private_key(files[Part.PRIVKEY], password=None)
        if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise OperationError("a key of this kind can't be put into a PKCS#12 file")
        leaf, *chain = _certificates(files)
        encryption = (
            PrivateFormat.PKCS12.encryption_builder()
            .kdf_rounds(_ROUNDS)
            .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
            .hmac_hash(hashes.SHA256())
            .build(self.password())
        )
        return pkcs12.serialize_key_and_certificates(self.friendly_name.encode(), key, leaf, chain, encryption)

    def is_made(self, data: bytes, files: Mapping[Part, bytes]) -> bool:
        """Whether `data` is what `make` would make now: the password opens it, and it holds the same.

        Raises:
            CertplaneError: the password can't be read.
        """
        password = self.password()
        try:
            found = pkcs12.load_pkcs12(data, password)
        except ValueError:  # no such file, or another password
            return False
        if found.cert is None or found.cert.friendly_name != self.friendly_name.encode():
            return False
        return [found.cert.certificate, *(each.certificate for each in found.additional_certs)] == _certificates(files)


def _certificates(files: Mapping[Part, bytes]) -> list[x509.Certificate]:
    leaf = x509.load_pem_x509_certificates(files[Part.CERT])[0]
    chain = files[Part.CHAIN]
    return [leaf, *(x509.load_pem_x509_certificates(chain) if chain.strip() else [])]
