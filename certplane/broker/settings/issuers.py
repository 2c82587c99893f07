"""The sections `issuer` and `issuers`: the public CAs, and the DNS side that all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from typing_extensions import override

from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.settings import ChallengeSettings
from certplane.config.decoding import KeyProblem
from certplane.config.values import NonEmptyText

NAME_A_PROVIDER = "name who writes the TXT records, as in `dns_provider: cloudflare`; or set `challenge`"


class IssuerProvider(StrEnum):
    """Where certificates come from."""

    ACME = "acme"


@dataclass(frozen=True, kw_only=True)
class AcmeSettings(ChallengeSettings, AcmeCaSettings):
    """The default issuer's CA, and the DNS side."""

    @override
    def problems(self) -> Iterator[KeyProblem]:
        """Whoever is to prove names by records has somebody to write them; and the chosen provider is configured."""
        if self.dns_provider is None and self.challenge is ChallengeKind.DNS_01:
            yield KeyProblem("dns_provider", "is required", NAME_A_PROVIDER)
        yield from super().problems()


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """The default issuer; `name` is part of what makes a cached certificate the same."""

    acme: AcmeSettings
    provider: IssuerProvider = IssuerProvider.ACME
    name: NonEmptyText = "default"


@dataclass(frozen=True, slots=True)
class FurtherIssuerSettings:
    """One of `issuers`: a CA that profiles may name beside the default one."""

    acme: AcmeCaSettings
    provider: IssuerProvider = IssuerProvider.ACME
