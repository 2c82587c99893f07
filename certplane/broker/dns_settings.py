"""The DNS side of broker.yml as frozen values: who writes TXT records, and how they are looked for.

Part of `certplane.broker.settings`, which is what others import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Self

from certplane.config.decoding import KeyProblem
from certplane.config.values import DnsServerAddress, HostPort, HttpUrl, PositiveNumber, PositiveSpan
from certplane.pki.names import MAX_NAME_LENGTH

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_CLOUDFLARE_API = HttpUrl("https://api.cloudflare.com/client/v4")


class DnsProvider(StrEnum):
    """Who writes the TXT records of dns-01."""

    CLOUDFLARE = "cloudflare"
    HTTPREQ = "httpreq"
    RFC2136 = "rfc2136"
    ACME_DNS = "acme-dns"
    EXEC = "exec"
    LEXICON = "lexicon"

    @property
    def section(self) -> str:
        """Its key below `issuer.acme`."""
        return self.value.replace("-", "_")


class TsigAlgorithm(StrEnum):
    """How dynamic updates are signed (RFC 8945 6)."""

    HMAC_SHA256 = "hmac-sha256"
    HMAC_SHA384 = "hmac-sha384"
    HMAC_SHA512 = "hmac-sha512"


class PropagationMode(StrEnum):
    """Who is asked whether TXT records stand before a challenge is answered."""

    AUTHORITATIVE = "authoritative"
    """Every authoritative server of the zone."""
    RECURSIVE = "recursive"
    """Every resolver: for networks that let DNS out by their resolvers alone."""
    WAIT = "wait"
    """Nobody: the settling time is waited."""


class FollowCnames(StrEnum):
    """Which CNAMEs at challenge names are followed."""

    AUTO = "auto"
    """All but a wildcard's that leads to no name of `delegations`: the record at the name itself hides that one."""
    ALWAYS = "always"
    """All: a CNAME that leads elsewhere is an error."""
    NEVER = "never"
    """None: the record is written at the challenge name itself."""


class HttpreqMode(StrEnum):
    """What an httpreq endpoint is sent: name and value, or what they derive from."""

    DEFAULT = "default"
    RAW = "raw"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Empty is `default`; case doesn't matter (others write RAW)."""
        mode = text.lower() or "default"
        if mode not in set(cls):
            raise ValueError(f"is {text[:40]!a}, must be one of {', '.join(cls)}")
        return cls(mode)


@dataclass(frozen=True, slots=True)
class CloudflareSettings:
    """`credentials` names the API token's secret, for profiles that name none. `ttl` is the TXT records'.

    `calls_per_five_minutes` is for all tokens together: Cloudflare counts a user's.
    """

    base_url: HttpUrl = _CLOUDFLARE_API
    credentials: str = "cloudflare/api-token"
    http_timeout: PositiveSpan = timedelta(seconds=30)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None
    ttl: PositiveSpan = timedelta(seconds=60)
    calls_per_five_minutes: PositiveNumber = 1200


@dataclass(frozen=True, slots=True)
class Rfc2136Settings:
    """Dynamic updates (RFC 2136) signed with TSIG (RFC 8945); `tsig_secret` names the base64 key's secret."""

    server: HostPort
    tsig_name: str
    tsig_secret: str
    tsig_algorithm: TsigAlgorithm = TsigAlgorithm.HMAC_SHA256
    timeout: PositiveSpan = timedelta(seconds=10)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None
    ttl: PositiveSpan = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class HttpreqSettings:
    """An HTTP endpoint that writes records; the two secrets, if named, are its basic authentication.

    `recursive_nameservers` are who must show a record, unless another key says who.
    """

    endpoint: HttpUrl
    mode: HttpreqMode = HttpreqMode.DEFAULT
    username_secret: str = ""
    password_secret: str = ""
    propagation_timeout: PositiveSpan = timedelta(seconds=30)
    polling_interval: PositiveSpan = timedelta(seconds=2)
    http_timeout: PositiveSpan = timedelta(seconds=10)
    recursive_nameservers: tuple[DnsServerAddress, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """Basic authentication has two halves."""
        if bool(self.username_secret) != bool(self.password_secret):
            missing = "password_secret" if self.username_secret else "username_secret"
            yield KeyProblem(missing, "is required beside the other one", "name both secrets, or neither")


@dataclass(frozen=True, slots=True)
class PropagationSettings:
    """How TXT records are looked for before a challenge is answered.

    `nameservers` are asked instead of the zone's own authoritative servers (split DNS); `settle` is waited after the
    last of them has the records.
    """

    timeout: PositiveSpan = timedelta(seconds=120)
    interval: PositiveSpan = timedelta(seconds=2)
    nameservers: tuple[HostPort, ...] = ()
    settle: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class DnsPropagationSettings:
    """What `dns.propagation`, or that of a zone, says instead of the next more general section."""

    mode: PropagationMode | None = None
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
    provider: DnsProvider | None = None
    server: HostPort | None = None
    credentials: str = ""
    resolvers: tuple[DnsServerAddress, ...] = ()
    authoritative_servers: tuple[DnsServerAddress, ...] = ()
    follow_cnames: FollowCnames | None = None
    propagation: DnsPropagationSettings = field(default_factory=DnsPropagationSettings)


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """How the DNS is asked and written, whatever the issuer. What stands below `issuer.acme` counts where this is mute.

    `delegations` are names at or below which a CNAME at `_acme-challenge` may lead.
    """

    delegations: tuple[ZoneName, ...] = ()
    follow_cnames: FollowCnames = FollowCnames.AUTO
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


_NO_SETTLE = "has mode: wait and no `settle`: nothing would be waited for"
_SETTLE = "add `settle: 2m`, as long as the zone's servers need"


def _waits_for_nothing(propagation: DnsPropagationSettings) -> bool:
    return propagation.mode is PropagationMode.WAIT and not propagation.settle
