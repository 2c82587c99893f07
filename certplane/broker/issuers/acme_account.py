"""The ACME account key: one file, made once, replaced only by a change of the key that the CA has confirmed.

Whoever has the key can revoke every certificate of the account and answer for its names, so the file is 0600 from its
first byte on and a file that others can read is refused. A new key is P-256 (ES256); a key brought along may be P-256,
P-384 or RSA.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from josepy.json_util import encode_b64jose
from josepy.jwa import ES256, ES384, RS256, JWASignature
from josepy.jwk import JWK, JWKEC, JWKRSA

from certplane.config.files import denied_remedy, is_there, private_remedy
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.keys import (
    KeyType,
    PrivateKeyError,
    generate_private_key,
    load_private_key,
    private_key_pem,
    public_key_sha256,
)
from certplane.runtime.disk_errors import explain
from certplane.runtime.files import give_to_service, sync_folder

_SETTING = "issuer.acme.account_key"
"""The key that names the file, for the default issuer."""
_PUT_IT = "put the account's key there"
_PUT_OR_MOVE = f"{_PUT_IT}, or move the file away to get a new account"
_LARGEST_FILE = 64 * 1024
_OTHERS = stat.S_IRWXO | stat.S_IWGRP
"""Modes that no account key may have: anything for others, writing for the group."""


@dataclass(frozen=True, slots=True)
class AccountKey:
    """The key that signs every ACME request.

    Attributes:
        public_key_sha256: SHA-256 of its SubjectPublicKeyInfo; a CSR with this key must be refused (RFC 8555 11.1).
        public_jwk: the JSON of its public part (RFC 7517 4).
        thumbprint: SHA-256 of that in base64url (RFC 7638), for key authorizations (RFC 8555 8.1).
    """

    jwk: JWK = field(repr=False)
    algorithm: JWASignature = field(repr=False)
    public_key_sha256: str
    public_jwk: Mapping[str, str] = field(repr=False, compare=False)
    thumbprint: str = field(repr=False, compare=False)

    @classmethod
    def load_or_create(cls, path: Path, setting: str = _SETTING) -> AccountKey:
        """Read the key at `path`, or make one there if there is no file; `setting` is for the error.

        Blocks; call it while the broker starts. Two programs that start at once end up with the same key.

        Raises:
            ConfigurationError: the file can't be read or made, others can read it, or it isn't a usable key.
        """
        try:
            pem = _read(path, setting)
            if pem is None:
                create_key_file(path, private_key_pem(generate_private_key(KeyType.EC_P256)))
                pem = _read(path, setting) or b""
        except OSError as error:
            raise unusable_file(path, error, setting) from error
        return cls.from_pem(pem, str(path), setting, remedy=_PUT_OR_MOVE)

    @classmethod
    def from_pem(cls, pem: bytes, place: str, setting: str = _SETTING, *, remedy: str = _PUT_IT) -> AccountKey:
        """The key in `pem`; where that is, which `setting` says so, and what to do are for the error.

        Raises:
            ConfigurationError: it isn't a usable key.
        """
        try:
            key = load_private_key(pem)
        except PrivateKeyError as error:
            raise _problem(place, f"can't be used: {error}", remedy, setting) from error
        jwk: JWK = JWKRSA(key=key)
        algorithm: JWASignature = RS256
        if isinstance(key, ec.EllipticCurvePrivateKey):
            jwk, algorithm = JWKEC(key=key), ES256 if isinstance(key.curve, ec.SECP256R1) else ES384
        public = jwk.public_key()
        return cls(
            jwk,
            algorithm,
            public_key_sha256(key.public_key()),
            public_jwk=public.to_json(),
            thumbprint=encode_b64jose(public.thumbprint()),
        )

    def pem(self) -> bytes:
        """The private key, for whoever keeps it: PKCS#8, PEM, unencrypted."""
        return private_key_pem(self.jwk.key)


class AccountKeyFile:
    """The file with the key, and beside it, while a change is under way, the new one (`<name>.next`).

    Everything blocks. All raise `ConfigurationError` like `AccountKey.load_or_create`.
    """

    def __init__(self, path: Path, setting: str = _SETTING) -> None:
        """Nothing is read yet; `setting` is the key that names the file, for errors."""
        self._path, self._setting = path, setting
        self._next = path.with_name(f"{path.name}.next")

    @property
    def exists(self) -> bool:
        """Whether there is a key."""
        return is_there(self._path)

    def load(self) -> AccountKey:
        """The key, made if there is none."""
        return AccountKey.load_or_create(self._path, self._setting)

    def pending(self) -> AccountKey | None:
        """The new key of a change that has begun, None if there is no such change."""
        try:
            pem = _read(
                self._next, self._setting
            )  # never made here: the change may be confirmed by another at this moment
        except OSError as error:
            raise unusable_file(self._next, error, self._setting) from error
        return None if pem is None else AccountKey.from_pem(pem, str(self._next), self._setting, remedy=_PUT_OR_MOVE)

    def prepare(self) -> AccountKey:
        """A new key, durable before the CA hears of it; that of a change that was cut off is used again."""
        return AccountKey.load_or_create(self._next, self._setting)

    def confirm(self) -> None:
        """The CA answers to the new key: from now on it is the key. Again is nothing."""
        try:
            with suppress(FileNotFoundError):
                self._next.replace(self._path)
            sync_folder(self._path.parent)
        except OSError as error:
            raise unusable_file(self._path, error, self._setting) from error

    def discard(self) -> None:
        """The CA has refused the new key."""
        try:
            self._next.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        except OSError as error:
            raise unusable_file(self._next, error, self._setting) from error


def _read(path: Path, setting: str) -> bytes | None:
    """The file's content, None if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _problem(path, "isn't a regular file", "name a file that holds the account key alone", setting)
        if status.st_mode & _OTHERS:
            raise _problem(path, "can be read or changed by others", private_remedy(path, status), setting)
        return file.read(_LARGEST_FILE)


def create_key_file(path: Path, pem: bytes) -> bool:
    """Put a key at `path` in one step: a crash leaves either no file or a whole key.

    Returns:
        Whether it was put there: an existing file is left as it is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            give_to_service(descriptor, path.parent)
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:  # another program was faster: its key is the key
            return False
    finally:
        temporary.unlink()
    sync_folder(path.parent)
    return True


def unusable_file(path: Path, error: OSError, setting: str) -> ConfigurationError:
    """The error of a key's file that can't be read or made."""
    remedy = "check the folder and its owner"
    if isinstance(error, PermissionError):
        remedy = denied_remedy(path, remedy)
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # whose the folder is doesn't matter
        remedy = explain(error, path)[1]
    return _problem(path, f"can't be read or made: {error.strerror}", remedy, setting)


def _problem(place: Path | str, message: str, remedy: str, setting: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem(str(place), None, setting, f"the account key {message}", remedy)])
