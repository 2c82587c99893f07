"""The records of dns-persist-01 (draft-ietf-acme-dns-persist): what a domain's owner publishes once, by the CA's rules.

A record stands at `_validation-persist.<name>` and names the CA and our account there. Who has the account's key can
have certificates for the name as long as it stands, so that nothing here writes one: it is made, shown, and judged.
Pure.

Two drafts are spoken, and the CA's directory shows which. Draft 01 (`accountHashPrefix` absent) names the account by
its URL. Draft 02 names it by a hash over the name, the account's key and its URL, below that prefix: another key makes
another record. Section numbers are draft 02's.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from certplane.broker.issuers.answers import one_line

LABEL: Final = "_validation-persist."
_ALGORITHM: Final = "sha-256/"
"""RFC 6920's name of it: every CA must take it (4.1)."""
_PARAMETER = re.compile(r"([A-Za-z0-9](?:-*[A-Za-z0-9])*)[ \t]*=[ \t]*([!-:<-~]*)", re.ASCII)
"""RFC 8659 4.2, whose syntax the value has."""
_INTEGER = re.compile(r"-?[0-9]{1,15}", re.ASCII)
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII)
_LONGEST_NAME = 253
_MOST_NAMES = 10
_LONGEST_STRING = 255
"""Octets of one string of a TXT record (RFC 1035 3.3.14)."""
_PREFIX = re.compile(r"https://[!-:<-~]{1,1000}", re.ASCII)
"""A value of the record: without blanks, quotes that would end it, and the `;` that ends a parameter."""


@dataclass(frozen=True, slots=True)
class StandingAccount:
    """What records of an account must name.

    Attributes:
        issuer_domain_names: the CA's own names, any one of which will do; empty if it doesn't say them.
        account_url: empty if it isn't known.
        key_thumbprint: of the account's key (RFC 7638), base64url.
        hash_prefix: of draft 02; empty for draft 01.
    """

    issuer_domain_names: tuple[str, ...]
    account_url: str = ""
    key_thumbprint: str = ""
    hash_prefix: str = ""

    def account_uri(self, domain: str) -> str:
        """The record's `accounturi` for `domain`; `*` is for any (4.1, item 3)."""
        if not self.hash_prefix:
            return self.account_url
        name = domain.encode("ascii")
        hashed = bytes((len(name),)) + name + self.key_thumbprint.encode("ascii") + self.account_url.encode("ascii")
        digest = urlsafe_b64encode(hashlib.sha256(hashed).digest()).decode("ascii").rstrip("=")
        return f"{self.hash_prefix}{_ALGORITHM}{digest}"


@dataclass(frozen=True, slots=True)
class StandingRecord:
    """A record that is to be there.

    Attributes:
        domain: the name that is proved, without `*.`.
        wildcard: whether names below it are proved too (`policy=wildcard`).
    """

    domain: str
    wildcard: bool = False

    @property
    def name(self) -> str:
        """Where it stands, without the final dot."""
        return LABEL + self.domain

    def value(self, account: StandingAccount, until: datetime | None = None) -> str:
        """What it says; `account` must be known, with a name of its CA. `until` is when it ends."""
        parts = [account.issuer_domain_names[0], f"accounturi={account.account_uri(self.domain)}"]
        if self.wildcard:
            parts.append("policy=wildcard")
        if until is not None:
            parts.append(f"persistUntil={int(until.timestamp())}")
        return "; ".join(parts)


def standing_records(dns_names: Sequence[str]) -> tuple[StandingRecord, ...]:
    """The records that a certificate with these names needs: one for a name and its wildcard."""
    wild = {name.removeprefix("*.") for name in dns_names if name.startswith("*.")}
    domains = dict.fromkeys(name.removeprefix("*.") for name in dns_names)
    return tuple(StandingRecord(domain, domain in wild) for domain in domains)


def zone_line(record: StandingRecord, value: str) -> str:
    """The record as a zone file has it; long values are several strings, which a CA joins."""
    strings = [value[start : start + _LONGEST_STRING] for start in range(0, len(value), _LONGEST_STRING)]
    return f"{record.name}. IN TXT " + " ".join(f'"{text}"' for text in strings)


class Standing(StrEnum):
    """What a record is worth for an order."""

    GOOD = "good"
    DOUBTFUL = "doubtful"
    """Only the CA knows: it may remember a key that the account had."""
    BAD = "bad"
    OTHER = "other"
    """For another CA, or no such record at all."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one TXT value is worth, and why, for people."""

    standing: Standing
    why: str = ""
    until: datetime | None = None


def judge_record(text: str, wanted: StandingRecord, account: StandingAccount, now: datetime) -> Judgement:
    """What a TXT value at the record's name is worth, as the CA will find it (4.1 and 4.2).

    Args:
        text: the value, its strings joined.
        wanted: what is to be proved.
        account: the CA's names, and our account as far as it is known.
        now: aware.
    """
    issuer, *rest = text.split(";")
    if issuer.strip(" \t") not in account.issuer_domain_names:
        return Judgement(Standing.OTHER)
    parameters: dict[str, str] = {}
    for part in rest:
        match = _PARAMETER.fullmatch(part.strip(" \t"))
        if match is None or match[1].lower() in parameters:
            return Judgement(Standing.BAD, f"its parameter {one_line(part, 60)!r} can't be read, or is there twice")
        parameters[match[1].lower()] = match[2]
    return _judge(parameters, wanted, account, now)


def _judge(parameters: dict[str, str], wanted: StandingRecord, account: StandingAccount, now: datetime) -> Judgement:
    until, said = None, parameters.get("persistuntil")
    if said is not None:
        if _INTEGER.fullmatch(said) is None:
            return Judgement(Standing.BAD, f"persistUntil={one_line(said, 40)} isn't a UNIX time")
        until = _time(int(said))
        if until < now:
            return Judgement(Standing.BAD, f"it ended {until:%Y-%m-%dT%H:%M:%SZ} (persistUntil)", until)
    if wanted.wildcard and parameters.get("policy", "").lower() != "wildcard":
        return Judgement(Standing.BAD, "it lacks policy=wildcard, which the wildcard needs", until)
    standing, why = _judge_account(parameters.get("accounturi", ""), wanted.domain, account)
    return Judgement(standing, why, until)


def _judge_account(uri: str, domain: str, account: StandingAccount) -> tuple[Standing, str]:
    if not uri:
        return Standing.BAD, "it names no account (accounturi)"
    if not account.account_url:
        return Standing.DOUBTFUL, f"it names the account {one_line(uri, 200)}, which wasn't looked up"
    if uri in _ours(domain, account):
        return Standing.GOOD, ""
    if account.hash_prefix and uri.startswith(account.hash_prefix):
        why = "its hash is of another account, or of a key that the account had before, which the CA may still take"
        return Standing.DOUBTFUL, why
    return Standing.BAD, f"it names the account {one_line(uri, 200)}, and ours is another"


def _ours(domain: str, account: StandingAccount) -> Iterator[str]:
    yield account.account_uri(domain)
    if account.hash_prefix:
        yield account.account_uri("*")


def _time(seconds: int) -> datetime:
    """Some say "for ever" by a number that no calendar has."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime.min.replace(tzinfo=UTC)


def issuer_domain_names(found: object) -> tuple[str, ...]:
    """A CA's `issuerDomainNames`; empty if they aren't as the draft wants them, and not to be relied on (3.1, 3.2)."""
    if not isinstance(found, list) or not 0 < len(found) <= _MOST_NAMES:
        return ()
    names = tuple(name for name in found if isinstance(name, str) and _NAME.fullmatch(name))
    return names if len(names) == len(found) and all(len(name) <= _LONGEST_NAME for name in names) else ()


def hash_prefix(found: object) -> str:
    """A CA's `accountHashPrefix`; empty if it has none that a record could hold."""
    return found if isinstance(found, str) and _PREFIX.fullmatch(found) and '"' not in found else ""


def why_malformed(offered: Sequence[str], of_directory: Sequence[str], caa_identities: Sequence[str]) -> str:
    """What is wrong with the names that a challenge offers, by what the directory says (3.2); empty for nothing."""
    if not offered:
        return "a dns-persist-01 challenge without usable names of the CA"
    if missing := [name for name in of_directory if name not in offered]:
        return f"a dns-persist-01 challenge that lacks its directory's name {missing[0]}"
    if caa_identities and (strange := [name for name in offered if name not in caa_identities]):
        return f"a dns-persist-01 challenge with the name {strange[0]}, which isn't one of its caaIdentities"
    return ""
