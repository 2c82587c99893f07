"""Whether the DNS lets a CA issue for a name: CAA (RFC 8659), with `accounturi` and `validationmethods` (RFC 8657).

The nearest name upwards that has CAA records decides, and only that. `judge` is pure; `relevant_records` asks, and what
stands at a parent is asked for once by all orders that look at about the same time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import dns.name
import dns.rdatatype
import dns.rdtypes.ANY.CAA

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, name_of
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.ports import CaaIdentity
from certplane.runtime.clock import Clock

_CRITICAL = 128 | 1
"""Bit 0 of RFC 8659 4.1 is 128. Zones that mean it often say 1, and CAs take that for the same (Boulder does)."""
_KNOWN_TAGS = frozenset({"issue", "issuewild", "issuemail", "issuevmc", "iodef", "contactemail", "contactphone"})
"""Properties that a CA understands, so that their critical flag forbids nothing (RFC 8659 4.5)."""
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)
_PARAMETER = re.compile(r"([A-Za-z0-9](?:-*[A-Za-z0-9])*)\s*=\s*([!-:<-~]*)", re.ASCII)
"""RFC 8659 4.2: tags have hyphens too."""
_LONGEST = 200
_FRESH = timedelta(seconds=10)
"""How long parents' records are kept: for the orders of a burst, and for nobody who has just put a record right."""


@dataclass(frozen=True, slots=True)
class CaaRecord:
    """One CAA record: `tag` in lower case, `value` as it stands."""

    flags: int
    tag: str
    value: str

    def __str__(self) -> str:
        """As a zone file has it."""
        return one_line(f'{self.flags} {self.tag} "{self.value}"', _LONGEST)


class Verdict(StrEnum):
    """What the records say."""

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class CaaVerdict:
    """A verdict with what it rests on, and what would change it."""

    verdict: Verdict
    message: str
    remedy: str = ""


def judge(name: str, owner: str, records: Sequence[CaaRecord], identity: CaaIdentity) -> CaaVerdict:
    """Whether this CA may issue for `name`, a wildcard or not, by the method that names are proved to it with. Pure.

    Args:
        name: of the certificate.
        owner: where the records stand; empty if there are none.
        records: the relevant ones.
        identity: what the CA calls itself in CAA records, and our account there.
    """
    if not records:
        return CaaVerdict(Verdict.ALLOWED, "no CAA records")
    critical = next((one for one in records if one.flags & _CRITICAL and one.tag not in _KNOWN_TAGS), None)
    if critical is not None:
        message = f"CAA of {owner} has the critical property {critical}, which no CA may ignore"
        return CaaVerdict(Verdict.FORBIDDEN, message, "remove it")
    wild = [record for record in records if record.tag == "issuewild"] if name.startswith("*.") else []
    asked = wild or [record for record in records if record.tag == "issue"]
    if not asked:
        return CaaVerdict(Verdict.ALLOWED, f"CAA of {owner} doesn't restrict who may issue")
    return _judge_issuers(name, owner, asked, identity)


def _judge_issuers(name: str, owner: str, asked: Sequence[CaaRecord], identity: CaaIdentity) -> CaaVerdict:
    """By the properties that say who may issue: one that names the CA is enough."""
    quoted = ", ".join(map(str, asked[:3]))
    if not identity.names:
        return CaaVerdict(Verdict.UNKNOWN, f"CAA of {owner} ({quoted}) can't be evaluated: the CA doesn't say its name")
    obstacles = {record: next(_obstacles(record, identity), "") for record in asked}
    if allowing := [record for record, why in obstacles.items() if why == ""]:
        return CaaVerdict(Verdict.ALLOWED, f"CAA of {owner} allows it: {allowing[0]}")
    if None in obstacles.values():
        unknown = "the account's URL" if identity.method else "the account's URL, or how the CA has approved the name,"
        message = f"CAA of {owner} ({quoted}) can't be evaluated: {unknown} isn't known"
        return CaaVerdict(Verdict.UNKNOWN, message)
    reasons = "; ".join(why for why in list(obstacles.values())[:3] if why)
    remedy = f'add `{owner}. CAA 0 {asked[0].tag} "{identity.names[0]}"`, or use a CA that the records name'
    message = f"CAA of {owner} forbids {identity.names[0]} to issue for {name}: {quoted} ({reasons})"
    return CaaVerdict(Verdict.FORBIDDEN, message, remedy)


def _obstacles(record: CaaRecord, identity: CaaIdentity) -> Iterator[str | None]:
    """What keeps a property from letting the CA issue; None if that depends on something that isn't known."""
    issuer, _, rest = record.value.strip().partition(";")
    domain = issuer.strip().lower().rstrip(".")
    if not domain:
        yield "it names nobody"
    elif _DOMAIN.fullmatch(domain) is None:
        yield "it can't be read"
    elif domain not in {name.lower().rstrip(".") for name in identity.names}:
        yield "another CA"
    parameters: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in rest.split(";"))):
        match = _PARAMETER.fullmatch(part)
        if match is None:
            yield "its parameters can't be read"
        else:
            parameters.append((match[1].lower(), match[2]))
    yield from _obstacles_of_method([value for tag, value in parameters if tag == "validationmethods"], identity.method)
    accounts = [value for tag, value in parameters if tag == "accounturi"]
    if len(accounts) > 1:
        yield "more than one accounturi"  # RFC 8657 3: nobody satisfies it
    if accounts and not identity.account_url:
        yield None
    elif accounts and accounts[0] != identity.account_url:
        yield f"accounturi of another account than {identity.account_url}"


def _obstacles_of_method(allowed: Sequence[str], method: str) -> Iterator[str | None]:
    if allowed and not method:
        yield None
    elif any(method not in value.lower().split(",") for value in allowed):
        yield f"validationmethods without {method}"


class ParentRecords:
    """What a moment ago stood at names that have names below. One question a name at a time; failures aren't kept."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[tuple[DnsLookup, dns.name.Name], tuple[float, tuple[CaaRecord, ...]]] = {}
        self._asking: dict[tuple[DnsLookup, dns.name.Name], asyncio.Lock] = {}

    async def at(self, lookup: DnsLookup, name: dns.name.Name, deadline: Deadline) -> tuple[CaaRecord, ...]:
        """The records at `name`; raises as `relevant_records`."""
        self._forget()
        key = (lookup, name)
        async with self._asking.setdefault(key, asyncio.Lock()):
            kept = self._kept.get(key)
            if kept is None:
                try:
                    kept = (self._clock.monotonic(), await _records_at(lookup, name, deadline))
                except BaseException:
                    self._asking.pop(key, None)  # who waits has it still, and asks again
                    raise
                self._kept[key] = kept
            return kept[1]

    def _forget(self) -> None:
        oldest = self._clock.monotonic() - _FRESH.total_seconds()
        # In the order in which they came, so that the first fresh one ends it.
        while self._kept and next(iter(self._kept.values()))[0] < oldest:
            key = next(iter(self._kept))
            del self._kept[key]
            self._asking.pop(key, None)


async def relevant_records(
    lookup: DnsLookup, name: str, deadline: Deadline, parents: ParentRecords
) -> tuple[str, tuple[CaaRecord, ...]]:
    """The CAA records that decide for `name` and where they stand; nothing if there are none up to the root.

    Aliases are followed at each name, and the tree is climbed from the name itself (RFC 8659 3).

    Raises:
        NoDnsAnswerError: it can't be told: a CA that gets no answer does not issue, but it may get one.
    """
    candidate = name_of(name.removeprefix("*."))
    records = await _records_at(lookup, candidate, deadline)
    while not records:
        candidate = candidate.parent()
        if candidate == dns.name.root:
            return "", ()
        records = await parents.at(lookup, candidate, deadline)
    return candidate.to_text(omit_final_dot=True), records


async def _records_at(lookup: DnsLookup, name: dns.name.Name, deadline: Deadline) -> tuple[CaaRecord, ...]:
    if lookup.resolvers:
        answer = await lookup.resolvers.resolve(name, dns.rdatatype.CAA, deadline)
    else:
        answer = await lookup.look(name, dns.rdatatype.CAA, deadline)
        if any(rrset.rdtype == dns.rdatatype.CNAME for rrset in answer.answer) and not any(
            rrset.rdtype == dns.rdatatype.CAA for rrset in answer.answer
        ):
            text = name.to_text(omit_final_dot=True)
            raise NoDnsAnswerError(f"{text} is an alias, and no resolver is configured that follows it")
    return (
        ()
        if answer is None
        else tuple(
            CaaRecord(record.flags, record.tag.decode("latin-1").lower(), record.value.decode("latin-1"))
            for rrset in answer.answer
            for record in rrset
            if isinstance(record, dns.rdtypes.ANY.CAA.CAA)
        )
    )
