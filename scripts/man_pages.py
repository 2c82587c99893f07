# ruff: noqa: SLF001 - argparse shows the parts of a parser to nobody else
"""The manual pages and the completion of the three programs, from their parsers, into packaging/.

Deterministic: the same parsers make the same files, on any day. Usage is one long line, which man folds; examples and
exit statuses, whose lines are their own, are sections of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["COLUMNS"] = "10000"
os.environ["SOURCE_DATE_EPOCH"] = "0"

import argcomplete
from argparse_manpage.manpage import Manpage

from certplane import __version__
from certplane.agent import cli as agent
from certplane.broker import cli as broker
from certplane.ctl import cli as ctl

PARSERS = {"certplane-agent": agent._parser, "certplane-broker": broker._parser, "certplanectl": ctl._parser}


def page(parser: argparse.ArgumentParser) -> str:
    """The manual page of one program, roff (man(7))."""
    said = [(parser.prog, parser.epilog or ""), *epilogs(parser)]
    made = Manpage(parser, {"project_name": "Certplane", "version": __version__, "manual_title": "Certplane"})
    made.description = (parser.description or "").rstrip(".")
    for heading, begin in (("exit status", "exit statuses:"), ("examples", "examples:")):
        texts = [text.removeprefix(begin).strip("\n") for _, text in said if text.startswith(begin)]
        if texts:
            made.add_section(heading, "=", "\n".join(f".nf\n{roff(text)}\n.fi" for text in texts))
    text = str(made)
    return text.replace('"1970\\-01\\-01"', '""')


def epilogs(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """What is said below the help of each command; taken from the parsers, since it is shown elsewhere."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                found += [(name, below.epilog or ""), *epilogs(below)]
    parser.epilog = None
    return found


def roff(text: str) -> str:
    """Text that is shown as it stands."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())


def files() -> dict[str, str]:
    """Each file below packaging/ with its content."""
    pages = {f"man/{name}.1": page(parser()) for name, parser in PARSERS.items()}
    shell = "".join(f"{line.rstrip()}\n" for line in argcomplete.shellcode(list(PARSERS)).splitlines())
    # bash-completion looks for a file of the program's name, when that is first typed.
    return {**pages, **{f"completion/{name}": shell for name in PARSERS}}


def main(folder: Path) -> None:
    """Write them all below a folder."""
    for name, content in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
