"""The directories `versions/<n>` of a lineage: written whole, read back, removed whole.

A version's PEM files never change once it has its number; what is derived from them may come later, and owner and mode
may change. Keys are 0600, the rest 0644 in directories of 0755, so that a service that isn't root can follow a
configured link to its certificate. A key that such a service must read too is `permit`'s business: it passes on what
the operator set.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509

from certplane.agent.install.material import KEY_PARTS, PEM_PARTS, NoPairError, Part, rebuilt
from certplane.agent.install.steps import step
from certplane.agent.model import ActivationHold, Version
from certplane.errors import CertplaneError, OperationError, RefusalError
from certplane.pki.chain import CertificateFacts, leaf_facts
from certplane.pki.keys import check_public_key
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.files import Directory, Owner, open_directory, open_for_reading
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

IMPORTED = 0
"""The number of the version that was at the configured paths first."""

_LOG = logging.getLogger(__name__)

_METADATA = "metadata.json"
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_NEW = ".new"
_REMOVED = ".removed"
_MOST_SAID = 200
_said: set[str] = set()


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the files themselves don't say.

    `request_id`: the pending request that the version answers; `key_type`: see `Version`, found by `add`; `hold`: what
    holds it back when it comes; `taken_over`: see `Version`.
    """

    certificate_id: str = ""
    renew_time: datetime | None = None
    request_id: str = ""
    key_type: str = ""
    hold: ActivationHold | None = None
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class Permission:
    """Owner and mode of a file."""

    owner: Owner
    mode: int

    def narrowed(self, part: Part) -> Permission:
        """The same without what no certificate needs: a key is never written by a group, nor read by everybody."""
        return Permission(self.owner, self.mode & (0o640 if part in KEY_PARTS else 0o644))


class VersionDirectories:
    """All versions of one lineage. One writer: the agent that holds the state lock."""

    def __init__(self, lineage: Path) -> None:
        self._path = lineage / "versions"

    def all(self) -> list[Version]:
        """The complete ones, oldest first; what can't be read is logged and left out."""
        return [version for number in self._numbers() if (version := self.get(number)) is not None]

    def _numbers(self) -> list[int]:
        try:
            with open_for_reading(self._path) as directory:
                return sorted(int(name) for name in directory.names() if _NUMBER.fullmatch(name))
        except FileNotFoundError:
            return []

    def get(self, number: int) -> Version | None:
        """One of them; None if there is no such version, or it can't be read (logged)."""
        found = self._whole(number)
        if isinstance(found, Version):
            return found
        if found:
            _say_once(f"{self._path / str(number)} {found} and is left out")
        return None

    def _whole(self, number: int) -> Version | str:
        """The version, or why it is none: empty where nothing of it is there."""
        path = self._path / str(number)
        try:
            with open_for_reading(path) as directory:
                pem = directory.read(Part.CERT)
                facts = leaf_facts(_first_certificate(pem))
                metadata = _metadata(directory) or Metadata(key_type=_key_type(pem))
                missing = [part for part in PEM_PARTS if _lacks(directory, part)]
        except FileNotFoundError:
            return "is no complete version" if path.is_dir() else ""
        except (OSError, ValueError, CertplaneError) as error:
            return f"can't be read ({error})"
        return f"lacks {', '.join(missing)}" if missing else _version(number, path, facts, metadata)

    def restore(self, in_force: int | None) -> None:
        """Make versions whole again that lost what their other files still hold: a file of its own is lost first.

        Of versions that are whole by their looks only the one in force is looked into. What can't be made whole stays
        as it is, which is logged.

        Raises:
            OSError: the directory of the versions can't be read.
        """
        for number in self._numbers():
            if number == IMPORTED or (number != in_force and isinstance(self._whole(number), Version)):
                continue
            try:
                self._restore(number)
            except (OSError, OperationError, NoPairError) as error:
                _say_once(f"{self._path / str(number)} can't be repaired: {error}")

    def _restore(self, number: int) -> None:
        with open_directory(self._path / str(number)) as directory:
            found = {part: data for part in PEM_PARTS if (data := _read_or_none(directory, part)) is not None}
            files = rebuilt(found)
            lost = [part for part, data in files.items() if found.get(part) != data]
            for part in lost:
                permission = Permission(Owner(os.geteuid(), os.getegid()), 0o600 if part in KEY_PARTS else 0o644)
                before = directory.status(part)
                if before is not None and stat.S_ISREG(before.st_mode):
                    permission = _permission(before)
                directory.replace(part, files[part], mode=permission.mode, owner=permission.owner)
            names: list[str] = [*lost]
            if directory.status(_METADATA) is None:
                names.append(_METADATA)
                document = encode(Metadata(key_type=_key_type(files[Part.CERT])))
                directory.replace(_METADATA, document, mode=0o644)
            if names:
                _LOG.warning("%s lacked %s; restored from its other files", directory.path, ", ".join(names))

    def read(self, number: int) -> dict[Part, bytes]:
        """The files of a version."""
        with open_for_reading(self._path / str(number)) as directory:
            return {part: directory.read(part) for part in Part if directory.status(part) is not None}

    def request_ids(self) -> set[str]:
        """The pending requests that versions answer."""
        found = set()
        for version in self.all():
            with open_for_reading(version.path) as directory:
                metadata = _metadata(directory)
                found.add("" if metadata is None else metadata.request_id)
        return found - {""}

    def next_number(self) -> int:
        """The number that `add` shall give: above all that stand there, complete or not; 0 is the imported one's."""
        return max(self._numbers(), default=IMPORTED) + 1

    def add(
        self,
        number: int,
        files: Mapping[Part, bytes],
        metadata: Metadata,
        permissions: Mapping[Part, Permission] | None = None,
    ) -> Version:
        """Write a version: durable, with all its files, once its number appears.

        Raises:
            OSError: the disk refuses; nothing of it stays, or it is swept by the next `add`.
        """
        facts = leaf_facts(_first_certificate(files[Part.CERT]))
        metadata = replace(metadata, key_type=_key_type(files[Part.CERT]))
        with open_directory(self._path, create_mode=0o755) as directory:
            directory.discard_tree(_NEW)
            try:
                with step("write"), directory.make(_NEW, mode=0o755) as new:
                    for part, data in files.items():
                        new.write_new(part, data, mode=0o600 if part in KEY_PARTS else 0o644)
                        if permissions is not None and part in permissions:
                            _permit(new, part, permissions[part].narrowed(part))
                    new.write_new(_METADATA, encode(metadata), mode=0o644)
                    new.sync()
                with step("publish"):
                    directory.rename(_NEW, str(number))
                    directory.sync()
            except OSError:
                directory.discard_tree(_NEW)
                raise
        return _version(number, self._path / str(number), facts, metadata)

    def permissions(self, number: int) -> dict[Part, Permission]:
        """Owner and mode of a version's files."""
        with open_for_reading(self._path / str(number)) as directory:
            found = {part: directory.status(part) for part in Part}
        return {part: _permission(status) for part, status in found.items() if status is not None}

    def permit(self, number: int, permissions: Mapping[Part, Permission]) -> None:
        """Give a version's files the owner and mode of those that they replace, as far as that is sensible."""
        with open_directory(self._path / str(number)) as directory:
            for part, permission in permissions.items():
                if directory.status(part) is not None:
                    _permit(directory, part, permission.narrowed(part))

    def own(self, number: int, permissions: Mapping[Part, Permission]) -> None:
        """Give a version's files the owner and mode that are configured.

        Raises:
            PermissionError: only root may.
        """
        with open_directory(self._path / str(number)) as directory:
            for part, permission in permissions.items():
                directory.permit(part, mode=permission.mode, owner=permission.owner)

    def derive(self, number: int, part: Part, data: bytes) -> None:
        """Put a file that is derived from the others into a version, or in place of an older one, atomically."""
        with open_directory(self._path / str(number)) as directory:
            before = directory.status(part)
            permission = Permission(Owner(os.geteuid(), os.getegid()), 0o600)
            if before is not None:
                permission = _permission(before)
            directory.replace(part, data, mode=permission.mode, owner=permission.owner)

    def remove(self, number: int) -> None:
        """Remove a version; a crash leaves it whole or without its number."""
        with open_directory(self._path) as directory:
            directory.discard_tree(_REMOVED)
            with step("remove"):
                directory.rename(str(number), _REMOVED)
                directory.sync()
            directory.discard_tree(_REMOVED)
            directory.sync()

    def sweep(self) -> None:
        """Remove what a crash left of `add` and `remove`."""
        try:
            with open_directory(self._path) as directory:
                directory.discard_tree(_NEW)
                directory.discard_tree(_REMOVED)
        except FileNotFoundError:
            return


def _say_once(text: str) -> None:
    """What is damaged is met at each look at the disk, and told once by a program."""
    if text not in _said:
        if len(_said) < _MOST_SAID:
            _said.add(text)
        _LOG.warning("%s", text)


def _lacks(directory: Directory, part: Part) -> bool:
    """Whether a file isn't there, or is empty where it can't be: a disk that was full or lost power leaves such."""
    status = directory.status(part)
    return status is None or not stat.S_ISREG(status.st_mode) or (status.st_size == 0 and part is not Part.CHAIN)


def _read_or_none(directory: Directory, part: Part) -> bytes | None:
    try:
        return directory.read(part)
    except OSError:
        return None


def _permission(status: os.stat_result) -> Permission:
    return Permission(Owner(status.st_uid, status.st_gid), status.st_mode & 0o777)


def _permit(directory: Directory, name: Part, permission: Permission) -> None:
    try:
        directory.permit(name, mode=permission.mode, owner=permission.owner)
    except PermissionError:  # not root, and not a member of the group
        _LOG.warning("%s keeps its owner: only root can give it to %s", directory.path / name, permission.owner)


def _first_certificate(pem: bytes) -> str:
    """From an imported file on: text may stand around the blocks."""
    end = b"-----END CERTIFICATE-----"
    begin = pem.find(b"-----BEGIN CERTIFICATE-----")
    stop = pem.find(end, begin)
    if begin < 0 or stop < 0:
        raise ValueError("no certificate")
    return pem[begin : stop + len(end)].decode("ascii") + "\n"


def _key_type(pem: bytes) -> str:
    try:
        return check_public_key(x509.load_pem_x509_certificate(_first_certificate(pem).encode()).public_key())
    except (RefusalError, *READ_ERRORS):
        return ""


def _version(number: int, path: Path, facts: CertificateFacts, metadata: Metadata) -> Version:
    return Version(
        number=number,
        path=path,
        dns_names=facts.dns_names,
        serial_number=facts.serial_number,
        public_key_sha256=facts.public_key_sha256,
        not_before=facts.not_before,
        not_after=facts.not_after,
        certificate_id=metadata.certificate_id,
        renew_time=metadata.renew_time,
        key_type=metadata.key_type,
        hold=metadata.hold,
        taken_over=metadata.taken_over,
    )


def _metadata(directory: Directory) -> Metadata | None:
    """What `add` has noted; None, with a warning, if that can't be read: key and certificate are worth more than it.

    Raises:
        FileNotFoundError: there is none, so the version is not complete.
    """
    try:
        return decode(Metadata, directory.read(_METADATA, most=MOST_BYTES))
    except FileNotFoundError:
        raise
    except (OSError, StateError) as error:
        _LOG.warning("%s can't be read and is ignored: %s", directory.path / _METADATA, error)
        return None
