"""Which DNS providers there are."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Self

from certplane.broker.issuers.dns.acme_dns import AcmeDnsSettings
from certplane.broker.issuers.dns.cloudflare import CloudflareSettings
from certplane.broker.issuers.dns.exec import ExecSettings
from certplane.broker.issuers.dns.httpreq import HttpreqSettings
from certplane.broker.issuers.dns.lexicon import LexiconSettings
from certplane.broker.issuers.dns.rfc2136 import Rfc2136Settings


@dataclass(frozen=True, kw_only=True)  # without slots: two bases of `AcmeSettings` can't both have some
class ProviderSections:
    """The registry: a field makes its section's provider one that `dns_provider` may name, with `-` for `_`."""

    cloudflare: CloudflareSettings = field(default_factory=CloudflareSettings)
    httpreq: HttpreqSettings | None = None
    rfc2136: Rfc2136Settings | None = None
    acme_dns: AcmeDnsSettings | None = None
    exec: ExecSettings | None = None
    lexicon: LexiconSettings | None = None


class DnsProviderName(str):
    """A DNS provider as the configuration names it."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name as it stands."""
        known = [each.name.replace("_", "-") for each in fields(ProviderSections)]
        if text not in known:
            raise ValueError(f"is {text[:40]!a}, must be one of {', '.join(known)}")
        return cls(text)

    @property
    def section(self) -> str:
        """The key of its section below `issuer.acme`."""
        return self.replace("-", "_")
