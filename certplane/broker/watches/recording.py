"""Records which services watch at this broker, for the others; what comes while it is being written is written next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import islice
from typing import Final

from certplane.broker.watches.model import ServiceWatch
from certplane.broker.watches.ports import WatchStore
from certplane.errors import RefusalError

_logger = logging.getLogger("certplane.broker.watches")

_TOGETHER: Final = 128
"""Rows of one transaction."""


class WatchRecorder:
    """Writes rows of services; for the event loop's thread."""

    def __init__(
        self,
        store: WatchStore,
        row_of: Callable[[str], ServiceWatch | None],
        recorded: Callable[[Sequence[ServiceWatch]], None],
    ) -> None:
        """`row_of` says what there is to write of a service now, and `recorded` hears of what is durable."""
        self._store, self._row_of, self._told_recorded = store, row_of, recorded
        self._unwritten: dict[str, bool] = {}
        """Services, and whether other brokers are to hear of it."""
        self._writing: asyncio.Task[None] | None = None
        self._said = ""

    def note(self, service: str, *, telling: bool) -> None:
        """Write what there is of a service; `telling`: it is something that other brokers are to hear."""
        self._unwritten[service] = self._unwritten.get(service, False) or telling
        if not self._said:
            self.go_on()

    def go_on(self) -> None:
        """Write what isn't written, as far as there is something; what failed waits for this."""
        if self._unwritten and self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="watches-record")

    async def finish(self, within: timedelta) -> None:
        """Write what is left; what isn't written by then shows as watching for as long as this broker is there."""
        self.go_on()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=within.total_seconds())

    async def _write_all(self) -> None:
        try:
            while self._unwritten:
                await self._write(dict(islice(self._unwritten.items(), _TOGETHER)))
            self._said = ""
        except Exception as error:
            if repr(error) != self._said:
                bug = None if isinstance(error, RefusalError) else error
                _logger.warning("could not record which services watch; will retry: %s", error, exc_info=bug)
            self._said = repr(error)
        finally:
            self._writing = None

    async def _write(self, some: dict[str, bool]) -> None:
        rows = [row for service in some if (row := self._row_of(service)) is not None]
        for service in some:
            del self._unwritten[service]
        try:
            await self._store.record_watches(rows, [service for service, telling in some.items() if telling])
        except BaseException:
            for service, telling in some.items():
                self._unwritten[service] = self._unwritten.get(service, False) or telling
            raise
        self._told_recorded(rows)
