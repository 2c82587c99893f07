"""Sections of DNS providers that are no DNS of their own: acme-dns, a program, lexicon's eighty.

Part of `certplane.broker.settings`, which is what others import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from certplane.config.values import HostPort, HttpUrl, PositiveSpan


@dataclass(frozen=True, slots=True)
class AcmeDnsSettings:
    """An acme-dns server; `accounts` names the secret with its accounts in JSON, for profiles that name none."""

    endpoint: HttpUrl
    accounts: str = "acme-dns/accounts"
    ca_bundle: Path | None = None
    http_timeout: PositiveSpan = timedelta(seconds=10)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None


@dataclass(frozen=True, slots=True)
class ExecSettings:
    """A program of the operator's; `credentials` names the secret that it gets, for profiles that name none."""

    program: Path
    credentials: str = ""
    timeout: PositiveSpan = timedelta(seconds=60)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None


@dataclass(frozen=True, slots=True)
class LexiconSettings:
    """One of lexicon's providers; `credentials` names the secret with its options, for profiles that name none."""

    provider: str
    credentials: str = "lexicon/credentials"
    options: Mapping[str, str] = field(default_factory=dict)
    recursive_nameservers: tuple[HostPort, ...] = ()
    timeout: PositiveSpan = timedelta(seconds=60)
    propagation_timeout: PositiveSpan | None = None
    polling_interval: PositiveSpan | None = None
    ttl: PositiveSpan = timedelta(seconds=60)
