"""Work that takes more than a moment shows its steps: live on a terminal, as lines when piped, as JSON on request.

A program reports to a `Progress` and doesn't know which it is. The live display needs the package `rich` (extra
`terminal`) and is used only if that is installed and the stream is a terminal; it is imported no sooner. A terminal
without it gets lines that say how long what has ended took, and which step goes on while nothing else happens. Results
don't belong here: a command prints them to standard output, progress goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from datetime import timedelta
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from typing_extensions import override

from certplane.runtime.clock import Clock
from certplane.runtime.tables import span_text
from certplane.runtime.terminal import Style, Terminal
from certplane.runtime.text import printable

_FIRST_REMINDER = timedelta(seconds=10)
_MOST_TEXT = 4000
"""Octets of one text; the words of a broker or a CA may be in it."""


class Progress(Protocol):
    """Where steps are reported, from the event loop only. A context manager: the display ends with it."""

    def step(self, subject: str, text: str) -> None:
        """`subject` has begun the step `text`, which ends its step before."""
        ...

    def done(self, subject: str, text: str) -> None:
        """`subject` has come to a good end."""
        ...

    def failed(self, subject: str, text: str) -> None:
        """`subject` has come to a bad end."""
        ...

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the display, whatever happened."""
        ...


class _Quiet:
    """A display that has nothing to begin or end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""


class SilentProgress(_Quiet, Progress):
    """For a daemon, whose log says the same."""

    @override
    def step(self, subject: str, text: str) -> None:
        pass

    @override
    def done(self, subject: str, text: str) -> None:
        pass

    @override
    def failed(self, subject: str, text: str) -> None:
        pass


class PlainProgress(_Quiet, Progress):
    """One line for each step: `subject: text`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        terminal = Terminal.of(stream)
        self._good, self._bad = terminal.paint("done", Style.GOOD), terminal.paint("FAILED", Style.BAD)

    @override
    def step(self, subject: str, text: str) -> None:
        _write_line(self._stream, f"{subject}: {printable(text, _MOST_TEXT)}")

    @override
    def done(self, subject: str, text: str) -> None:
        _write_line(self._stream, f"{subject}: {self._good}: {printable(text, _MOST_TEXT)}")

    @override
    def failed(self, subject: str, text: str) -> None:
        _write_line(self._stream, f"{subject}: {self._bad}: {printable(text, _MOST_TEXT)}")


class TerminalProgress(PlainProgress):
    """Lines for a person who waits: a step that goes on says so, seldomer and seldomer; an end says what it took."""

    def __init__(self, stream: TextIO, clock: Clock, remind: timedelta = _FIRST_REMINDER) -> None:
        """As `PlainProgress`; `remind` is how long a step is silent at first."""
        super().__init__(stream)
        self._clock = clock
        self._remind = remind
        self._begun: dict[str, float] = {}
        self._reminders: dict[str, asyncio.TimerHandle] = {}

    @override
    def step(self, subject: str, text: str) -> None:
        super().step(subject, text)
        begun = self._clock.monotonic()
        self._begun.setdefault(subject, begun)
        self._forget(subject)
        self._arm(subject, text, begun, self._remind)

    @override
    def done(self, subject: str, text: str) -> None:
        self._forget(subject)
        super().done(subject, text + self._took(subject))

    @override
    def failed(self, subject: str, text: str) -> None:
        self._forget(subject)
        super().failed(subject, text + self._took(subject))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for subject in list(self._reminders):
            self._forget(subject)

    def _took(self, subject: str) -> str:
        span = self._clock.monotonic() - self._begun.pop(subject, self._clock.monotonic())
        return f" ({span_text(timedelta(seconds=span))})" if span >= 1 else ""

    def _arm(self, subject: str, text: str, begun: float, after: timedelta) -> None:
        def remind() -> None:
            span = self._clock.monotonic() - begun
            super(TerminalProgress, self).step(subject, f"still {text} ({span_text(timedelta(seconds=span))})")
            self._arm(subject, text, begun, after * 2)

        with contextlib.suppress(RuntimeError):  # nothing runs in a loop: there is nobody to remind
            self._reminders[subject] = asyncio.get_running_loop().call_later(after.total_seconds(), remind)

    def _forget(self, subject: str) -> None:
        if (reminder := self._reminders.pop(subject, None)) is not None:
            reminder.cancel()


class JsonProgress(_Quiet, Progress):
    """One JSON object a line: `time` (RFC 3339), `subject`, `event` (step, done or failed) and `text`."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock

    @override
    def step(self, subject: str, text: str) -> None:
        self._write("step", subject, text)

    @override
    def done(self, subject: str, text: str) -> None:
        self._write("done", subject, text)

    @override
    def failed(self, subject: str, text: str) -> None:
        self._write("failed", subject, text)

    def _write(self, event: str, subject: str, text: str) -> None:
        time = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        members = {"time": time, "subject": subject, "event": event, "text": printable(text, _MOST_TEXT)}
        _write_line(self._stream, json.dumps(members, ensure_ascii=False))


def _write_line(stream: TextIO, line: str) -> None:
    """Tell it if it can be told: work isn't given up because nobody listens, or a disk is full.

    What a stream still holds fails once more when the program ends, and is told there (`certplane.runtime.command`).
    """
    with contextlib.suppress(OSError, ValueError):
        print(line, file=stream, flush=True)


class _LiveProgress(Progress):
    """A row for each subject with a spinner, its step and its time, drawn by `rich`."""

    def __init__(self, stream: TextIO) -> None:
        # Imported here since a host without a terminal, or without the extra, never needs it.
        from rich.console import Console  # noqa: PLC0415
        from rich.markup import escape  # noqa: PLC0415
        from rich.progress import Progress as Rows  # noqa: PLC0415
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415

        self._escape = escape
        self._rows = Rows(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.fields[subject]}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", table_column=Column(overflow="fold")),  # a cause must not be cut
            console=Console(file=stream),
        )
        self._tasks: dict[str, Any] = {}

    @override
    def step(self, subject: str, text: str) -> None:
        self._show(subject, self._shown(text))

    @override
    def done(self, subject: str, text: str) -> None:
        self._show(subject, f"[green]{self._shown(text)}[/green]", ended=True)

    @override
    def failed(self, subject: str, text: str) -> None:
        self._show(subject, f"[red]{self._shown(text)}[/red]", ended=True)

    def __enter__(self) -> Self:
        self._rows.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.stop()

    def _shown(self, text: str) -> str:
        escaped: str = self._escape(printable(text, _MOST_TEXT))
        return escaped

    def _show(self, subject: str, text: str, *, ended: bool = False) -> None:
        task = self._tasks.get(subject)
        if task is None:
            task = self._tasks[subject] = self._rows.add_task("", total=1, subject=self._escape(subject))
        self._rows.update(task, description=text, completed=1 if ended else 0)


def open_progress(clock: Clock, *, as_json: bool, stream: TextIO | None = None) -> Progress:
    """The display that fits: JSON lines if asked for, live on a terminal, else plain lines.

    Args:
        clock: dates the JSON lines.
        as_json: whether the command was called with `--json`.
        stream: where to; by default standard output for JSON, else standard error.
    """
    if as_json:
        return JsonProgress(stream or sys.stdout, clock)
    stream = stream or sys.stderr
    if stream.isatty():
        try:
            return _LiveProgress(stream)
        except ImportError:
            return TerminalProgress(stream, clock)
    return PlainProgress(stream)
