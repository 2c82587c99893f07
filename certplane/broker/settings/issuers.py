"""The sections `issuer` and `issuers`: the public CAs, and the DNS side that all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.issuers.dns.settings import ChallengeSettings
from certplane.config.values import NonEmptyText


class IssuerProvider(StrEnum):
    """Where certificates come from."""

    ACME = "acme"


@dataclass(frozen=True, kw_only=True)
class AcmeSettings(ChallengeSettings, AcmeCaSettings):
    """The default issuer's CA, and the DNS side."""


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
