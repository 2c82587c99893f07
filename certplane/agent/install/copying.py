"""Configured paths as copies, for services that can't follow links (other file system, chroot, confinement).

Several files can't be replaced in one atomic act, so the copy is journalled: all new files are written and durable
beside their places, then the journal names the version, then they are renamed one right after the other, then the
journal goes. A crash before the journal leaves the old files, one after it is finished by `finish`, which the agent
runs before anything else.

What a reader can see: each file is whole at any time. Between the first rename and the last, some microseconds, one who
opens key and certificate one after the other may get one of each version, as after a crash until the agent runs
again. A `combined` output is one file and never mixed; services that can read one should.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from certplane.agent.install.access import FileAccess, setting_owners
from certplane.agent.install.keeping import keep
from certplane.agent.install.material import KEY_PARTS, Outputs, Part
from certplane.agent.install.outputs import HAS_CONTENT, Output, Standing, survey
from certplane.agent.install.pointers import CURRENT, Pointers
from certplane.agent.install.steps import step
from certplane.agent.install.versions import Permission, VersionDirectories
from certplane.runtime.files import Directory, Owner, open_directory, open_for_reading, temporary_name
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

_LOG = logging.getLogger(__name__)
_JOURNAL = "install.json"


@dataclass(frozen=True, slots=True)
class _Journal:
    """The version whose copy was begun."""

    version: int


class CopiedOutputs:
    """Shows a version at the configured paths of one lineage."""

    def __init__(
        self,
        lineage: Path,
        outputs: Outputs,
        versions: VersionDirectories,
        pointers: Pointers,
        access: Mapping[Part, FileAccess],
    ) -> None:
        self._lineage = lineage
        self._outputs = outputs
        self._access = access
        self._versions = versions
        self._pointers = pointers

    def show(self, number: int) -> None:
        """Copy a version to the paths, finishing what a crash left.

        Raises:
            OutputError, UnsafeDirectoryError, OSError: the version shown before stays, or the journal says what is
                still to be done.
        """
        found = survey(self._lineage, self._outputs)
        files = self._versions.read(number)
        stale = [
            output
            for output in found
            if output.standing is not Standing.FILE
            or output.data != files[output.part]
            or Permission(output.owner or Owner(-1, -1), output.mode) != self._configured(output)
        ]
        if stale:
            self._keep_strangers(found)
            self._copy(stale, files, number)
        if self._pointers.number(CURRENT) != number:
            with step("switch"):
                self._pointers.point(CURRENT, f"versions/{number}")
        if self._journalled() is not None:
            with step("finish"), open_directory(self._lineage) as lineage:
                lineage.discard(_JOURNAL)
                lineage.sync()

    def finish(self) -> None:
        """Finish the copy that a crash interrupted, and remove what it left beside the paths."""
        number = self._journalled()
        if number is not None and self._versions.get(number) is not None:
            _LOG.warning("%s: finishing the interrupted copy of version %d", self._lineage.name, number)
            self.show(number)
        for path in self._outputs.paths().values():
            with suppress(FileNotFoundError), open_directory(path.parent) as directory:
                directory.discard(temporary_name(path.name))

    def _keep_strangers(self, found: Sequence[Output]) -> None:
        """Keep what no version knows: files of a first use, or changed by somebody since."""
        known = [self._versions.read(version.number) for version in self._versions.all()]
        first_use = self._pointers.number(CURRENT) is None
        files = [
            output
            for output in found
            if output.standing in HAS_CONTENT
            # with another password the same version's file has other bytes: no stranger, and nothing to keep
            and (first_use or output.part is not Part.PKCS12)
        ]
        if any(all(output.data != version.get(output.part) for version in known) for output in files):
            keep(self._lineage, self._versions, files, first_use=first_use)

    def _copy(self, stale: Sequence[Output], files: Mapping[Part, bytes], number: int) -> None:
        directories = [open_directory(output.path.parent) for output in stale]
        try:
            self._prepare(stale, directories, files)
            with step("journal"), open_directory(self._lineage) as lineage:
                lineage.replace(_JOURNAL, encode(_Journal(number)), mode=0o644)
            for output, directory in zip(stale, directories, strict=True):
                with step("commit"):
                    directory.commit(output.path.name)
            for directory in directories:
                directory.sync()
        finally:
            for directory in directories:
                directory.close()

    def _configured(self, output: Output) -> Permission:
        """Owner and mode that a file is to have; as it stands where nothing is configured for it."""
        if output.part in self._access:
            return self._access[output.part].over(_permission(output))
        if output.owner is not None:
            return Permission(output.owner, output.mode)
        return _permission(output)

    def _prepare(self, stale: Sequence[Output], directories: Sequence[Directory], files: Mapping[Part, bytes]) -> None:
        try:
            for output, directory in zip(stale, directories, strict=True):
                permission = _permission(output)
                if output.part in self._access:
                    permission = self._access[output.part].over(permission)
                with step("prepare"), setting_owners(output.path.parent):
                    directory.prepare(
                        output.path.name, files[output.part], mode=permission.mode, owner=permission.owner
                    )
        except OSError:
            for output, directory in zip(stale, directories, strict=True):
                directory.discard(temporary_name(output.path.name))
            raise

    def _journalled(self) -> int | None:
        """The version whose copy isn't finished."""
        try:
            with open_for_reading(self._lineage) as lineage:
                data = lineage.read(_JOURNAL, most=MOST_BYTES)
            return decode(_Journal, data, with_format=False).version
        except FileNotFoundError:
            return None
        except (OSError, StateError):
            _LOG.warning("%s can't be read and is passed over", self._lineage / _JOURNAL)
            return None


def _permission(output: Output) -> Permission:
    """A file that is replaced hands on its owner and mode; a new one is the agent's own, 0600 or 0644."""
    if output.owner is not None and output.standing is Standing.FILE:
        return Permission(output.owner, output.mode).narrowed(output.part)
    return Permission(Owner(os.geteuid(), os.getegid()), 0o600 if output.part in KEY_PARTS else 0o644)
