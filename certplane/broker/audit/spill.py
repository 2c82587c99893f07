"""The spill file: audit events that the database did not take (`fail_open`), one JSON object a line.

It lies beside the database, 0600 and the broker's own. A record is on the disk when `append` returns. At the next
start, once the database can be written again, `import_spill` takes the records back, each exactly once:

    <spill>            what is appended to
    <spill>.importing  set aside by a rename, so that a spill during the import is not lost; found again after a crash
    <spill>.imported-<UTC time>   done; kept, since it is evidence that the log had a gap. An operator removes it.

Twice imported is once imported: the database refuses an event_id that it has.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from certplane.broker.ports import AuditImport
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.files import give_to_service, sync_folder
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted

_log = logging.getLogger("certplane.audit")

_BATCH: Final = 1_000
"""Records in one transaction of an import."""


class SpillFile:
    """Appends records. Opened for each append, so that a rename in between is safe."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Sequence[str]) -> None:
        """Return when the records are on the disk.

        Raises:
            OSError: some of them may not be: no space, or the path is a link, not a file, or open to others.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = self.path.parent
        try:
            descriptor, created = os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:
            descriptor, created = os.open(self.path, flags), False
        try:
            if created:
                give_to_service(descriptor, folder)
            status = os.fstat(descriptor)
            ours = status.st_uid in {os.geteuid(), folder.stat().st_uid}
            if not stat.S_ISREG(status.st_mode) or not ours or status.st_mode & 0o077:
                raise PermissionError(f"{self.path} is not the broker's own private file")
            data = memoryview("".join(f"{record}\n" for record in records).encode())
            if status.st_size and os.pread(descriptor, 1, status.st_size - 1) != b"\n":
                # A crash tore the last line; it must not spoil the next one too.
                data = memoryview(b"\n" + data)
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if created:
            sync_folder(folder)


async def import_spill(path: Path, log: AuditImport, clock: Clock) -> int:
    """Take spilled records back into the database; returns how many it lacked.

    Called at a start, before anyone is served. What can't be read or imported now stays where it is, is logged, and is
    tried again at the next start: a broker that runs without its old events is what `fail_open` chose.
    """
    pool = BlockingPool("audit-import", 1)
    try:
        return await _import(path, log, clock, pool)
    except (OSError, RefusalError) as error:
        _log.error("could not import spilled audit events, %s stays for the next start: %s", path, error)
        return 0
    finally:
        pool.close()


async def _import(path: Path, log: AuditImport, clock: Clock, pool: BlockingPool) -> int:
    aside = path.with_name(path.name + ".importing")
    total = 0
    # An earlier import that was interrupted first; then what was spilled since.
    while await pool.run(_set_aside, path, aside):
        records, torn = await pool.run(_read, aside)
        new = 0
        for start in range(0, len(records), _BATCH):
            new += await log.import_records(records[start : start + _BATCH])
        done = path.with_name(f"{path.name}.imported-{clock.now():%Y%m%dT%H%M%S.%fZ}")
        await pool.run(_finish, aside, done)
        _log.warning(
            "the audit log had a gap: %s found, %d imported, kept as %s",
            counted(len(records), "spilled event"),
            new,
            done,
        )
        if torn:
            _log.error("%s of %s not imported: no audit events", counted(torn, "line"), done)
        total += new
    return total


def _set_aside(path: Path, aside: Path) -> bool:
    """Whether there is something to import, and then it is `aside`."""
    if aside.exists():
        return True
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def _read(path: Path) -> tuple[list[str], int]:
    """The records, and how many lines are none: a crash in the middle of an append tears one."""
    records: list[str] = []
    torn = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, encoding="utf-8", errors="replace") as file:
        for line in file:
            record = line.rstrip("\n")
            if _is_record(record):
                records.append(record)
            elif record:
                torn += 1
    return records, torn


def _is_record(line: str) -> bool:
    try:
        value = json.loads(line)
    except ValueError:
        return False
    return (
        isinstance(value, dict) and isinstance(value.get("event_id"), str) and isinstance(value.get("timestamp"), str)
    )


def _finish(aside: Path, done: Path) -> None:
    aside.rename(done)
    sync_folder(done.parent)
