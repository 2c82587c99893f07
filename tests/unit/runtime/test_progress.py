"""Progress as lines, as JSON, and live on a terminal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from datetime import timedelta

import pytest

from certplane.runtime.progress import JsonProgress, PlainProgress, SilentProgress, TerminalProgress, open_progress
from tests.fakes.clock import ManualClock
from tests.support.on_terminal import written_on_terminal
from tests.support.waiting import until

STORY = "with progress as p: p.step('web', 'asking'); p.done('web', 'got [it]'); p.failed('api', 'no')"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(progress: PlainProgress | JsonProgress | SilentProgress) -> None:
    with progress as display:
        display.step("web", "asking")
        display.done("web", "got [it]")
        display.failed("api", "no")


def test_a_pipe_gets_lines() -> None:
    """One line a step, nothing to redraw."""
    stream = io.StringIO()
    progress = open_progress(ManualClock(), as_json=False, stream=stream)
    assert isinstance(progress, PlainProgress)
    tell(progress)
    assert stream.getvalue() == "web: asking\nweb: done: got [it]\napi: FAILED: no\n"


def test_json_is_one_object_a_line() -> None:
    """Also on a terminal, since it was asked for."""
    stream = Terminal()
    progress = open_progress(ManualClock(), as_json=True, stream=stream)
    assert isinstance(progress, JsonProgress)
    tell(progress)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(each["subject"], each["event"], each["text"]) for each in events] == [
        ("web", "step", "asking"),
        ("web", "done", "got [it]"),
        ("api", "failed", "no"),
    ]
    assert events[0]["time"] == "2026-11-23T12:00:00.000000Z"


def test_silence_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A daemon's log speaks for it."""
    tell(SilentProgress())
    assert capsys.readouterr() == ("", "")


def test_a_terminal_without_rich_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `terminal` is optional."""
    for name in [name for name in sys.modules if name == "rich" or name.startswith("rich.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert isinstance(open_progress(ManualClock(), as_json=False, stream=Terminal()), TerminalProgress)


async def test_a_person_is_told_what_goes_on_and_how_long_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal without `rich` a step that goes on says so again, an end says its time, and nothing comes after it."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = Terminal(), ManualClock()
    with TerminalProgress(stream, clock, timedelta(milliseconds=1)) as progress:
        progress.step("web", "asking the broker")
        clock.advance(timedelta(seconds=12))
        await until(lambda: "still" in stream.getvalue())
        progress.done("web", "version 1 is in use")
        progress.step("api", "asking the broker")
        progress.failed("api", "refused")
        progress.failed("db", "not begun")
        progress.step("mail", "asking the broker")
    seen = stream.getvalue()
    await asyncio.sleep(0.01)  # what isn't over says nothing once the display has ended
    assert stream.getvalue() == seen
    told = seen.splitlines()
    assert told[0] == "web: asking the broker"
    assert {line for line in told if "still" in line} == {"web: still asking the broker (12s)"}
    assert [line for line in told[1:] if "still" not in line] == [
        "web: done: version 1 is in use (12s)",
        "api: asking the broker",
        "api: FAILED: refused",
        "db: FAILED: not begun",
        "mail: asking the broker",
    ]


def test_ends_have_colours_on_a_terminal_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The words stay; a colour repeats them."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    tell(TerminalProgress(stream, ManualClock()))
    assert stream.getvalue() == ("web: asking\nweb: \x1b[32mdone\x1b[0m: got [it]\napi: \x1b[1;31mFAILED\x1b[0m: no\n")


def test_a_terminal_is_drawn_live() -> None:
    """With `rich` each subject has a row; text in brackets is text, not markup."""
    pytest.importorskip("rich")
    code = f"""
from certplane.runtime.clock import SystemClock
from certplane.runtime.progress import open_progress
progress = open_progress(SystemClock(), as_json=False)
assert type(progress).__name__ == "_LiveProgress"
{STORY}
"""
    drawn = written_on_terminal(
        [sys.executable, "-c", code], {**os.environ, "TERM": "xterm", "COLUMNS": "80"}, stream="stderr"
    )
    assert "got [it]" in drawn
    assert "web" in drawn
    assert "\x1b[" in drawn


def test_rich_is_loaded_for_a_terminal_only() -> None:
    """A pipe pays nothing for it."""
    code = """
import io, sys
from certplane.runtime.clock import SystemClock
from certplane.runtime.progress import open_progress
open_progress(SystemClock(), as_json=False, stream=io.StringIO())
assert "rich" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
