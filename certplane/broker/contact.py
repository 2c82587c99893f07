"""The address that a CA writes to about its account (`account_email`): one that CAs take, in the form that they want.

A CA refuses a contact that it can't use (RFC 8555 7.3) with the first order, and with each one after that. Which
domains have mail isn't known here.
"""

from __future__ import annotations

import re
from typing import Self

from certplane.pki.names import DnsNameError, canonical_dns_name

_LOCAL = re.compile(r"[A-Za-z0-9!$'*+^_`{|}~-]+(\.[A-Za-z0-9!$'*+^_`{|}~-]+)*", re.ASCII)
"""RFC 5321's dot-string without what a mailto: URL holds percent-encoded only (RFC 6068 2): `% # & / = ?`."""
_LONGEST_LOCAL, _LONGEST = 64, 254
_NAMED = re.compile(r".*<([^<>]+)>\s*")
_RESERVED = (
    *("example.com", "example.net", "example.org"),
    *("example", "test", "invalid", "localhost", "local", "internal"),
)
"""Names without public mail (RFC 2606, RFC 6761): public CAs refuse them, by name or as no domain."""


class ContactEmail(str):
    """One e-mail address, without `mailto:`; or empty."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address as it stands, its domain in lower case."""
        return cls(text and _checked(text))

    @property
    def reserved_domain(self) -> str:
        """The name in its domain that no mail can be sent to; empty if there is none."""
        domain = f".{self.rpartition('@')[2]}"
        return next((name for name in _RESERVED if self and domain.endswith(f".{name}")), "")


NO_CONTACT = ContactEmail()


def _checked(text: str) -> str:
    if text != text.strip():
        raise ValueError(f"has white space around it; write {text.strip()[:80]!a}")
    if text.lower().startswith("mailto:"):
        raise ValueError(f"begins with mailto:, which the broker adds; write {text[7:].strip()[:80]!a}")
    if match := _NAMED.fullmatch(text):
        raise ValueError(f"has a name beside the address; write {match[1].strip()[:80]!a}")
    if any(character in text for character in ",;") or text.count("@") > 1:
        raise ValueError("holds several addresses; CAs take one or few: name one that a group reads")
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain:
        raise ValueError(f"is {text[:80]!a}, which is no e-mail address; write one like hostmaster@your-domain.net")
    if not local.isascii():
        raise ValueError(f"has {local[:64]!a} before the @, which isn't ASCII; CAs take no such address: name another")
    if len(local) > _LONGEST_LOCAL or _LOCAL.fullmatch(local) is None:
        raise ValueError(
            f"has {local[:64]!a} before the @, which CAs don't take in a mailto: URL; name another address"
        )
    address = f"{local}@{_checked_domain(domain)}"
    if len(address) > _LONGEST:
        raise ValueError(f"is longer than {_LONGEST} characters")
    return address


def _checked_domain(domain: str) -> str:
    if not domain.isascii():
        raise ValueError(f"has a domain that isn't ASCII; write its A-label{_a_label(domain)}")
    try:
        name = canonical_dns_name(domain)
    except DnsNameError as error:
        raise ValueError(f"has a domain that {error.problem}; write one like your-domain.net") from error
    if "." not in name or name.startswith("*"):
        raise ValueError(f"has {name[:80]!a} after the @, which is no domain of the internet; write it in full")
    return name


def _a_label(domain: str) -> str:
    """The form to write, if there is one."""
    import idna  # noqa: PLC0415 - for this message only

    try:
        return f", {idna.encode(domain, uts46=True).decode('ascii')}"
    except (idna.IDNAError, UnicodeError):
        return ""
