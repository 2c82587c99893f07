"""Checkpoints: how far a chain had come at a time, signed with Ed25519 (RFC 8032).

The secret of `audit.checkpoint_key_secret` is 32 random octets in base64, an Ed25519 seed. Several may stand in it,
with white space between them: the first signs, and all verify, which is how the key is replaced. A public key is 32
octets in base64 too; those of keys that are no longer in the secret are named in `audit.checkpoint_keys`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

HOW_TO_MAKE: Final = "make one with `openssl rand -base64 32`"

_DOMAIN: Final = "certplane audit checkpoint 1"
_KEY: Final = 32


class CheckpointKeyError(ValueError):
    """A key is none; the text quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A chain's event of this number has this hash; times are microseconds since 1970 UTC.

    `sequence` is the event's place in the log and not signed: a copy of the log may number it anew.
    """

    chain_id: int
    number: int
    sequence: int
    time: int
    hash: bytes
    key_id: str = ""
    signature: bytes | None = None

    @property
    def statement(self) -> bytes:
        """What is signed."""
        said = (_DOMAIN, self.chain_id, self.number, self.hash.hex(), self.time)
        return json.dumps(said, separators=(",", ":")).encode()


def key_id(public_key: bytes) -> str:
    """The name of a key: the first 16 hexadecimal digits of the SHA-256 of its 32 octets."""
    return hashlib.sha256(public_key).hexdigest()[:16]


class Verifier:
    """The public keys that are trusted."""

    def __init__(self, public_keys: Iterable[str] = ()) -> None:
        """Read them.

        Raises:
            CheckpointKeyError: one isn't 32 octets in base64.
        """
        keys = [_octets(text) for text in public_keys]
        self._by_id: Mapping[str, Ed25519PublicKey] = {
            key_id(key): Ed25519PublicKey.from_public_bytes(key) for key in keys
        }

    def knows(self, name: str) -> bool:
        """Whether the key of this name is trusted."""
        return name in self._by_id

    @property
    def names(self) -> list[str]:
        """The names of the keys."""
        return sorted(self._by_id)

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether a trusted key has signed it."""
        key = self._by_id.get(checkpoint.key_id)
        if key is None or checkpoint.signature is None:
            return False
        try:
            key.verify(checkpoint.signature, checkpoint.statement)
        except InvalidSignature:
            return False
        return True


class Signer:
    """The keys of a secret. Never shown: its text is that of any object."""

    def __init__(self, secret: str) -> None:
        """Read the secret.

        Raises:
            CheckpointKeyError: it isn't what `HOW_TO_MAKE` makes.
        """
        seeds = [_octets(word) for word in secret.split()]
        if not seeds:
            raise CheckpointKeyError("is empty")
        keys = [Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds]
        self._key = keys[0]
        self.public_keys: Final = [base64.b64encode(key.public_key().public_bytes_raw()).decode() for key in keys]
        """In base64, that of the key that signs first."""
        self._id = key_id(base64.b64decode(self.public_keys[0]))

    def sign(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with its signature."""
        return replace(checkpoint, key_id=self._id, signature=self._key.sign(checkpoint.statement))


def _octets(text: str) -> bytes:
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if len(octets) != _KEY:
        raise CheckpointKeyError("isn't 32 octets in base64")
    return octets
