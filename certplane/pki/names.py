"""DNS names in one canonical form: lower case, A-labels, no trailing dot.

Two names are the same name exactly when their canonical texts are equal, so policy, CSRs, orders and certificates
compare strings and nothing else. Syntax only: policy decides whether a name may be issued (`*.com`, `printer.local`).

Raw Unicode is refused, not converted: which A-label a U-label becomes depends on the IDNA version of whoever converts
it. An A-label must be one that IDNA 2008 allows (RFC 5890 to 5893, the contextual rules for joiners, middle dots and
other punctuation included; `idna` has the tables) and nothing else decodes to.

Whether a label is such an A-label costs a hundred microseconds, so the last verdicts are remembered, and what only
compares names with those that were checked before asks `has_dns_syntax`: it decodes nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from certplane.errors import CertplaneError

MAX_NAME_LENGTH = 253
"""RFC 1035 2.3.4: 255 octets on the wire, less the first length octet and the root."""

_MAX_LABEL_LENGTH = 63
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_PLAIN_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")

_SYNTAX = re.compile(r"(?:\*|[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*")

_QUOTES = frozenset("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb")
"""What editors make of quotes."""

_REMEMBERED_LABELS = 4096


class DnsNameError(CertplaneError):
    """A text is not a DNS name that a certificate can carry; `name` is the text, `problem` says why not."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{shown_name(name)} {problem}")


def canonical_dns_name(text: str) -> str:
    """The canonical form of a DNS name or wildcard name.

    A wildcard is `*` alone as the leftmost label (RFC 6125 6.4.3); a bare `*` is well-formed, and policy refuses it.

    Raises:
        DnsNameError: it isn't a DNS name: characters, labels of 1 to 63, at most 253 in all (RFC 1035 2.3.4, RFC 1123
            2.1), an A-label that IDNA 2008 doesn't know, an address, a misplaced wildcard, a trailing dot.
    """
    name = text.lower() if text.isascii() else text
    if _PLAIN_NAME.fullmatch(name) and len(name) <= MAX_NAME_LENGTH and "--" not in name:
        return name  # nearly every name ends here; the rest of the work is for the odd ones and for good messages
    if not text:
        raise DnsNameError(text, "is empty")
    if len(text) > MAX_NAME_LENGTH:
        raise DnsNameError(text, f"is longer than {MAX_NAME_LENGTH} characters")
    if not text.isascii():
        if not _QUOTES.isdisjoint(text):
            raise DnsNameError(text, "has typographic quotes; write it with plain ones, or without")
        raise DnsNameError(text, "has characters beyond ASCII; use the A-label (xn--...)")
    if name.endswith("."):
        raise DnsNameError(text, "ends with a dot; write it without")
    labels = name.split(".")
    if labels[0] == "*":
        labels = labels[1:]
    for label in labels:
        _check_label(text, label)
    if labels and labels[-1].isdigit():
        raise DnsNameError(text, "ends with a number, as an address does; only DNS names are served")
    return name


def has_dns_syntax(text: str) -> bool:
    """Whether `text` looks like a canonical name, without decoding A-labels: microseconds, whatever it holds.

    For names that name nothing by themselves: what a host reports, what is compared with names that were checked.
    """
    return len(text) <= MAX_NAME_LENGTH and _SYNTAX.fullmatch(text) is not None


def _check_label(name: str, label: str) -> None:
    if not label:
        raise DnsNameError(name, "has an empty label")
    if len(label) > _MAX_LABEL_LENGTH:
        raise DnsNameError(name, f"has a label longer than {_MAX_LABEL_LENGTH} characters")
    if "*" in label:
        raise DnsNameError(name, "has a wildcard that is not the whole leftmost label")
    if _LABEL.fullmatch(label) is None:
        raise DnsNameError(name, "has a label that isn't letters, digits and inner hyphens (RFC 1123 2.1)")
    if label[2:4] == "--":
        _check_a_label(name, label)


def _check_a_label(name: str, label: str) -> None:
    """RFC 5891 5.3 and 5.4: an A-label decodes to a valid U-label that encodes to it again."""
    if not label.startswith("xn--"):
        raise DnsNameError(name, "has a label with hyphens in its third and fourth place that is no A-label")
    problem = _a_label_problem(label)
    if problem:
        raise DnsNameError(name, problem)


@lru_cache(maxsize=_REMEMBERED_LABELS)
def _a_label_problem(label: str) -> str:
    """What is wrong with it; empty if nothing."""
    import idna  # noqa: PLC0415 - its tables take an agent 30 ms and a megabyte, and most hosts have no such name

    encoded = label[4:]
    try:
        unicode_label = encoded.encode("ascii").decode("punycode")
    except (UnicodeError, ValueError, OverflowError):
        return f"has the label {label}, which is not valid Punycode"
    try:
        idna.check_label(unicode_label)  # before encoding, which costs five times as much
        well = not unicode_label.isascii() and unicode_label.encode("punycode").decode("ascii") == encoded
    except (UnicodeError, ValueError, OverflowError) as error:  # IDNAError is a UnicodeError
        reason = str(error) if str(error).isprintable() else "it has a forbidden character"
        return f"has the label {label}, which is no A-label of IDNA 2008: {reason}"
    return "" if well else f"has the label {label}, which is no A-label of IDNA 2008: it decodes to another one's text"


def shown_name(text: str) -> str:
    """A text that should be a name, for a message: quoted, escaped, cut to a name's length."""
    shown = repr(text[: MAX_NAME_LENGTH + 1])
    return shown if len(text) <= MAX_NAME_LENGTH + 1 else f"{shown}..."


def names_sha256(names: Sequence[str]) -> str:
    """What stands for a set of names (canonical, sorted) where the names themselves would be too long for an index."""
    return hashlib.sha256(",".join(names).encode()).hexdigest()
