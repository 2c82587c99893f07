"""Keys sealed for the database: AES-256-GCM (NIST SP 800-38D) with a key from the secret of `store.seal_secret`.

The secret is 32 random octets in base64, no password: nothing is derived from it by hard work, so it must not be one
that can be guessed. Several may stand in it, with white space between them: the first seals, and all unseal, which is
how the secret is replaced.

    version, 1 octet | which seal key, 8 octets | nonce, 12 octets | ciphertext and tag

Which account a sealed key belongs to is authenticated with it (`account_context`), so that nobody who can write the
database can give one issuer's key to another. A random nonce is safe for 2^32 seals (8.3); there are a few a year.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from certplane.errors import CertplaneError
from certplane.runtime.text import counted

_VERSION: Final = b"\x01"
_KEY: Final = 32
_ID: Final = 8
_NONCE: Final = 12

HOW_TO_MAKE: Final = "make one with `openssl rand -base64 32`"


class SealError(CertplaneError):
    """A secret can't seal, or something can't be unsealed with it; the text quotes nothing of either."""


class SealKeys:
    """The keys of a seal secret. Never shown: its text is that of any object."""

    def __init__(self, text: str) -> None:
        """Read the secret.

        Raises:
            SealError: it isn't what `HOW_TO_MAKE` makes.
        """
        keys = [_key(word) for word in text.split()]
        if not keys:
            raise SealError("is empty")
        self._by_id: Final = {_id(key): key for key in keys}
        self._first: Final = _id(keys[0])

    def seal(self, plain: bytes, context: bytes) -> bytes:
        """`plain` sealed with the first key; only with the same `context` it can be unsealed."""
        head, nonce = _VERSION + self._first, os.urandom(_NONCE)
        return head + nonce + AESGCM(self._by_id[self._first]).encrypt(nonce, plain, head + context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """What was sealed.

        Raises:
            SealError: it was sealed with a key that isn't here, for something else, by a newer release, or is damaged.
        """
        head, nonce, rest = sealed[: 1 + _ID], sealed[1 + _ID : 1 + _ID + _NONCE], sealed[1 + _ID + _NONCE :]
        if head[:1] != _VERSION:
            raise SealError("was sealed by a newer certplane-broker, or is damaged")
        key = self._by_id.get(head[1:])
        if key is None:
            ours = ", ".join(each.hex() for each in self._by_id)
            raise SealError(f"was sealed with another secret (seal key {head[1:].hex()}, and this one has {ours})")
        try:
            return AESGCM(key).decrypt(nonce, rest, head + context)
        except (InvalidTag, ValueError):
            raise SealError("was sealed for another issuer or directory, or is damaged") from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether the first key has sealed it."""
        return sealed[: 1 + _ID] == _VERSION + self._first


def account_context(issuer: str, directory_url: str) -> bytes:
    """What is authenticated with an account's key: whose it is."""
    return json.dumps(["certplane acme account", issuer, directory_url]).encode()


def _key(word: str) -> bytes:
    try:
        key = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        # The cause may quote the text: it is cut off on purpose.
        raise SealError("isn't base64") from None
    if len(key) != _KEY:
        raise SealError(f"holds {counted(len(key), 'octet')} in base64, and must hold {_KEY}")
    return key


def _id(key: bytes) -> bytes:
    """What tells which key has sealed something; of a random key it gives nothing away."""
    return hashlib.sha256(b"certplane seal key" + key).digest()[:_ID]
