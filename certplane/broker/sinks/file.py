"""A sink that is a file: events are appended, one JSON object a line, and synced before they count as copied.

What was appended before a kill and not noted is found in the file's end and not appended again; a line that was cut off
is removed. A file that was renamed (logrotate) is left, and a new one is begun.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from typing_extensions import override

from certplane.broker.sinks.ports import AuditSink, SinkError, StoredEvent
from certplane.runtime.files import sync_folder
from certplane.runtime.pool import BlockingPool

_END: Final = 2 << 20
"""Octets of the file's end that are looked at: more than a batch has."""


_BEGIN: Final = b'{"event_id":'
"""Of a line of ours."""


class FileSink(AuditSink):
    """An `AuditSink` that appends."""

    def __init__(self, path: Path) -> None:
        """The file is opened with the first events; made 0600 if there is none."""
        self._path = path
        self._pool = BlockingPool("audit-file", 1)
        self._file: int | None = None
        self._there: set[str] = set()
        """Ids of events at the end of the file, as it was opened."""

    @override
    async def send(self, events: Sequence[StoredEvent]) -> None:
        try:
            await self._pool.run(self._append, events)
        except OSError as error:
            raise SinkError(f"{self._path} can't be written: {error.strerror or error}") from error

    @override
    async def close(self) -> None:
        with contextlib.suppress(OSError):
            await self._pool.run(self._close)
        self._pool.close()

    def _append(self, events: Sequence[StoredEvent]) -> None:
        try:
            file = self._opened()
            lines = [f"{event.text}\n" for event in events if event.event_id not in self._there]
            data = "".join(lines).encode()
            while data:
                data = data[os.write(file, data) :]
            os.fsync(file)
        except OSError:
            self._close()  # what was written of the batch is found when it is opened again
            raise
        self._there.clear()

    def _opened(self) -> int:
        if self._file is not None and _is_at(self._file, self._path):
            return self._file
        self._close()
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        file = self._file = os.open(self._path, flags, 0o600)
        size = os.fstat(file).st_size
        end = os.pread(file, _END, max(0, size - _END))
        whole = end.rfind(b"\n") + 1
        if end.startswith(_BEGIN, whole):
            os.ftruncate(file, size - len(end) + whole)
        elif whole < len(end):  # somebody else's
            os.write(file, b"\n")
        sync_folder(self._path.parent)  # or a power cut may take the file that was just made
        self._there = {event_id for line in end[:whole].splitlines() if (event_id := _event_id(line))}
        return file

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _event_id(line: bytes) -> str:
    try:
        return str(json.loads(line)["event_id"])
    except (ValueError, LookupError, TypeError):
        return ""
