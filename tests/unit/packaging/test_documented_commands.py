"""README.md and docs/: each command of a program, as it is written there, is one that the program takes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from certplane.agent import cli as agent
from certplane.broker import cli as broker
from certplane.ctl import cli as ctl
from tests.support.prometheus import alert_rules

_ROOT = Path(__file__).parents[3]
_DOCUMENTS = ["README.md", "SECURITY.md", *sorted(f"docs/{path.name}" for path in (_ROOT / "docs").glob("*.md"))]
_PARSERS = {"certplane-agent": agent._parser, "certplane-broker": broker._parser, "certplanectl": ctl._parser}
_COMMAND = re.compile(
    r"^(?:sudo -u \S+ )?(?:/opt/certplane/bin/)?(certplane-agent|certplane-broker|certplanectl) (.+)$"
)
_ANYTHING = re.compile(r"\[\w+ \.\.\.\]|\.\.\.")


def _text(document: str) -> str:
    return (_ROOT / document).read_text(encoding="utf-8")


def typed(text: str) -> Iterator[str]:
    """Each command of the blocks; what the README shows of the demo is compared with the demo."""
    for block in re.findall(r"^```(?:sh|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if "\n$ " not in block:
            yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def named(text: str) -> Iterator[str]:
    """Each piece of code within a sentence or a table."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def refusal(line: str) -> str:
    """What the program's command line says against it; empty if it isn't such a command, or nothing."""
    if (found := _COMMAND.match(line)) is None:
        return ""
    words = shlex.split(re.split(r" (?:\||&&) ", _ANYTHING.sub("", found[2]))[0], comments=True)
    arguments = ["20" if word == "N" else word for word in words]
    if not arguments:
        return ""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        _PARSERS[found[1]]().parse_args(arguments)
    return said.getvalue()


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_commands_to_type_are_taken(document: str) -> None:
    """Whoever copies a line of a block gets no `usage:`."""
    refused = {line: said for line in typed(_text(document)) if (said := refusal(line))}
    assert refused == {}


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_commands_in_sentences_are_the_programs(document: str) -> None:
    """They may leave out what they are given, and nothing else is wrong with them."""
    refused = {line: said for line in named(_text(document)) if (said := refusal(line)) and "are required" not in said}
    assert refused == {}


def test_commands_of_alerts_are_the_programs() -> None:
    """What a person at night is told to run is taken too; words follow it in its sentence."""
    remedies = [re.sub(r"\{\{.*?\}\}", "NAME", rule["annotations"]["remedy"]) for rule in alert_rules()]
    found = [part for remedy in remedies for part in re.findall(r"certplane(?:-agent|-broker|ctl) [^,;:?()]+", remedy)]
    assert len(found) > 10
    for part in found:
        words = re.split(r" (?:names|says|shows|there|has|asks)\b", part)[0]
        assert refusal(words) == ""


@pytest.mark.parametrize(
    ("line", "taken"),
    [
        pytest.param("certplane-agent check", True, id="whole"),
        pytest.param("certplanectl watch [HOST ...]", True, id="more-of-it"),
        pytest.param("certplane-agent verify", False, id="no-such-command"),
        pytest.param("sudo -u certplane-broker /opt/certplane/bin/certplane-broker check --quick", False, id="no-such-option"),
        pytest.param("certplane-broker identity deny --name", False, id="no-value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_seen(line: str, taken: bool) -> None:
    """The comparison tells a wrong command from a right one."""
    assert (refusal(line) == "") is taken


@pytest.mark.parametrize("document", _DOCUMENTS)
def test_scripts_are_there(document: str) -> None:
    """Each script that is named exists and can be run."""
    for script in set(re.findall(r"(?<![\w/.])scripts/[a-z-]+\b(?![/.])", _text(document))):
        assert os.access(_ROOT / script, os.X_OK), script
