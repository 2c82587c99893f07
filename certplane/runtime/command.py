"""How a command of a program ends: its exit status, one line for each error, never a traceback.

Status 0 when all is well, 1 when something failed, 2 when the configuration or the command line is wrong, 128 and the
signal's number when a signal ended it, as a shell expects.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from certplane.errors import CertplaneError, ConfigurationError
from certplane.runtime.text import printable

__all__ = ["FAILED", "MISUSED", "OK", "exit_status", "interruptible"]

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
_MOST_TEXT: Final = 8000
"""Octets of one error; a peer's words may be in it."""


def exit_status(program: str, run: Callable[[], int]) -> int:
    """Run a command; what it raises is told on standard error, in the name of `program`."""
    try:
        return run()
    except ConfigurationError as error:
        for problem in error.problems:
            sys.stderr.write(f"{printable(str(problem), _MOST_TEXT)}\n")
        return MISUSED
    except CertplaneError as error:
        sys.stderr.write(f"{program}: {printable(str(error), _MOST_TEXT)}\n")
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        sys.stderr.close()
        return FAILED


async def interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run a command so that SIGTERM ends it as Ctrl-C does: what can't be had twice is finished first."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if not terminated:
            raise  # Ctrl-C: asyncio.run makes a KeyboardInterrupt of it
        return 128 + signal.SIGTERM
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
