"""Commands that documents and alerts tell to type are such as the programs take: options and words, not what they name."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certplane.agent import cli as agent
from certplane.broker import cli as broker
from certplane.ctl import cli as ctl
from tests.support.prometheus import alert_rules

_DOCS = Path(__file__).parents[2] / "docs"
_PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "certplane-agent": agent._parser,
    "certplane-broker": broker._parser,
    "certplanectl": ctl._parser,
}
_COMMAND = re.compile(
    r"(?:^|[`/]|: |; |&& |sudo -u \S+ (?:/\S+/)?)(certplane-agent|certplane-broker|certplanectl) ([a-z][^`\n]*)"
)
_ENDS = re.compile(r"\s*(?:\||&&|;|>|#| {2,}|$)")
"""What a shell ends a command at, or a comment begins with."""


_LATER = {"certplane-broker audit keys"}
"""Those that are told of before they are there."""


def told(text: str) -> Iterator[tuple[str, str]]:
    """Program and arguments of each command in code of a document: indented, fenced, or between backquotes."""
    code = re.findall(r"^```(?:sh|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    code += re.findall(r"`(certplane[^`\n]+)`", plain)
    for block in code:
        for line in block.replace("\\\n", " ").splitlines():
            for program, arguments in _COMMAND.findall(line):
                yield program, _ENDS.split(arguments)[0]


def cases() -> Iterator[tuple[str, str, str]]:
    for file in sorted(_DOCS.glob("*.md")):
        for program, arguments in dict.fromkeys(told(file.read_text(encoding="utf-8"))):
            if f"{program} {arguments}" not in _LATER:
                yield file.name, program, arguments
    for rule in alert_rules():
        remedy = re.sub(r"\{\{.*?\}\}", "NAME", rule["annotations"]["remedy"])
        for program, arguments in _COMMAND.findall(remedy):
            yield rule["alert"], program, re.split(r" (?:names|says|shows|there|has|asks)\b|,", arguments)[0]


@pytest.mark.parametrize(("place", "program", "arguments"), [*cases()])
def test_told_commands(place: str, program: str, arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The parser takes it; a command that is only named lacks what it is to be given."""
    given = re.sub(r" ?\[[^]]*\]| ?\.\.\.$", "", arguments).replace("--limit N", "--limit 1")
    words = shlex.split(re.sub(r"\$\([^)]*\)", "1", given))
    status: object = 0
    try:
        _PARSERS[program]().parse_args(words)
    except SystemExit as ended:
        status = ended.code
    said = capsys.readouterr().err
    assert status == 0 or "required" in said, f"{place}: {program} {arguments}: {said}"
