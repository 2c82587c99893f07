"""Questions for what a set-up wasn't told, where nobody is there to answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from certplane.errors import ConfigurationError
from certplane.setup.asking import Asker

SCRIPT = """
from certplane.errors import ConfigurationError
from certplane.setup.asking import Asker
asker = Asker("certplane-x init")
assert not asker.at_terminal
assert asker.value(None, "--name", "A name", str) is None
assert asker.value("7", "--number", "A number", int) == 7
assert asker.secret("A secret") == ""
asker.missing("--token", "is required", "give one")
try:
    asker.finish()
except ConfigurationError as error:
    print("\\n".join(map(str, error.problems)))
"""


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE, None], ids=["null", "pipe", "closed"])
def test_nobody_is_waited_for_where_there_is_no_terminal(stdin: int | None) -> None:
    """All that is missing is told at once, whatever standard input is, closed too."""
    command = [sys.executable, "-c", SCRIPT]
    if stdin is None:
        command = ["sh", "-c", 'exec "$@" <&- 2>/dev/null', "sh", *command]
        stdin = subprocess.DEVNULL
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=True, start_new_session=True)
    assert done.stdout.splitlines() == [
        "certplane-x init: --name: is required; give it; on a terminal this command asks for it (A name)",
        "certplane-x init: --token: is required; give one",
    ]


def test_a_wrong_argument_is_told_by_its_name() -> None:
    """What was given and can't be used is no question, at a terminal either."""

    def parse(_: str) -> str:
        raise ValueError("must be better")

    with pytest.raises(ConfigurationError, match="certplane-x init: --name: must be better"):
        Asker("certplane-x init").value("bad", "--name", "A name", parse)
