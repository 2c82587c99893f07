"""The DNS side of broker.yml as frozen values: who writes TXT records, and how they are looked for.

Part of `certplane.broker.settings`, which is what others import.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Self

from certplane.config.decoding import KeyProblem
from certplane.config.values import HostPort, HttpUrl, PositiveSpan

__all__ = [
    "CloudflareSettings",
    "DnsProvider",
    "HttpreqMode",
    "HttpreqSettings",
    "PropagationSettings",
    "Rfc2136Settings",
    "TsigAlgorithm",
]

_CLOUDFLARE_API = HttpUrl("https://api.cloudflare.com/client/v4")


class DnsProvider(StrEnum):
    """Who writes the TXT records of dns-01."""

    CLOUDFLARE = "cloudflare"
    HTTPREQ = "httpreq"
    RFC2136 = "rfc2136"
    ACME_DNS = "acme-dns"
    EXEC = "exec"

    @property
    def section(self) -> str:
        """Its key below `issuer.acme`."""
        return self.value.replace("-", "_")


class TsigAlgorithm(StrEnum):
    """How dynamic updates are signed (RFC 8945 6)."""

    HMAC_SHA256 = "hmac-sha256"
    HMAC_SHA384 = "hmac-sha384"
    HMAC_SHA512 = "hmac-sha512"


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
    """`credentials` names the API token's secret, for profiles that name none. `ttl` is the TXT records'."""

    base_url: HttpUrl = _CLOUDFLARE_API
    credentials: str = "cloudflare/api-token"
    http_timeout: PositiveSpan = timedelta(seconds=30)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None
    ttl: PositiveSpan = timedelta(seconds=60)


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
    """An HTTP endpoint that writes records; the two secrets, if named, are its basic authentication."""

    endpoint: HttpUrl
    mode: HttpreqMode = HttpreqMode.DEFAULT
    username_secret: str = ""
    password_secret: str = ""
    propagation_timeout: PositiveSpan = timedelta(seconds=30)
    polling_interval: PositiveSpan = timedelta(seconds=2)
    http_timeout: PositiveSpan = timedelta(seconds=10)
    recursive_nameservers: tuple[HostPort, ...] = ()

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
