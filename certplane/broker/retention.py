"""Keeps the disk from filling: removes what is old and ended, and says in time when there is little room.

The removal runs each hour, a small batch at a time with pauses between, so that no call waits for it. Room is checked
each minute: the database's size, its growth in the last hour, and the free space where it and the spill file lie.
Little room is one line in the log and a metric to alert on; nothing is refused for it.
"""

import logging
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from certplane.broker import metrics
from certplane.broker.ports import Meter, PruneBefore, Upkeep
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.runtime.text import counted

_logger = logging.getLogger("certplane.broker")

_BATCH: Final = 128
"""Rows of a table in one transaction: some milliseconds of the writer."""
_PAUSE: Final = timedelta(milliseconds=250)
"""Between batches. 1.8 million rows of each table an hour, several times what a large fleet writes."""
_INTERVAL: Final = timedelta(hours=1)
_LOOK: Final = timedelta(minutes=1)
_LOOKS: Final = 60
_LEAST_FREE: Final = 1 << 30
_LEAST_SHARE: Final = 0.05
"""Little room is less than a twentieth, or than a gigabyte where a twentieth is more."""
_WARNING: Final = timedelta(hours=72)
"""A weekend: little room is also what the growth of the last hour would use up within it."""
_FAST: Final = 1 << 30
"""Octets an hour that no fleet writes in daily work."""


_NAMES: Final = {"store": "database", "spill": "spill file of the audit log"}
_CULPRIT: Final = "find the identity whose events fill the audit log (certplane-broker audit tail)"


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has, in octets."""

    free: int
    total: int


def little_room(places: Mapping[str, Room], growth: int) -> str:
    """What to say of the room that is left; empty when there is enough.

    Args:
        places: By name; `store` is where the database lies.
        growth: Octets that the database has grown by in the last hour.
    """
    hours = _WARNING // timedelta(hours=1)
    for place, room in places.items():
        if room.free < min(_LEAST_SHARE * room.total, _LEAST_FREE):
            free = f"{room.free >> 20} MiB are free for the {_NAMES[place]}"
            return f"{free}: free space, or shorten audit.keep or store.keep"
        if place == "store" and growth > 0 and growth * hours > room.free:
            left = f"{room.free >> 20} MiB are free, enough for {counted(room.free // growth, 'hour')}"
            return f"{_grown(growth)}, and {left}: {_CULPRIT}, and deny it, or free space"
    if growth > _FAST:
        return f"{_grown(growth)}: {_CULPRIT}"
    return ""


def _grown(growth: int) -> str:
    return f"the database has grown by {growth >> 20} MiB in an hour"


class Retention:
    """The chore. For the event loop's thread."""

    def __init__(
        self,
        upkeep: Upkeep,
        *,
        keep_audit: timedelta | None,
        keep_ended: timedelta | None,
        places: Mapping[str, Path],
        clock: Clock,
        meter: Meter,
        files: BlockingPool,
    ) -> None:
        """None keeps for good. `places` are folders whose room is looked at, by the names of `little_room`."""
        self._upkeep = upkeep
        self._keep_audit = keep_audit
        self._keep_ended = keep_ended
        self._places = places
        self._clock = clock
        self._meter = meter
        self._files = files
        self._sizes: deque[int] = deque(maxlen=_LOOKS + 1)
        self._said = ""

    @property
    def little_room(self) -> str:
        """What to say of the room that is left, as it was last looked at; empty when there is enough."""
        return self._said

    async def prune(self) -> None:
        """Remove what is due, now and each hour, until cancelled."""
        while True:
            try:
                await self._prune_all()
            except RefusalError as error:
                _logger.warning("could not remove old rows from the database: %s; next try in an hour", error)
            await self._clock.sleep(_INTERVAL)

    async def watch(self) -> None:
        """Look at the room that is left each minute, until cancelled."""
        while True:
            try:
                await self._look()
            except (RefusalError, OSError) as error:
                _logger.warning("could not measure the free space: %s", error)
            await self._clock.sleep(_LOOK)

    async def _prune_all(self) -> None:
        total: dict[str, int] = {}
        while True:
            now = self._clock.now()
            before = PruneBefore(
                now,
                None if self._keep_audit is None else now - self._keep_audit,
                None if self._keep_ended is None else now - self._keep_ended,
            )
            removed = await self._upkeep.prune(before, _BATCH)
            for table, count in removed.items():
                total[table] = total.get(table, 0) + count
                for _ in range(count):
                    self._meter.count(metrics.ROWS_PRUNED, table=table)
            if not any(removed.values()):  # a batch may be a small one and not the last
                break
            await self._clock.sleep(_PAUSE)
        if any(total.values()):
            _logger.info("removed old rows from the database", extra={"fields": total})

    async def _look(self) -> None:
        size = await self._upkeep.size()
        self._sizes.append(size)
        growth = size - self._sizes[0]
        rooms = await self._files.run(_rooms, self._places)
        self._meter.level(metrics.STORE_SIZE, size)
        self._meter.level(metrics.STORE_GROWTH, growth)
        for place, room in rooms.items():
            self._meter.level(metrics.FREE_SPACE, room.free, place=place)
        problem = little_room(rooms, growth)
        self._meter.level(metrics.SPACE_LOW, 1 if problem else 0)
        if problem and not self._said:
            _logger.error("%s", problem)
        elif self._said and not problem:
            _logger.info("there is enough free space again")
        self._said = problem


def _rooms(places: Mapping[str, Path]) -> dict[str, Room]:
    rooms = {}
    for place, folder in places.items():
        status = os.statvfs(folder)
        rooms[place] = Room(status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize)
    return rooms
