"""DNS names in one canonical form: lower case, A-labels, no trailing dot.

Two names are the same name exactly when their canonical texts are equal, so policy, CSRs, orders and certificates
compare strings and nothing else. Syntax only: whether a name may be had (`*.com`, `printer.local`) is policy's to say.

Raw Unicode is refused, not converted: which A-label a U-label becomes depends on the IDNA version of whoever converts
it. An A-label must be one that IDNA 2008 allows and nothing else decodes to; the check here follows RFC 5892 with the
character data of the running Python, and refuses joiners, middle dots and other punctuation that only a contextual
rule allows.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from certplane.errors import CertplaneError

__all__ = ["MAX_NAME_LENGTH", "DnsNameError", "canonical_dns_name", "canonical_dns_names"]

MAX_NAME_LENGTH = 253
"""RFC 1035 2.3.4: 255 octets on the wire, less the first length octet and the root."""

_MAX_LABEL_LENGTH = 63
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_PLAIN_NAME = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")

# RFC 5892: 2.1 LetterDigits, and of 2.6 Exceptions those that are PVALID though they belong to no such category.
_LETTER_DIGITS = frozenset({"Ll", "Lu", "Lo", "Nd", "Lm", "Mn", "Mc"})
_PVALID_EXCEPTIONS = frozenset("\u00df\u03c2\u06fd\u06fe\u0f0b\u3007")
# What LetterDigits would let through: 2.6 DISALLOWED, 2.4 IgnorableProperties (default-ignorable code points), 2.5
# IgnorableBlocks (marks for symbols, musical notation) and 2.9 OldHangulJamo.
_DISALLOWED = frozenset("\u0640\u07fa\u302e\u302f\u3031\u3032\u3033\u3034\u3035\u303b\u034f\u17b4\u17b5")
_DISALLOWED_BLOCKS = (
    range(0x180B, 0x1810),
    range(0x20D0, 0x2100),
    range(0xFE00, 0xFE10),
    range(0x1D100, 0x1D250),
    range(0xE0000, 0xE1000),
    range(0x1100, 0x1200),
    range(0xA960, 0xA980),
    range(0xD7B0, 0xD800),
)
_ARABIC_INDIC_DIGITS = frozenset(map(chr, range(0x0660, 0x066A)))
_EXTENDED_ARABIC_INDIC_DIGITS = frozenset(map(chr, range(0x06F0, 0x06FA)))


class DnsNameError(CertplaneError):
    """A text is not a DNS name that a certificate can carry; `name` is the text, `problem` says why not."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{_printable(name)}: {problem}")


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


def canonical_dns_names(texts: Iterable[str]) -> tuple[str, ...]:
    """The canonical forms, sorted, each once. Raises as `canonical_dns_name`."""
    return tuple(sorted({canonical_dns_name(text) for text in texts}))


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
    encoded = label[4:]
    try:
        unicode_label = encoded.encode("ascii").decode("punycode")
        encodes_back = unicode_label.encode("punycode").decode("ascii") == encoded
    except (UnicodeError, ValueError, OverflowError) as error:
        raise DnsNameError(name, f"has the label {label}, which is not valid Punycode") from error
    if unicode_label.isascii() or not encodes_back or not _is_u_label(unicode_label):
        raise DnsNameError(name, f"has the label {label}, which is no A-label of IDNA 2008")


def _is_u_label(label: str) -> bool:
    if unicodedata.normalize("NFC", label) != label or unicodedata.category(label[0])[0] == "M":
        return False
    if label[0] == "-" or label[-1] == "-" or label[2:4] == "--":
        return False
    if not _ARABIC_INDIC_DIGITS.isdisjoint(label) and not _EXTENDED_ARABIC_INDIC_DIGITS.isdisjoint(label):
        return False  # RFC 5892 A.8 and A.9
    return all(_is_pvalid(character) for character in label) and _bidi_is_plain(label)


def _is_pvalid(character: str) -> bool:
    """RFC 5892 3, without the contextual rules for punctuation and joiners."""
    if character.isascii():
        return character in "-0123456789abcdefghijklmnopqrstuvwxyz"
    if character in _PVALID_EXCEPTIONS:
        return True
    if character in _DISALLOWED or any(ord(character) in block for block in _DISALLOWED_BLOCKS):
        return False
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", character).casefold())
    return folded == character and unicodedata.category(character) in _LETTER_DIGITS


def _bidi_is_plain(label: str) -> bool:
    """RFC 5893 2, rules 1 to 3 and 5, 6 in their strict core: a label doesn't mix writing directions."""
    directions = {unicodedata.bidirectional(character) for character in label}
    if not directions & {"R", "AL", "AN"}:
        return True
    if unicodedata.bidirectional(label[0]) not in {"R", "AL"} or "L" in directions:
        return False
    return not {"EN", "AN"} <= directions


def _printable(text: str) -> str:
    """The text for a message: quoted, escaped, cut to a name's length."""
    shown = ascii(text[: MAX_NAME_LENGTH + 1])
    return shown if len(text) <= MAX_NAME_LENGTH + 1 else f"{shown}..."
