"""Hosts in a policy's text: who is there, and the text with one more or one less. Pure.

The text is edited where it stands, so that comments, order and layout stay: a policy is a person's file, and what is
proposed is read as a diff. What it means is the broker's to say (PlanPolicy); here only places are looked for.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import yaml

from certplane.config.values import canonical_identity_name
from certplane.errors import OperationError

_Loader: Final[type[yaml.SafeLoader | yaml.CSafeLoader]] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SECTIONS: Final = ("hosts", "services")
_PLAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*(:[A-Za-z0-9._/-]+)*", re.ASCII)
"""What needs no quotes in a flow mapping, unless YAML takes it for something else than a text."""
_BY_HAND: Final = "edit it by hand, see docs/configuration.md, and run this again"


@dataclass(frozen=True, slots=True)
class Holder:
    """A host or a service as the text has it; its identity as certificates have it."""

    section: str
    label: str
    identity: str
    profiles: tuple[str, ...]


class PolicyText:
    """A policy's text with the places of what is in it."""

    def __init__(self, text: str) -> None:
        """Read it.

        Raises:
            OperationError: it isn't YAML, or no mapping.
        """
        self._text = text
        try:
            root = yaml.compose(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise OperationError("the policy's text can't be read", remedy=_BY_HAND) from error
        if not isinstance(root, yaml.MappingNode):
            raise OperationError("the policy's text is no mapping", remedy=_BY_HAND)
        self._root = root

    def find(self, name: str) -> Holder | None:
        """The host or service with this identity, or else with this label; a host first."""
        identity = canonical(name)
        holders = [
            self._holder(section, label, node) for section in _SECTIONS for label, node in self._entries(section)
        ]
        by_identity = (each for each in holders if each.identity == identity)
        by_label = (each for each in holders if each.label == name)
        return next(by_identity, None) or next(by_label, None)

    def with_host(self, label: str, identity: str, profiles: Sequence[str]) -> str:
        """The text with a new host.

        Raises:
            OperationError: its layout leaves no place that this can see.
        """
        entry = f"{_scalar(label)}: {{identity: {_scalar(identity)}, profiles: [{', '.join(map(_scalar, profiles))}]}}"
        found = _child(self._root, "hosts")
        if found is None:
            end = "" if not self._text or self._text.endswith("\n") else "\n"
            return self._inserted(len(self._text), f"{end}hosts:\n  {entry}\n")
        return self._with_entry(found, entry)

    def with_profiles(self, holder: Holder, profiles: Sequence[str]) -> str:
        """The text with profiles added to those that a host or a service has.

        Raises:
            OperationError: as `with_host`.
        """
        at, node = next(each for each in _pairs(self._root, holder.section) if each[0].value == holder.label)
        added = ", ".join(map(_scalar, profiles))
        found = _child(node, "profiles")
        if found is None:
            return self._with_entry((at, node), f"profiles: [{added}]")
        value = found[1]
        if _is_alias(*found):
            raise OperationError(f"the profiles of {holder.label} are another's too (`*`)", remedy=_BY_HAND)
        if isinstance(value, yaml.SequenceNode) and value.value and not value.flow_style:
            indent = " " * (self._column_of_dash(value))
            lines = "".join(f"{indent}- {_scalar(each)}\n" for each in profiles)
            return self._inserted(self._line_after(value), lines)
        if isinstance(value, yaml.SequenceNode) and value.flow_style:
            place = value.value[-1].end_mark.index if value.value else value.start_mark.index + 1
            return self._inserted(place, f"{', ' if value.value else ''}{added}")
        if _is_null(value):
            return self._inserted(found[0].end_mark.index + 1, f" [{added}]")
        raise OperationError(f"the profiles of {holder.label} are no list", remedy=_BY_HAND)

    def without(self, holder: Holder) -> str:
        """The text without a host or a service, and with nothing else changed.

        Raises:
            OperationError: as `with_host`.
        """
        found = _child(self._root, holder.section)
        assert found is not None, "the holder is in it"
        section = found[1]
        assert isinstance(section, yaml.MappingNode)
        key, value = next(each for each in section.value if each[0].value == holder.label)
        if section.flow_style:
            raise OperationError(f"`{holder.section}` is written in one pair of braces", remedy=_BY_HAND)
        start = self._text.rfind("\n", 0, key.start_mark.index) + 1
        end = self._line_after(key if _is_null(value) or _is_alias(key, value) else value)
        if len(section.value) == 1:  # an empty section is nothing, and no mapping
            start = self._text.rfind("\n", 0, found[0].start_mark.index) + 1
        return self._text[:start] + self._text[end:]

    def _with_entry(self, place: tuple[yaml.Node, yaml.Node], entry: str) -> str:
        """The text with one more entry at the end of a mapping that `place`'s key has."""
        key, node = place
        if _is_null(node):
            indent = " " * (key.start_mark.column + 2)
            return self._inserted(self._line_after(key), f"{indent}{entry}\n")
        if not isinstance(node, yaml.MappingNode) or _is_alias(key, node):
            raise OperationError(f"line {node.start_mark.line + 1} of the policy is no mapping", remedy=_BY_HAND)
        if node.flow_style:
            at = node.value[-1][1].end_mark.index if node.value else node.start_mark.index + 1
            return self._inserted(at, f"{', ' if node.value else ''}{entry}")
        indent = " " * node.value[0][0].start_mark.column
        return self._inserted(self._line_after(node), f"{indent}{entry}\n")

    def _entries(self, section: str) -> list[tuple[str, yaml.Node]]:
        return [(str(key.value), value) for key, value in _pairs(self._root, section)]

    def _holder(self, section: str, label: str, node: yaml.Node) -> Holder:
        identity, profiles = _child(node, "identity"), _child(node, "profiles")
        listed = profiles[1].value if profiles and isinstance(profiles[1], yaml.SequenceNode) else []
        names = tuple(str(each.value) for each in listed if isinstance(each, yaml.ScalarNode))
        return Holder(section, label, canonical(str(identity[1].value)) if identity else "", names)

    def _column_of_dash(self, node: yaml.SequenceNode) -> int:
        """Where the dashes of a block list are: before its first item, on that line."""
        first = node.value[0].start_mark
        line = self._text[first.index - first.column : first.index]
        return line.rfind("-")

    def _line_after(self, node: yaml.Node) -> int:
        """Where the line after the node's last begins; a comment on its last line is its own."""
        end = self._text.find("\n", _last(node))
        if end < 0:
            self._text += "\n"
            return len(self._text)
        return end + 1

    def _inserted(self, at: int, text: str) -> str:
        return self._text[:at] + text + self._text[at:]


def difference(before: str, after: str, file: str) -> list[str]:
    """What `diff -u` shows, a line each, as `patch` takes it."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), file, file, lineterm="")
    return list(lines)


def _child(node: yaml.Node, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    """The key of this name and its value, of a mapping."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next(((key, value) for key, value in node.value if key.value == name), None)


def _pairs(node: yaml.Node, name: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """The keys and values of a section; none where it is no mapping."""
    found = _child(node, name)
    return list(found[1].value) if found is not None and isinstance(found[1], yaml.MappingNode) else []


def _last(node: yaml.Node) -> int:
    """The index of the end of what is written of it: of a block, that of its last leaf."""
    if isinstance(node, yaml.MappingNode) and not node.flow_style and node.value:
        key, value = node.value[-1]
        return _last(key) if _is_null(value) or _is_alias(key, value) else _last(value)
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _last(node.value[-1])
    return int(node.end_mark.index)


def _is_alias(key: yaml.Node, value: yaml.Node) -> bool:
    """Whether the value is written elsewhere, before its key, where it is others' too."""
    return bool(value.start_mark.index < key.start_mark.index)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and not node.style and node.value in {"", "~", "null"}


def canonical(name: str) -> str:
    """An identity's name as the broker compares it; a text that is none stays as it is."""
    try:
        return canonical_identity_name(name)
    except ValueError:
        return name


def _scalar(text: str) -> str:
    """A text as YAML, in quotes where it would be something else."""
    if _PLAIN.fullmatch(text) and yaml.safe_load(f"[{text}]") == [text]:
        return text
    return json.dumps(text)  # YAML's double quotes are JSON's
