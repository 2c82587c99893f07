"""docs/agent.md against the program: the words of `check`, the states of a certificate, what a reload command gets."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from certplane.agent.install.activation import hook_variables
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord

_ROOT = Path(__file__).parents[3]
_DOCUMENT = (_ROOT / "docs" / "agent.md").read_text(encoding="utf-8")


def first_column(head: str) -> list[str]:
    """The code in the first column of the table that begins with `head`."""
    table = _DOCUMENT.partition(f"\n{head}\n|---|---|\n")[2].partition("\n\n")[0]
    return [code for line in table.splitlines() for code in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def test_every_word_of_check_is_told() -> None:
    """Each with what it is, and no other; worst first, as the program sorts them."""
    assert first_column("| word | is |") == [word.value for word in HealthWord]


def test_every_state_is_told() -> None:
    """What `status` may show for a certificate."""
    told = _DOCUMENT.partition("A status is one of: ")[2].partition("\n\n")[0]
    states = {state.value for state in CertificateState}
    assert {code for code in re.findall(r"`([^`]+)`", told) if code in states} == states


def test_every_line_of_check_is_told() -> None:
    """What a line of `check` may be about; a bundle's line begins with its key."""
    sources = [_ROOT / "certplane" / "agent" / f"{name}.py" for name in ("check", "inspection")]
    code = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    subjects = set(re.findall(r'Finding\(\s*f?"([^"]+)"', code)) | set(re.findall(r'subject = f?"([^"]+)"', code))
    named = {re.sub(r"\{[^}]*\}", "NAME", subject) for subject in subjects}
    assert {"broker", "hook of NAME"} <= named
    told = first_column("| line | FAIL where |")
    assert named <= {re.sub(r"^tracing\.\w+", "tracing.NAME", line) for line in told}


def test_every_variable_of_a_reload_command_is_told() -> None:
    """All that the command finds in its environment beside the agent's own."""
    variables = set(re.findall(r'"(CERTPLANE_\w+)"', inspect.getsource(hook_variables)))
    assert set(first_column("| variable | is |")) == variables | {"CERTPLANE_<OUTPUT>"}
