"""The values of renewal planning. Frozen; times are aware UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

__all__ = ["InForce", "RenewalCause", "RenewalPlan", "Selection"]


class RenewalCause(StrEnum):
    """Why a certificate should be renewed when its plan says; values are stored and shown."""

    LIFETIME = "lifetime"
    ISSUER = "issuer"
    OPERATOR = "operator"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class RenewalPlan:
    """When one certificate should be renewed, and why; the one that is durable is the one that holds.

    `window_start`, `window_end` are the CA's window, None where it gave none; for cause ISSUER `renew_time` was picked
    in it once, at random. `next_check_time` is when the CA is asked again, None before it was asked for the first time.
    `renewal_request_id` names the operator's request for cause OPERATOR.
    """

    certificate_id: str
    host: str
    renew_time: datetime
    cause: RenewalCause
    reason: str = ""
    explanation_url: str = ""
    window_start: datetime | None = None
    window_end: datetime | None = None
    next_check_time: datetime | None = None
    check_failures: int = 0
    renewal_request_id: str = ""


@dataclass(frozen=True, slots=True)
class InForce:
    """A certificate that its holder should be using: not expired, not revoked, not replaced by a newer one of its own.

    `renew_time` is the plan's if it has one, else the one that it was stored with.
    """

    certificate_id: str
    host: str
    profile: str
    issuer: str
    dns_names: tuple[str, ...]
    certificate_pem: str
    not_before: datetime
    not_after: datetime
    renew_time: datetime
    plan: RenewalPlan | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Certificates in force that match every field that isn't empty; nothing when all are empty and `all` is False."""

    all: bool = False
    hosts: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    issuers: tuple[str, ...] = ()
    certificate_ids: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()

    def matches(self, certificate: InForce) -> bool:
        """Whether it is selected; of several `dns_names` one that the certificate has is enough."""
        wanted: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
            (self.hosts, (certificate.host,)),
            (self.profiles, (certificate.profile,)),
            (self.issuers, (certificate.issuer,)),
            (self.certificate_ids, (certificate.certificate_id,)),
            (self.dns_names, certificate.dns_names),
        )
        asked = [(some, has) for some, has in wanted if some]
        return (self.all or bool(asked)) and all(any(one in some for one in has) for some, has in asked)
