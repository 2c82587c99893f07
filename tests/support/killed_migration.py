"""A program that starts a broker's store and is killed at one of the statements with which the start migrates it.

    python -m tests.support.killed_migration KIND PATH URL NUMBER

It ends with 0 if there are fewer statements than NUMBER.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from alembic.ddl.impl import DefaultImpl

from certplane.broker.store import open_stores


def kill_at(number: int) -> None:
    """Be killed before the statement of this number, from 1, of those that migrations run."""
    run, passed = DefaultImpl._exec, 0

    def counted(self: DefaultImpl, *arguments: Any, **options: Any) -> Any:
        nonlocal passed
        passed += 1
        if passed == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(self, *arguments, **options)

    DefaultImpl._exec = counted  # type: ignore[method-assign] # counts the statements


async def start(kind: str, path: Path, url: str) -> None:
    """Start and stop."""
    async with open_stores(driver=kind, path=path, url=url, audit=None):  # type: ignore[arg-type] # a word of the command line
        pass


if __name__ == "__main__":
    kind, path, url, number = sys.argv[1:]
    kill_at(int(number))
    asyncio.run(start(kind, Path(path), url))
