"""What the store asks of a database: a session that writes, reads of committed rows, and how either fails.

`Session` is used by one thread at a time, in practice the writer's. `Database` is used from the event loop. Drivers'
exceptions end here: both raise `SqlError` alone, which never leaves the package.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, TypeVar

from certplane.broker.store.statements import Compiler, Row, Statement

T = TypeVar("T", bound=Hashable)


class Fault(Enum):
    """What went wrong, as far as it decides what is done next."""

    BUSY = auto()
    """Somebody else holds the lock, and went on holding it for the whole busy timeout."""
    UNDONE = auto()
    """The database undid the transaction for another's sake (a deadlock, a serialization failure) or can't write it on
    this server any more (a demoted primary): the same transaction may well pass when it is begun again."""
    FULL = auto()
    """No space."""
    UNREACHABLE = auto()
    """There is no connection; nothing was begun."""
    LOST = auto()
    """The connection went away; what was being committed may be durable or not."""
    BROKEN = auto()
    """The database is corrupt or a sync has failed: nothing written from now on can be relied upon."""
    REJECTED = auto()
    """A constraint."""
    OTHER = auto()


class SqlError(Exception):
    """A statement, or the transaction around it, failed; the driver's exception is the cause."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Session(Protocol):
    """A connection that writes. Outside of `begin` and `commit` each statement is a transaction of its own."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open; a database may end one by itself when a statement fails."""
        ...

    def begin(self) -> None:
        """Start a transaction that may write, connecting again if the connection was lost."""
        ...

    def commit(self) -> None:
        """Return when the transaction is durable. A failure ends the transaction too."""
        ...

    def rollback(self) -> None:
        """Undo the transaction, if one is open. Never raises."""
        ...

    def savepoint(self) -> None:
        """Mark a place in the transaction; they don't nest."""
        ...

    def release(self) -> None:
        """Forget the mark."""
        ...

    def rollback_to_savepoint(self) -> None:
        """Undo what came after the mark, and forget it."""
        ...

    def defer(self, write: Callable[[Session, Sequence[T]], None], what: T) -> None:
        """Have `write` called once before the commit, with all that was deferred to it in this transaction, each once.

        What is undone, with the transaction or to the savepoint, isn't among it.
        """
        ...

    def lock(self, keys: Sequence[int]) -> None:
        """Be the only transaction, of all programs, that has these locks (`locks`), until its end.

        Args:
            keys: In ascending order, and all that the transaction will ever want: so nobody waits in a circle.

        Raises:
            SqlError: BUSY if others kept one for the whole busy timeout; the transaction is lost then.
        """
        ...

    def execute(self, statement: Statement, arguments: Sequence[object]) -> int:
        """Run a statement that writes; returns how many rows it touched."""
        ...

    def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        """The first row of a query, seen from inside the transaction."""
        ...

    def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        """All rows of a query, seen from inside the transaction."""
        ...

    def abandon(self) -> None:
        """The disk can't be trusted: `close` is to leave everything as it is. For any thread."""
        ...

    def close(self) -> None:
        """Close the connection. Never raises."""
        ...


class Database(Protocol):
    """Reads of committed rows."""

    compiler: Compiler
    """Makes this database's statements."""

    @property
    def standing(self) -> int:
        """Another number than before when a connection was lost and made anew: what was read may be undone since.

        A server was restored from a copy perhaps, or a standby took over that lacked the last transactions.
        """
        ...

    async def one(self, statement: Statement, values: Mapping[str, object]) -> Row | None:
        """The row of a query that an index answers."""
        ...

    async def all(self, statement: Statement, values: Mapping[str, object]) -> list[Row]:
        """The rows of a query that may take a while."""
        ...
