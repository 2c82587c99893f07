"""What people mean to write in YAML, told from what they wrote: the mistakes that everybody makes once.

A parser says what it could not go on with. A person wants to know which character it is and what to write instead.
Pure: text and places in, sentences out. Values are never repeated, since one may be a secret; a wildcard name is, being
none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

import yaml

_WILDCARD = re.compile(r"\*\.[A-Za-z0-9_.-]{1,253}", re.ASCII)
_LATER_WILDCARD = re.compile(r"(?:^|[\s\[{,])(?P<name>\*\.[A-Za-z0-9_.-]{1,253})(?=[\s,\]}]|\Z)", re.ASCII)
_NO_DASH_SPACE = re.compile(r"\s*-(?![-\s.])")
_NO_COLON_SPACE = re.compile(r"\s*(?:- )?[A-Za-z_][A-Za-z0-9_.-]*:[^\s:/]")
_TWO_COLONS = re.compile(r"[^#]*?:\s[^#\"']*:(?:\s|\Z)")

_INVISIBLE = (
    "\u00a0\u00ad\u1680\u180e\u2000-\u200d\u2028\u2029\u202a-\u202f\u205f\u2060-\u2064\u2066-\u206f\u3000\ufeff"
)
_QUOTES = "\u2018-\u201f\u00ab\u00bb\u2039\u203a\u300c-\u300f\u2032\u2033\uff02\uff07\u00b4"
_WIDE = {
    "\uff1a": ":",
    "\uff0c": ",",
    "\uff0d": "-",
    "\uff03": "#",
    "\uff3b": "[",
    "\uff3d": "]",
    "\uff5b": "{",
    "\uff5d": "}",
}
_DASHES = "\u2010-\u2015\u2212"

_ODD = re.compile(f"[{_INVISIBLE}]")
_QUOTED = re.compile(f"\\A[{_QUOTES}]|[{_QUOTES}]\\Z")
_LIST_DASH = re.compile(f"\\A[{_DASHES}]\\s")
_WIDE_ONE = re.compile(f"[{''.join(map(re.escape, _WIDE))}]")
_STRUCTURE = re.compile(f"[{_INVISIBLE}{_QUOTES}{''.join(map(re.escape, _WIDE))}]|^\\s*[{_DASHES}](?=\\s)")


class Mistake(NamedTuple):
    """One mistake: its line from 1 if it has one, what is wrong, and what to do.

    `by_character` tells one that `odd_character` tells too, where the parser got as far as the text that holds it.
    """

    line: int | None
    message: str
    remedy: str
    by_character: bool = False


def odd_character(raw: str, line: int, *, plain: bool) -> Mistake | None:
    """The first character in a value or key, as it stands in the file from `line` on, that only looks like another.

    Args:
        raw: The text as written, quotes and escapes included: who writes an escape means it.
        line: Where it begins.
        plain: Whether it stands without quotes; in quotes only what can't be seen counts.
    """
    if raw.isascii():
        return None
    if (found := _ODD.search(raw)) is not None:
        what = f"holds {_name(found[0])}, which can't be seen"
        remedy = f'type it anew; where it is meant, write "\\u{ord(found[0]):04x}" in double quotes'
        return Mistake(line + raw.count("\n", 0, found.start()), what, remedy)
    message, remedy = _look_alike(raw) if plain else ("", "")
    return Mistake(line, message, remedy) if message else None


def _look_alike(raw: str) -> tuple[str, str]:
    """What stands in an unquoted text as if it were a part of YAML, and the remedy; empty texts if nothing does."""
    if (found := _QUOTED.search(raw)) is not None:
        return f"is in typographic quotes ({found[0]}), which are no quotes to YAML", "write \" or '"
    if _LIST_DASH.search(raw) is not None:
        return f"begins with {_name(raw[0])} instead of a hyphen", "write `- ` in front of a list's items"
    if (found := _WIDE_ONE.search(raw)) is not None:
        return f"holds {_name(found[0])}", f"write `{_WIDE[found[0]]}`, or put the text in quotes"
    return "", ""


def syntax_mistakes(text: str, error: yaml.MarkedYAMLError) -> Iterator[Mistake]:
    """What is wrong where the parser gave up, most likely cause first; always one or more."""
    context = error.context or ""
    begins_there = any(word in context for word in ("an alias", "an anchor", "a tag", "a directive", "quoted scalar"))
    mark = (error.context_mark if begins_there else None) or error.problem_mark or error.context_mark
    if mark is None:
        yield Mistake(None, _said(error), "check indentation, quotes and colons")
        return
    lines = text.splitlines()
    here = lines[mark.line] if mark.line < len(lines) else ""
    rest = here[mark.column :]
    if rest.startswith("*") and (name := _WILDCARD.match(rest)) is not None:
        yield from _unquoted_wildcards(lines, mark.line, name[0])
    elif rest[:1] and rest[0] in "*&!%@`" and "mapping values" not in (error.problem or ""):
        yield Mistake(mark.line + 1, f"a text that begins with {rest[0]} needs quotes", f'write "{rest[0]}..."')
    elif rest.startswith("\t") or "\t" in here[: len(here) - len(here.lstrip())]:
        yield Mistake(mark.line + 1, "a tab stands where only spaces may", "indent with spaces")
    elif "quoted scalar" in context and "end of stream" in (error.problem or ""):
        yield Mistake(
            mark.line + 1, "a quote is opened here and never closed", f"close it with {rest[:1] or 'a quote'}"
        )
    else:
        yield _near(lines, mark.line, error)


def glued_item(text: str) -> str:
    """The remedy where a list was meant and a text is there."""
    if text.startswith("-") and not text.startswith("--"):
        return "put a space after each `-`"
    return "write each item in a line of its own after `- `"


def _unquoted_wildcards(lines: list[str], first: int, name: str) -> Iterator[Mistake]:
    """All of them: whoever forgets the quotes of one forgets those of the others, and a parser stops at the first."""
    yield Mistake(first + 1, f'a name that begins with * needs quotes: "{name}"', "")
    for number, line in enumerate(lines[first + 1 :], first + 2):
        if line.lstrip().startswith("#") or '"' in line or "'" in line:
            continue
        if (found := _LATER_WILDCARD.search(line)) is not None:
            yield Mistake(number, f'a name that begins with * needs quotes: "{found["name"]}"', "")


def _near(lines: list[str], number: int, error: yaml.MarkedYAMLError) -> Mistake:
    """The cause in the line where the parser stopped, or in one before: it often notices a line late."""
    before = [
        earlier for earlier in range(number - 1, -1, -1) if lines[earlier : earlier + 1] and lines[earlier].strip()
    ]
    begun = error.context_mark.line if error.context_mark is not None else number
    for candidate in dict.fromkeys([number, begun, *before[:1]]):
        line = lines[candidate] if candidate < len(lines) else ""
        line = line.partition(" #")[0]
        if line.lstrip().startswith("#"):
            continue
        if (odd := _STRUCTURE.search(line)) is not None:
            character = odd[0].strip() or odd[0]
            instead = _WIDE.get(character, "")
            what = f"{_name(character)} stands here"
            remedy = f"write `{instead}`" if instead else "type it anew, in plain ASCII"
            return Mistake(candidate + 1, what, remedy, by_character=True)
        if _NO_DASH_SPACE.match(line):
            return Mistake(candidate + 1, "a list's item lacks the space after its `-`", "write `- ` in front of it")
    for candidate in dict.fromkeys([begun, number]):
        line = lines[candidate] if candidate < len(lines) else ""
        if _NO_COLON_SPACE.match(line):
            return Mistake(candidate + 1, "a key lacks the space after its colon", "write `key: value`")
    if "mapping values" in (error.problem or "") and number < len(lines) and _TWO_COLONS.match(lines[number]):
        return Mistake(number + 1, _said(error), "put a text that holds `: ` in quotes")
    return Mistake(number + 1, _said(error), "check indentation, quotes and colons here and just above")


def _said(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)


def _name(character: str) -> str:
    shown = f" {character}" if character.isprintable() and not character.isspace() else ""
    return f"{unicodedata.name(character, 'a character without a name').lower()}{shown} (U+{ord(character):04X})"
