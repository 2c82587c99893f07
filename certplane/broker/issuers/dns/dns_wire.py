"""Questions and answers as bytes (RFC 1035 4). Pure: nothing is sent here.

Most answers that a broker gets say that there is nothing yet, or show the one TXT record that it looks for, or the
CNAME of a challenge name. Those are read here, by a reader that knows only them, in a tenth of the time. It has no
opinion of its own: what it isn't sure of (another type of record, an option, a name written in an unusual way, any
damage) is read by dnspython, and where it is sure it says what dnspython would; the tests hold it to that.
"""

from __future__ import annotations

import os
import re
import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype

from certplane.broker.issuers.dns.dns_messages import Answer

_UDP_PAYLOAD = 1232  # what fits into one packet everywhere (DNS flag day 2020)
_OPT_RECORD = struct.pack("!BHHIH", 0, dns.rdatatype.OPT, _UDP_PAYLOAD, 0, 0)
"""EDNS version 0 without options, DO off (RFC 6891 6.1.2)."""

_HEADER = struct.Struct("!2sHHHHH")
_RECORD = struct.Struct("!HHIH")
"""Type, class, TTL and size of what follows; the name is before it."""
_POINTER_TO_QUESTION = b"\xc0\x0c"
_LONGEST_NAME, _LONGEST_LABEL = 255, 63
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_.-]+")
_MOST_POINTERS = 8
"""In one name, one leading to the next; dnspython takes twice as many."""
_MOST_RECORDS = 40
"""A zone's NS set with its addresses is below that."""

# Plain numbers: an operation on an enum's member takes as long as the whole rest of a record.
_RESPONSE, _AA, _RD, _RCODE = int(dns.flags.QR), int(dns.flags.AA), int(dns.flags.RD), 0x000F
_KNOWN_BITS = _RESPONSE | 0x7800 | int(dns.flags.TC)
"""Of which only one value is read here: a response, of the opcode QUERY (0), not cut off."""
_IN = int(dns.rdataclass.IN)
_NS, _SOA, _TXT = int(dns.rdatatype.NS), int(dns.rdatatype.SOA), int(dns.rdatatype.TXT)
_CNAME = int(dns.rdatatype.CNAME)
_OPT, _ADDRESS_SIZES = int(dns.rdatatype.OPT), {int(dns.rdatatype.A): 4, int(dns.rdatatype.AAAA): 16}
_SOA_NUMBERS = 20
"""Bytes of an SOA record's data after its two names: the serial and four times."""


class TruncatedError(Exception):
    """The answer to a question is cut off (TC): it has to be asked over TCP."""


class UnsureError(Exception):
    """This module's reader can't tell what dnspython would say."""


class Question:
    """One question, with an id that nobody can guess.

    Attributes:
        edns: whether it has an OPT record.
        ident: two bytes.
        section: the question section, which the answer repeats.
        wire: as it is sent.
    """

    __slots__ = ("_kind", "_name", "_recursive", "edns", "ident", "section", "wire")

    def __init__(self, name: dns.name.Name, kind: dns.rdatatype.RdataType, *, recursive: bool, edns: bool) -> None:
        """`name` is absolute; without `recursive` the RD bit is off."""
        self._name, self._kind, self._recursive, self.edns = name, kind, recursive, edns
        self.ident = os.urandom(2)
        labels = [bytes((len(label),)) + label for label in name.labels]
        self.section = b"".join(labels) + struct.pack("!HH", kind, _IN)
        header = _HEADER.pack(self.ident, _RD if recursive else 0, 1, 0, 0, 1 if edns else 0)
        self.wire = header + self.section + (_OPT_RECORD if edns else b"")

    def without_edns(self) -> Question:
        """The same question for a server that doesn't know EDNS, with an id of its own."""
        return Question(self._name, self._kind, recursive=self._recursive, edns=False)

    def message(self) -> dns.message.QueryMessage:
        """The same as dnspython has it."""
        return dns.message.make_query(
            self._name,
            self._kind,
            use_edns=0 if self.edns else False,
            payload=_UDP_PAYLOAD if self.edns else None,
            id=int.from_bytes(self.ident, "big"),
            flags=_RD if self._recursive else 0,
        )


def read(wire: bytes, question: Question) -> Answer | None:
    """What a datagram says; None if it isn't a readable answer to this question.

    Raises:
        TruncatedError: it is the answer, cut off.
    """
    if wire[:2] != question.ident:
        return None
    try:
        return read_plain(wire, question)
    except UnsureError:
        pass
    try:
        message = dns.message.from_wire(wire, raise_on_truncation=True)
    except dns.message.Truncated as error:
        if question.message().is_response(error.message()):  # type: ignore[no-untyped-call] # dnspython's
            raise TruncatedError from error
        return None
    except Exception:  # noqa: BLE001 - whatever keeps dnspython from reading it, the answer may still come
        return None
    # What repeats the question byte for byte needs no comparison by dnspython, which takes longer than to read it.
    if _repeats(wire, question) or question.message().is_response(message):
        return Answer.of(message)
    return None


def read_plain(wire: bytes, question: Question) -> Answer:
    """The answer, if it has no records, or TXT records or one CNAME alone, and is written in the ordinary way.

    Raises:
        UnsureError: it isn't; ask dnspython what it is.
    """
    try:
        return _Reader(wire, question).answer()
    except (IndexError, struct.error) as error:  # it ends too early
        raise UnsureError from error


def _repeats(wire: bytes, question: Question) -> bool:
    """Whether this is a response, to this question and no other, and not cut off."""
    ident, flags, questions, *_ = _HEADER.unpack_from(wire)
    section = question.section
    return (
        ident == question.ident
        and flags & _KNOWN_BITS == _RESPONSE
        and questions == 1
        and wire[_HEADER.size : _HEADER.size + len(section)] == section
    )


class _Reader:
    """Walks over one message. Every byte must be accounted for."""

    __slots__ = ("_names", "_position", "_question", "_wire")

    def __init__(self, wire: bytes, question: Question) -> None:
        self._wire, self._question, self._position = wire, question, 0
        self._names: dict[int, tuple[int, int]] = {}
        """Where a label of a name that was read begins: the length of the name from there, and pointers in it."""

    def answer(self) -> Answer:
        _, flags, _, answers, authorities, additionals = _HEADER.unpack_from(self._wire)
        if answers + authorities + additionals > _MOST_RECORDS or not _repeats(self._wire, self._question):
            raise UnsureError
        self._position = _HEADER.size
        self._skip_name()
        self._position = _HEADER.size + len(self._question.section)
        rcode = flags & _RCODE
        if answers and rcode:
            raise UnsureError
        alias, texts = self._alias() if answers == 1 else "", None
        if not alias:
            texts = frozenset([self._text() for _ in range(answers)])
        for _ in range(authorities):
            self._skip_authority()
        edns = False
        for _ in range(additionals):
            edns = self._skip_additional(edns=edns)
        if self._position != len(self._wire):
            raise UnsureError
        return Answer(rcode, authoritative=bool(flags & _AA), edns=edns, texts=texts, alias=alias, wire=self._wire)

    def _alias(self) -> str:
        """Where a CNAME at the name that was asked for points to, as zone files have it; empty if this is another."""
        wire, position = self._wire, self._position
        kind, where, _, size = _RECORD.unpack_from(wire, position + 2)
        if kind != _CNAME:
            return ""
        begin = position + 2 + _RECORD.size
        self._position = begin
        self._skip_name()
        if wire[position : position + 2] != _POINTER_TO_QUESTION or where != _IN or self._position != begin + size:
            raise UnsureError
        labels, at = [], begin
        while length := wire[at]:
            if length > _LONGEST_LABEL:
                at = (length << 8 | wire[at + 1]) - 0xC000
            else:
                labels.append(wire[at + 1 : at + 1 + length])
                at += 1 + length
        text = b".".join(labels)
        if _PLAIN_NAME.fullmatch(text) is None or text.count(b".") != len(labels) - 1:
            raise UnsureError  # the root, or letters that zone files escape
        return text.decode() + "."

    def _text(self) -> bytes:
        """The strings of a TXT record at the name that was asked for, as one."""
        wire, position = self._wire, self._position
        if wire[position : position + 2] != _POINTER_TO_QUESTION:
            raise UnsureError
        kind, where, _, size = _RECORD.unpack_from(wire, position + 2)
        if kind != _TXT or where != _IN or not size:
            raise UnsureError
        position += 2 + _RECORD.size
        end, strings = position + size, []
        while position < end:
            following = position + 1 + wire[position]
            strings.append(wire[position + 1 : following])
            position = following
        if position != end:
            raise UnsureError
        self._position = end
        return b"".join(strings)

    def _skip_authority(self) -> None:
        """An SOA or NS record."""
        self._skip_name()
        kind, where, _, size = _RECORD.unpack_from(self._wire, self._position)
        if where != _IN or kind not in (_SOA, _NS):
            raise UnsureError
        self._position += _RECORD.size
        end = self._position + size
        self._skip_name()
        if kind == _SOA:
            self._skip_name()
            self._position += _SOA_NUMBERS
        if self._position != end:
            raise UnsureError

    def _skip_additional(self, *, edns: bool) -> bool:
        """An address record, or, without `edns`, the OPT record; returns whether that was there."""
        wire, position = self._wire, self._position
        self._skip_name()
        kind, where, numbers, size = _RECORD.unpack_from(wire, self._position)
        self._position += _RECORD.size + size
        if kind == _OPT:
            # Its numbers are the upper bits of the rcode, the version, DO, and bits that are to be zero.
            if edns or wire[position] or numbers or size:
                raise UnsureError
            return True
        if where != _IN or _ADDRESS_SIZES.get(kind) != size:
            raise UnsureError
        return edns

    def _skip_name(self) -> None:
        """A name, whose pointers lead to where labels of earlier ones begin."""
        wire, position, begun, length = self._wire, self._position, [], 0
        while True:
            size = wire[position]
            if size > _LONGEST_LABEL:
                break
            begun.append((position, length))
            length += size + 1
            position += size + 1
            if not size:
                break
        rest, pointers = 0, 0
        if size:  # a pointer; 64 to 191 are types of labels that nobody uses, and lead nowhere here
            target = self._names.get((size << 8 | wire[position + 1]) - 0xC000)
            if target is None:
                raise UnsureError
            rest, pointers = target[0], target[1] + 1
            position += 2
        length += rest
        if length > _LONGEST_NAME or pointers > _MOST_POINTERS:
            raise UnsureError
        for offset, before in begun:
            self._names[offset] = (length - before, pointers)
        self._position = position
