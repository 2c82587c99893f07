"""One DNS question to one server, and what its answer means. Whatever comes back, only `NoDnsAnswerError` is raised."""

from __future__ import annotations

import asyncio
import ipaddress
from datetime import timedelta

import dns.asyncquery
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rdtypes.ANY.TXT

from certplane.config.values import HostPort

MALFORMED = (dns.exception.DNSException, OSError, EOFError, ValueError)
"""What dnspython raises on answers that are late, broken or cut off."""

_UDP_PAYLOAD = 1232  # what fits into one packet everywhere (DNS flag day 2020)


class NoDnsAnswerError(Exception):
    """No usable answer; the text says why and fits into a message."""


def name_of(text: str) -> dns.name.Name:
    """The absolute name for text without the final dot.

    Raises:
        ValueError: it isn't a name.
    """
    try:
        return dns.name.from_text(text.rstrip(".") + ".")
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} isn't a DNS name") from error


async def ask(
    name: dns.name.Name,
    kind: dns.rdatatype.RdataType,
    address: str,
    port: int,
    timeout: timedelta,
    *,
    recursive: bool = False,
) -> dns.message.Message:
    """Ask one address for records of `name`, over UDP and, when the answer is cut off, over TCP.

    Without `recursive` the RD bit is off: a server's own data are wanted, not a cache's. A server that refuses EDNS, or
    says nothing to it for half of the time, is asked once more without (RFC 6891 7); the first usable answer counts.

    Raises:
        NoDnsAnswerError: nothing readable came in `timeout`.
    """
    seconds = timeout.total_seconds()

    def question(*, edns: bool) -> dns.message.Message:
        query = dns.message.make_query(
            name, kind, use_edns=0 if edns else False, payload=_UDP_PAYLOAD if edns else None
        )
        if not recursive:
            query.flags &= ~dns.flags.RD
        return query

    async def exchange(*, edns: bool) -> dns.message.Message:
        answer, _ = await dns.asyncquery.udp_with_fallback(
            question(edns=edns), address, timeout=seconds, port=port, ignore_unexpected=True, ignore_errors=True
        )
        return answer

    tasks = [asyncio.ensure_future(exchange(edns=True))]
    try:
        async with asyncio.timeout(seconds):
            await asyncio.wait(tasks, timeout=seconds / 2)
            if tasks[0].done() and not _refuses_edns(answer := tasks[0].result()):
                return answer
            tasks.append(asyncio.ensure_future(exchange(edns=False)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done() and not tasks[0].exception() and not _refuses_edns(answer := tasks[0].result()):
                return answer
            return await tasks[1]
    except (TimeoutError, dns.exception.Timeout) as error:
        raise NoDnsAnswerError(f"no answer in {seconds:.0f} s") from error
    except MALFORMED as error:
        raise NoDnsAnswerError(f"no readable answer ({type(error).__name__})") from error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _refuses_edns(answer: dns.message.Message) -> bool:
    """Whether a question with EDNS got an answer that the same question without might not get."""
    if answer.rcode() in {dns.rcode.FORMERR, dns.rcode.NOTIMP, dns.rcode.BADVERS}:
        return True
    # Servers that don't know EDNS may also fail at it; one that answers with EDNS means what it says.
    return answer.rcode() in {dns.rcode.SERVFAIL, dns.rcode.REFUSED} and answer.edns < 0


def no_answer_in(
    answer: dns.message.Message, name: dns.name.Name, zone: dns.name.Name | None, *, recursive: bool = False
) -> str:
    """Why this is no answer for `name`, so that whoever asks turns to the next server; empty if it is one. Pure.

    That is an error (SERVFAIL, REFUSED, ...), and the word of a server that isn't authoritative: one that is listed for
    the zone without having it, or that refers upwards. A resolver's answer (`recursive`) needn't be authoritative.

    Args:
        answer: what came.
        name: what was asked for.
        zone: the zone whose server was asked; a referral to a zone below it is an answer. None if it isn't known.
        recursive: a resolver was asked.
    """
    if answer.rcode() not in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
        return f"answers {dns.rcode.to_text(answer.rcode())}"
    if recursive or answer.flags & dns.flags.AA:
        return ""
    cut = referral_in(answer, name)
    if cut is not None and (zone is None or (cut != zone and cut.is_subdomain(zone))):
        return ""
    return "isn't authoritative for the name"


def lacking_txt(answer: dns.message.Message, name: dns.name.Name, values: frozenset[str]) -> str:
    """Why this answer (`no_answer_in`) doesn't show all `values` at `name`; empty if it does. Pure."""
    if answer.rcode() == dns.rcode.NXDOMAIN:
        return "says that the name doesn't exist"
    shown = {
        b"".join(record.strings)
        for rrset in answer.answer
        if rrset.name == name and rrset.rdtype == dns.rdatatype.TXT
        for record in rrset
        if isinstance(record, dns.rdtypes.ANY.TXT.TXT)
    }
    missing = [value for value in values if value.encode() not in shown]
    return f"lacks {len(missing)} of {len(values)} values" if missing else ""


def alias_in(answer: dns.message.Message, name: dns.name.Name) -> str:
    """Where a CNAME at `name` points to; empty if there is none. Pure."""
    for rrset in answer.answer:
        if rrset.name == name and rrset.rdtype == dns.rdatatype.CNAME and len(rrset):
            return str(next(iter(rrset)))
    return ""


def renaming_in(answer: dns.message.Message, name: dns.name.Name) -> bool:
    """Whether a DNAME above `name` made its CNAME (RFC 6672 3.1). Pure."""
    return any(
        rrset.rdtype == dns.rdatatype.DNAME and rrset.name != name and name.is_subdomain(rrset.name)
        for rrset in answer.answer
    )


def referral_in(answer: dns.message.Message, name: dns.name.Name) -> dns.name.Name | None:
    """The zone at or above `name` to whose servers a server refers instead of answering (RFC 1034 4.3.2). Pure."""
    if answer.flags & dns.flags.AA or answer.answer:
        return None
    for rrset in answer.authority:
        if rrset.rdtype == dns.rdatatype.NS and name.is_subdomain(rrset.name) and rrset.name != dns.name.root:
            return rrset.name
    return None


async def addresses_of(server: HostPort) -> list[str]:
    """The IP addresses of a configured server.

    Raises:
        NoDnsAnswerError: its name has none.
    """
    try:
        return [str(ipaddress.ip_address(server.host))]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(server.host, server.port, proto=6)
    except OSError as error:
        raise NoDnsAnswerError(f"{server.host} has no address") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
