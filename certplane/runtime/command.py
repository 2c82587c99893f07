"""How a command of a program begins and ends: its streams, its exit status, one line for each error, never a traceback.

Status 0 when all is well, 1 when something failed, 2 when the configuration or the command line is wrong, 128 and the
signal's number when a signal ended it, as a shell expects; a reader that has gone counts as SIGPIPE. Output that can't
be written is a failure, told in one line, and not one of Python's at exit: a full disk, a closed descriptor. Whatever a
command does goes on meanwhile where it is more than printing (`certplane.runtime.progress`, `.logging`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TextIO

from certplane.errors import CertplaneError, ConfigurationError, ConfigurationProblem
from certplane.runtime import garbage
from certplane.runtime.secrecy import keep_memory_private
from certplane.runtime.text import printable

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
_MOST_TEXT: Final = 8000
"""Octets of one error; a peer's words may be in it."""

_CLOSED_OUTPUT: Final = 128 + signal.SIGPIPE


def main(
    program: str,
    arguments: Sequence[str] | None,
    parser: Callable[[], argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
    *,
    grpc_verbosity: str = "ERROR",
) -> int:
    """All of a program: read its arguments, run the command, return the exit status.

    gRPC's core says in OpenSSL's words what the programs say with a remedy, so only its errors are shown unless the
    environment asks for more. That must be settled before grpc is imported, which `parser` and `run` may do.
    """
    keep_memory_private()
    garbage.seldom()
    os.environ.setdefault("GRPC_VERBOSITY", grpc_verbosity)

    def command() -> int:
        made = parser()
        if "_ARGCOMPLETE" in os.environ:
            return _complete(made)
        options = made.parse_args(arguments)
        check_text_arguments(program, options)
        return run(options)

    return exit_status(program, command)


def _complete(parser: argparse.ArgumentParser) -> int:
    """What the shell asks for behind the Tab key; never a command, even where completion isn't installed."""
    with contextlib.suppress(ImportError):
        import argcomplete  # noqa: PLC0415 - an extra, and only for the shell

        argcomplete.autocomplete(parser)  # ends the program
    return FAILED


def wants_json(options: argparse.Namespace) -> bool:
    """Whether results are JSON, one object a line: where that is asked for, and where no terminal shows them."""
    return bool(options.json) or not sys.stdout.isatty()


def exit_status(program: str, run: Callable[[], int]) -> int:
    """Run a whole program, the reading of its arguments included; what it raises is told on standard error.

    Args:
        program: The name that errors carry.
        run: Returns the status; may raise SystemExit, as argparse does.
    """
    _open_standard_streams()
    try:
        status = _run(program, run)
    except SystemExit as ending:  # argparse has said what there is to say
        status = ending.code if isinstance(ending.code, int) else OK if ending.code is None else FAILED
    return status or _settle(program)


def check_text_arguments(program: str, options: argparse.Namespace) -> None:
    """Whether all arguments that are texts are UTF-8. Paths may be anything, and are of type `Path`.

    Raises:
        ConfigurationError: one isn't, as a terminal of an older encoding gives them.
    """
    problems = []
    for name, value in sorted(vars(options).items()):
        texts = value if isinstance(value, list) else [value]
        if any(isinstance(text, str) and not _is_unicode(text) for text in texts):
            argument = name.replace("_", "-")
            remedy = "use a terminal or a script in UTF-8"
            problems.append(ConfigurationProblem(program, None, argument, "is not UTF-8", remedy))
    if problems:
        raise ConfigurationError(problems)


async def interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Run a command so that SIGTERM ends it as Ctrl-C does: what can be done only once is finished first."""
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


def _run(program: str, run: Callable[[], int]) -> int:
    try:
        return run()
    except ConfigurationError as error:
        for problem in error.problems:
            say(str(problem))
        return MISUSED
    except CertplaneError as error:
        say(f"{program}: {error}")
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OSError as error:
        if (status := _settle(program)) != OK:
            return status  # it was the output: what is to be said has been
        where = f": {error.filename}" if error.filename else ""
        say(f"{program}: {error.strerror or error}{where}")
        return FAILED


def _settle(program: str) -> int:
    """Write out what is buffered, so that a failure is told here and not by Python's own flush at exit."""
    failure = _flush(sys.stdout)
    if failure is None and isinstance(_raw(sys.stdout), _Output):
        failure = _raw(sys.stdout).failure  # of a write whose error somebody swallowed, as argparse does
    _flush(sys.stderr)
    if failure is None:
        return OK
    if isinstance(failure, BrokenPipeError):
        return _CLOSED_OUTPUT  # whoever read the output has seen enough, as with `| head`
    why = failure.strerror if isinstance(failure, OSError) else "it is closed"
    say(f"{program}: standard output can't be written: {why}")
    return FAILED


class _Output(io.FileIO):
    """A descriptor that remembers how a write failed."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _raw(stream: Any) -> Any:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _flush(stream: TextIO) -> OSError | ValueError | None:
    """Flush; a stream that fails leads nowhere from then on, with all that is still buffered."""
    try:
        stream.flush()
    except (OSError, ValueError) as error:
        _discard(stream)
        return error
    return None


def _discard(stream: TextIO) -> None:
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
    with contextlib.suppress(OSError, ValueError):
        stream.flush()


def say(text: str) -> None:
    """One line on standard error, if there is any."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{printable(text, _MOST_TEXT)}\n")


def _open_standard_streams() -> None:
    """Occupy descriptors that came closed (`>&-`), so that no file or socket takes their place and gets our output.

    The closed standard output becomes one that can't be written, and the others lead nowhere. A character that an
    output's encoding lacks is written as an escape.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, flags)  # the lowest free number, since those below are open by now
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - to the end
    if sys.stdout is None or sys.stdout is sys.__stdout__:  # else it is a test's
        given = sys.stdout
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Output(1, "w", closefd=False)),
            encoding=given.encoding if given else "utf-8",
            errors="backslashreplace",
            line_buffering=bool(given and given.line_buffering),
            write_through=bool(given and given.write_through),
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
