"""Text of a peer, made safe to show: in a terminal, a table, a log field, a status file, a JSON object.

What another machine says (a broker, a CA, a host, a DNS server) is cleaned where it comes in, and again where it goes
out: escape sequences, C1 controls, what turns the direction of text, line breaks and lone surrogates never reach a
person's screen, and nobody fills a screen or a disk with one message. Text that is to be compared is never cleaned.
"""

from typing import Any, Final

_CUT: Final = "..."


def printable(text: str, limit: int) -> str:
    """One line of `text`, with a space for each character that can't be printed.

    Args:
        text: From anywhere.
        limit: Most octets of UTF-8 in the result; longer text is cut, at a whole character, and ends with `...`.
    """
    text = text[: limit + 1]  # an octet at least for each character: more need not be looked at
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    if len(text) <= limit and text.isascii():
        return text
    encoded = text.encode()  # never fails: a surrogate can't be printed
    if len(encoded) <= limit:
        return text
    return encoded[: max(limit - len(_CUT), 0)].decode(errors="ignore") + _CUT[: max(limit, 0)]


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A number and what it counts: `1 host`, `2 hosts`; `nouns` where an s doesn't do it."""
    return f"{count} {noun if count == 1 else nouns or f'{noun}s'}"


def serial_digits(text: str) -> str:
    """A certificate's serial number as it is stored, from how other programs show it.

    They put colons between the octets, write upper case, or begin with a zero.
    """
    digits = text.replace(":", "").lower()
    return digits.lstrip("0") or digits[:1]


def printable_values(value: Any, limit: int) -> Any:
    """The same JSON value with every text in it, names of members included, as `printable` makes it."""
    match value:
        case str():
            return printable(value, limit)
        case dict():
            return {printable(str(name), limit): printable_values(each, limit) for name, each in value.items()}
        case list() | tuple():
            return [printable_values(each, limit) for each in value]
        case _:
            return value
