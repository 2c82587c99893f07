"""An acme-dns server: `issuer.acme.acme_dns`, and under `provider` what it is made into.

The section stands apart, since what reads broker.yml and asks no DNS shall not load an HTTP client.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from certplane.broker.issuers.dns.provider import DnsProvider, ProviderSettings
from certplane.broker.ports import SecretSource
from certplane.config.values import HttpUrl, PositiveSpan
from certplane.runtime.clock import Clock


@dataclass(frozen=True, slots=True)
class AcmeDnsSettings(ProviderSettings):
    """`issuer.acme.acme_dns`; `endpoint` is the server's URL without `/update`: https, or http to this machine.

    `accounts` names the secret with the accounts in JSON, for profiles that name none: one as `/register` answers it,
    or an object of those by any names, as lego and cert-manager keep them. `ca_bundle` has the roots of a private
    server.
    """

    profiles_key: ClassVar[str] = "accounts"

    endpoint: HttpUrl
    accounts: str = "acme-dns/accounts"
    ca_bundle: Path | None = None
    http_timeout: PositiveSpan = timedelta(seconds=10)

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        from certplane.broker.issuers.dns.acme_dns.provider import AcmeDnsProvider  # noqa: PLC0415 - see above

        return AcmeDnsProvider(self, secrets, clock, rng)
