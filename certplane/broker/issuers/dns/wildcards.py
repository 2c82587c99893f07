"""Whether a CNAME is a wildcard's (RFC 4592): made for every name that isn't there, or written for one name.

An answer doesn't say which. What a wildcard answers for a name it answers for the name's neighbours too, and one
whose label nobody can guess has no record of its own.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import dns.name

_NEIGHBOURS = 3
"""Asked at most: a wildcard with weighted targets answers differently from one question to the next."""
_LABEL_BITS = 60
"""15 digits, as many as `_acme-challenge` has letters, so that the neighbour of a name that fits fits too."""


async def is_wildcard_alias(
    name: dns.name.Name,
    target: str,
    ask: Callable[[dns.name.Name], Awaitable[tuple[str, bool]]],
    rng: random.Random,
) -> bool:
    """Whether the CNAME from `name` to `target` is a wildcard's.

    A DNAME (RFC 6672) makes CNAMEs for all names below it too, but none of these can have a record of its own.

    Args:
        name: has the CNAME.
        target: lower case, without the final dot.
        ask: where the CNAME of a name leads, written as `target`, empty for none; and whether a DNAME made it.
        rng: makes the neighbours' names.
    """
    seen: set[str] = set()
    for _ in range(_NEIGHBOURS):
        try:
            neighbour = dns.name.Name([f"{rng.getrandbits(_LABEL_BITS):015x}".encode()]).concatenate(name.parent())
        except dns.name.NameTooLong:
            return False
        alias, renamed = await ask(neighbour)
        if not alias or renamed:
            return False
        if alias == target or (seen and alias not in seen):
            return True
        seen.add(alias)
    return False
