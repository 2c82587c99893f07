"""What a name server's answer means. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.TXT
import dns.rrset

from certplane.runtime.text import counted

MALFORMED = (dns.exception.DNSException, OSError, EOFError, ValueError)
"""What dnspython raises on answers that are late, broken or cut off."""

_ANSWERING = frozenset({int(dns.rcode.NOERROR), int(dns.rcode.NXDOMAIN)})
_MOST_NAMES = 1024
"""Those of the orders that are under way: each is looked at a dozen times."""


class NoDnsAnswerError(Exception):
    """No usable answer; the text says why and fits into a message."""


class SilentServerError(NoDnsAnswerError):
    """Nothing came from a server in time, or nothing listens there now: it may answer the next time."""


class Answer:
    """What one server answered.

    Most answers are looked at for what they lack, so the records are read when somebody wants them.

    Attributes:
        rcode: with EDNS, its upper bits too.
        authoritative: the AA bit.
        edns: whether it has an OPT record.
        texts: the TXT values at the name that was asked for, if the answer section holds nothing else; None if it does.
        alias: where the CNAME at that name points to, if the answer section is known to hold nothing else.
    """

    __slots__ = ("_message", "_wire", "alias", "authoritative", "edns", "rcode", "texts")

    def __init__(
        self,
        rcode: int,
        *,
        authoritative: bool,
        edns: bool,
        wire: bytes,
        texts: frozenset[bytes] | None = None,
        alias: str = "",
    ) -> None:
        """`wire` is the whole answer, and is known to be readable."""
        self.rcode, self.authoritative, self.edns, self.texts, self.alias = rcode, authoritative, edns, texts, alias
        self._wire = wire
        self._message: dns.message.Message | None = None

    @classmethod
    def of(cls, message: dns.message.Message) -> Answer:
        """The same of an answer that dnspython has read."""
        authoritative = bool(message.flags & dns.flags.AA)
        made = cls(int(message.rcode()), authoritative=authoritative, edns=message.edns >= 0, wire=b"")
        made._message = message
        return made

    @property
    def message(self) -> dns.message.Message:
        """All of it."""
        if self._message is None:
            self._message = dns.message.from_wire(self._wire)
        return self._message

    @property
    def answer(self) -> Sequence[dns.rrset.RRset]:
        """The records of the answer section."""
        return () if self.texts is not None and not self.texts else self.message.answer

    @property
    def authority(self) -> Sequence[dns.rrset.RRset]:
        """The records of the authority section."""
        return self.message.authority

    @property
    def usable(self) -> bool:
        """Whether it says what there is at a name, be it nothing: NOERROR or NXDOMAIN."""
        return self.rcode in _ANSWERING

    @property
    def rcode_text(self) -> str:
        """As in `SERVFAIL`."""
        return dns.rcode.to_text(dns.rcode.Rcode.make(self.rcode))


@functools.lru_cache(_MOST_NAMES)
def name_of(text: str) -> dns.name.Name:
    """The absolute name for text without the final dot.

    Raises:
        ValueError: it isn't a name.
    """
    try:
        return dns.name.from_text(text.rstrip(".") + ".")
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} isn't a DNS name") from error


def no_answer_in(answer: Answer, name: dns.name.Name, zone: dns.name.Name | None, *, recursive: bool = False) -> str:
    """Why this is no answer for `name`, so that whoever asks turns to the next server; empty if it is one.

    That is an error (SERVFAIL, REFUSED, ...), and the word of a server that isn't authoritative: one that is listed for
    the zone without having it, or that refers upwards. A resolver's answer (`recursive`) needn't be authoritative.

    Args:
        answer: what came.
        name: what was asked for.
        zone: the zone whose server was asked; a referral to a zone below it is an answer. None if it isn't known.
        recursive: a resolver was asked.
    """
    if not answer.usable:
        return f"answers {answer.rcode_text}"
    if recursive or answer.authoritative:
        return ""
    cut = referral_in(answer, name)
    if cut is not None and (zone is None or (cut != zone and cut.is_subdomain(zone))):
        return ""
    return "isn't authoritative for the name"


def lacking_txt(answer: Answer, name: dns.name.Name, values: frozenset[str]) -> str:
    """Why this answer (`no_answer_in`) doesn't show all `values` at `name`; empty if it does."""
    if answer.rcode == dns.rcode.NXDOMAIN:
        return "says that the name doesn't exist"
    shown = answer.texts
    if shown is None:
        shown = frozenset(
            b"".join(record.strings)
            for rrset in answer.answer
            if rrset.name == name and rrset.rdtype == dns.rdatatype.TXT
            for record in rrset
            if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
        )
    missing = [value for value in values if value.encode() not in shown]
    return f"lacks {len(missing)} of {counted(len(values), 'value')}" if missing else ""


def alias_in(answer: Answer, name: dns.name.Name) -> str:
    """Where a CNAME at `name` points to; empty if there is none."""
    if answer.texts is not None or answer.alias:
        return answer.alias
    for rrset in answer.answer:
        if rrset.name == name and rrset.rdtype == dns.rdatatype.CNAME and len(rrset):
            return str(next(iter(rrset)))
    return ""


def renaming_in(answer: Answer, name: dns.name.Name) -> bool:
    """Whether a DNAME above `name` made its CNAME (RFC 6672 3.1)."""
    if answer.texts is not None or answer.alias:
        return False
    return any(
        rrset.rdtype == dns.rdatatype.DNAME and rrset.name != name and name.is_subdomain(rrset.name)
        for rrset in answer.answer
    )


def referral_in(answer: Answer, name: dns.name.Name) -> dns.name.Name | None:
    """The zone at or above `name` to whose servers a server refers instead of answering (RFC 1034 4.3.2)."""
    if answer.authoritative or answer.answer:
        return None
    for rrset in answer.authority:
        if rrset.rdtype == dns.rdatatype.NS and name.is_subdomain(rrset.name) and rrset.name != dns.name.root:
            return rrset.name
    return None
