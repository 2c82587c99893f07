"""How the DNS is asked and written: the DNS keys of `issuer.acme`, and the section `dns`, in general and by zone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Self

from certplane.broker.issuers.dns.provider import ProviderSettings
from certplane.broker.issuers.dns.providers import DnsProviderName, ProviderSections
from certplane.config.decoding import KeyProblem
from certplane.config.values import DnsServerAddress, HostPort, PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.names import MAX_NAME_LENGTH

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)


class Follow(StrEnum):
    """Which CNAMEs at challenge names are followed; values are those of the configuration."""

    AUTO = "auto"
    """All but a wildcard's that leads to no name of `dns.delegations`."""
    ALWAYS = "always"
    """All: one that leads elsewhere is an error."""
    NEVER = "never"
    """None: the record is written at the challenge name itself."""


class Mode(StrEnum):
    """Who is asked; values are those of the configuration."""

    AUTHORITATIVE = "authoritative"
    """Every authoritative server of the zone."""
    RECURSIVE = "recursive"
    """Every resolver: for networks that let DNS out by their resolvers alone."""
    WAIT = "wait"
    """Nobody: the settling time is waited."""


@dataclass(frozen=True, slots=True)
class PropagationSettings:
    """`issuer.acme.propagation`: how TXT records are looked for before a challenge is answered.

    `nameservers` are asked instead of the zone's own authoritative servers (split DNS); `settle` is waited after the
    last of them has the records.
    """

    timeout: PositiveSpan = timedelta(seconds=120)
    interval: PositiveSpan = timedelta(seconds=2)
    nameservers: tuple[HostPort, ...] = ()
    settle: timedelta = timedelta()


@dataclass(frozen=True, kw_only=True)
class ChallengeSettings(ProviderSections):
    """The keys of `issuer.acme` by which dns-01 challenges of all issuers are answered.

    Without `dns_provider` there is nobody who writes: for issuers that want no records of ours.
    """

    dns_provider: DnsProviderName | None = None
    propagation: PropagationSettings = field(default_factory=PropagationSettings)

    def problems(self) -> Iterator[KeyProblem]:
        """The chosen DNS provider is configured."""
        provider = self.dns_provider
        if provider is not None and self.section_of(provider) is None:
            yield KeyProblem(
                provider.section, f"is required with dns_provider: {provider}", f"add `{provider.section}:`"
            )

    def section_of(self, provider: DnsProviderName | None) -> ProviderSettings | None:
        """The section of `provider`; None if the file has none, or there is no provider."""
        section: ProviderSettings | None = None if provider is None else getattr(self, provider.section)
        return section

    def required_section(
        self, provider: DnsProviderName, named_by: str = "issuer.acme.dns_provider"
    ) -> ProviderSettings:
        """The section of `provider`, which the key `named_by` names.

        Raises:
            ConfigurationError: there is none.
        """
        section = self.section_of(provider)
        if section is None:
            message = f"is {provider}, which has no section issuer.acme.{provider.section}"
            raise ConfigurationError([ConfigurationProblem("", None, named_by, message, "add that section")])
        return section

    def propagation_of(self, provider: DnsProviderName | None) -> PropagationSettings:
        """`propagation` with what the section of `provider` says instead."""
        own = self.section_of(provider)
        if own is None:
            return self.propagation
        return replace(
            self.propagation,
            timeout=own.propagation_timeout or self.propagation.timeout,
            interval=own.polling_interval or self.propagation.interval,
        )


@dataclass(frozen=True, slots=True)
class DnsPropagationSettings:
    """What `dns.propagation`, or that of a zone, says instead of the next more general section."""

    mode: Mode | None = None
    timeout: PositiveSpan | None = None
    interval: PositiveSpan | None = None
    settle: timedelta | None = None

    def over(self, general: DnsPropagationSettings) -> DnsPropagationSettings:
        """These, and those of `general` where these say nothing."""
        return DnsPropagationSettings(
            mode=self.mode or general.mode,
            timeout=self.timeout or general.timeout,
            interval=self.interval or general.interval,
            settle=general.settle if self.settle is None else self.settle,
        )

    def applied(self, settings: PropagationSettings) -> PropagationSettings:
        """`settings` of a provider with what is said here instead."""
        return replace(
            settings,
            timeout=self.timeout or settings.timeout,
            interval=self.interval or settings.interval,
            settle=settings.settle if self.settle is None else self.settle,
        )


class ZoneName(str):
    """A name of the DNS in lower case, without the final dot; unlike a host's it may have labels like `_acme`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """With or without the final dot."""
        name = text.lower().removesuffix(".")
        if len(name) > MAX_NAME_LENGTH or any(_LABEL.fullmatch(label) is None for label in name.split(".")):
            raise ValueError("must be a zone's name like acme.example.net, without wildcards")
        return cls(name)


@dataclass(frozen=True, slots=True)
class DnsZoneSettings:
    """How records at and below `zone` are written and looked for; the longest `zone` that holds a record counts.

    `provider` is one that has its section below `issuer.acme`; `server` is where the updates of `rfc2136` go instead of
    that section's; `follow_cnames` counts for CNAMEs of names in the zone.
    """

    zone: ZoneName
    provider: DnsProviderName | None = None
    server: HostPort | None = None
    credentials: str = ""
    resolvers: tuple[DnsServerAddress, ...] = ()
    authoritative_servers: tuple[DnsServerAddress, ...] = ()
    follow_cnames: Follow | None = None
    propagation: DnsPropagationSettings = field(default_factory=DnsPropagationSettings)


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How the DNS is asked and written, whatever the issuer. What stands below `issuer.acme` counts where this is mute.

    `delegations` are names at or below which a CNAME at `_acme-challenge` may lead.
    """

    delegations: tuple[ZoneName, ...] = ()
    follow_cnames: Follow = Follow.AUTO
    resolvers: tuple[DnsServerAddress, ...] = ()
    authoritative_servers: tuple[DnsServerAddress, ...] = ()
    propagation: DnsPropagationSettings = field(default_factory=DnsPropagationSettings)
    zones: tuple[DnsZoneSettings, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """Each zone has one entry, and whoever only waits says how long."""
        seen: set[str] = set()
        for number, entry in enumerate(self.zones):
            if entry.zone in seen:
                yield KeyProblem(f"zones[{number}].zone", f"is {entry.zone} again", "write each zone once")
            seen.add(entry.zone)
            if _waits_for_nothing(entry.propagation.over(self.propagation)):
                yield KeyProblem(f"zones[{number}].propagation", _NO_SETTLE, _SETTLE)
        if _waits_for_nothing(self.propagation):
            yield KeyProblem("propagation", _NO_SETTLE, _SETTLE)


_NO_SETTLE = "has mode: wait and no `settle`, so it would wait for nothing"
_SETTLE = "add `settle: 2m`, as long as the zone's servers need"


def _waits_for_nothing(propagation: DnsPropagationSettings) -> bool:
    return propagation.mode is Mode.WAIT and not propagation.settle


def propagation_limit(acme: ChallengeSettings, dns: DnsSettings) -> timedelta:
    """The longest that the records of any zone are looked for, settling included."""
    said = [(acme.dns_provider, dns.propagation)]
    said += [(zone.provider or acme.dns_provider, zone.propagation.over(dns.propagation)) for zone in dns.zones]
    effective = [propagation.applied(acme.propagation_of(provider)) for provider, propagation in said]
    return max(one.timeout + one.settle for one in effective)
