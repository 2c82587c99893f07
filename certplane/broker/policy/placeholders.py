"""Names that differ from identity to identity: `{label}` and `{labels.KEY}` in a profile's `dns_names`. Pure.

`{label}` is the identity's label in the policy, `{labels.KEY}` one of the host's labels there. One profile so serves a
thousand hosts that each have a name of their own; each gets its literal names (`expand`), checked as all names are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Self

from certplane.config.values import DnsName
from certplane.errors import CertplaneError
from certplane.pki.names import DnsNameError, canonical_dns_name, shown_name

LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
"""What entries are called, and what their labels' keys and values are made of."""

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_OF_LABELS: Final = "labels."
_KNOWN: Final = re.compile(rf"label|labels\.{LABEL.pattern}", re.ASCII)
_SAMPLE: Final = "x.x"
"""In place of what isn't known yet; of two labels, since a label of the policy may be a whole name."""


class MissingLabelError(CertplaneError):
    """A host lacks a label that a name is made of; `key` is the label's."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"there is no label {key}")


class DnsNamePattern(DnsName):
    """A name of a profile: canonical but for its placeholders, or without any a `DnsName`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The pattern, in lower case outside of its placeholders and without a final dot."""
        if not has_placeholder(text):
            return cls(DnsName.parse(text))
        for inner in _PLACEHOLDER.findall(text):
            if _KNOWN.fullmatch(inner) is None:
                told = f"has {{{inner[:64]}}}, which stands for nothing; write {{label}} or {{labels.KEY}}"
                raise ValueError(told)
        rest = _PLACEHOLDER.sub(_SAMPLE, text)
        if "{" in rest or "}" in rest:
            raise ValueError(f"{shown_name(text)} has a brace that doesn't belong to a {{label}} or {{labels.KEY}}")
        try:
            DnsName.parse(rest)
        except ValueError as error:
            cause = error.__cause__
            problem = cause.problem if isinstance(cause, DnsNameError) else "is no DNS name"
            raise ValueError(f"{shown_name(text)} {problem}") from error
        pieces = re.split(r"(\{[^{}]*\})", text.removesuffix("."))
        return cls("".join(piece if piece.startswith("{") else piece.lower() for piece in pieces))


def has_placeholder(name: str) -> bool:
    """Whether a name of a profile is another one for each identity."""
    return "{" in name or "}" in name


def sample_of(name: str) -> str:
    """A name like those that a pattern gives; a name without placeholders is itself."""
    return _PLACEHOLDER.sub(_SAMPLE, name)


def expand(patterns: Sequence[str], label: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    """The names of one identity, sorted, each once.

    Raises:
        MissingLabelError: it lacks a label that is needed.
        DnsNameError: one of them is no DNS name.
    """
    filled = partial(_filled, label=label, labels=labels)
    names = {canonical_dns_name(_PLACEHOLDER.sub(filled, pattern)) for pattern in patterns}
    return tuple(sorted(names))


def _filled(found: re.Match[str], *, label: str, labels: Mapping[str, str]) -> str:
    if found[1] == "label":
        return label
    key = found[1].removeprefix(_OF_LABELS)
    value = labels.get(key)
    if value is None:
        raise MissingLabelError(key)
    return value
