"""From the configuration to `Routes`: each zone's provider, the servers that know it, and who must show a record.

What the entry of a zone doesn't say, the section `dns` says, and then `issuer.acme`. A mistake is told with its key;
the caller adds file and line.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from certplane.broker.issuers.dns.httpreq import HttpreqSettings
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.no_provider import NoProvider
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.issuers.dns.providers import DnsProviderName
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.settings import (
    ChallengeSettings,
    DnsPropagationSettings,
    DnsSettings,
    DnsZoneSettings,
    Mode,
)
from certplane.broker.ports import SecretSource
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock


class Routing:
    """Makes the routes; nothing is sent. Zones that name the same provider share it, with its limits."""

    def __init__(
        self, acme: ChallengeSettings, dns: DnsSettings, secrets: SecretSource, clock: Clock, rng: random.Random
    ) -> None:
        """Take what routes are made from."""
        self._acme, self._dns = acme, dns
        self._secrets, self._clock, self._rng = secrets, clock, rng
        self._shared: dict[DnsProviderName, DnsProvider] = {}
        self._nobody = NoProvider()

    def routes(self) -> Routes:
        """All routes.

        Raises:
            ConfigurationError: a provider or a resolver can't be used.
        """
        acme, dns = self._acme, self._dns
        name = acme.dns_provider
        lookup = self._lookup(name, dns.authoritative_servers or acme.propagation.nameservers)
        default = Route(
            self._provider(name),
            lookup,
            self._check(lookup, name, dns.propagation),
            follow=dns.follow_cnames,
        )
        zones = (self._of_zone(zone, f"dns.zones[{number}]", lookup) for number, zone in enumerate(dns.zones))
        return Routes(default, zones)

    def _of_zone(self, zone: DnsZoneSettings, key: str, lookup: DnsLookup) -> Route:
        default = self._acme.dns_provider
        name = zone.provider or default
        if zone.server is not None:
            provider = self._provider_at(zone.server, name, key)
        else:
            provider = self._provider(name, f"{key}.provider")
        if zone.resolvers:
            lookup = DnsLookup(
                resolvers=zone.resolvers, servers=zone.authoritative_servers, clock=self._clock, key=f"{key}.resolvers"
            )
        elif zone.authoritative_servers:
            lookup = self._lookup(default, zone.authoritative_servers)
        elif name != default and self._httpreq_observers(name):
            lookup = self._lookup(name, ())
        propagation = zone.propagation.over(self._dns.propagation)
        if propagation.mode is None and (zone.resolvers or zone.authoritative_servers):
            propagation = replace(propagation, mode=Mode.AUTHORITATIVE)
        return Route(
            provider,
            lookup,
            self._check(lookup, name, propagation),
            zone=zone.zone,
            follow=zone.follow_cnames or self._dns.follow_cnames,
            credentials=zone.credentials,
            own_provider=name != default,
        )

    def _provider(self, name: DnsProviderName | None, key: str = "issuer.acme.dns_provider") -> DnsProvider:
        """The provider `name`, which `key` names."""
        if name is None:
            return self._nobody
        if name not in self._shared:
            section = self._acme.required_section(name, key)
            self._shared[name] = section.make(self._secrets, self._clock, self._rng)
        return self._shared[name]

    def _provider_at(self, server: HostPort, name: DnsProviderName | None, key: str) -> DnsProvider:
        """The provider of the zone's entry at `key`, whose updates go to `server`."""
        section = None if name is None else self._acme.required_section(name, f"{key}.provider")
        if not isinstance(section, Rfc2136Settings):
            message = f"goes with the provider rfc2136, not with {name or 'none'}"
            remedy = "remove it, or set provider: rfc2136"
            raise ConfigurationError([ConfigurationProblem("", None, f"{key}.server", message, remedy)])
        return replace(section, server=server).make(self._secrets, self._clock, self._rng)

    def _lookup(self, provider: DnsProviderName | None, servers: Sequence[HostPort]) -> DnsLookup:
        """With the resolvers of `dns`, else those of httpreq, which may be host names, where that is the provider."""
        section = self._acme.section_of(provider)
        if not self._dns.resolvers and isinstance(section, HttpreqSettings):
            key, resolvers = "issuer.acme.httpreq.recursive_nameservers", section.recursive_nameservers
            return DnsLookup(resolvers=resolvers, servers=servers, clock=self._clock, key=key, named_resolvers=True)
        return DnsLookup(resolvers=self._dns.resolvers, servers=servers, clock=self._clock, key="dns.resolvers")

    def _check(
        self, lookup: DnsLookup, provider: DnsProviderName | None, said: DnsPropagationSettings
    ) -> PropagationCheck:
        propagation = said.applied(self._acme.propagation_of(provider))
        default = Mode.RECURSIVE if self._httpreq_observers(provider) else Mode.AUTHORITATIVE
        return PropagationCheck(
            lookup,
            mode=said.mode or default,
            timeout=propagation.timeout,
            interval=propagation.interval,
            settle=propagation.settle,
        )

    def _httpreq_observers(self, provider: DnsProviderName | None) -> bool:
        """Whether `httpreq.recursive_nameservers` are who must show a record, as the key's format means it.

        The keys that are this broker's own (`dns.resolvers`, authoritative servers) say more, and come first.
        """
        section = self._acme.section_of(provider)
        if not isinstance(section, HttpreqSettings) or not section.recursive_nameservers:
            return False
        return not (self._dns.resolvers or self._dns.authoritative_servers or self._acme.propagation.nameservers)
