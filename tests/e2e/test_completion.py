"""What the shell is offered behind the Tab key, by the programs as bash runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import HANG

pytestmark = pytest.mark.e2e

_ROOT = Path(__file__).parents[2]


def offered(line: str, *options: str) -> list[str]:
    """What a program offers at the end of a line: it is run without arguments, and answers on descriptor 8."""
    program = line.split(maxsplit=1)[0]
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    path = Path(sys.executable).parent / program
    script = f'exec 8>&1 9>/dev/null 1>/dev/null; "{sys.executable}" {" ".join(options)} "{path}"'
    finished = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=HANG, check=False
    )
    return finished.stdout.split("\n") if finished.stdout else []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param("certplanectl fl", {"fleet"}, id="a-command"),
        pytest.param("certplanectl fleet --health rev", {"revoked_in_use"}, id="a-value"),
        pytest.param("certplanectl policy ", {"show", "plan", "history", "reload"}, id="a-group"),
        pytest.param("certplanectl rollout ", {"plan", "start", "watch", "approve"}, id="another-group"),
        pytest.param("certplanectl rollout list --state ha", {"halted"}, id="a-state"),
        pytest.param("certplanectl rollout start --revoke ", {"never", "after-served"}, id="a-choice"),
        pytest.param("certplanectl orders -o ", {"table", "wide", "json", "yaml", "name"}, id="a-format"),
        pytest.param("certplane-agent en", {"enroll"}, id="the-agent"),
        pytest.param("certplane-broker identity ", {"deny", "allow", "list"}, id="the-broker"),
    ],
)
def test_what_is_offered(line: str, words: set[str]) -> None:
    """Commands, options and words that are known here; nothing is asked of a broker."""
    assert words <= {word.strip() for word in offered(line)}


def test_without_the_package_nothing_runs() -> None:
    """A shell whose completion was set up for another environment gets no words, and above all no command."""
    run = "sys.exit(main(['renew', '--all', '--yes', '--reason', 'x']))"
    program = f"import sys; sys.modules['argcomplete'] = None; from certplane.ctl.cli import main; {run}"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "_ARGCOMPLETE": "1"}, capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", "")


@pytest.mark.parametrize("program", ["certplanectl", "certplane-agent", "certplane-broker"])
def test_bash_takes_the_file(program: str) -> None:
    """Bash looks for a file of the program's name; each names all three programs."""
    file = _ROOT / "packaging" / "completion" / program
    said = subprocess.run(
        ["bash", "-c", f'source "{file}" && complete -p certplanectl certplane-agent certplane-broker'],
        capture_output=True, text=True, timeout=HANG, check=True,
    )  # fmt: skip
    assert len(said.stdout.splitlines()) == 3
