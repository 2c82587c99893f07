"""DNSSEC: what is wrong with what one server says of a signed zone (RFC 4035 5). Pure.

A resolver that validates says no more than SERVFAIL; this says which signature or key is at fault. It isn't a
validator: it looks at one zone, by the DS records of its parent, and what it can't judge (an algorithm that nobody here
knows) is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import dns.dnssec
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.DNSKEY
import dns.rdtypes.ANY.DS
import dns.rdtypes.ANY.RRSIG
import dns.rrset

_DENIALS = frozenset({dns.rdatatype.NSEC, dns.rdatatype.NSEC3})


@dataclass(frozen=True, slots=True)
class ServerAnswers:
    """What one server says: of the zone's keys, and of other things that a CA asks for."""

    keys: dns.message.Message
    others: Sequence[dns.message.Message]


def fault_of(zone: dns.name.Name, ds: Sequence[Any], answers: ServerAnswers, now: datetime) -> str:
    """What keeps a validator from taking what a server says; empty if nothing was found.

    Args:
        zone: its name.
        ds: the DS records of the zone at its parent; empty where they aren't known.
        answers: of one of its servers, asked with DO.
        now: aware.
    """
    return next(_faults(zone, ds, answers, now), "")


def _faults(zone: dns.name.Name, ds: Sequence[Any], answers: ServerAnswers, now: datetime) -> Iterator[str]:
    found = _rrset(answers.keys.answer, zone, dns.rdatatype.DNSKEY)
    if found is None:
        yield "sends no DNSKEY, though the parent zone has a DS"
        return
    keys = {dns.dnssec.key_id(key): key for key in found}
    if ds and not _trusted(zone, ds, found):
        tags = ", ".join(str(record.key_tag) for record in ds)
        yield f"sends DNSKEYs ({_listed(keys)}) of which none is in the parent's DS (key tag {tags})"
    yield from _unsigned(found, answers.keys.answer, zone, found, now)
    for answer in answers.others:
        section = answer.answer or answer.authority
        signed = [one for one in section if one.rdtype != dns.rdatatype.RRSIG]
        if not answer.answer and signed and not any(one.rdtype in _DENIALS for one in signed):
            question = answer.question[0]
            asked = f"{dns.rdatatype.to_text(question.rdtype)} of {_text(question.name)}"
            yield f"sends no signed proof (NSEC, NSEC3) that there is no {asked}"
        for rrset in signed:
            if rrset.name.is_subdomain(zone):
                yield from _unsigned(rrset, section, zone, found, now)


def _trusted(zone: dns.name.Name, ds: Sequence[Any], keys: dns.rrset.RRset) -> bool:
    """Whether one of the keys is the one that the parent has a hash of; true where that can't be judged."""
    for record in ds:
        for key in keys:
            try:
                made = dns.dnssec.make_ds(zone, key, record.digest_type, validating=True)
            except dns.exception.DNSException:
                return True
            if made == record:
                return True
    return False


def _unsigned(
    rrset: dns.rrset.RRset,
    section: Sequence[dns.rrset.RRset],
    zone: dns.name.Name,
    keys: dns.rrset.RRset,
    now: datetime,
) -> Iterator[str]:
    """What is wrong with the signatures of `rrset`: one that is right is enough."""
    kind = dns.rdatatype.to_text(rrset.rdtype)
    what = f"{kind} of {_text(rrset.name)}"
    signatures = [
        signature
        for one in section
        if one.rdtype == dns.rdatatype.RRSIG and one.name == rrset.name and one.covers == rrset.rdtype
        for signature in one
        if isinstance(signature, dns.rdtypes.ANY.RRSIG.RRSIG)
    ]
    if not signatures:
        yield f"sends no signature (RRSIG) of {what}"
        return
    wrong = [_wrong(rrset, signature, zone, keys, now) for signature in signatures]
    if "" not in wrong:
        yield f"sends {what} with a signature {wrong[0]}"


def _wrong(rrset: dns.rrset.RRset, signature: Any, zone: dns.name.Name, keys: dns.rrset.RRset, now: datetime) -> str:
    tag, at = signature.key_tag, now.timestamp()
    if signature.signer != zone:
        return ""  # of a zone below, on the same server
    if signature.expiration < at:
        return f"by key {tag} that ended {_time(signature.expiration)}"
    if signature.inception > at:
        return f"by key {tag} that begins {_time(signature.inception)}"
    if tag not in {dns.dnssec.key_id(key) for key in keys}:
        return f"by key {tag}, which isn't among its DNSKEYs"
    return "" if _fits(rrset, signature, zone, keys, at) else f"by key {tag} that is wrong"


def _fits(rrset: dns.rrset.RRset, signature: Any, zone: dns.name.Name, keys: dns.rrset.RRset, at: float) -> bool:
    """Whether the signature is that of one of the keys; true where that can't be judged."""
    rrsigs = dns.rrset.from_rdata(rrset.name, rrset.ttl, signature)
    try:
        dns.dnssec.validate(rrset, rrsigs, {zone: keys}, now=at)
    except (dns.exception.UnsupportedAlgorithm, dns.exception.DeniedByPolicy):
        return True
    except (dns.exception.DNSException, ValueError):
        return False
    return True


def _rrset(section: Sequence[dns.rrset.RRset], name: dns.name.Name, kind: dns.rdatatype.RdataType) -> Any:
    return next((one for one in section if one.name == name and one.rdtype == kind), None)


def _listed(keys: dict[int, Any]) -> str:
    tags = ", ".join(map(str, sorted(keys)))
    return f"key tag {tags}" if len(keys) == 1 else f"key tags {tags}"


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True)


def _time(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
