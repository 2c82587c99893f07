"""Each certplanectl command that a document shows is one that certplanectl takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from certplane.ctl import cli

_ROOT = Path(__file__).parents[3]
_FENCED = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shown() -> Iterator[tuple[str, str]]:
    """Document and command, of all lines of code that begin with one."""
    for document in (_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))):
        for block in _FENCED.findall(document.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("certplanectl "):
                    yield document.name, line


@pytest.mark.parametrize(
    ("document", "line"), [pytest.param(*each, id=" ".join(each)) for each in dict.fromkeys(shown())]
)
def test_documented_command(document: str, line: str) -> None:
    """Whoever copies it at night isn't told that an option is missing."""
    words = shlex.split(re.split(r" \| | && ", line)[0], comments=True)
    assert callable(cli._parser().parse_args(words[1:]).run.add), document
