"""The pending key of one lineage: made, kept and handed over on this host, never overwritten.

    <lineage>/pending/privkey.pem     PKCS#8, 0600
    <lineage>/pending/request.json    the CSR, what it replaces, which order it became

The directory (0700) appears whole (written beside its place, fsync, rename) before `begin` returns, so that a CSR that
was sent always finds its key again, and a retry after any crash sends the same CSR: the same order at the broker.

What is damaged so that no certificate can come of it is set aside at the next start, as `pending.1`: a key is never
destroyed but by `abandon` and `forget`.

One writer: the agent that holds the state lock.
"""

from __future__ import annotations

import errno
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import override

from certplane.agent.model import PendingRequest
from certplane.agent.ports import PendingKeyMaterial, PendingKeys
from certplane.errors import OperationError, RefusalError
from certplane.pki.csr import build_csr
from certplane.pki.keys import (
    KeyType,
    PrivateKey,
    PrivateKeyError,
    check_public_key,
    generate_private_key,
    load_private_key,
    private_key_pem,
    public_key_sha256,
)
from certplane.runtime.clock import Clock
from certplane.runtime.disk_errors import disk_error, explain
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import Directory, UnsafeDirectoryError, open_directory, open_for_reading
from certplane.runtime.json_state import MOST_BYTES, StateError, decode_object, encode, value_of

FAILPOINTS = (
    "keystore.begin.before",
    "keystore.begin.written",
    "keystore.begin.after",
    "keystore.record.before",
    "keystore.record.after",
    "keystore.drop.before",
    "keystore.drop.renamed",
    "keystore.drop.after",
)

_LOG = logging.getLogger(__name__)

_PENDING = "pending"
_BEGUN = ".pending-new"
_DROPPED = ".pending-old"
_KEY = "privkey.pem"
_REQUEST = "request.json"
_NOT_WRITTEN, _NOT_READ = "the pending request can't be written", "the pending request can't be read"
_DAMAGES = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ELOOP, errno.EFBIG})
"""What stays so, whoever looks: there is no such file, or something else stands there."""


class PendingKeyError(OperationError):
    """The pending key can't be read or written."""


@dataclass(frozen=True, slots=True)
class _RequestId:
    request_id: str


@dataclass(frozen=True, slots=True)
class _Stored:
    request_id: str
    request: PendingRequest


class FilePendingKeys(PendingKeys, PendingKeyMaterial):
    """`PendingKeys` and `PendingKeyMaterial` in a lineage's directory."""

    def __init__(self, directory: Path, *, clock: Clock, key_type: KeyType = KeyType.EC_P256) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
            clock: For `create_time`.
            key_type: What new keys are.
        """
        self._directory = directory
        self._clock = clock
        self._key_type = key_type

    @override
    def pending(self) -> PendingRequest | None:
        stored = self._load()
        return None if stored is None else stored.request

    @override
    def begin(
        self, *, common_name: str, sans: Sequence[str], replaces_certificate_id: str, reuse_key: bool
    ) -> PendingRequest:
        """With `reuse_key` and no fitting key in the current version, a new key is made."""
        stored = self._load()
        if stored is not None:
            return stored.request
        key = (self._current_key() if reuse_key else None) or generate_private_key(self._key_type)
        request = PendingRequest(
            csr_pem=build_csr(key, common_name=common_name, sans=sans),
            public_key_sha256=public_key_sha256(key.public_key()),
            create_time=self._clock.now(),
            replaces_certificate_id=replaces_certificate_id,
        )
        failpoint("keystore.begin.before")
        try:
            with open_directory(self._directory, create_mode=0o755) as lineage:
                _sweep(lineage)
                with lineage.make(_BEGUN, mode=0o700) as begun:
                    begun.write_new(_KEY, private_key_pem(key), mode=0o600)
                    begun.write_new(_REQUEST, _to_json(_Stored(secrets.token_hex(8), request)), mode=0o600)
                    begun.sync()
                failpoint("keystore.begin.written")
                lineage.rename(_BEGUN, _PENDING)
                lineage.sync()
        except OSError as error:
            raise disk_error(PendingKeyError, "no key can be stored", error, self._directory) from error
        failpoint("keystore.begin.after")
        return request

    @override
    def record_order(self, order_id: str) -> PendingRequest:
        stored = self._load()
        if stored is None:
            raise RuntimeError("no request is pending")
        recorded = replace(stored.request, order_id=order_id)
        failpoint("keystore.record.before")
        try:
            with open_directory(self._directory / _PENDING) as pending:
                pending.replace(_REQUEST, _to_json(_Stored(stored.request_id, recorded)), mode=0o600)
        except OSError as error:
            raise disk_error(PendingKeyError, _NOT_WRITTEN, error, self._directory / _PENDING) from error
        failpoint("keystore.record.after")
        return recorded

    @override
    def abandon(self) -> None:
        failpoint("keystore.drop.before")
        try:
            with open_directory(self._directory) as lineage:
                if lineage.status(_PENDING) is not None:
                    lineage.discard_tree(_DROPPED)
                    lineage.rename(_PENDING, _DROPPED)  # whole, then gone: never a request without its key
                    failpoint("keystore.drop.renamed")
                _sweep(lineage)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(PendingKeyError, _NOT_WRITTEN, error, self._directory / _PENDING) from error
        failpoint("keystore.drop.after")

    @override
    def private_key_pem(self) -> bytes | None:
        try:
            with open_directory(self._directory / _PENDING) as pending:
                return pending.read(_KEY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise disk_error(PendingKeyError, _NOT_READ, error, self._directory / _PENDING / _KEY) from error

    @override
    def request_id(self) -> str | None:
        stored = self._load()
        return None if stored is None else stored.request_id

    @override
    def forget(self, request_id: str) -> None:
        if self.request_id() == request_id:
            self.abandon()

    @override
    def sweep(self) -> None:
        try:
            with open_directory(self._directory) as lineage:
                _sweep(lineage)
                if lineage.status(_PENDING) is not None and (damage := self._damage()):
                    aside = lineage.set_aside(_PENDING)
                    _LOG.warning("%s %s; it is now %s, and a new key is made", lineage.path / _PENDING, damage, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(PendingKeyError, _NOT_WRITTEN, error, self._directory) from error

    def _damage(self) -> str:
        """Why no certificate could ever come of what is pending; empty if one can, or if the disk doesn't say."""
        try:
            with open_for_reading(self._directory / _PENDING) as pending:
                key, request = pending.read(_KEY), _stored(pending.read(_REQUEST, most=MOST_BYTES)).request
            if public_key_sha256(load_private_key(key).public_key()) != request.public_key_sha256:
                return "has another key than its request"
        except (StateError, PrivateKeyError) as error:
            return f"is damaged ({error})"
        except OSError as error:
            return f"is damaged ({error.strerror})" if error.errno in _DAMAGES else ""
        except UnsafeDirectoryError:
            return "is a symbolic link"
        return ""

    def _load(self) -> _Stored | None:
        path = self._directory / _PENDING / _REQUEST
        try:
            pending = open_for_reading(self._directory / _PENDING)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path.parent, error) from error
        try:
            with pending:
                pending.read(_KEY)
                return _stored(pending.read(_REQUEST, most=MOST_BYTES))
        except (OSError, StateError) as error:
            raise _unreadable(path.parent, error) from error

    def _current_key(self) -> PrivateKey | None:
        """The current version's key if it is what a new one would be."""
        path = self._directory / "current" / _KEY
        try:
            key = load_private_key(path.read_bytes())
            fits = check_public_key(key.public_key()) is self._key_type
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise disk_error(PendingKeyError, "the current key can't be read", error, path) from error
        except (PrivateKeyError, RefusalError):
            fits = False
        if not fits:
            _LOG.info(
                "%s: the current key is not a sound %s key; making a new one", self._directory.name, self._key_type
            )
            return None
        return key


def _unreadable(pending: Path, error: OSError | StateError) -> PendingKeyError:
    if isinstance(error, OSError) and error.errno not in _DAMAGES:
        return disk_error(PendingKeyError, _NOT_READ, error, pending)
    cause = explain(error, pending)[0] if isinstance(error, OSError) else f"{pending}: {error}"
    return PendingKeyError(
        f"{_NOT_READ}: {cause}", remedy=f"restart the agent, which sets it aside; or `mv {pending} {pending}.damaged`"
    )


def _sweep(lineage: Directory) -> None:
    """Remove what a crash left of a `begin` or `abandon` that didn't end."""
    lineage.discard_tree(_BEGUN)
    lineage.discard_tree(_DROPPED)
    lineage.sync()


def _to_json(stored: _Stored) -> bytes:
    return encode(stored.request, request_id=stored.request_id)


def _stored(data: bytes) -> _Stored:
    members = decode_object(data)
    return _Stored(value_of(_RequestId, members).request_id, value_of(PendingRequest, members))
