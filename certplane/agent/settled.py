"""Who waits until a lineage has nothing more to do at once. Each gets an answer, also where the agent ends."""

from __future__ import annotations

import asyncio

from certplane.agent.model import LineageStatus
from certplane.errors import OperationError


class Settled:
    """Those who wait for the lineage `name`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: list[asyncio.Future[LineageStatus]] = []
        self._over: OperationError | None = None

    def wait(self) -> asyncio.Future[LineageStatus]:
        """The next result of `settle`, or what `end` says."""
        future: asyncio.Future[LineageStatus] = asyncio.get_running_loop().create_future()
        if self._over is not None:
            future.set_exception(self._over)
        else:
            self._waiting.append(future)
        return future

    def settle(self, result: LineageStatus | Exception) -> None:
        """Answer all who wait."""
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def end(self) -> None:
        """Nobody works on the lineage any more: who waits, or comes now, is to ask again."""
        self._over = OperationError(
            "the agent ended meanwhile, or began anew with another agent.yml",
            remedy=f"run `certplane-agent renew {self._name}` again",
        )
        self.settle(self._over)
