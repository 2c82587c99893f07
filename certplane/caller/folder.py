"""A keeper's certificate on disk.

    <folder>/lock                       flock(2): one keeper
    <folder>/pending/                   privkey.pem (0600), request.json
    <folder>/versions/<n>/              privkey.pem (0600), cert.pem, chain.pem, fullchain.pem, certificate.json
    <folder>/current -> versions/<n>    the one in use

A folder of these appears whole (written beside its place, fsync, rename), and `current` is switched by one rename: who
opens `current/...` finds a pair that belongs together, and who opens two files of it resolves `current` once. The
version before stays for who is reading it; older ones are removed. What is damaged is set aside as `NAME.1`, never
destroyed.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar

from typing_extensions import override

from certplane.caller.ordering import Wanted
from certplane.caller.stored import CertificateStore, Pending
from certplane.caller.values import Certificate, IssuedCertificate
from certplane.errors import CertplaneError, OperationError
from certplane.pki.chain import leaf_facts, split_chain
from certplane.pki.keys import load_private_key, public_key_sha256
from certplane.runtime.disk_errors import disk_error
from certplane.runtime.failpoints import failpoint
from certplane.runtime.files import Directory, open_directory
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode
from certplane.runtime.pid_lock import HeldError, lock_with_pid

FAILPOINTS: Final = (
    "keeper.begin.before",
    "keeper.begin.written",
    "keeper.begin.after",
    "keeper.put.before",
    "keeper.put.written",
    "keeper.put.made",
    "keeper.put.switched",
    "keeper.put.after",
)
"""In the order in which a renewal passes them."""

_LOCK, _PENDING, _VERSIONS, _CURRENT = "lock", "pending", "versions", "current"
_NEW, _OLD = ".new", ".old"
_KEY, _REQUEST, _CERT, _CHAIN, _FULL, _FACTS = (
    "privkey.pem",
    "request.json",
    "cert.pem",
    "chain.pem",
    "fullchain.pem",
    "certificate.json",
)
_MOST_PEM: Final = 256 * 1024

_T_co = TypeVar("_T_co", covariant=True)
_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class _Reader(Protocol[_T_co]):
    def __call__(self, folder: Directory, name: str, /) -> _T_co: ...


@dataclass(frozen=True, slots=True)
class _Facts:
    """What isn't in the certificate itself."""

    certificate_id: str
    profile: str
    issuer: str
    renew_time: datetime | None = None


class FolderStore(CertificateStore):
    """`CertificateStore` in a folder of its own, made (0700) if it is missing.

    Args:
        folder: Where; links in the path are followed once, when it is opened.
        profile: Whose certificate it has; a folder with another profile's is refused.
    """

    def __init__(self, folder: Path, profile: str) -> None:
        self._folder = folder
        self._profile = profile
        self._lock: int | None = None

    @override
    def open(self) -> None:
        try:
            self._folder = self._folder.resolve()
            with open_directory(self._folder, create_mode=0o700) as folder:
                descriptor = folder.open_lasting(_LOCK, mode=0o600)
                lock_with_pid(descriptor)
                self._lock = descriptor
                self._tidy(folder)
        except HeldError as error:
            raise OperationError(
                f"{self._folder} is in use by {error}", remedy="one keeper has a folder; read current/ in the others"
            ) from error
        except OSError as error:
            raise disk_error(OperationError, "the keeper's folder can't be used", error, self._folder) from error

    @override
    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @override
    def load(self) -> tuple[IssuedCertificate | None, Pending | None]:
        try:
            with open_directory(self._folder) as folder:
                issued = self._sound(folder, _CURRENT, _read_version)
                pending = self._sound(folder, _PENDING, _read_pending)
        except OSError as error:
            raise disk_error(OperationError, "the keeper's folder can't be read", error, self._folder) from error
        for found in (issued and issued.certificate.profile, pending and pending.wanted.profile):
            if found and found != self._profile:
                raise OperationError(
                    f"{self._folder} has the certificate of profile {found}, not of {self._profile}",
                    remedy="give each profile a folder of its own",
                )
        return issued, pending

    @override
    def begin(self, pending: Pending) -> None:
        failpoint("keeper.begin.before")
        try:
            with open_directory(self._folder) as folder:
                folder.discard_tree(_NEW)
                with folder.make(_NEW, mode=0o700) as new:
                    new.write_new(_KEY, pending.private_key_pem, mode=0o600)
                    new.write_new(_REQUEST, encode(pending.wanted), mode=0o600)
                    new.sync()
                failpoint("keeper.begin.written")
                _drop_pending(folder)
                folder.rename(_NEW, _PENDING)
                folder.sync()
        except OSError as error:
            raise disk_error(OperationError, "no key can be stored", error, self._folder) from error
        failpoint("keeper.begin.after")

    @override
    def put(self, issued: IssuedCertificate) -> None:
        failpoint("keeper.put.before")
        try:
            with open_directory(self._folder) as folder, folder.child(_VERSIONS, create_mode=0o700) as versions:
                number = str(max(map(int, filter(str.isdecimal, versions.names())), default=0) + 1)
                versions.discard_tree(_NEW)
                with versions.make(_NEW, mode=0o700) as new:
                    _write_version(new, issued)
                failpoint("keeper.put.written")
                versions.rename(_NEW, number)
                versions.sync()
                failpoint("keeper.put.made")
                before = folder.link_target(_CURRENT)
                folder.replace_with_link(_CURRENT, f"{_VERSIONS}/{number}")
                failpoint("keeper.put.switched")
                _drop_pending(folder)
                folder.sync()
                _prune(versions, {number, "" if before is None else before.rpartition("/")[2]})
        except OSError as error:
            raise disk_error(OperationError, "the certificate can't be stored", error, self._folder) from error
        failpoint("keeper.put.after")

    def _tidy(self, folder: Directory) -> None:
        """Remove what a crash has left half-way, and a request whose certificate is in use already."""
        for name in (_NEW, _OLD):
            folder.discard_tree(name)
        with contextlib.suppress(OSError, ValueError, CertplaneError):
            current, pending = _read_version(folder, _CURRENT), _read_pending(folder, _PENDING)
            if current.certificate.public_key_sha256 == pending.wanted.public_key_sha256:
                _drop_pending(folder)
                folder.sync()

    def _sound(self, folder: Directory, name: str, read: _Reader[_T]) -> _T | None:
        """What `name` holds; None where nothing is there, or what is damaged and was set aside."""
        if folder.status(name) is None:
            return None
        try:
            return read(folder, name)
        except FileNotFoundError as error:
            why: object = f"lacks {error.filename}"
        except (ValueError, CertplaneError) as error:  # StateError, and octets that are no text
            why = error
        aside = folder.set_aside(name)
        logger.warning("%s is damaged (%s); it is now %s", folder.path / name, why, aside)
        return None


def _write_version(new: Directory, issued: IssuedCertificate) -> None:
    certificate = issued.certificate
    facts = _Facts(certificate.certificate_id, certificate.profile, certificate.issuer, certificate.renew_time)
    new.write_new(_KEY, issued.private_key_pem, mode=0o600)
    new.write_new(_CERT, certificate.certificate_pem.encode(), mode=0o644)
    new.write_new(_CHAIN, certificate.chain_pem.encode(), mode=0o644)
    new.write_new(_FULL, certificate.fullchain_pem.encode(), mode=0o644)
    new.write_new(_FACTS, encode(facts), mode=0o644)
    new.sync()


def _read_version(folder: Directory, name: str) -> IssuedCertificate:
    target = folder.link_target(name)
    parent, _, number = (target or "").rpartition("/")
    if parent != _VERSIONS or not number.isdecimal():
        raise StateError("isn't a link to one of the versions")
    with folder.child(_VERSIONS) as versions, versions.child(number) as version:
        key_pem = version.read(_KEY, most=_MOST_PEM)
        full = version.read(_FULL, most=_MOST_PEM).decode()
        stored = decode(_Facts, version.read(_FACTS, most=MOST_BYTES))
    facts = leaf_facts(full)
    if public_key_sha256(load_private_key(key_pem).public_key()) != facts.public_key_sha256:
        raise StateError("has another key than its certificate")
    certificate_pem, chain_pem = split_chain(full)
    certificate = Certificate(
        certificate_id=stored.certificate_id,
        profile=stored.profile,
        dns_names=facts.dns_names,
        serial_number=facts.serial_number,
        issuer=stored.issuer,
        public_key_sha256=facts.public_key_sha256,
        not_before=facts.not_before,
        not_after=facts.not_after,
        renew_time=stored.renew_time,
        certificate_pem=certificate_pem,
        chain_pem=chain_pem,
    )
    return IssuedCertificate(certificate, key_pem)


def _read_pending(folder: Directory, name: str) -> Pending:
    with folder.child(name) as pending:
        key_pem = pending.read(_KEY, most=_MOST_PEM)
        wanted = decode(Wanted, pending.read(_REQUEST, most=MOST_BYTES))
    if public_key_sha256(load_private_key(key_pem).public_key()) != wanted.public_key_sha256:
        raise StateError("has another key than its request")
    return Pending(wanted, key_pem)


def _drop_pending(folder: Directory) -> None:
    """Whole, then gone: never a request without its key."""
    if folder.status(_PENDING) is not None:
        folder.discard_tree(_OLD)
        folder.rename(_PENDING, _OLD)
        folder.discard_tree(_OLD)


def _prune(versions: Directory, kept: set[str]) -> None:
    for name in versions.names():
        if name.isdecimal() and name not in kept:
            versions.discard_tree(name)
