"""The little DER that X.509 libraries leave to their callers: cutting one element out of another (X.690).

Definite lengths in their shortest form and single-octet tags only; everything else is refused. Never copies more than
it returns, never recurses.
"""

from __future__ import annotations

from certplane.errors import CertplaneError

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
SEQUENCE = 0x30


class DerError(CertplaneError):
    """Bytes are not the DER they should be."""


class Element:
    """One tag-length-value inside `data`: `start` is its first octet, `content` its value's, `end` one past it."""

    __slots__ = ("content", "data", "end", "start", "tag")

    def __init__(self, data: bytes, start: int, content: int, end: int) -> None:
        self.data = data
        self.tag = data[start]
        self.start = start
        self.content = content
        self.end = end

    @property
    def encoded(self) -> bytes:
        """Tag, length and value."""
        return self.data[self.start : self.end]

    @property
    def value(self) -> bytes:
        """The value alone."""
        return self.data[self.content : self.end]


def read_element(data: bytes, start: int = 0, end: int | None = None) -> Element:
    """The element that begins at `start` and ends at or before `end`.

    Raises:
        DerError: cut off, an indefinite or padded length, a tag of several octets.
    """
    limit = len(data) if end is None else end
    if start + 2 > limit or data[start] & 0x1F == 0x1F:
        raise DerError("not a DER element")
    length = data[start + 1]
    content = start + 2
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= 4 or content + octets > limit:
            raise DerError("not a DER length")
        length = int.from_bytes(data[content : content + octets], "big")
        if length < 0x80 or length < 1 << (8 * (octets - 1)):
            raise DerError("a length in more octets than it needs")
        content += octets
    if content + length > limit:
        raise DerError("an element is cut off")
    return Element(data, start, content, content + length)


def read_sequence(element: Element) -> list[Element]:
    """The elements inside a constructed one, all of it.

    Raises:
        DerError: it isn't constructed, or its content isn't whole elements.
    """
    if not element.tag & 0x20:
        raise DerError("not a constructed element")
    elements: list[Element] = []
    position = element.content
    while position < element.end:
        inner = read_element(element.data, position, element.end)
        elements.append(inner)
        position = inner.end
    return elements
