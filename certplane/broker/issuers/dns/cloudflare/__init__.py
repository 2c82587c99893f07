"""Cloudflare: `issuer.acme.cloudflare`, and under `provider` and `calls` what it is made into.

The official SDK takes 50 MB of memory, and half of all that such a broker has on its disk: it is an optional package
(`certplane[cloudflare]`), and only a broker that writes records there loads it, so that the section stands apart.
"""

from __future__ import annotations

import importlib.util
import random
from dataclasses import dataclass
from datetime import timedelta

from typing_extensions import override

from certplane.broker.issuers.dns.provider import DnsProvider, ProviderSettings
from certplane.broker.ports import SecretSource
from certplane.config.values import HttpUrl, PositiveNumber, PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock

_API = HttpUrl("https://api.cloudflare.com/client/v4")


@dataclass(frozen=True, slots=True)
class CloudflareSettings(ProviderSettings):
    """`credentials` names the API token's secret, for profiles that name none. `ttl` is the TXT records'.

    `base_url` is https, or http to this machine. `calls_per_five_minutes` is for all tokens together: Cloudflare counts
    a user's, the dashboard's among them.
    """

    base_url: HttpUrl = _API
    credentials: str = "cloudflare/api-token"
    http_timeout: PositiveSpan = timedelta(seconds=30)
    ttl: PositiveSpan = timedelta(seconds=60)
    calls_per_five_minutes: PositiveNumber = 1200

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        if importlib.util.find_spec("cloudflare") is None:  # searched for, not loaded
            remedy = (
                "install the release's broker-cloudflare.txt in place of broker.txt, or beside the Debian package"
                " certplane-broker that of certplane-broker-cloudflare (docs/operations.md, Install)"
            )
            message = "needs Cloudflare's SDK, the optional package cloudflare"
            raise ConfigurationError([ConfigurationProblem("", None, "issuer.acme.cloudflare", message, remedy)])
        from certplane.broker.issuers.dns.cloudflare.provider import CloudflareProvider  # noqa: PLC0415 - see above

        return CloudflareProvider(self, secrets, clock, rng)
