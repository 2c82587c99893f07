"""What a command works with: its context, the way to the brokers, where results go, and a person to ask."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from certplane.ctl.contexts import chosen
from certplane.ctl.output import Output
from certplane.ctl.settings import Context, CtlSettings
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.command import say
from certplane.runtime.text import printable

if TYPE_CHECKING:  # `context list` needs no gRPC
    from certplane.ctl.client import Client

_MOST_TEXT: Final = 8000


@dataclass(frozen=True)
class Session:
    """One run of certplanectl. `named` is what --context says, and `config` what --config says."""

    settings: CtlSettings
    out: Output
    named: str | None = None
    config: Path | None = None
    clock: Clock = field(default_factory=SystemClock)

    @property
    def context(self) -> Context:
        """The fleet that the command is for.

        Raises:
            ConfigurationError: none was chosen, or there is no such one.
        """
        return chosen(self.settings, self.named)

    def client(self, urls: Sequence[str] = ()) -> Client:
        """A new way to the brokers, with the identity as it is on disk now; to be used as an async context manager.

        Raises:
            ConfigurationError: a file that the settings name can't be used.
        """
        from certplane.ctl.client import Client  # noqa: PLC0415 - as above

        return Client(self.context, urls)

    def now(self) -> datetime:
        """By the clock of this machine."""
        return self.clock.now()

    def say(self, text: str) -> None:
        """A line about the command itself, on standard error."""
        say(f"certplanectl: {text}")

    def command(self, words: str) -> str:
        """A command to go on with, as it is to be typed: for this fleet, where the command line named it."""
        named = (("-c", self.config), ("--context", self.named))
        options = [shlex.join((option, str(value))) for option, value in named if value is not None]
        return " ".join(("certplanectl", *options, words))

    async def agreed(self, question: str, otherwise: str = "") -> bool:
        """Whether a person at the terminal says yes; the context is named where there are several.

        Raises:
            ConfigurationError: there is no terminal to ask at. `otherwise` is what could be added instead of --yes.
        """
        where = f"context {self.context.name}: " if len(self.settings.contexts) > 1 else ""
        return await agreed(f"{where}{question}", otherwise)


async def agreed(question: str, otherwise: str = "") -> bool:
    """Whether a person at the terminal says yes; without one nobody can.

    Raises:
        ConfigurationError: there is no terminal to ask at.
    """
    question = printable(question, _MOST_TEXT)  # it may have words of the broker's
    if not sys.stdin.isatty():
        raise misuse(
            f"{question}; there is no terminal to ask at", f"add --yes{f', or {otherwise}' if otherwise else ''}"
        )
    sys.stderr.write(f"{question}. Go on? [y/N] ")
    sys.stderr.flush()
    # Not on a thread: it would be waited for at the end of the program, and Ctrl-C wait for the Enter key.
    loop, typed = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin, typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin)
    answer = sys.stdin.readline()  # a terminal has a whole line when it has something
    return answer.strip().lower() in ("y", "yes")


def misuse(message: str, remedy: str) -> ConfigurationError:
    """The error of an argument that can't be used."""
    return ConfigurationError([ConfigurationProblem("certplanectl", None, "", message, remedy)])
