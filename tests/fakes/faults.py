"""Scripted faults: what a fake does wrong, and when, said in advance by a test."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class FaultScript:
    """The faults of one fake, by the name of its method.

    A fault `before` stands for a request that never arrived, one `after` for an answer that was lost: the work is done
    all the same. Methods run inside `around`, which also notes every call and yields to the loop, as I/O would.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._before: dict[str, deque[Exception]] = {}
        self._after: dict[str, deque[Exception]] = {}
        self._always: dict[str, Exception] = {}
        self._gates: dict[str, asyncio.Event] = {}

    def fail(self, operation: str, error: Exception, *, times: int = 1) -> None:
        """The next `times` calls of `operation` raise `error` and do nothing."""
        self._before.setdefault(operation, deque()).extend([error] * times)

    def fail_after(self, operation: str, error: Exception, *, times: int = 1) -> None:
        """The next `times` calls of `operation` do their work, then raise `error`."""
        self._after.setdefault(operation, deque()).extend([error] * times)

    def fail_always(self, operation: str, error: Exception) -> None:
        """Every call of `operation` raises `error` and does nothing, until `heal`."""
        self._always[operation] = error

    def heal(self) -> None:
        """Forget all faults and let those that wait at a gate go on."""
        self._before.clear()
        self._after.clear()
        self._always.clear()
        for gate in self._gates.values():
            gate.set()
        self._gates.clear()

    def hold(self, operation: str) -> asyncio.Event:
        """Calls of `operation` wait, before they do anything, until the returned event is set."""
        return self._gates.setdefault(operation, asyncio.Event())

    def count(self, operation: str) -> int:
        """How often `operation` was called."""
        return self.calls.count(operation)

    @asynccontextmanager
    async def around(self, operation: str) -> AsyncIterator[None]:
        """Run a method's work with its faults: gate, faults before, the work, faults after."""
        self.calls.append(operation)
        gate = self._gates.get(operation)
        if gate is not None:
            await gate.wait()
        if operation in self._always:
            raise self._always[operation]
        if self._before.get(operation):
            raise self._before[operation].popleft()
        yield
        await asyncio.sleep(0)
        if self._after.get(operation):
            raise self._after[operation].popleft()
