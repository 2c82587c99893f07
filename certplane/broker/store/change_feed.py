"""The change feed: how this program hears of rows that other programs have changed.

Brokers answer from memory what is asked on every call, and other programs change the rows behind it: a command beside
the broker, another broker. Each program that opens the store is a *writer* with an id of its own. It numbers its
changes, and writes each number in the transaction of the change itself (`ChangeLog`), all rows of a transaction
together at its end. A writer has one connection that writes, so its numbers become visible in their order, and no lock
is shared between writers.

Readers keep one position for each writer (`SqlChangeFeed`) and look four times a second: one indexed query that asks
for the newest number of every writer. What can't be told from the rows is read again as a whole: at the start, after a
gap in a writer's numbers (a commit that failed leaves one), after a pause so long that rows may have been
removed unread, after a look that failed, when rows that were there are gone (a database server that was restored, or
whose standby took over without the last transactions), and when a connection to the server was lost, since then the
rows that this program wrote itself may be gone too.

Followers take in what was found. The vital ones do so before the next look; the others go on beside it, each at its own
pace, so that ten thousand plans of one request don't keep an entry of the deny-list waiting.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import chain
from typing import Final

from sqlalchemy import Text, bindparam, cast, delete, func, literal_column, select, tuple_
from typing_extensions import override

from certplane.broker.model import ChangeKind
from certplane.broker.ports import ChangeFeed, ChangeFollower
from certplane.broker.store.batch import Done
from certplane.broker.store.rows import to_micros
from certplane.broker.store.schema import changes
from certplane.broker.store.session import Database, Session, SqlError
from certplane.broker.store.statements import Compiler, Statement, chunks, limited_to, numbered
from certplane.broker.store.writer import Writer
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_log = logging.getLogger("certplane.store")

_INTERVAL: Final = timedelta(milliseconds=250)
"""A quarter of the second that the ports promise."""
_KEEP: Final = timedelta(hours=1)
"""How long rows stay for a reader that is late."""
_REMOVE_INTERVAL: Final = timedelta(minutes=1)
_REMOVE_AT_ONCE: Final = 512
"""Rows of one transaction: some milliseconds of the writer."""
_PAGE: Final = 1024
"""Rows that are read at a time: about a millisecond of the loop."""
_MOST_POSITIONS: Final = 4096
"""Every command is a writer. Beyond this the positions of writers that have no rows any more are dropped."""


class ChangeLog:
    """Numbers the changes of one writer. For the writer's thread, inside a transaction."""

    def __init__(self, compiler: Compiler, writer_id: str, clock: Clock) -> None:
        self._writer_id = writer_id
        self._clock = clock
        self._shared = compiler.driver != "sqlite"
        self._compiler = compiler
        self._number = 0
        self._insert = functools.cache(self._compile)

    def add(self, session: Session, kind: ChangeKind, key: str) -> None:
        """Record, with the transaction that is open, that the thing of this key has changed; once in a transaction.

        The row is written at the transaction's end, and numbered then: so what is undone draws no number.
        """
        session.defer(self._write, (str(kind), key))

    def add_shared(self, session: Session, kind: ChangeKind, key: str) -> None:
        """The same for what only other brokers follow: beside one on SQLite there is none."""
        if self._shared:
            self.add(session, kind, key)

    def _write(self, session: Session, changed: Sequence[tuple[str, str]]) -> None:
        now = to_micros(self._clock.now())
        first = self._number + 1
        rows = [(self._writer_id, number, kind, key, now) for number, (kind, key) in enumerate(changed, first)]
        for some in chunks(rows):
            session.execute(self._insert(len(some)), tuple(chain.from_iterable(some)))
        # The commit may fail, and be durable all the same: then no number may come twice.
        self._number += len(rows)

    def _compile(self, count: int) -> Statement:
        return self._compiler(self._compiler.insert(changes).values(numbered(changes.c.keys(), count)))


@dataclass(slots=True)
class _Following:
    """A follower, and what it has not taken in yet."""

    kind: ChangeKind
    what: str
    follower: ChangeFollower
    vital: bool
    since: datetime
    """The last moment of which it is known that nothing was missed."""
    look_time: datetime
    """When it was last looked."""
    everything: bool = True
    keys: dict[str, None] = field(default_factory=dict)
    """In the order in which they were read: to sort a hundred thousand holds the loop."""
    error: Exception | None = None
    one: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def well(self) -> bool:
        """Whether it has taken in all that the last look found."""
        return self.error is None

    def go_on(self, group: asyncio.TaskGroup) -> None:
        """Let the follower take in what waits, beside the looks; unless it does already."""
        if self.one.locked():
            return
        if self.everything or self.keys:
            group.create_task(self.catch_up(), name=f"follow {self.kind}")
        else:
            self.since = self.look_time

    async def catch_up(self) -> None:
        """Let the follower take in what waits; what fails waits for the next time."""
        async with self.one:  # others may find more meanwhile
            look_time, everything, keys = self.look_time, self.everything, self.keys
            self.everything, self.keys = False, {}
            try:
                if everything:
                    await self.follower.reread(self.since)
                elif keys:
                    await self.follower.changed(keys)
            except BaseException as error:
                self.everything |= everything
                self.keys = keys | self.keys
                if not isinstance(error, Exception):
                    raise
                # Bugs too: or nobody would look again, and nothing show it.
                if self.well:
                    _log_failure(self.what, error)
                self.error = error
                return
            self.since, self.error = look_time, None


class SqlChangeFeed(ChangeFeed):
    """`ChangeFeed` over the database. For the event loop's thread."""

    def __init__(self, database: Database, writer: Writer, writer_id: str, clock: Clock) -> None:
        self._database = database
        self._writer = writer
        self._writer_id = writer_id
        self._clock = clock
        self._followings: list[_Following] = []
        self._of_kind: defaultdict[str, list[_Following]] = defaultdict(list)
        self._positions: dict[str, int] = {}
        self._moves: dict[str, float] = {}
        """When each writer's number was last seen to change, monotonic."""
        self._heads = ""
        self._standing = 0
        self._look_time: tuple[datetime, float] | None = None
        """When the newest numbers were read last, by the wall clock and monotonic."""
        self._error: Exception | None = None
        self._lock = asyncio.Lock()
        self.removes: Callable[[], bool] = lambda: True
        """Whether it is this program that removes old rows: of several brokers one does."""
        compiler = database.compiler
        self._newest = _newest_numbers(compiler)
        row = select(changes.c.number, changes.c.kind, changes.c.key)
        self._after = compiler(
            row.where(changes.c.writer == bindparam("writer"), changes.c.number > bindparam("number"))
            .order_by(changes.c.number)
            .suffix_with(limited_to(_PAGE))
        )
        old = changes.c.time < bindparam("before")
        which = tuple_(changes.c.writer, changes.c.number)
        oldest = select(changes.c.writer, changes.c.number).where(old).order_by(changes.c.time)
        self._any_old = compiler(select(changes.c.number).where(old).suffix_with(limited_to(1)))
        self._remove = compiler(delete(changes).where(which.in_(oldest.suffix_with(limited_to(_REMOVE_AT_ONCE)))))

    @property
    def current(self) -> bool:
        """Whether what decides about callers is as the last look found it; if not, what is in memory stays in force."""
        return self.trouble is None

    @property
    def trouble(self) -> Exception | None:
        """What the last look could not read of that; None if it is `current`."""
        errors = (following.error for following in self._followings if following.vital)
        return self._error or next(filter(None, errors), None)

    @override
    def follow(self, kind: ChangeKind, follower: ChangeFollower, *, what: str, vital: bool = False) -> None:
        now = self._clock.now()
        following = _Following(kind, what, follower, vital, now, now)
        self._followings.append(following)
        self._of_kind[kind].append(following)

    async def look(self) -> None:
        """Pass on what other writers have changed since the last look; what fails is tried again by the next."""
        await self._look()
        for following in self._others:
            await following.catch_up()

    @property
    def _others(self) -> list[_Following]:
        return [following for following in self._followings if not following.vital]

    async def _look(self) -> None:
        """The same for those that are vital; the others learn what there is for them to take in."""
        async with self._lock:  # or an older look could end after a newer one
            now = self._clock.now()
            try:
                await self._read()
            except Exception as error:  # noqa: BLE001 - see `catch_up`
                if self._error is None:
                    _log_failure("recent changes", error)
                self._error = error
            else:
                self._error = None
                for following in self._followings:
                    following.look_time = now
            for following in self._followings:
                if following.vital:
                    await following.catch_up()

    async def reread(self, kind: ChangeKind) -> None:
        """Let the followers of `kind` read everything again: this program has changed it."""
        for following in self._of_kind[kind]:
            following.everything = True
            await following.catch_up()

    async def read_first(self, kind: ChangeKind) -> None:
        """Let the followers of `kind` read everything, which a start can't do without.

        Raises:
            Exception: why one could not.
        """
        await self.reread(kind)
        for following in self._of_kind[kind]:
            if following.error is not None:
                raise following.error

    async def run(self, *, remove: bool) -> None:
        """Look on and on, until cancelled; with `remove`, also drop the rows that every reader has read long ago."""
        remove_time = self._clock.monotonic()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._clock.sleep(_INTERVAL)
                await self._look()
                for following in self._others:
                    following.go_on(group)
                if remove and self._clock.monotonic() >= remove_time:
                    remove_time = self._clock.monotonic() + _REMOVE_INTERVAL.total_seconds()
                    await self._remove_old()

    async def _read(self) -> None:
        """Note for each follower what it has to read."""
        standing = self._database.standing  # before the question, during which it may change again
        row = await self._database.one(self._newest, {"own": self._writer_id})
        heads: str = (row and row[0]) or ""
        late = self._is_late() or self._error is not None or standing != self._standing
        self._standing = standing
        self._look_time = (self._clock.now(), self._clock.monotonic())
        if late or heads != self._heads:
            await self._read_writers(_parse(heads), late=late)
        self._heads = heads

    async def _read_writers(self, newest: Mapping[str, int], *, late: bool) -> None:
        now = self._clock.monotonic()
        if late or self._is_undone(newest, now):
            self._expect_everything()
            self._positions = {**newest}
            self._moves = dict.fromkeys(newest, now)
            return
        for writer, number in newest.items():
            if number > self._positions.get(writer, 0):
                self._moves[writer] = now
                await self._read_writer(writer, number)
        if len(self._positions) > _MOST_POSITIONS:
            self._positions = {**newest}
            self._moves = {writer: self._moves.get(writer, now) for writer in newest}

    def _is_undone(self, newest: Mapping[str, int], now: float) -> bool:
        """Whether rows are gone that nobody has removed yet: transactions that were seen have not happened any more."""
        young = now - _KEEP.total_seconds() / 2
        return any(
            newest[writer] < position if writer in newest else self._moves.get(writer, young) > young
            for writer, position in self._positions.items()
        )

    async def _read_writer(self, writer: str, newest: int) -> None:
        position = self._positions.get(writer, 0)
        gap = False
        more = True
        while more:
            rows = await self._database.all(self._after, {"writer": writer, "number": position})
            more = len(rows) == _PAGE
            for number, kind, key in rows:
                gap = gap or number != position + 1
                position = number
                for following in self._of_kind.get(kind, ()):
                    following.keys[key] = None
        if gap or position < newest:
            self._expect_everything()
        self._positions[writer] = max(position, newest)

    def _is_late(self) -> bool:
        """Whether rows may have been removed unread: at the start, and after a pause, of the machine perhaps."""
        if self._look_time is None:
            return True
        time, monotonic = self._look_time
        pause = max(self._clock.now() - time, timedelta(seconds=self._clock.monotonic() - monotonic))
        return pause > _KEEP / 2

    def _expect_everything(self) -> None:
        for following in self._followings:
            following.everything = True

    async def _remove_old(self) -> None:
        if not self.removes():
            return
        values = {"before": to_micros(self._clock.now() - _KEEP)}

        def change(session: Session) -> Done[int]:
            return Done(session.execute(self._remove, self._remove.arguments(values)))

        try:
            while await self._database.one(self._any_old, values) is not None:
                await self._writer.write(change, ())
        except Exception as error:  # noqa: BLE001 - see `catch_up`
            bug = None if isinstance(error, SqlError | RefusalError) else error
            _log.warning("could not remove old rows of the change feed; will retry: %s", error, exc_info=bug)


def _newest_numbers(compiler: Compiler) -> Statement:
    """The newest number of every other writer, as one text `writer:number,...`.

    One row, so that it is a quick read, and one text, so that an idle look compares and parses nothing. The writers
    are found by hopping from one to the next in the primary key, however many rows each of them has.
    """
    first = select(func.min(changes.c.writer).label("writer")).cte("writers", recursive=True)
    other, numbered = changes.alias("other"), changes.alias("numbered")
    following = select(func.min(other.c.writer)).where(other.c.writer > first.c.writer).scalar_subquery()
    writers = first.union_all(select(following).where(first.c.writer.is_not(None)))
    newest = select(func.max(numbered.c.number)).where(numbered.c.writer == writers.c.writer)
    number = cast(newest.correlate(writers).scalar_subquery(), Text)
    head = writers.c.writer.concat(literal_column("':'")).concat(number)
    join = func.group_concat if compiler.driver == "sqlite" else func.string_agg
    return compiler(
        select(join(head, literal_column("','"))).where(
            writers.c.writer.is_not(None), writers.c.writer != bindparam("own")
        )
    )


def _parse(heads: str) -> dict[str, int]:
    pairs = (head.split(":") for head in heads.split(",") if head)
    return {writer: int(number) for writer, number in pairs}


def _log_failure(what: str, error: Exception) -> None:
    """One line for what the database said; with its traceback, what is a bug."""
    bug = None if isinstance(error, SqlError | RefusalError) else error
    _log.error("could not read %s; what was read last stays in force; will retry: %s", what, error, exc_info=bug)
