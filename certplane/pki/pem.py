"""Strict PEM (RFC 7468, "strict" form): the named blocks, white space between them, and nothing else.

`cryptography` takes the first block of several and skips what it doesn't know; here that is an error, since what
was skipped is what somebody else may read.
"""

from __future__ import annotations

import binascii
import re

from certplane.errors import CertplaneError

__all__ = ["PemError", "decode_pem", "encode_pem", "has_private_key"]

_BLOCK = re.compile(
    r"\s*-----BEGIN (?P<label>[A-Z0-9 ]{1,40})-----[ \t]*\r?\n"
    r"(?P<body>[A-Za-z0-9+/=\r\n \t]*?)"
    r"\r?\n-----END (?P=label)-----[ \t]*(?:\r?\n|\Z)",
    re.ASCII,
)
_BEGIN = "-----BEGIN "
_WHITE = str.maketrans("", "", " \t\r\n")


class PemError(CertplaneError):
    """A text is not the PEM that it should be."""


def decode_pem(
    text: str, *labels: str, max_blocks: int, max_length: int, comments: bool = False
) -> tuple[tuple[str, bytes], ...]:
    """The blocks of a PEM text, in order, each as its label and its DER.

    Args:
        text: The PEM text.
        labels: The labels that may occur, such as `CERTIFICATE`.
        max_blocks: More blocks are an error.
        max_length: A longer text, in characters, is an error.
        comments: Skip text between blocks, as CA bundles have it (RFC 7468 5.2).

    Raises:
        PemError: too long, too many, none, another label, bad base64, or something between or after the blocks.
    """
    if len(text) > max_length:
        raise PemError(f"is longer than {max_length} characters")
    blocks: list[tuple[str, bytes]] = []
    position = _next_begin(text, 0, comments=comments)
    while position < len(text):
        match = _BLOCK.match(text, position)
        if match is None:
            raise PemError("holds something that is not a PEM block")
        if match["label"] not in labels:
            raise PemError(f"holds a block {match['label']!r} where only {' or '.join(labels)} belongs")
        if len(blocks) == max_blocks:
            raise PemError("holds more than one PEM block" if max_blocks == 1 else f"holds over {max_blocks} blocks")
        try:
            der = binascii.a2b_base64(match["body"].translate(_WHITE), strict_mode=True)
        except binascii.Error as error:
            raise PemError("holds a block whose base64 is broken") from error
        blocks.append((match["label"], der))
        position = _next_begin(text, match.end(), comments=comments)
    if not blocks:
        raise PemError(f"holds no PEM block {' or '.join(labels)}")
    return tuple(blocks)


def encode_pem(label: str, der: bytes) -> str:
    """One PEM block, lines of 64 characters, ending with a newline."""
    body = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def has_private_key(text: str) -> bool:
    """Whether a PEM text holds a private key of any kind."""
    return "PRIVATE KEY-----" in text


def _next_begin(text: str, position: int, *, comments: bool) -> int:
    """Where the next block begins, or the text's length when only white space (or comments) is left."""
    if comments:
        begin = text.find(_BEGIN, position)
        return len(text) if begin < 0 else begin
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
