"""What callers ask of the registration authority, and what they get."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from certplane.broker.model import CertificateRecord, Order

CertificateSource = Literal["", "cache", "order"]


@dataclass(frozen=True, slots=True)
class IssueCommand:
    """A request for a certificate; with `replaces_certificate_id` a renewal.

    `wait` is how long the caller waits for the order; zero or less answers at once.
    """

    request_id: str
    profile: str
    csr_pem: str
    wait: timedelta
    replaces_certificate_id: str = ""


@dataclass(frozen=True, slots=True)
class IssueResult:
    """An order as it is, with its certificate when it is ISSUED; `source` says where that comes from."""

    order: Order
    certificate: CertificateRecord | None = None
    source: CertificateSource = ""
