"""The files of a version and how they hang together: pure, bytes in, bytes out.

An output is added here (its `Part`, its path, its bytes), to `CertificateSettings` and to docs/configuration.md.

Five are PEM, and in every version. A PKCS#12 file is derived from them, where one is configured (`install.pkcs12`).

A combined file begins with the key: Postfix (`smtpd_tls_chain_files`) wants each key before its certificates, and
other programs take any order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.errors import CertplaneError
from certplane.pki.chain import leaf_facts
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import public_key_sha256


class Part(StrEnum):
    """A file of a version; the value is its name there, `setting` its name in agent.yml.

    In the order in which files are written: the key first.
    """

    setting: str
    holds_key: bool

    def __new__(cls, name: str, setting: str, holds_key: bool = False) -> Self:
        """A file of this name, and whether the private key is in it."""
        part = str.__new__(cls, name)
        part._value_ = name
        part.setting, part.holds_key = setting, holds_key
        return part

    PRIVKEY = "privkey.pem", "key", True
    CERT = "cert.pem", "cert"
    FULLCHAIN = "fullchain.pem", "fullchain"
    CHAIN = "chain.pem", "chain"
    COMBINED = "combined.pem", "combined", True
    PKCS12 = "bundle.p12", "pkcs12", True


DERIVED_PARTS = frozenset({Part.PKCS12})
"""Those that a version has where they are configured; the others are PEM, and every version has them."""
PEM_PARTS = tuple(part for part in Part if part not in DERIVED_PARTS)
KEY_PARTS = frozenset(part for part in Part if part.holds_key)
"""Those that hold the private key."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """The configured paths of one certificate, absolute, all different; None where a part isn't wanted."""

    key: Path | None = None
    cert: Path | None = None
    chain: Path | None = None
    fullchain: Path | None = None
    combined: Path | None = None
    pkcs12: Path | None = None

    def __post_init__(self) -> None:
        paths = list(self.paths().values())
        if len(set(paths)) != len(paths):
            raise ValueError("two outputs of a certificate can't share a path")
        if not all(path.is_absolute() for path in paths):
            raise ValueError("an output's path must be absolute")

    def paths(self) -> dict[Part, Path]:
        """The paths that are set, in the order of `Part`."""
        wanted = {part: getattr(self, part.setting) for part in Part}
        return {part: path for part, path in wanted.items() if path is not None}


_BLOCK = re.compile(rb"-----BEGIN (?P<label>[A-Z0-9 ]+)-----[\x01-\x7f]*?-----END (?P=label)-----")


class NoPairError(CertplaneError):
    """Files are no complete pair of a key and its certificate; the message says why and holds none of their bytes."""


def compose(key_pem: bytes, certificate_pem: str, chain_pem: str) -> dict[Part, bytes]:
    """All files of a version; each ends with a newline unless it is empty (a chain without issuers)."""
    key = _ended(key_pem)
    leaf = _ended(certificate_pem.encode("ascii"))
    chain = _ended(chain_pem.encode("ascii"))
    return {
        Part.PRIVKEY: key,
        Part.CERT: leaf,
        Part.CHAIN: chain,
        Part.FULLCHAIN: leaf + chain,
        Part.COMBINED: key + leaf + chain,
    }


def complete(found: Mapping[Part, bytes]) -> dict[Part, bytes]:
    """All files of a version from those that stand at configured paths, which keep every byte; see `rebuilt`."""
    return {**rebuilt(found), **found}


def rebuilt(found: Mapping[Part, bytes]) -> dict[Part, bytes]:
    """All files of a version from some of them, as `compose` writes them.

    Whoever wrote them had his own ideas: a `cert` may hold the whole chain, a key may be PKCS#1 or SEC 1, text may
    stand between the blocks. What matters is one leaf in all of them, and that the key is its.

    Raises:
        NoPairError: no key or no certificate, several of them that differ, or the key isn't the certificate's.
    """
    keys = {block for part in (Part.PRIVKEY, Part.COMBINED) for block in _blocks(found.get(part, b""), b"PRIVATE KEY")}
    if len(keys) != 1:
        raise NoPairError("there is no private key" if not keys else "there are several private keys")
    chains = {
        part: certificates
        for part in (Part.FULLCHAIN, Part.COMBINED, Part.CERT)
        if (certificates := _blocks(found.get(part, b""), b"CERTIFICATE"))
    }
    leaves = {certificates[0] for certificates in chains.values()}
    if len(leaves) != 1:
        raise NoPairError("there is no certificate" if not leaves else "there are several certificates")
    key, leaf = keys.pop(), leaves.pop()
    _check_pair(key, leaf)
    longest = max(chains.values(), key=len)
    chain = _blocks(found.get(Part.CHAIN, b""), b"CERTIFICATE") or longest[1:]
    return compose(key, leaf.decode("ascii"), "".join(block.decode("ascii") + "\n" for block in chain))


def _check_pair(key_pem: bytes, leaf_pem: bytes) -> None:
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause may quote the key's bytes: it is cut off on purpose.
        raise NoPairError("the private key can't be read, or is encrypted") from None
    try:
        facts = leaf_facts(leaf_pem.decode("ascii") + "\n")
    except ChainError as error:
        raise NoPairError("the certificate can't be read") from error
    if facts.public_key_sha256 != public_key_sha256(key.public_key()):
        raise NoPairError("the private key is not the certificate's")


def _blocks(pem: bytes, label: bytes) -> list[bytes]:
    """The PEM blocks whose label ends so, in order, white space around them dropped."""
    return [match.group().replace(b"\r\n", b"\n") for match in _BLOCK.finditer(pem) if match["label"].endswith(label)]


def _ended(pem: bytes) -> bytes:
    return pem if not pem or pem.endswith(b"\n") else pem + b"\n"
