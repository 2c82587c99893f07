"""Programs that tests run, and what they may not do to them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from typing import Any

import pytest


class OthersPrograms:
    """Programs whose groups can't be signalled, as if another user's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._killpg = os.killpg
        self._start = asyncio.create_subprocess_exec
        self._started: list[asyncio.subprocess.Process] = []
        monkeypatch.setattr(os, "killpg", self._refuse)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", self._note)

    async def kill(self, group: int) -> None:
        """End the group all the same; returns when the loop has heard that its program has ended.

        Until then the program counts as running, and a loop that is closed never hears of it.
        """
        self._killpg(group, signal.SIGKILL)
        for process in self._started:
            await process.wait()

    def _refuse(self, group: int, number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), group, number)

    async def _note(self, *command: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await self._start(*command, **options)
        self._started.append(process)
        return process
