"""PEM (RFC 7468): the one reader of certificates, requests and keys in text, whoever wrote the file.

Explanatory text before, between and after the blocks is skipped (RFC 7468 2 and 5.2: `openssl ca`, easy-rsa, certtool
and `openssl req -text` write it), and so are a byte order mark, any line ends and the DOS end-of-file mark. Nothing
that could be a block is: every BEGIN and every END must belong to a whole block of an expected label, since
`cryptography` takes the first of several, and what was skipped is what somebody else may read. Control characters are
refused.

What a server answers with is read by `find_pem` instead, which takes the whole blocks and passes over the rest: nobody
can be asked to mend it.

An error says what is wrong and in which line; it never quotes the text, which may be a private key's.
"""

from __future__ import annotations

import binascii
import codecs
import re

from certplane.errors import CertplaneError

_END_OF_LINE = r"(?:\r\n|\n|\r)"
_BLOCK = re.compile(
    r"-----BEGIN (?P<label>[A-Z0-9. ]{1,40})-----[ \t]*"
    rf"{_END_OF_LINE}(?P<body>[A-Za-z0-9+/=\r\n \t]*?)"
    rf"{_END_OF_LINE}[ \t]*-----END (?P=label)-----[ \t]*(?:{_END_OF_LINE}|\Z)",
    re.ASCII,
)
_LOOSE_BLOCK = re.compile(
    r"-----BEGIN (?P<label>[A-Z0-9. ]{1,40})-----(?P<body>[A-Za-z0-9+/=\s]*)-----END (?P=label)-----", re.ASCII
)
_BEGIN, _END = "-----BEGIN ", "-----END "
_BEGIN_LINE = re.compile(r"-----BEGIN (?P<label>[^\r\n-]{1,40})-----[ \t]*(?=[\r\n]|\Z)")
_LINE_START = re.compile(r"(?:\A|[\r\n])[ \t]*\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=\r\n \t]")
_HEADER = re.compile(r"\A\s*[A-Za-z][A-Za-z0-9-]*:")
_WHITE = str.maketrans("", "", " \t\r\n\v\f")
_MARK, _DOS_END = "\ufeff", "\x1a"

_OTHER_NAMES = {
    "X509 CERTIFICATE": "CERTIFICATE",
    "X.509 CERTIFICATE": "CERTIFICATE",
    "NEW CERTIFICATE REQUEST": "CERTIFICATE REQUEST",
}
"""Older labels of the same structures (RFC 7468 5.1 and 7)."""


class PemError(CertplaneError):
    """A text is not the PEM that it should be."""


def pem_text(content: bytes) -> str:
    """The text of a PEM file. The blocks are ASCII; text beside them may be UTF-8, or of any older encoding.

    Raises:
        PemError: DER, or UTF-16 as some editors and shells write it.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PemError("is UTF-16; save it as UTF-8 without other changes")
    if content[:1] == b"\x30" and content[1:2] in (b"\x80", b"\x81", b"\x82", b"\x83"):
        raise PemError(
            "is binary (DER or PKCS#12), not PEM; convert it with openssl, such as `openssl x509 -inform DER`"
        )
    content = content.replace(codecs.BOM_UTF8, b"")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def decode_pem(text: str, *labels: str, max_blocks: int, max_length: int) -> tuple[tuple[str, bytes], ...]:
    """The blocks of a PEM text, in order, each as its label and its DER.

    Args:
        text: The PEM text, as `pem_text` reads a file.
        labels: The labels that may occur, such as `CERTIFICATE`; an older name of one is returned as that.
        max_blocks: More blocks are an error.
        max_length: A longer text, in characters, is an error.

    Raises:
        PemError: too long, too many blocks, none, another label, a block that is not whole, control characters.
    """
    if len(text) > max_length:
        raise PemError(f"is longer than {max_length} characters")
    text = text.replace(_MARK, "")  # also in the middle, where `cat` puts the second file's
    blocks: list[tuple[str, bytes]] = []
    position = 0
    while (begin := text.find(_BEGIN, position)) >= 0:
        _check_between(text, position, begin)
        match = _BLOCK.match(text, begin)
        if match is None:
            raise PemError(_broken_block(text, begin))
        label = _OTHER_NAMES.get(match["label"], match["label"])
        if label not in labels:
            raise PemError(_other_label(match["label"], labels, _line(text, begin)))
        if len(blocks) == max_blocks:
            raise PemError(
                f"holds more than one PEM block; the second begins in line {_line(text, begin)}"
                if max_blocks == 1
                else f"holds over {max_blocks} blocks"
            )
        try:
            der = binascii.a2b_base64(match["body"].translate(_WHITE), strict_mode=True)
        except binascii.Error as error:
            raise PemError(f"holds a block whose base64 is broken; it begins in line {_line(text, begin)}") from error
        blocks.append((label, der))
        position = match.end()
    _check_between(text, position, len(text))
    if not blocks:
        raise PemError(f"holds no PEM block {' or '.join(labels)}")
    return tuple(blocks)


def find_pem(text: str, label: str) -> tuple[tuple[bytes, ...], int]:
    """The DER of every whole block `label` of a server's answer, in order, and how many blocks were passed over.

    Control characters are left out wherever they are, and a block needs no lines of its own. What is broken, cut off or
    of another label is passed over.
    """
    text = _CONTROL.sub("", text)
    found: list[bytes] = []
    for match in _LOOSE_BLOCK.finditer(text):
        if _OTHER_NAMES.get(match["label"], match["label"]) == label:
            try:
                found.append(binascii.a2b_base64(match["body"].translate(_WHITE), strict_mode=True))
            except binascii.Error:
                continue
    return tuple(found), text.count(_BEGIN) - len(found)


def encode_pem(label: str, der: bytes) -> str:
    """One PEM block, lines of 64 characters, ending with a newline."""
    body = binascii.b2a_base64(der, newline=False).decode("ascii")
    lines = "\n".join(body[start : start + 64] for start in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def has_private_key(text: str) -> bool:
    """Whether a PEM text holds a private key of any kind."""
    return "PRIVATE KEY-----" in text


def _check_between(text: str, start: int, end: int) -> None:
    """Whether what stands between two blocks, or before or after all, is text that can be skipped."""
    if start == end:
        return
    between = text[start:end]
    last = end == len(text)
    if (control := _CONTROL.search(between.rstrip(f"{_DOS_END} \t\r\n") if last else between)) is not None:
        at = _line(text, start + control.start())
        raise PemError(f"holds a control character (0x{ord(control[0]):02x}) in line {at}; remove it")
    if (stray := between.find(_END)) >= 0:
        raise PemError(f"holds an END in line {_line(text, start + stray)} without its BEGIN; the file may be cut off")
    if not last and _LINE_START.search(between) is None:
        raise PemError(f"holds a BEGIN inside of line {_line(text, end)}; put a line break in front of it")


def _broken_block(text: str, begin: int) -> str:
    """What is wrong with the block that begins at `begin`."""
    line = _line(text, begin)
    header = _BEGIN_LINE.match(text, begin)
    if header is None:
        return f"holds a BEGIN line that is malformed, or has something after it, in line {line}"
    what = f"holds a PEM block that begins in line {line} and"
    closing = f"{_END}{header['label']}-----"
    end = text.find(closing, header.end())
    following = text.find(_BEGIN, header.end())
    if end < 0 or 0 <= following < end:
        return f"{what} has no line `{closing}`; it is cut off, or its END has another label"
    body = text[header.end() : end]
    if _HEADER.match(body):
        return f"{what} has headers (RFC 1421): an encrypted key of the older form; write it without a passphrase"
    if (odd := _NOT_BASE64.search(body)) is not None:
        return f"{what} has a character that is not base64 in line {_line(text, header.end() + odd.start())}"
    return f"{what} whose END, in line {_line(text, end)}, does not stand in a line of its own; put a line break there"


def _other_label(label: str, labels: tuple[str, ...], line: int) -> str:
    message = f"holds a block {label!r} in line {line} where only {' or '.join(labels)} belongs"
    if label == "TRUSTED CERTIFICATE":
        return f"{message}; `openssl x509` writes it as a plain certificate"
    return f"{message}; a private key belongs in a file of its own" if label.endswith("PRIVATE KEY") else message


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
