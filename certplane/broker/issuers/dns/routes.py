"""Which provider, credentials and servers a record gets: those of the longest configured zone that holds its name.

Credentials, the first that is there: those of the zone's entry; those of the policy profile, unless the zone has a
provider of its own, to which they would say nothing; the provider's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.issuers.dns.settings import Follow

_PARALLEL = 4
"""Writes under way at once at a provider that gathers none. DNS APIs limit their callers."""


@dataclass(frozen=True, slots=True)
class Route:
    """How the records of a zone are written and looked for.

    Attributes:
        zone: records at and below this name; empty for all that have no other route.
        provider: who writes.
        lookup: which servers know the zone.
        check: who must show a record.
        credentials: name of the secret for this zone; empty for the profile's.
        own_provider: the zone's entry names its provider, so that a profile's credentials aren't for it.
        follow: which CNAMEs of names in the zone are followed.
        writes: places of writes under way.
    """

    provider: DnsProvider
    lookup: DnsLookup
    check: PropagationCheck
    zone: str = ""
    credentials: str = ""
    own_provider: bool = False
    follow: Follow = Follow.AUTO
    writes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_PARALLEL))

    def credentials_for(self, of_profile: str) -> str:
        """The name of the secret to write with; empty for the provider's own."""
        return self.credentials or ("" if self.own_provider else of_profile)


class Routes:
    """All routes; `default` is for names in none of the `zones`."""

    def __init__(self, default: Route, zones: Iterable[Route] = ()) -> None:
        """Put them together."""
        self.default = default
        self._zones = {route.zone: route for route in zones}

    def of(self, name: str) -> Route:
        """The route of the record at `name` (without the final dot)."""
        labels = name.lower().split(".")
        parents = (".".join(labels[start:]) for start in range(len(labels)))
        return next((self._zones[parent] for parent in parents if parent in self._zones), self.default)

    def providers(self) -> list[DnsProvider]:
        """Each provider once."""
        return list({id(route.provider): route.provider for route in self}.values())

    def __iter__(self) -> Iterator[Route]:
        """The default first."""
        yield self.default
        yield from self._zones.values()


def is_below(name: str, above: str) -> bool:
    """Whether `name` is `above` or below it; both canonical, without the final dot."""
    return name == above or name.endswith(f".{above}")
