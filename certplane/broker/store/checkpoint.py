"""Checkpoints of SQLite's write-ahead log, off the commit path.

A commit appends to the log; now and then the log's pages must go into the database file, or the log grows for ever
and each read gets dearer. SQLite would do it inside some unlucky commit (`wal_autocheckpoint`), which is what made
the slowest commits fifty times slower than a sync. Here it is done on a thread and connection of its own, while
commits go on.

A log that is being written to is never copied to its end, and only one that is can be started over. So: copy while
commits go on until little is left, then hold them for the rest, which is a few pages (a "gate" that the writer passes
for each group). What was copied is synced before the gate is shut: SQLite itself syncs the database file only when it
has reached the end of the log, and would do all of it while the commits wait.

A reader that stays in one transaction for long (a copy made with a backup tool) keeps the log from being started
over, as in any use of SQLite's log. It grows meanwhile; that is logged.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final

_log = logging.getLogger("certplane.store")

_DUE_PAGES: Final = 256
"""1 MiB of log. Copied in small steps a busy log costs each commit a little; in large ones the disk is busy with it for
tens of milliseconds, which the slowest commits pay for."""
_IDLE: Final = timedelta(seconds=1)
"""With no commit for this long the log is copied, so that a database file at rest holds everything but the last
second."""
_LITTLE: Final = 64
"""Pages: what is copied with the commits held takes about a millisecond, most of it the sync."""
_ROUNDS: Final = 8
_LARGE_PAGES: Final = 65_536
"""256 MiB: somebody holds the log."""
_PAGE: Final = 4_096


class Checkpointer:
    """Owns the connection and thread that copy the log.

    The writer holds `gate` while it writes a group and notes it. `on_failed_sync` is called, with what happened, when
    pages may be lost that SQLite takes for copied: from then on the log must neither be copied nor started over by
    this process.
    """

    def __init__(self, connection: sqlite3.Connection, database: int) -> None:
        """`connection` is the checkpointer's own from now on; `database` is a descriptor of the database file."""
        self.gate = threading.Lock()
        self.on_failed_sync: Callable[[str], None] = lambda _why: None
        self._connection = connection
        self._database = database
        self._pages = 0
        self._due = threading.Event()
        self._stopping = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="store-checkpoint", daemon=True)

    @property
    def database(self) -> int:
        """The descriptor of the database file."""
        return self._database

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def note(self, jobs: int, size: int) -> None:
        """The writer committed `jobs` with `size` bytes of records.

        How many pages that put into the log is a guess, corrected by what each checkpoint finds there: a commit
        rewrites the last pages of a table and its indexes, a job that isn't an event alone changes a few more.
        """
        before = self._pages
        self._pages += 4 + jobs // 16 + size // _PAGE * 2
        if not before or before < _DUE_PAGES <= self._pages:
            self._due.set()

    def stop(self) -> None:
        """End the thread; blocks until a checkpoint that is under way is done."""
        self._stopping.set()
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        while self._wait_until_due():
            self._checkpoint()

    def _wait_until_due(self) -> bool:
        """Return when the log is large, or not empty and nobody writes; False if it is time to stop."""
        seen = 0
        while not self._stopping.is_set():
            if self._pages >= _DUE_PAGES or (self._pages and self._pages == seen):
                return True
            seen = self._pages
            if self._due.wait(_IDLE.total_seconds() if seen else None):
                self._due.clear()
        return False

    def _checkpoint(self) -> None:
        try:
            before = 0
            for _ in range(_ROUNDS):
                _, copied = self._copy()
                os.fdatasync(self._database)
                if copied - before <= _LITTLE:
                    break
                before = copied
            with self.gate:
                frames, copied = self._copy()
                self._pages = 0
        except (sqlite3.Error, OSError) as error:
            with self.gate:
                self._pages = 0
            if isinstance(error, OSError) or error.sqlite_errorcode == sqlite3.SQLITE_IOERR_FSYNC:
                self._stopping.set()
                self.on_failed_sync(f"the database file can't be synced: {error}")
            else:  # the log stays and keeps every commit; the next round tries again
                _log.warning("the write-ahead log can't be copied into the database: %s", error)
            return
        if frames > max(copied, _LARGE_PAGES):
            if not self._warned:
                _log.warning("the write-ahead log has %d MiB: a reader prevents its truncation", frames * _PAGE >> 20)
            self._warned = True
        else:
            self._warned = False

    def _copy(self) -> tuple[int, int]:
        """Pages in the log, and how many of them are in the database file now. PASSIVE waits for nobody."""
        _, frames, copied = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return frames, copied
