"""Where a challenge's TXT record stands: the CNAMEs at `_acme-challenge` followed to their end.

A CA follows CNAMEs (RFC 8555 8.4 asks the DNS, which does), so that a zone nobody wants to open to a program can point
into one that is made for it. The broker writes at the end of the chain, and only at or below names that its
configuration lists: whoever may set a CNAME in some zone must not choose where the broker writes.

A wildcard's CNAME (`*.example.net CNAME lb.example.net`) answers for every name that nobody has written, challenge
names too, and is about hosts. A record at the name itself hides it (RFC 4592 2.2.1), so that a chain which leads to no
listed name ends where a wildcard's CNAME begins, and the record is written there. A wildcard whose CNAME does lead to a
listed name is a delegation like any other.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import dns.name
import dns.rdatatype

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, alias_in, name_of, renaming_in
from certplane.broker.issuers.dns.routes import Route, Routes, is_below
from certplane.broker.issuers.dns.settings import Follow, Mode
from certplane.broker.issuers.dns.wildcards import is_wildcard_alias
from certplane.errors import Reason, RefusalError
from certplane.pki.names import MAX_NAME_LENGTH

MOST_ALIASES = 8
"""CNAMEs in one chain: more is a mistake, and CAs' resolvers give up not much later."""

_BRIEFLY = timedelta(seconds=2)
"""For authoritative servers that are expected to be out of reach."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a challenge's record stands.

    Attributes:
        chain: the names from the challenge's to the record's; one name if no CNAME is followed.
        wildcard: where the CNAME of a wildcard leads that answers for the last name until the record is there; else
            empty.
    """

    chain: tuple[str, ...]
    wildcard: str = ""


class Delegations:
    """Follows challenge names."""

    def __init__(self, allowed: Sequence[str], routes: Routes, rng: random.Random | None = None) -> None:
        """Set it up.

        Args:
            allowed: names at or below which a chain may end.
            routes: who is asked about each name.
            rng: makes the neighbours' names; nobody may guess them.
        """
        self._allowed, self._routes, self._rng = tuple(allowed), routes, rng or random.SystemRandom()

    async def follow(self, name: str, deadline: Deadline) -> tuple[str, ...]:
        """The names from `name` to where its record stands: `name` alone if no CNAME is followed. Raises as `place`."""
        return (await self.place(name, deadline)).chain

    async def place(self, name: str, deadline: Deadline) -> Place:
        """Where the record of the challenge name `name` stands.

        Raises:
            RefusalError: DNS_REJECTED for a loop, too long a chain, or an end that isn't allowed, with the key to add;
                DNS_UNAVAILABLE when it can't be told now.
        """
        chain = [name]
        try:
            await self._follow_to_end(chain, deadline)
        except RefusalError as error:
            may_end_well = len(chain) > 1 and self._allows(chain[-1])
            if error.refusal.reason is not Reason.DNS_REJECTED and may_end_well:
                raise
            place = await self._before_wildcard(chain, deadline)
            if place is None:
                raise
            return place
        return Place(tuple(chain))

    async def _follow_to_end(self, chain: list[str], deadline: Deadline) -> None:
        """Extend the chain to its end, which is allowed."""
        while target := await self._alias_of(chain[-1], deadline):
            if target in chain:
                chain.append(target)
                raise _rejected(f"{_arrows(chain)} is a loop of CNAMEs; remove one of them")
            chain.append(target)
            _check_readable(chain)
            if len(chain) > MOST_ALIASES + 1:
                raise _rejected(f"{_arrows(chain)} has more than {MOST_ALIASES} CNAMEs; shorten the chain")
        end = chain[-1]
        if len(chain) > 1 and not self._allows(end):
            parent = end.partition(".")[2]
            message = (
                f"{_arrows(chain)} (CNAME) leads to no name of dns.delegations: add {parent} (or {end}) to "
                f"dns.delegations if the broker is to write there; else remove the CNAME, or set follow_cnames: never "
                f"where a record at {chain[0]} itself counts"
            )
            raise _rejected(message)

    async def _before_wildcard(self, chain: Sequence[str], deadline: Deadline) -> Place | None:
        """The chain as far as the first CNAME that is a wildcard's, None if there is none or it may not end there."""
        for number, (name, target) in enumerate(itertools.pairwise(chain)):
            route = self._routes.of(name)
            if route.follow is Follow.ALWAYS or not await self._is_wildcards(name, target, route, deadline):
                continue
            return Place(tuple(chain[: number + 1]), target) if not number or self._allows(name) else None
        return None

    async def _is_wildcards(self, name: str, target: str, route: Route, deadline: Deadline) -> bool:
        async def ask(neighbour: dns.name.Name) -> tuple[str, bool]:
            return await self._ask(neighbour, route, deadline)

        try:
            return await is_wildcard_alias(name_of(name), target, ask, self._rng)
        except (NoDnsAnswerError, RefusalError):
            return False  # then what stopped the chain is told

    def _allows(self, end: str) -> bool:
        return any(is_below(end, allowed) for allowed in self._allowed)

    async def _alias_of(self, name: str, deadline: Deadline) -> str:
        route = self._routes.of(name)
        if route.follow is Follow.NEVER:
            return ""
        if not self._allowed and route.check.mode is not Mode.AUTHORITATIVE:
            return ""  # nothing may be followed, and the servers that would tell may be out of reach
        try:
            return (await self._ask(name_of(name), route, deadline))[0]
        except NoDnsAnswerError as error:
            if not self._allowed:
                # The provider says more of a zone that isn't there, and the check of the record of an alias.
                return ""
            message = f"could not find out whether {name} is delegated (CNAME): {one_line(str(error), 400)}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error

    async def _ask(self, name: dns.name.Name, route: Route, deadline: Deadline) -> tuple[str, bool]:
        """Where a CNAME at `name` leads, and whether a DNAME above it made it; by a resolver if no other can be asked.

        Raises:
            NoDnsAnswerError: it can't be told now.
            RefusalError: DNS_REJECTED: the name is in no zone.
        """
        authoritative = route.check.mode is Mode.AUTHORITATIVE
        try:
            answer = await route.lookup.look(
                name, dns.rdatatype.CNAME, deadline if authoritative else deadline.earlier(_BRIEFLY)
            )
        except (NoDnsAnswerError, RefusalError):  # a resolver without SOA records shows no zones
            if authoritative or not self._allowed:
                raise
            resolved = await route.lookup.resolvers.resolve(name, dns.rdatatype.CNAME, deadline)
            if resolved is None:
                return "", False
            answer = resolved
        return alias_in(answer, name).rstrip(".").lower(), renaming_in(answer, name)


def _check_readable(chain: Sequence[str]) -> None:
    """A target becomes a record's name and part of messages: nothing but a plain name gets any further."""
    name, target = chain[-2:]
    plain = target.replace(".", "").replace("-", "").replace("_", "")
    option = target.startswith("-")  # to a program that is called with it
    if len(target) > MAX_NAME_LENGTH or not plain.isascii() or not plain.isalnum() or option:
        raise _rejected(f"{name} is an alias (CNAME) of {one_line(target, 80)!r}, which is no name to write at")


def _arrows(chain: Sequence[str]) -> str:
    return " -> ".join(chain)


def _rejected(message: str) -> RefusalError:
    return RefusalError(Reason.DNS_REJECTED, message)
