"""The own reader of answers says what dnspython says, or nothing: whatever the bytes are."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import pytest
import yaml
from hypothesis import event, given
from hypothesis import strategies as st

from certplane.broker.issuers.dns.dns_messages import Answer, alias_in, lacking_txt, name_of, referral_in, renaming_in
from certplane.broker.issuers.dns.dns_wire import Question, TruncatedError, UnsureError, read, read_plain

CASES = Path(__file__).parents[4] / "cases" / "dns-answers"
"""Answers of BIND and of other makes, each with the question; `plain` are those that need no dnspython."""
IDENT = b"\x12\x34"


@dataclass(frozen=True)
class Case:
    label: str
    name: str
    kind: str
    recursive: bool
    edns: bool
    plain: bool
    answer: bytes

    def question(self) -> Question:
        made = Question(
            name_of(self.name), dns.rdatatype.from_text(self.kind), recursive=self.recursive, edns=self.edns
        )
        made.ident = IDENT
        return made


def cases() -> list[Case]:
    found = []
    for path in sorted(CASES.glob("*.yml")):
        facts = yaml.safe_load(path.read_text())
        flags = (facts["recursive"], facts["edns"], facts["plain"])
        found.append(Case(path.stem, facts["name"], facts["type"], *flags, bytes.fromhex(facts["answer"])))
    return found


ALL = cases()


def by_dnspython(wire: bytes, question: Question) -> dns.message.Message | str:
    """What dnspython makes of it: the message, `truncated`, or `nothing`; this is what the reader is held to."""
    query = question.message()
    try:
        message = dns.message.from_wire(wire, raise_on_truncation=True)
    except dns.message.Truncated as error:
        return "truncated" if query.is_response(error.message()) else "nothing"  # type: ignore[no-untyped-call] # its
    except Exception:  # noqa: BLE001 - it raises all sorts
        return "nothing"
    return message if query.is_response(message) else "nothing"


def texts_of(message: dns.message.Message, name: dns.name.Name) -> frozenset[bytes] | None:
    """As `Answer.texts`."""
    if any(rrset.name != name or rrset.rdtype != dns.rdatatype.TXT for rrset in message.answer):
        return None
    records = [record for rrset in message.answer for record in rrset]
    return frozenset(b"".join(one.strings) for one in records if isinstance(one, dns.rdtypes.ANY.TXT.TXT))


def check(wire: bytes, question: Question) -> bool:
    """Both readings are dnspython's; returns whether the own reader was sure."""
    meant = by_dnspython(wire, question)
    try:
        answer = read(wire, question)
    except TruncatedError:
        assert meant == "truncated"
        answer = None
    else:
        assert (answer is None) == (meant == "nothing")
    if answer is not None:
        assert isinstance(meant, dns.message.Message)
        assert_same(answer, meant, question)
    try:
        plain = read_plain(wire, question)
    except UnsureError:
        return False
    assert isinstance(meant, dns.message.Message)
    assert_same(plain, meant, question)
    assert plain.texts == texts_of(meant, meant.question[0].name)
    return True


def assert_same(answer: Answer, message: dns.message.Message, question: Question) -> None:
    """Each thing that anybody asks of an answer."""
    name, read_by_dnspython = question.message().question[0].name, Answer.of(message)
    for one in (answer, read_by_dnspython):
        assert (one.rcode, one.edns) == (message.rcode(), message.edns >= 0)
        assert one.authoritative == bool(message.flags & dns.flags.AA)
        assert list(one.answer) == message.answer
        assert list(one.authority) == message.authority
    for values in (frozenset({"x" * 43}), frozenset({"a" * 43, "b" * 43}), frozenset({"", "wanted"})):
        assert lacking_txt(answer, name, values) == lacking_txt(read_by_dnspython, name, values)
    for ask in (alias_in, renaming_in, referral_in):
        assert ask(answer, name) == ask(read_by_dnspython, name)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.label)
def test_answers_of_servers(case: Case) -> None:
    """Those that are said to need no dnspython need none, and no others do without."""
    assert check(case.answer, case.question()) is case.plain


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.label)
def test_every_place_to_end(case: Case) -> None:
    """Cut off at each byte, and with a byte too many."""
    for end in range(len(case.answer)):
        check(case.answer[:end], case.question())
    check(case.answer + b"\0", case.question())


@pytest.mark.parametrize("case", [case for case in ALL if case.plain], ids=lambda case: case.label)
def test_every_bit_of_the_header(case: Case) -> None:
    """And every other id is nobody's answer."""
    for bit in range(96):
        wire = bytearray(case.answer)
        wire[bit // 8] ^= 1 << bit % 8
        check(bytes(wire), case.question())
        if bit < 16:
            assert read(bytes(wire), case.question()) is None


NAMES = st.lists(
    st.one_of(st.binary(min_size=1, max_size=8), st.binary(min_size=1, max_size=63)), min_size=0, max_size=8
).map(lambda labels: dns.name.Name([*labels, b""]) if sum(map(len, labels)) + len(labels) < 255 else dns.name.root)


@given(NAMES, st.sampled_from(["TXT", "CNAME", "CAA", "SOA", "NS", "A", "AAAA"]), st.booleans(), st.booleans())
def test_questions_are_written_as_dnspython_writes_them(
    name: dns.name.Name, kind: str, recursive: bool, edns: bool
) -> None:
    """Byte for byte: flags, EDNS and its buffer size, DO off."""
    question = Question(name, dns.rdatatype.from_text(kind), recursive=recursive, edns=edns)
    written = dns.message.make_query(
        name,
        kind,
        use_edns=0 if edns else False,
        payload=1232 if edns else None,
        id=int.from_bytes(question.ident, "big"),
    )
    if not recursive:
        written.flags &= ~dns.flags.RD
    assert question.wire == written.to_wire() == question.message().to_wire()
    plain = question.without_edns()
    assert (plain.edns, plain.section) == (False, question.section)


def test_ids_are_the_kernels() -> None:
    """All 16 bits of an id vary, and no two questions' ids hang together.

    Of 20,000, some 17,200 are different, and a byte that is missing has the odds of 1 to 10^31.
    """
    idents = {Question(dns.name.root, dns.rdatatype.NS, recursive=False, edns=True).ident for _ in range(20_000)}
    assert len(idents) > 16_500
    assert len({ident[0] for ident in idents}) == len({ident[1] for ident in idents}) == 256


@given(st.data())
def test_damaged_answers(data: st.DataObject) -> None:
    """Bytes changed, left out, put in and moved; pointers to anywhere; counts that lie."""
    case = data.draw(st.sampled_from(ALL))
    wire = bytearray(case.answer)
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, max(0, len(wire) - 1)))
        match data.draw(st.sampled_from(["set", "cut", "put", "pointer", "count", "copy"])):
            case "set":
                wire[place : place + 1] = bytes((data.draw(st.integers(0, 255)),))
            case "cut":
                del wire[place : place + data.draw(st.integers(1, 12))]
            case "put":
                wire[place:place] = data.draw(st.binary(min_size=1, max_size=12))
            case "pointer":
                wire[place : place + 2] = struct.pack("!H", 0xC000 | data.draw(st.integers(0, len(wire) + 2)))
            case "count":
                field = data.draw(st.sampled_from([4, 6, 8, 10]))
                wire[field : field + 2] = struct.pack("!H", data.draw(st.integers(0, 4)))
            case "copy":
                wire += wire[place : place + data.draw(st.integers(1, 60))]
    event("plain" if check(bytes(wire), case.question()) else "left to dnspython")


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """Built from parts that are nearly right, so that many are read to their end."""
    case = draw(st.sampled_from([case for case in ALL if case.plain]))
    section = case.question().section

    def name() -> bytes:
        labels = draw(st.lists(st.binary(min_size=1, max_size=6), max_size=3))
        written = b"".join(bytes((len(label),)) + label for label in labels)
        offset = draw(st.one_of(st.sampled_from([12, 12, 28, 32]), st.integers(0, 120)))
        return written + draw(st.sampled_from([b"\0", struct.pack("!H", 0xC000 | offset)]))

    def record() -> bytes:
        kind = draw(st.sampled_from([16, 16, 6, 2, 1, 28, 41, 5, 257]))
        content = {
            16: lambda: b"".join(
                bytes((len(one),)) + one for one in draw(st.lists(st.binary(max_size=44), min_size=1, max_size=3))
            ),
            6: lambda: name() + name() + draw(st.binary(min_size=20, max_size=20)),
            2: name,
            5: name,
            1: lambda: b"1234",
            28: lambda: b"1234567890123456",
        }.get(kind, lambda: b"")()
        owner = b"\0" if kind == 41 else b"\xc0\x0c" if kind in (16, 5) and draw(st.booleans()) else name()
        size = len(content) + draw(st.sampled_from([0] * 12 + [-1, 1]))
        where, ttl = (1232, 0) if kind == 41 else (1, draw(st.integers(0, 2**32 - 1)))
        where = draw(st.sampled_from([where] * 9 + [3]))
        return owner + struct.pack("!HHIH", kind, where, ttl, max(size, 0)) + content

    sections = [draw(st.lists(st.just(None).map(lambda _: record()), max_size=limit)) for limit in (2, 2, 3)]
    flags = draw(st.sampled_from([0x8400, 0x8403, 0x8000, 0x8180, 0x8183, 0x8402, 0x8600, 0x0400]))
    counts = [len(section) for section in sections]
    header = IDENT + struct.pack("!HHHHH", flags, 1, *counts)
    return header + section + b"".join(part for parts in sections for part in parts)


@given(messages(), st.sampled_from([case for case in ALL if case.plain]))
def test_random_messages(wire: bytes, case: Case) -> None:
    """Records of all kinds in all sections, with names that lead anywhere."""
    event("plain" if check(wire, case.question()) else "left to dnspython")


@given(st.binary(max_size=300))
def test_noise(wire: bytes) -> None:
    """Anything at all."""
    question = ALL[0].question()
    check(wire, question)
    check(IDENT + wire, question)
    check(IDENT + struct.pack("!HHHHH", 0x8403, 1, 0, 1, 0) + question.section + wire, question)


def test_long_ways_of_pointers() -> None:
    """Names that each begin with the one before are read by dnspython when they get long, and never forever."""
    question = ALL[0].question()
    wire, at = bytearray(IDENT + struct.pack("!HHHHH", 0x8400, 1, 0, 30, 0) + question.section), 12
    for _ in range(30):
        begin = len(wire)
        wire += b"\x01a" + struct.pack("!H", 0xC000 | at) + struct.pack("!HHIH", 2, 1, 60, 2) + b"\xc0\x0c"
        at = begin
    assert not check(bytes(wire), question)
