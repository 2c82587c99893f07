"""Dynamic updates (RFC 2136): `issuer.acme.rfc2136`, and under `provider` what it is made into.

The section stands apart, since commands that read broker.yml and ask no DNS shall not load dnspython.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from typing_extensions import override

from certplane.broker.issuers.dns.provider import DnsProvider, ProviderSettings
from certplane.broker.ports import SecretSource
from certplane.config.values import HostPort, PositiveSpan
from certplane.runtime.clock import Clock


class TsigAlgorithm(StrEnum):
    """How dynamic updates are signed (RFC 8945 6)."""

    HMAC_SHA256 = "hmac-sha256"
    HMAC_SHA384 = "hmac-sha384"
    HMAC_SHA512 = "hmac-sha512"


@dataclass(frozen=True, slots=True)
class Rfc2136Settings(ProviderSettings):
    """`issuer.acme.rfc2136`: the primary server that updates go to, and the TSIG key that signs them.

    `tsig_secret` names the secret that holds the key in base64; a profile's `credentials` may name another. A secret
    may also be `name:base64` or `algorithm:name:base64`, as `nsupdate -y` takes it. `timeout` is for one exchange.
    """

    server: HostPort
    tsig_name: str
    tsig_secret: str
    tsig_algorithm: TsigAlgorithm = TsigAlgorithm.HMAC_SHA256
    timeout: PositiveSpan = timedelta(seconds=10)
    ttl: PositiveSpan = timedelta(seconds=60)

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        from certplane.broker.issuers.dns.rfc2136.provider import Rfc2136Provider  # noqa: PLC0415 - see above

        return Rfc2136Provider(self, secrets, rng)
