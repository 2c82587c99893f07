"""A YAML file as nodes that know their line, for those who must tell a person what is wrong and where.

Read from the parser's events, not from its objects: a scalar stays the text that stands in the file (`1.2` is "1.2"),
and nothing is resolved or constructed. Anchors, aliases and merge keys (`<<`) are followed, as far as `MAX_COPIES`
nodes: what is named twice stands once, with the line where it is written. Refused: tags, several documents, duplicate
keys, keys that aren't texts, characters that can't be seen, other encodings than UTF-8, more than `MAX_BYTES`, than
`MAX_NODES` values, than `MAX_DEPTH` levels, than `MAX_PATHS` characters of paths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml

from certplane.config.files import is_input, read_argument
from certplane.config.mistakes import Mistake, odd_character, syntax_mistakes
from certplane.errors import ConfigurationError, ConfigurationProblem

MAX_BYTES = 16 * 1024 * 1024
"""A policy for a hundred thousand hosts has about ten."""

MAX_DEPTH = 20
MAX_NODES = 2_000_000
"""Values of a file, those that aliases add included: twenty for each host of a large policy, half a gigabyte."""

MAX_COPIES = 400_000
"""Of these, what aliases and merge keys may add: four for each host of a large policy, and no billion."""

MAX_PATHS = 256 * 1024 * 1024
"""Characters of all values' paths (`policy.profiles.web`) together, which hold the keys above each value: thrice what a
large policy has. One long key above many values takes more than all else."""

_MAX_PROBLEMS = 100

_Loader: type[yaml.SafeLoader | yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Struct(msgspec.Struct, frozen=True, gc=False):
    """What nodes are: a large policy has a million of them.

    Made in C, a third of a frozen dataclass's time; and passed over by the garbage collector, which would go through
    all of them again and again while they are made. Nodes make no cycles: an alias inside of its own anchor is refused.
    """


class ScalarNode(_Struct, frozen=True, gc=False):
    """A text. `plain` tells an unquoted one, which alone can be a number, a boolean or nothing."""

    line: int
    key: str
    text: str
    plain: bool

    @property
    def is_null(self) -> bool:
        """Whether the file says nothing here: `key:`, `key: ~`, `key: null`."""
        return self.plain and self.text in {"", "~", "null", "Null", "NULL"}


class SequenceNode(_Struct, frozen=True, gc=False):
    """A list."""

    line: int
    key: str
    items: tuple[Node, ...]


class Entry(_Struct, frozen=True, gc=False):
    """One key of a mapping: where the key stands, and its value."""

    line: int
    value: Node


class MappingNode(_Struct, frozen=True, gc=False):
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
    text: bytes = field(default=b"", repr=False, compare=False)
    """The file's bytes, for whoever has to read them again; empty unless that was asked for."""

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

    def entries(self) -> list[Entry]:
        """What stands below the keys of the file, for who frees a large document in pieces (`let_go`)."""
        sections = [entry.value for entry in self.root.entries.values()]
        return [entry for section in sections if isinstance(section, MappingNode) for entry in section.entries.values()]

    @classmethod
    def read(cls, path: Path, *, keep_text: bool = False) -> Document:
        """Read and parse a file; `-` is standard input. `keep_text`: the source has its bytes.

        Raises:
            ConfigurationError: it can't be read, or isn't what this module accepts.
        """
        name = "standard input" if is_input(path) else str(path)
        return cls.parse(read_argument(path, max_bytes=MAX_BYTES), name, keep_text=keep_text)

    @classmethod
    def parse(cls, content: bytes, file: str, *, keep_text: bool = False) -> Document:
        """Parse a file's content; `file` is the name that problems carry, `keep_text` as in `read`.

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
        builder = _Builder(file, text)
        root = builder.build()
        sha256 = hashlib.sha256(content).hexdigest()
        return cls(Source(file, sha256, builder.lines, content if keep_text else b""), root)


class _Builder:
    """Turns the parser's events into nodes, collecting problems as far as the text can be parsed."""

    def __init__(self, file: str, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._file = file
        self._text = text
        self._all_ascii = text.isascii()
        self._anchors: dict[str, Node | None] = {}
        self._nodes = self._paths = 0
        self._copies = 0
        self._problems: list[ConfigurationProblem] = []

    def build(self) -> MappingNode:
        root: Node | None = None
        try:
            events = iter(yaml.parse(self._text, Loader=_Loader))
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        self._fail(event, "", "a second document begins here", "keep one document a file")
                    root = self._node(next(events), events, "", 0)
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from error
        except yaml.YAMLError as error:  # a character that YAML doesn't allow
            message = "is not YAML: it has a control character, which YAML doesn't allow"
            remedy = "remove it, or write it as an escape in double quotes"
            position = getattr(error, "position", None)
            line = None if position is None else self._text.count("\n", 0, position) + 1
            raise ConfigurationError([ConfigurationProblem(self._file, line, "", message, remedy)]) from error
        if self._problems:
            raise ConfigurationError(sorted(self._problems[:_MAX_PROBLEMS], key=lambda problem: problem.line or 0))
        if root is None or (isinstance(root, ScalarNode) and root.is_null):
            return MappingNode(1, "", {})
        if not isinstance(root, MappingNode):
            problem = ConfigurationProblem(self._file, root.line, "", "must be keys with values", "write `key: value`")
            raise ConfigurationError([problem])
        return root

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, depth: int) -> Node:
        if depth > MAX_DEPTH:
            # Nothing that follows can be told without going deeper: stop here.
            raise ConfigurationError([self._problem(event, key, f"is nested deeper than {MAX_DEPTH} levels")])
        self._count(event, key)
        if type(event) is yaml.ScalarEvent and self._all_ascii and event.anchor is None and event.tag is None:
            return ScalarNode(_line(event), key, event.value, _is_plain(event))  # nearly all of a large file
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, key, depth)
        assert isinstance(event, yaml.NodeEvent)
        if event.anchor is not None:
            if event.anchor in self._anchors:
                self._fail(event, key, f"has an anchor that is there already (&{event.anchor})", "name it differently")
            self._anchors[event.anchor] = None  # until it is whole: an alias inside of it has no end
        node = self._value(event, events, key, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _count(self, event: yaml.Event, key: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise ConfigurationError([self._problem(event, key, f"has over {MAX_NODES} values")])
        self._paths += len(key)
        if self._paths > MAX_PATHS:
            remedy = "shorten the longest key above it"
            raise ConfigurationError([self._problem(event, key, "has too many values below long keys", remedy)])

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self._fail(event, key, f"has a tag ({event.tag})", "remove it, or quote a text that begins with !")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(_line(event), events, key, depth)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(_line(event), events, key, depth)
        assert isinstance(event, yaml.ScalarEvent)
        self._check_characters(event, key)
        return ScalarNode(_line(event), key, event.value, plain=_is_plain(event))

    def _alias(self, event: yaml.AliasEvent, key: str, depth: int) -> Node:
        """What the anchor names, as if it were written here."""
        name = event.anchor or ""
        if (node := self._anchors.get(name)) is not None:
            return self._copied(event, node, key, depth)
        if name in self._anchors:
            self._fail(event, key, f"is an alias of a value that contains it (*{name})", "write the value out")
        else:
            self._fail(
                event,
                key,
                f"is an alias of nothing (*{name})",
                f'a text that begins with * needs quotes: "*{name}"; else write &{name} above',
            )
        return ScalarNode(_line(event), key, "", plain=False)

    def _copied(self, event: yaml.Event, node: Node, key: str, depth: int) -> Node:
        self._count(event, key)
        self._copies += 1
        if self._copies > MAX_COPIES:
            raise ConfigurationError([self._problem(event, key, f"makes over {MAX_COPIES} values by aliases")])
        if depth > MAX_DEPTH:
            raise ConfigurationError([self._problem(event, key, f"is nested deeper than {MAX_DEPTH} levels")])
        match node:
            case ScalarNode():
                return ScalarNode(node.line, key, node.text, plain=node.plain)
            case SequenceNode():
                items: list[Node] = []
                for number, item in enumerate(node.items):
                    self.lines[f"{key}[{number}]"] = item.line
                    items.append(self._copied(event, item, f"{key}[{number}]", depth + 1))
                return SequenceNode(node.line, key, tuple(items))
            case MappingNode():
                entries: dict[str, Entry] = {}
                for name, entry in node.entries.items():
                    self.lines[f"{key}.{name}"] = entry.line
                    entries[name] = Entry(entry.line, self._copied(event, entry.value, f"{key}.{name}", depth + 1))
                return MappingNode(node.line, key, entries)

    def _sequence(self, line: int, events: Iterator[yaml.Event], key: str, depth: int) -> SequenceNode:
        items: list[Node] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            item_key = f"{key}[{len(items)}]"
            self.lines[item_key] = _line(event)
            items.append(self._node(event, events, item_key, depth + 1))
        return SequenceNode(line, key, tuple(items))

    def _mapping(self, line: int, events: Iterator[yaml.Event], key: str, depth: int) -> MappingNode:
        entries: dict[str, Entry] = {}
        merges: list[tuple[yaml.Event, Node]] = []
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            name = self._key(event, events, key, depth)
            path = f"{key}.{name}" if key else name
            value = self._node(next(events), events, path, depth + 1)
            entry_line = _line(event)
            if name == "<<" and isinstance(event, yaml.ScalarEvent) and _is_plain(event):
                merges.append((event, value))
                continue
            if name in entries:
                first = entries[name].line
                self._fail(event, path, f"is written twice, first in line {first}", "keep one of the two")
                continue
            self.lines.setdefault(path, entry_line)
            entries[name] = Entry(entry_line, value)
        for event, value in merges:
            self._merge(event, value, entries, key, depth)
        return MappingNode(line, key, entries)

    def _merge(self, event: yaml.Event, value: Node, entries: dict[str, Entry], key: str, depth: int) -> None:
        """Add what isn't written here (https://yaml.org/type/merge.html): the first of several mappings wins."""
        for source in value.items if isinstance(value, SequenceNode) else (value,):
            if not isinstance(source, MappingNode):
                self._fail(event, key, "merges (<<) something that is not keys with values", "merge an alias of such")
                continue
            for name, entry in source.entries.items():
                path = f"{key}.{name}" if key else name
                if name not in entries:
                    self.lines[path] = entry.line
                    entries[name] = Entry(entry.line, self._copied(event, entry.value, path, depth + 1))

    def _key(self, event: yaml.Event, events: Iterator[yaml.Event], key: str, depth: int) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, events, key, depth + 1)
            self._fail(event, key, "has a key that is not a text", "write it as `key: value`")
            return ""
        if event.anchor is not None or event.tag is not None:
            self._fail(event, key, "has a key with an anchor or a tag", "remove it")
        self._check_characters(event, key)
        return str(event.value)

    def _check_characters(self, event: yaml.ScalarEvent, key: str) -> None:
        if self._all_ascii or event.start_mark is None or event.end_mark is None:
            return
        raw = self._text[event.start_mark.index : event.end_mark.index]
        if (mistake := odd_character(raw, _line(event), plain=_is_plain(event))) is not None:
            self._problems.append(self._of(mistake, _shown(key)))

    def _problem(self, event: yaml.Event, key: str, message: str, remedy: str = "") -> ConfigurationProblem:
        return ConfigurationProblem(self._file, _line(event), _shown(key), message, remedy)

    def _fail(self, event: yaml.Event, key: str, message: str, remedy: str) -> None:
        self._problems.append(self._problem(event, key, message, remedy))

    def _of(self, mistake: Mistake, key: str = "") -> ConfigurationProblem:
        return ConfigurationProblem(self._file, mistake.line, key, mistake.message, mistake.remedy)

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> ConfigurationError:
        told = {problem.line for problem in self._problems}
        found = [
            self._of(mistake._replace(message=f"is not YAML: {mistake.message}"))
            for mistake in syntax_mistakes(self._text, error)
            if not (mistake.by_character and mistake.line in told)
        ]
        return ConfigurationError([*self._problems, *found][:_MAX_PROBLEMS])


def _is_plain(event: yaml.ScalarEvent) -> bool:
    return event.style is None or event.style == ""


def _line(event: yaml.Event) -> int:
    """The line where an event begins, from 1; both parsers always set the mark, whatever the stubs say."""
    mark = event.start_mark
    return 1 if mark is None else mark.line + 1


def _shown(key: str) -> str:
    """A key for one line of text: control characters escaped, cut to a readable length."""
    text = key if key.isprintable() else ascii(key)[1:-1]
    return text if len(text) <= 200 else f"{text[:200]}..."
