"""Sections of DNS providers that are no DNS of their own: acme-dns, a program, lexicon's eighty.

Part of `certplane.broker.settings`, which is what others import.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from certplane.config.values import HttpUrl, PositiveSpan

__all__ = ["AcmeDnsSettings", "ExecSettings"]


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
