"""Whether DNSSEC keeps CAs from a name: they have to refuse where it fails (CA/Browser Forum BR 3.2.2.4 and 3.2.2.8.1).

A resolver that validates answers SERVFAIL, and with CD (checking disabled, RFC 4035 3.2.2) it answers after all: then
the zone's signatures are at fault. Which one is looked for at the zone's own servers, by `signatures`. Where the
resolver doesn't validate, a signed zone is looked at all the same.

Everything here is asked with CD, since nothing else can be had of such a zone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline, all_of
from certplane.broker.issuers.dns.dns_messages import MALFORMED, NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.name_servers import NameServer
from certplane.broker.issuers.dns.signatures import ServerAnswers, fault_of
from certplane.broker.model import PreflightCheck, PreflightResult
from certplane.config.values import HostPort
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.text import counted

_CHECK: Final = "dnssec"
_ONE_TRY = timedelta(seconds=3)
_MOST_SERVERS = 8
"""Of a zone that are looked at: it has two to four."""
_MOST_ZONES = 8
"""Zones above one another that a fault is followed up through."""
_RD, _CD = int(dns.flags.RD), int(dns.flags.CD)
_CNAME, _DS, _NS, _SOA = dns.rdatatype.CNAME, dns.rdatatype.DS, dns.rdatatype.NS, dns.rdatatype.SOA
_REMEDY = "repair the zone's signatures or the DS at its parent; CAs refuse names of a zone that doesn't validate"


class Word(StrEnum):
    """What a resolver says of a zone."""

    VALID = "valid"
    """It has validated it (AD)."""
    PLAIN = "plain"
    """It answers: the zone isn't signed, or nobody looks."""
    BOGUS = "bogus"
    """It has an answer and doesn't give it."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """A resolver's word, who it is, and what it says beside (RFC 8914)."""

    word: Word
    resolver: str
    said: str = ""


class DnssecCheck:
    """Looks, and changes nothing."""

    def __init__(self, clock: Clock) -> None:
        """`clock` says which signatures have ended."""
        self._clock = clock

    async def check(self, name: str, lookup: DnsLookup, deadline: Deadline) -> PreflightCheck | None:
        """The zone that holds `name`, or the one above it that is at fault; None where no resolver can be asked.

        FAILED is sure: a validator has found it, and so have we; or all servers of the zone are at fault.
        """
        if not lookup.resolvers:
            return None
        try:
            zone = own = await self._zone_of(name_of(name), lookup, deadline)
            heard = await self._hear(zone, lookup, deadline)
            if heard.word is Word.VALID:
                detail = f"signed, and validated by the resolver {heard.resolver}"
                return PreflightCheck(_CHECK, _text(zone), PreflightResult.OK, detail)
            if heard.word is Word.BOGUS:
                zone, heard = await self._topmost(zone, heard, lookup, deadline)
            inside = name_of(name) if zone == own != name_of(name) else None
            return await self._judged(zone, inside, heard, lookup, deadline)
        except (NoDnsAnswerError, RefusalError) as error:
            said = error.refusal.message if isinstance(error, RefusalError) else str(error)
            return PreflightCheck(_CHECK, name, PreflightResult.UNKNOWN, one_line(said, 400))

    async def _judged(
        self, zone: dns.name.Name, name: dns.name.Name | None, heard: _Heard, lookup: DnsLookup, deadline: Deadline
    ) -> PreflightCheck:
        bogus = heard.word is Word.BOGUS
        try:
            ds = await self._records(zone, _DS, lookup, deadline)
        except NoDnsAnswerError:
            if not bogus:
                raise
            ds = []  # they are the parent's, which the resolver may not know
        if not ds and not bogus:
            return PreflightCheck(_CHECK, _text(zone), PreflightResult.OK, "not signed")
        servers = await self._servers(zone, lookup, deadline)
        found = await all_of(self._fault(server, zone, ds, name, deadline) for server in servers)
        faults = [fault for fault, answers in found if answers and fault]
        answering = sum(answers for _, answers in found)
        detail = "; ".join(dict.fromkeys(faults[:3]))
        if bogus:
            refused = f"the resolver {heard.resolver} refuses it (SERVFAIL, but not with CD{heard.said})"
            detail = f"{refused}: {detail or 'what is at fault could not be told'}"
        if faults and (bogus or len(faults) == answering):
            return PreflightCheck(_CHECK, _text(zone), PreflightResult.FAILED, detail, _REMEDY)
        if faults or bogus:
            return PreflightCheck(_CHECK, _text(zone), PreflightResult.UNKNOWN, detail, _REMEDY)
        if not answering:
            silent = "; ".join(why for why, _ in found[:3]) or "the zone has no servers that can be asked"
            return PreflightCheck(_CHECK, _text(zone), PreflightResult.UNKNOWN, one_line(silent, 400))
        detail = (
            f"signed; nothing wrong at {answering} of {counted(len(servers), 'server')}; the resolver doesn't validate"
        )
        return PreflightCheck(_CHECK, _text(zone), PreflightResult.OK, detail)

    async def _topmost(
        self, zone: dns.name.Name, heard: _Heard, lookup: DnsLookup, deadline: Deadline
    ) -> tuple[dns.name.Name, _Heard]:
        """The highest zone that the resolver refuses, as far up as it answers: those below it can't be right."""
        for _ in range(_MOST_ZONES):
            if len(zone) <= 2:  # below the root, whose own signatures are everybody's
                break
            try:
                above = await self._zone_of(zone.parent(), lookup, deadline)
                if above == dns.name.root:
                    break
                of_above = await self._hear(above, lookup, deadline)
            except NoDnsAnswerError:  # as of a resolver for these zones alone
                break
            if of_above.word is not Word.BOGUS:
                break
            zone, heard = above, of_above
        return zone, heard

    async def _hear(self, zone: dns.name.Name, lookup: DnsLookup, deadline: Deadline) -> _Heard:
        """The word of the first resolver that has one.

        Raises:
            NoDnsAnswerError: none has.
        """
        failures: list[str] = []
        for server in await lookup.resolvers.servers():
            for address in server.addresses:
                try:
                    answer = await _ask(zone, _SOA, HostPort(address, server.port), deadline, _RD)
                    if answer.rcode() == dns.rcode.SERVFAIL:
                        unchecked = await _ask(zone, _SOA, HostPort(address, server.port), deadline, _RD | _CD)
                        if unchecked.rcode() == dns.rcode.NOERROR:
                            return _Heard(Word.BOGUS, address, _said(answer))
                except NoDnsAnswerError as error:
                    failures.append(f"{address}: {error}")
                    continue
                if answer.rcode() == dns.rcode.NOERROR:
                    return _Heard(Word.VALID if answer.flags & dns.flags.AD else Word.PLAIN, address)
                failures.append(f"{address} answers {dns.rcode.to_text(answer.rcode())}")
        raise NoDnsAnswerError(f"SOA of {_text(zone)} can't be looked up ({'; '.join(failures[:3])})")

    async def _zone_of(self, name: dns.name.Name, lookup: DnsLookup, deadline: Deadline) -> dns.name.Name:
        """The zone of `name`: whose SOA comes with the answer, or with the word that there is none (RFC 2308 2)."""
        answer = await self._unchecked(name, _SOA, lookup, deadline)
        for rrset in (*answer.answer, *answer.authority):
            if rrset.rdtype == _SOA and name.is_subdomain(rrset.name):
                return rrset.name
        if answer.rcode() == dns.rcode.NOERROR and name != dns.name.root:  # an alias, or a server that says too little
            return await self._zone_of(name.parent(), lookup, deadline)
        raise NoDnsAnswerError(f"the zone of {_text(name)} can't be told")

    async def _records(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, lookup: DnsLookup, deadline: Deadline
    ) -> list[Any]:
        answer = await self._unchecked(name, kind, lookup, deadline)
        return [record for rrset in answer.answer if rrset.rdtype == kind for record in rrset]

    async def _unchecked(
        self, name: dns.name.Name, kind: dns.rdatatype.RdataType, lookup: DnsLookup, deadline: Deadline
    ) -> dns.message.Message:
        """A resolver's answer, validated or not.

        Raises:
            NoDnsAnswerError: there is none.
        """
        failures: list[str] = []
        for server in await lookup.resolvers.servers():
            for address in server.addresses:
                try:
                    answer = await _ask(name, kind, HostPort(address, server.port), deadline, _RD | _CD)
                except NoDnsAnswerError as error:
                    failures.append(f"{address}: {error}")
                    continue
                if answer.rcode() in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
                    return answer
                failures.append(f"{address} answers {dns.rcode.to_text(answer.rcode())}")
        what = f"{dns.rdatatype.to_text(kind)} of {_text(name)}"
        raise NoDnsAnswerError(f"{what} can't be looked up ({'; '.join(failures[:3])})")

    async def _servers(self, zone: dns.name.Name, lookup: DnsLookup, deadline: Deadline) -> Sequence[NameServer]:
        """The zone's servers: those that are configured, else its NS set, which no resolver that validates gives."""
        if lookup.has_servers:
            return await lookup.servers_of(zone, deadline)
        targets = sorted({record.target for record in await self._records(zone, _NS, lookup, deadline)}, key=str)

        async def find(target: dns.name.Name) -> NameServer:
            addresses: list[str] = []
            for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
                try:
                    found = await self._records(target, kind, lookup, deadline)
                except NoDnsAnswerError:
                    continue
                addresses += [str(record.address) for record in found]
            return NameServer(_text(target), tuple(addresses), lookup.port)

        return await all_of(find(target) for target in targets[:_MOST_SERVERS])

    async def _fault(
        self,
        server: NameServer,
        zone: dns.name.Name,
        ds: Sequence[Any],
        name: dns.name.Name | None,
        deadline: Deadline,
    ) -> tuple[str, bool]:
        """What is wrong with what a server says, empty for nothing; and whether it says anything.

        `name` is one in the zone, not its apex, that a CA will ask about.
        """
        why = "it has no address"
        for address in server.addresses:
            where = HostPort(address, server.port)
            try:
                keys = await _ask(zone, dns.rdatatype.DNSKEY, where, deadline)
                others = [await _ask(zone, _SOA, where, deadline)]
                others += [] if name is None else [await _ask(name, dns.rdatatype.CAA, where, deadline)]
            except NoDnsAnswerError as error:
                why = f"{address}: {error}"
                continue
            if not others[0].flags & dns.flags.AA:
                why = f"{address} isn't authoritative"
                continue
            answered = [one for one in others if one.flags & dns.flags.AA]  # it may fail at one question
            fault = fault_of(zone, ds, ServerAnswers(keys, answered), self._clock.now())
            return (f"{server.name} ({address}) {fault}" if fault else ""), True
        return f"{server.name} can't be asked ({why})", False


async def _ask(
    name: dns.name.Name,
    kind: dns.rdatatype.RdataType,
    server: HostPort,
    deadline: Deadline,
    flags: int = 0,
) -> dns.message.Message:
    """Ask for records with their signatures (DO), over UDP and, when the answer is cut off, over TCP.

    Raises:
        NoDnsAnswerError: nothing readable came.
    """
    question = dns.message.make_query(name, kind, want_dnssec=True, flags=flags)
    seconds = min(_ONE_TRY, deadline.left).total_seconds()
    try:
        answer, _ = await dns.asyncquery.udp_with_fallback(question, server.host, timeout=seconds, port=server.port)
    except MALFORMED as error:
        raise NoDnsAnswerError(f"no readable answer ({type(error).__name__})") from error
    return answer


def _said(answer: dns.message.Message) -> str:
    """What a resolver says of its SERVFAIL (RFC 8914), as it is put behind a text; empty if it says nothing."""
    told = [
        one_line(f"{option.code.name.lower().replace('_', ' ')} {option.text or ''}", 120)
        for option in answer.options
        if isinstance(option, dns.edns.EDEOption)
    ]
    return f"; it says: {', '.join(told[:3])}" if told else ""


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)
