"""Where a challenge's TXT record really stands: the CNAMEs at `_acme-challenge` followed to their end.

A CA follows CNAMEs (RFC 8555 8.4 asks the DNS, which does), so that a zone nobody wants to open to a program can point
into one that is made for it. The broker writes at the end of the chain, and only at or below names that its
configuration lists: whoever may set a CNAME in some zone must not choose where the broker writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import dns.rdatatype

from certplane.broker.issuers.answers import printable
from certplane.broker.issuers.dns.dns_messages import NoDnsAnswerError, alias_in, name_of
from certplane.broker.issuers.dns.propagation import Mode
from certplane.broker.issuers.dns.routes import is_below
from certplane.errors import Reason, RefusalError
from certplane.pki.names import MAX_NAME_LENGTH

if TYPE_CHECKING:
    from certplane.broker.issuers.attempts import Deadline
    from certplane.broker.issuers.dns.routes import Route, Routes

__all__ = ["MOST_ALIASES", "Delegations"]

MOST_ALIASES = 8
"""CNAMEs in one chain: more is a mistake, and CAs' resolvers give up not much later."""

_BRIEFLY = timedelta(seconds=2)
"""For authoritative servers that are expected to be out of reach."""


class Delegations:
    """Follows challenge names."""

    def __init__(self, allowed: Sequence[str], routes: Routes) -> None:
        """Set it up.

        Args:
            allowed: names at or below which a chain may end.
            routes: who is asked about each name.
        """
        self._allowed, self._routes = tuple(allowed), routes

    async def follow(self, name: str, deadline: Deadline) -> tuple[str, ...]:
        """The names from `name` to where its record stands: `name` alone if it is no alias.

        Raises:
            RefusalError: DNS_REJECTED for a loop, too long a chain, or an end that isn't allowed, with the key to add;
                DNS_UNAVAILABLE when it can't be told now.
        """
        chain = [name]
        while target := await self._alias_of(chain[-1], deadline):
            target = _readable(chain[-1], target)
            if target in chain:
                raise _rejected(f"{_arrows([*chain, target])} is a loop of CNAMEs; remove one of them")
            chain.append(target)
            if len(chain) > MOST_ALIASES + 1:
                raise _rejected(f"{_arrows(chain)} has more than {MOST_ALIASES} CNAMEs; shorten the chain")
        end = chain[-1]
        if len(chain) > 1 and not any(is_below(end, allowed) for allowed in self._allowed):
            parent = end.partition(".")[2]
            message = (
                f"{_arrows(chain)} (CNAME) leads to no name of dns.delegations: add {parent} (or {end}) to "
                f"dns.delegations if the broker is to write there, else remove the CNAME"
            )
            raise _rejected(message)
        return tuple(chain)

    async def _alias_of(self, name: str, deadline: Deadline) -> str:
        route = self._routes.of(name)
        if not self._allowed and route.check.mode is not Mode.AUTHORITATIVE:
            return ""  # nothing may be followed, and the servers that would tell may be out of reach
        authoritative = route.check.mode is Mode.AUTHORITATIVE
        try:
            return await route.lookup.alias_of(name_of(name), deadline if authoritative else deadline.earlier(_BRIEFLY))
        except NoDnsAnswerError as error:
            if not self._allowed:
                return (
                    ""  # the provider says more of a zone that isn't there, and the look before the answer of an alias
                )
            if not authoritative:
                return await self._by_resolver(name, route, deadline)
            message = f"it can't be told whether {name} is delegated (CNAME): {printable(str(error), 400)}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error

    async def _by_resolver(self, name: str, route: Route, deadline: Deadline) -> str:
        try:
            answer = await route.lookup.resolve(name_of(name), dns.rdatatype.CNAME, deadline)
        except NoDnsAnswerError as error:
            message = f"it can't be told whether {name} is delegated (CNAME): {printable(str(error), 400)}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
        return "" if answer is None else alias_in(answer, name_of(name)).rstrip(".").lower()


def _readable(name: str, target: str) -> str:
    """A target becomes a record's name and part of messages: nothing but a plain name gets any further."""
    plain = target.replace(".", "").replace("-", "").replace("_", "")
    option = target.startswith("-")  # to a program that is called with it
    if len(target) > MAX_NAME_LENGTH or not plain.isascii() or not plain.isalnum() or option:
        raise _rejected(f"{name} is an alias (CNAME) of {printable(target, 80)!r}, which is no name to write at")
    return target


def _arrows(chain: Sequence[str]) -> str:
    return " -> ".join(chain)


def _rejected(message: str) -> RefusalError:
    return RefusalError(Reason.DNS_REJECTED, message)
