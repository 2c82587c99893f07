"""Nodes of a configuration file into frozen dataclasses, told what to expect by their annotations.

A section is a dataclass; its fields are the section's keys, its defaults the format's. Understood: `str` (the text as
it stands), `bool`, `int`, `timedelta` (`certplane.config.durations`), `Path`, string enums, types with a `parse` class
method that raises `ValueError`, nested sections, `tuple[X, ...]`, `Mapping[str, X]`, and `X | None`. A field of
the type `Source` is no key: it gets the file's own. A section with a `shorthand` may also be written as a text, which
is then the value of that key alone (`account_key: FILE`), and one with `listed` as a list (`limits: [...]`).

A key without a value (`key:`) counts as not written. Booleans are those of YAML 1.1, which the format's files were
written for: true/false, yes/no, on/off, unquoted. Numbers are decimal and unquoted. A text for which a section gives
no default must not be empty. What a type can't say is an annotation `Annotated[int, Check(...)]`, or, for rules over
several keys, a section's `problems` method.

Nothing stops at the first mistake: every key that can be judged is. Values are quoted in messages only where they are
one of a few words, so that a secret written in the wrong place is not repeated.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path, PosixPath
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

from certplane.config.document import Document, Entry, MappingNode, Node, ScalarNode, SequenceNode, Source
from certplane.config.durations import DurationError, parse_duration
from certplane.config.mistakes import glued_item
from certplane.errors import ConfigurationError, ConfigurationProblem

T = TypeVar("T")

_VARIABLE = re.compile(r"\$[A-Za-z_{(]")
_SLASHES = re.compile(r"\A//+")
_TRUE = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})", re.ASCII)


class RelativePath(PosixPath):
    """A path that may be relative, where a section says to what. A plain `Path`, which may be written, is absolute."""


class InputPath(PosixPath):
    """A file that is only read. Relative, it begins where the program was started, as the public format has it.

    It is made whole when it is decoded, so that messages show which file it is.
    """


@dataclass(frozen=True, slots=True)
class Check:
    """In `Annotated[X, Check(rule)]`: `rule` is given the decoded value and returns the problem with it, or None."""

    rule: Callable[[Any], str | None]


@dataclass(frozen=True, slots=True)
class KeyProblem:
    """What a section finds wrong with one of its keys; `key` is relative to the section."""

    key: str
    message: str
    remedy: str = ""


@runtime_checkable
class Checked(Protocol):
    """A section with rules over several of its keys, asked once each key by itself is right."""

    def problems(self) -> Iterable[KeyProblem]:
        """All that is wrong."""
        ...


def decode(document: Document, section: type[T]) -> T:
    """A whole file as `section`.

    Raises:
        ConfigurationError: everything that is wrong with it, in the file's order.
    """
    decoder = Decoder(document.source)
    value = decoder.section(document.root, section)
    decoder.finish()
    assert value is not None
    return value


class Decoder:
    """Decodes nodes of one file, collecting problems. A value that can't be decoded is None, its problem noted."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._problems: list[ConfigurationProblem] = []

    def add(self, key: str, message: str, remedy: str = "") -> None:
        """Note a problem with the value at `key`, the path from the top."""
        self._problems.append(self._source.problem(key, message, remedy))

    def finish(self) -> None:
        """End the reading.

        Raises:
            ConfigurationError: there were problems.
        """
        if self._problems:
            raise ConfigurationError(sorted(self._problems, key=lambda problem: problem.line or 0))

    def section(self, node: Node, section: type[T]) -> T | None:
        """The section at `node`, None if anything in it is wrong."""
        node = _written_out(node, section)
        if not isinstance(node, MappingNode):
            self.add(node.key, "must be keys with values", "indent its keys below it")
            return None
        before = len(self._problems)
        form = _form(typing.cast("Any", section))
        values: dict[str, Any] = dict.fromkeys(form.sources, self._source)
        if not node.entries.keys() <= form.keys.keys():
            self._report_unknown(node, form.keys)
        for name, key in form.keys.items():
            entry = node.entries.get(name)
            if entry is None or (isinstance(entry.value, ScalarNode) and entry.value.is_null):
                self._take_default(node.key, key, values)
                continue
            value = key.read(self, entry.value)
            if value is None:
                continue
            if value == "" and key.required:
                self.add(_join(node.key, name), "must not be empty")
                continue
            values[name] = value
        if len(self._problems) > before:
            return None
        decoded = section(**values)
        if form.checked:
            for found in typing.cast("Checked", decoded).problems():
                self.add(_join(node.key, found.key), found.message, found.remedy)
        return decoded if len(self._problems) == before else None

    def value(self, node: Node, annotation: Any) -> Any:
        """The value at `node` as `annotation` says, None if it is wrong."""
        return _reader(annotation)(self, node)

    def checked(self, node: Node, read: _Read, checks: Iterable[Check]) -> Any:
        """What `read` makes of it, None if one of `checks` finds it wrong."""
        value = read(self, node)
        for check in checks:
            if value is not None and (problem := check.rule(value)) is not None:
                self.add(node.key, problem)
                return None
        return value

    def items(self, node: Node, read: _Read) -> tuple[Any, ...] | None:
        """A list, each item by `read`."""
        if not isinstance(node, SequenceNode):
            remedy = glued_item(node.text) if isinstance(node, ScalarNode) else glued_item("")
            self.add(node.key, "must be a list", remedy)
            return None
        values = tuple([read(self, item) for item in node.items])
        return None if any(value is None for value in values) else values

    def mapping(self, node: Node, read: _Read) -> Mapping[str, Any] | None:
        """Names with values, each by `read`."""
        if not isinstance(node, MappingNode):
            self.add(node.key, "must be names with values", "indent its names below it")
            return None
        values = {name: read(self, entry.value) for name, entry in node.entries.items()}
        return None if any(value is None for value in values.values()) else values

    def scalar(self, node: Node, annotation: Any) -> Any:
        """A text, or what is read from one."""
        if not isinstance(node, ScalarNode):
            kind = "a list" if isinstance(node, SequenceNode) else "keys with values"
            self.add(node.key, f"must be {_describe(annotation)}, not {kind}")
            return None
        try:
            return _read_scalar(node, annotation)
        except ValueError as error:
            self.add(node.key, str(error))
            return None

    def _take_default(self, section: str, key: _Key, values: dict[str, Any]) -> None:
        """Leave the key to the dataclass's default; a section that isn't written is one without keys."""
        if not key.required:
            return
        path = _join(section, key.name)
        if _is_section(key.annotation) and not hasattr(key.annotation, "shorthand"):
            values[key.name] = self.section(MappingNode(0, path, {}), key.annotation)
            return
        self.add(path, "is required", f"add `{key.name}: ...`")

    def _report_unknown(self, node: MappingNode, known: Iterable[str]) -> None:
        names = list(known)
        for name in node.entries:
            if name not in names:
                import difflib  # noqa: PLC0415 - a file without a mistake needs none of it

                nearest = difflib.get_close_matches(name, names, n=1)
                remedy = f"did you mean `{nearest[0]}`?" if nearest else f"known here: {', '.join(names)}"
                self.add(_join(node.key, name), "is not a known key", remedy)


_Read = Callable[[Decoder, Node], Any]
"""Reads the value at a node, None if it is wrong."""


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of a section; without a default it is required."""

    name: str
    annotation: Any
    required: bool
    read: _Read


@dataclass(frozen=True, slots=True)
class _Form:
    """What a section's dataclass says: its keys, the fields that get the file's own `Source`, whether it has rules."""

    keys: Mapping[str, _Key]
    sources: tuple[str, ...]
    checked: bool


@functools.cache
def _form(section: Any) -> _Form:
    """The form of a section. Found once: resolving annotations costs more than reading a host of a policy."""
    hints = typing.get_type_hints(section, include_extras=True)
    specs = [spec for spec in dataclasses.fields(section) if spec.init]
    keys = [
        _Key(
            spec.name,
            hints[spec.name],
            spec.default is MISSING and spec.default_factory is MISSING,
            _reader(hints[spec.name]),
        )
        for spec in specs
        if hints[spec.name] is not Source
    ]
    sources = tuple(spec.name for spec in specs if hints[spec.name] is Source)
    return _Form({key.name: key for key in keys}, sources, issubclass(section, Checked))


@functools.cache
def _reader(annotation: Any) -> _Read:
    """What reads the values of an annotation, found once as well."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        checks = tuple(extra for extra in arguments[1:] if isinstance(extra, Check))
        return functools.partial(Decoder.checked, read=_reader(arguments[0]), checks=checks)
    if origin in {types.UnionType, typing.Union}:
        (annotation,) = (argument for argument in arguments if argument is not types.NoneType)
        return _reader(annotation)
    if origin is tuple:
        return functools.partial(Decoder.items, read=_reader(arguments[0]))
    if origin is Mapping:
        return functools.partial(Decoder.mapping, read=_reader(arguments[1]))
    if _is_section(annotation):
        return functools.partial(Decoder.section, section=annotation)
    return functools.partial(Decoder.scalar, annotation=annotation)


def _written_out(node: Node, section: type) -> Node:
    """A text in place of a section that has a shorthand, or a list where one has that for lists, as that section."""
    wanted = "shorthand" if isinstance(node, ScalarNode) else "listed" if isinstance(node, SequenceNode) else ""
    key = getattr(section, wanted, None)
    return node if key is None else MappingNode(node.line, node.key, {key: Entry(node.line, node)})


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and not hasattr(annotation, "parse")


def _read_scalar(node: ScalarNode, annotation: Any) -> Any:
    """The scalar as `annotation`; ValueError says what it must be."""
    if reader := _READERS.get(annotation):
        return reader(node)
    if hasattr(annotation, "parse"):
        return annotation.parse(node.text)
    assert issubclass(annotation, StrEnum), annotation
    try:
        return annotation(node.text)
    except ValueError:
        raise ValueError(f"is {node.text[:40]!a}, must be one of {', '.join(annotation)}") from None


def _read_text(node: ScalarNode) -> str:
    return node.text


def _read_boolean(node: ScalarNode) -> bool:
    if node.plain and node.text in _TRUE | _FALSE:
        return node.text in _TRUE
    raise ValueError("must be true or false, without quotes")


def _read_integer(node: ScalarNode) -> int:
    if node.plain and _INTEGER.fullmatch(node.text):
        return int(node.text)
    raise ValueError("must be a whole number, without quotes")


def _read_path(node: ScalarNode) -> Path:
    path = _path(node.text)
    if not path.is_absolute():
        raise ValueError("is a relative path, which means another file in each folder; write the whole path, from / on")
    return path


def _read_relative_path(node: ScalarNode) -> Path:
    return RelativePath(_path(node.text))


def _read_input_path(node: ScalarNode) -> Path:
    return InputPath(Path.cwd() / _path(node.text))


def _path(text: str) -> Path:
    """A path as it stands: nobody expands what a shell would, so that it would be a folder called `~` or `$HOME`."""
    if not text or "\0" in text:
        raise ValueError("must be the path of a file")
    if text.startswith("~"):
        raise ValueError("begins with ~, which only a shell expands; write the whole path, from / on")
    if _VARIABLE.search(text):
        raise ValueError("has a variable ($...), which only a shell expands; write the whole path, from / on")
    return Path(_SLASHES.sub("/", text))


def _read_duration(node: ScalarNode) -> timedelta:
    text = node.text
    try:
        return parse_duration(text)
    except DurationError as error:
        if re.fullmatch(r"\d{1,9}", text, re.ASCII):
            raise ValueError(f"needs a unit; write {text}s, {text}m or {text}h") from error
        if days := re.fullmatch(r"(\d{1,6})d", text, re.ASCII):
            raise ValueError(f"has no unit for days; write {int(days[1]) * 24}h") from error
        raise


_READERS: dict[Any, Callable[[ScalarNode], Any]] = {
    str: _read_text,
    bool: _read_boolean,
    int: _read_integer,
    Path: _read_path,
    RelativePath: _read_relative_path,
    InputPath: _read_input_path,
    timedelta: _read_duration,
}


def _describe(annotation: Any) -> str:
    names = {
        bool: "true or false",
        int: "a whole number",
        timedelta: "a duration",
        Path: "a path",
        RelativePath: "a path",
        InputPath: "a path",
    }
    return names.get(annotation, "a text")


def _join(section: str, key: str) -> str:
    return f"{section}.{key}" if section else key
