"""What a set-up wasn't told: asked for at a terminal, and never waited for where there is none. Blocks."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from typing import TypeVar

from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.text import printable

T = TypeVar("T")

_TRIES = 3


class Asker:
    """Answers to questions; where nobody can be asked, each question is noted as a missing argument."""

    def __init__(self, program: str) -> None:
        """`program` is how problems name the command: `certplane-agent init`."""
        self._program = program
        self._missing: list[ConfigurationProblem] = []

    @property
    def at_terminal(self) -> bool:
        """Whether somebody can be asked: both ends are a terminal's."""
        return _is_terminal(0) and _is_terminal(2)

    def value(
        self, given: str | None, argument: str, question: str, parse: Callable[[str], T], *, default: str = ""
    ) -> T | None:
        """What an argument says, or the answer to the question that stands for it.

        Args:
            given: the argument's text; None where it wasn't given.
            argument: its name, `--name`.
            question: without a question mark.
            parse: makes the value; raises `ValueError` with what the text must be instead.
            default: what an empty answer stands for.

        Returns:
            The value; None where it is missing and nobody can be asked (`finish` raises for it).

        Raises:
            ConfigurationError: the argument is wrong, or no answer was right.
        """
        if given is not None:
            try:
                return parse(given)
            except ValueError as error:
                raise ConfigurationError([self.problem(argument, str(error))]) from error
        if not self.at_terminal:
            remedy = f"give it; on a terminal this command asks for it ({question})"
            self._missing.append(self.problem(argument, "is required", remedy))
            return None
        for _ in range(_TRIES):
            text = _ask(f"{question}{f' [{default}]' if default else ''}: ") or default
            try:
                return parse(text)
            except ValueError as error:
                _say(str(error))
        raise ConfigurationError([self.problem(argument, "got no answer that can be used")])

    def secret(self, question: str) -> str:
        """An answer that isn't shown while it is typed; empty where nobody can be asked."""
        return getpass.getpass(f"{question}: ", stream=sys.stderr).strip() if self.at_terminal else ""

    def missing(self, argument: str, message: str, remedy: str) -> None:
        """Note that something isn't there, for `finish`."""
        self._missing.append(self.problem(argument, message, remedy))

    def finish(self) -> None:
        """Tell all that is missing at once.

        Raises:
            ConfigurationError: something is.
        """
        if self._missing:
            raise ConfigurationError(self._missing)

    def problem(self, argument: str, message: str, remedy: str = "") -> ConfigurationProblem:
        """What is wrong with an argument, as this command tells it."""
        return ConfigurationProblem(self._program, None, argument, message, remedy)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _ask(prompt: str) -> str:
    sys.stderr.write(prompt)
    sys.stderr.flush()
    line = sys.stdin.readline()
    if not line:
        raise KeyboardInterrupt  # Ctrl-D: nobody wants to go on
    return line.strip()


def _say(text: str) -> None:
    sys.stderr.write(f"{printable(text, 400)}\n")
