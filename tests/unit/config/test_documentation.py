"""docs/configuration.md against the sections that the programs decode: every key, every default, and nothing else."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.agent import settings as agent
from certplane.broker import settings as broker
from certplane.broker.policy import document as policy
from certplane.broker.policy.entries import PolicyFile
from certplane.caller import settings as caller
from certplane.config.document import Source
from certplane.config.durations import format_duration
from certplane.ctl import settings as ctl

_DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"
_FILES = {
    "agent.yml": agent.AgentSettings,
    "broker.yml": broker.BrokerSettings,
    "policy.yml": PolicyFile,
    "ctl.yml": ctl.CtlSettings,
    "client.yml": caller.ClientSettings,
}
_LOADERS: dict[str, Callable[[Path], object]] = {
    "agent.yml": agent.load_settings,
    "broker.yml": broker.load_settings,
    "policy.yml": policy.load_policy,
    "ctl.yml": ctl.load_settings,
    "client.yml": caller.load_settings,
}
_ROW = re.compile(r"^\| `([^`]+)` \| (.*?) \| (.+) \|$")
_NO_DEFAULT = {dataclasses.MISSING: "required", None: "none", "": "none", (): "none"}


def keys(section: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each key of a section with its default as the document writes it."""
    hints = typing.get_type_hints(section, include_extras=True)
    for field in dataclasses.fields(section):
        if hints[field.name] is Source:
            continue
        path = f"{prefix}{field.name}"
        below, joint = _section_of(hints[field.name])
        if hasattr(below, "shorthand"):  # may also be written as a text
            yield path, _default(field)
        if below is not None:
            yield from keys(below, f"{path}{joint}.")
        else:
            yield path, _default(field)


def _section_of(annotation: Any) -> tuple[type | None, str]:
    """The section that an annotation holds, and how its keys are joined to it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in {types.UnionType, typing.Union, typing.Annotated}:
        return _section_of(arguments[0])
    if origin is tuple:
        below, _ = _section_of(arguments[0])
        return below, "[]"
    if origin is not None and issubclass(origin, Mapping):
        below, _ = _section_of(arguments[1])
        return below, ".NAME"
    # A section has plain fields that keys are decoded into; types with `parse` are values.
    is_section = dataclasses.is_dataclass(annotation) and not hasattr(annotation, "parse")
    return (annotation if is_section else None), ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING and not field.default_factory():
        return "none"
    default = field.default
    if default in _NO_DEFAULT:
        return _NO_DEFAULT[default]
    if isinstance(default, tuple):
        return f"`[{', '.join(_text(item) for item in default)}]`"
    return f"`{_text(default)}`"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        return format_duration(value)
    return str(value.value) if isinstance(value, Enum) else str(value)


def documented(file: str) -> dict[str, str]:
    """The keys of a file's chapter in the document with their defaults."""
    text = _DOCUMENT.read_text(encoding="utf-8")
    chapter = text.partition(f"\n## {file}\n")[2].partition("\n## ")[0]
    rows = [match for line in chapter.splitlines() if (match := _ROW.match(line))]
    assert len({row[1] for row in rows}) == len(rows), "a key is told twice"
    return {row[1]: row[2] for row in rows}


@pytest.mark.parametrize("file", _FILES)
def test_every_key_is_documented(file: str) -> None:
    """A key that a program reads has a row, and a row is a key that a program reads."""
    assert sorted(documented(file)) == sorted(dict(keys(_FILES[file])))


@pytest.mark.parametrize("file", _FILES)
def test_defaults_are_those_of_the_programs(file: str) -> None:
    """What the document says is the default is what a file without the key gets."""
    assert documented(file) == dict(keys(_FILES[file]))


@pytest.mark.parametrize("file", _FILES)
def test_examples_load(file: str, tmp_path: Path) -> None:
    """The document's example of each file is one that the program takes."""
    chapter = _DOCUMENT.read_text(encoding="utf-8").partition(f"\n## {file}\n")[2]
    example = tmp_path / file
    example.write_text(chapter.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    _LOADERS[file](example)


def _examples() -> list[str]:
    """The YAML examples of broker.yml's chapter after the first, which is a whole file; the policy's are left out."""
    chapter = _DOCUMENT.read_text(encoding="utf-8").partition("\n## broker.yml\n")[2].partition("\n## ")[0]
    return [block.partition("```")[0] for block in chapter.split("```yaml\n")[2:] if not block.startswith("profiles:")]


def _monitoring_examples() -> list[str]:
    """Those of docs/monitoring.md that are of broker.yml: who is told, and where the audit log is copied to."""
    text = (_DOCUMENT.parent / "monitoring.md").read_text(encoding="utf-8")
    blocks = (block.partition("```")[0] for block in text.split("```yaml\n")[1:])
    return [block for block in blocks if block.startswith(("notifications:", "audit:"))]


@pytest.mark.parametrize("example", [*_examples(), *_monitoring_examples()])
def test_examples_of_parts_load(example: str, tmp_path: Path) -> None:
    """An example of some keys is right in the small file."""
    chapter = _DOCUMENT.read_text(encoding="utf-8").partition("\n## broker.yml\n")[2]
    whole = yaml.safe_load(chapter.partition("```yaml\n")[2].partition("```")[0])
    _merge(whole, yaml.safe_load(example))
    file = tmp_path / "broker.yml"
    file.write_text(yaml.safe_dump(whole), encoding="utf-8")
    broker.load_settings(file)


def _merge(into: dict[str, Any], part: dict[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
