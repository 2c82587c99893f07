"""A YAML file as nodes that know their line, for those who must tell a person what is wrong and where.

Read from the parser's events, not from its objects: a scalar stays the text that stands in the file (`1.2` is "1.2"),
and nothing is resolved, constructed or merged. Refused: aliases, anchors and merge keys (they hide what is configured,
and expand without bound), tags, several documents, duplicate keys, keys that aren't texts, other encodings than UTF-8,
more than `MAX_BYTES`, more than `MAX_DEPTH` levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from certplane.config.files import read_file
from certplane.errors import ConfigurationError, ConfigurationProblem

__all__ = ["MAX_BYTES", "MAX_DEPTH", "Document", "Entry", "MappingNode", "Node", "ScalarNode", "SequenceNode", "Source"]

MAX_BYTES = 4 * 1024 * 1024
"""A policy for ten thousand hosts has about one."""

MAX_DEPTH = 20
_MAX_PROBLEMS = 100

_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A text. `plain` tells an unquoted one, which alone can be a number, a boolean or nothing."""

    line: int
    key: str
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether the file says nothing here: `key:`, `key: ~`, `key: null`."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list."""

    line: int
    key: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping: where the key stands, and its value."""

    line: int
    value: Node


@dataclass(frozen=True, slots=True)
class MappingNode:
    """Keys and values, in the file's order; `key` is the path to it from the top, such as `server.tls`."""

    line: int
    key: str
    entries: Mapping[str, Entry]


Node = ScalarNode | SequenceNode | MappingNode


@dataclass(frozen=True)
class Source:
    """Which file something was read from: its path as given, SHA-256 of its bytes, and the line of each key."""

    file: str
    sha256: str
    lines: Mapping[str, int] = field(repr=False, compare=False)

    def problem(self, key: str, message: str, remedy: str = "") -> ConfigurationProblem:
        """A problem with the value of `key`, at its line, or at that of the nearest key above it which stands there."""
        above = key
        while above and above not in self.lines:
            above = above[: max(above.rfind("."), above.rfind("["), 0)]
        return ConfigurationProblem(self.file, self.lines.get(above), key, message, remedy)


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is well-formed."""

    source: Source
    root: MappingNode

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read and parse a file.

        Raises:
            ConfigurationError: it can't be read, or isn't what this module accepts.
        """
        return cls.parse(read_file(path, max_bytes=MAX_BYTES), str(path))

    @classmethod
    def parse(cls, content: bytes, file: str) -> Document:
        """Parse a file's content; `file` is the name that problems carry.

        Raises:
            ConfigurationError: as `read`.
        """
        if len(content) > MAX_BYTES:
            raise ConfigurationError([ConfigurationProblem(file, None, "", f"is larger than {MAX_BYTES} bytes")])
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            problem = ConfigurationProblem(file, line, "", "is not UTF-8", "save it as UTF-8")
            raise ConfigurationError([problem]) from error
        builder = _Builder(file)
        root = builder.build(text)
        return cls(Source(file, hashlib.sha256(content).hexdigest(), builder.lines), root)


class _Builder:
    """Turns the parser's events into nodes, collecting problems as far as the text can be parsed."""

    def __init__(self, file: str) -> None:
        self.lines: dict[str, int] = {}
        self._file = file
        self._problems: list[ConfigurationProblem] = []

    def build(self, text: str) -> MappingNode:
        root: Node | None = None
        try:
            events = iter(yaml.parse(text, Loader=_Loader))
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        self._fail(event, "", "a second document begins here", "keep one document a file")
                    root = self._node(next(events), events, "", 0)
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        except yaml.YAMLError as error:  # a character that YAML doesn't allow
            message = "is not YAML: it has a character that YAML doesn't allow"
            raise ConfigurationError([ConfigurationProblem(self._file, None, "", message)]) from error
        if self._problems:
            raise ConfigurationError(sorted(self._problems[:_MAX_PROBLEMS], key=lambda problem: problem.line or 0))
        if root is None or (isinstance(root, ScalarNode) and root.is_null):
            return MappingNode(1, "", {})
        if not isinstance(root, MappingNode):
            problem = ConfigurationProblem(self._file, root.line, "", "must be keys with values", "write `key: value`")
            raise ConfigurationError([problem])
        return root

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, depth: int) -> Node:
        line = _line(event)
        if depth > MAX_DEPTH:
            # Nothing that follows can be told without going deeper: stop here.
            raise ConfigurationError([self._problem(event, key, f"is nested deeper than {MAX_DEPTH} levels")])
        if isinstance(event, yaml.AliasEvent):
            self._fail(event, key, f"is an alias (*{event.anchor})", "write the value out")
            return ScalarNode(line, key, "", plain=False)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            self._fail(event, key, f"has an anchor (&{event.anchor})", "write values out where they are used")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._fail(event, key, f"has a tag ({event.tag})", "remove it")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(line, events, key, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(line, events, key, depth)
        assert isinstance(event, yaml.ScalarEvent)
        return ScalarNode(line, key, event.value, plain=event.style is None or event.style == "")

    def _sequence(self, line: int, events: Iterator[yaml.Event], key: str, depth: int) -> SequenceNode:
        items: list[Node] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            item_key = f"{key}[{len(items)}]"
            self.lines[item_key] = _line(event)
            items.append(self._node(event, events, item_key, depth + 1))
        return SequenceNode(line, key, tuple(items))

    def _mapping(self, line: int, events: Iterator[yaml.Event], key: str, depth: int) -> MappingNode:
        entries: dict[str, Entry] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            name = self._key(event, events, key, depth)
            path = f"{key}.{name}" if key else name
            value = self._node(next(events), events, path, depth + 1)
            entry_line = _line(event)
            if name in entries:
                first = entries[name].line
                self._fail(event, path, f"is written twice, first in line {first}", "keep one of the two")
                continue
            self.lines.setdefault(path, entry_line)
            entries[name] = Entry(entry_line, value)
        return MappingNode(line, key, entries)

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, depth: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, events, key, depth + 1)
            self._fail(event, key, "has a key that is not a text", "write it as `key: value`")
            return ""
        if event.anchor is not None or event.tag is not None:
            self._fail(event, key, "has a key with an anchor or a tag", "remove it")
        if event.value == "<<" and not event.style:
            self._fail(event, key, "has a merge key (<<)", "write the values out")
        return str(event.value)

    def _problem(self, event: yaml.Event, key: str, message: str, remedy: str = "") -> ConfigurationProblem:
        return ConfigurationProblem(self._file, _line(event), _shown(key), message, remedy)

    def _fail(self, event: yaml.Event, key: str, message: str, remedy: str) -> None:
        self._problems.append(self._problem(event, key, message, remedy))

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> ConfigurationError:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        what = " ".join(part for part in (error.context, error.problem) if part)
        remedy = "check indentation, quotes and colons here and just above"
        return ConfigurationError(
            [*self._problems, ConfigurationProblem(self._file, line, "", f"is not YAML: {what}", remedy)]
        )


def _line(event: yaml.Event) -> int:
    """The line where an event begins, from 1; both parsers always set the mark, whatever the stubs say."""
    mark = event.start_mark
    return 1 if mark is None else mark.line + 1


def _shown(key: str) -> str:
    """A key for one line of text: control characters escaped, cut to a readable length."""
    text = key if key.isprintable() else ascii(key)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."
