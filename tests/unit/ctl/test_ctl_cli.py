"""What certplanectl asks a person."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator

import pytest

from certplane.ctl.session import agreed as ask


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The other end of a terminal that is standard input."""
    outer, inner = os.openpty()
    with os.fdopen(inner) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        yield outer
    os.close(outer)


@pytest.mark.parametrize(
    ("typed", "agreed"),
    [
        pytest.param(b"y\n", True, id="yes"),
        pytest.param(b"n\n", False, id="no"),
        pytest.param(b"\n", False, id="Enter alone"),
        pytest.param(b"\x04", False, id="end of file"),
    ],
)
async def test_the_question_takes_a_yes_alone(keyboard: int, typed: bytes, agreed: bool) -> None:
    """Anything else is a no."""
    asking = asyncio.create_task(ask("2 certificates would be renewed"))
    await asyncio.sleep(0)
    os.write(keyboard, typed)
    assert await asking is agreed


async def test_a_question_with_words_of_others(keyboard: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What a broker says, as of a rollout that is to be approved, doesn't write on the screen elsewhere."""
    asking = asyncio.create_task(ask("rollout r-1: \x1b[2J\u202eticket\n4711"))
    await asyncio.sleep(0)
    os.write(keyboard, b"n\n")
    assert await asking is False
    assert capsys.readouterr().err == "rollout r-1:  [2J ticket 4711. Go on? [y/N] "


async def test_a_question_that_is_left_holds_up_nothing(keyboard: int) -> None:
    """Ctrl-C at the question ends the program: no thread goes on waiting for the Enter key."""
    threads = set(threading.enumerate())
    asking = asyncio.create_task(ask("2 certificates would be renewed"))
    for _ in range(5):
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    left = set(threading.enumerate()) - threads
    os.write(keyboard, b"\n")  # or what is left would hold up this test run too
    assert not left
