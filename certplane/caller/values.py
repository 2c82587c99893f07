"""What a broker says, as frozen values. Public names of `certplane.client`.

Times are aware and in UTC; names of certificates are canonical (lower case, A-labels) and sorted; serial numbers are
lower-case hexadecimal digits without leading zeros; PEM is ASCII text. What comes from the broker is text that can be
shown: control characters are gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from certplane.errors import Refusal


class OrderState(StrEnum):
    """Where an order is in its life (`Order.State` of certificate.proto). It only moves forward."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    VALIDATING = "VALIDATING"
    FINALIZING = "FINALIZING"
    ISSUED = "ISSUED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"
    """A state of a newer broker."""


class RevocationReason(StrEnum):
    """Why a certificate is revoked (RFC 5280 5.3.1; the reasons that public CAs accept from subscribers)."""

    UNSPECIFIED = "UNSPECIFIED"
    KEY_COMPROMISE = "KEY_COMPROMISE"
    AFFILIATION_CHANGED = "AFFILIATION_CHANGED"
    SUPERSEDED = "SUPERSEDED"
    CESSATION_OF_OPERATION = "CESSATION_OF_OPERATION"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the broker takes the caller for, and what policy gives it (GetIdentity of enrollment.proto).

    Attributes:
        name: The subjectAltName that policy knows: a DNS name or a URI.
        kind: `host`, `service` or `operator`.
        label: Its label in the policy.
        serial_number: Of the identity certificate, lower-case hexadecimal digits.
        expire_time: End of the identity certificate's validity.
        profiles: Names of the profiles that policy gives it, sorted.
        dns_names: The names that a certificate of each profile has, by the profile's name. Profiles may be missing:
            those of an older broker, and those whose names would not fit into the message.
        roles: Roles that policy gives it, sorted.
        broker_time: The broker's time, to measure the own clock by.
        broker_version: The broker's version.
        contest_time: Hosts: since when two holders contest the identity; None where nobody does.
    """

    name: str
    kind: str
    label: str
    serial_number: str
    expire_time: datetime
    profiles: tuple[str, ...]
    dns_names: Mapping[str, tuple[str, ...]]
    roles: tuple[str, ...]
    broker_time: datetime
    broker_version: str
    contest_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that the broker has stored (`Certificate` of certificate.proto).

    Attributes:
        certificate_id: The broker's name for it: opaque, printable ASCII.
        profile: The policy profile that it was issued for.
        dns_names: The names of its subjectAltName.
        serial_number: Its serial number, lower-case hexadecimal digits without leading zeros.
        issuer: The issuer's name in the broker's configuration.
        public_key_sha256: SHA-256 of its SubjectPublicKeyInfo (DER), 64 lower-case hexadecimal digits.
        not_before: Start of its validity.
        not_after: End of its validity.
        renew_time: When its holder should renew it, as the broker knew when it was asked; None where it named no time.
        revoke_time: When it was revoked; None when it wasn't.
        certificate_pem: The certificate, PEM. Empty in lists.
        chain_pem: The issuing certificates, PEM, issuer of the leaf first, without the root. Empty in lists.
    """

    certificate_id: str
    profile: str
    dns_names: tuple[str, ...]
    serial_number: str
    issuer: str
    public_key_sha256: str
    not_before: datetime
    not_after: datetime
    renew_time: datetime | None = None
    revoke_time: datetime | None = None
    certificate_pem: str = ""
    chain_pem: str = ""

    @property
    def fullchain_pem(self) -> str:
        """Certificate and issuing certificates, PEM, leaf first, without the root. Empty in lists."""
        return self.certificate_pem + self.chain_pem


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate with its private key, which was made in this process and has never left it.

    Attributes:
        certificate: The certificate.
        private_key_pem: Its private key: PKCS#8, PEM, unencrypted (RFC 5958). Not part of the text form.
    """

    certificate: Certificate
    private_key_pem: bytes = field(repr=False)

    @property
    def fullchain_pem(self) -> str:
        """Certificate and issuing certificates, PEM, leaf first, without the root."""
        return self.certificate.fullchain_pem


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt to get one certificate from a CA (`Order` of certificate.proto). It outlives the broker's process.

    Attributes:
        order_id: The broker's name for it: opaque, printable ASCII.
        state: Where it is in its life.
        profile: The policy profile that it is for.
        dns_names: The names of the certificate.
        certificate: The certificate, with its PEM; set when `state` is ISSUED.
        error: Why it failed; set when `state` is FAILED. docs/errors.md describes the reasons.
        retry_time: When asking again makes a new order; set when `state` is FAILED.
        trouble: What keeps an open order from going on, one line for people; empty if nothing does.
        wait_time: While it waits for a place within the CA's limits: when there will be one, as far as can be told.
    """

    order_id: str
    state: OrderState
    profile: str
    dns_names: tuple[str, ...] = ()
    certificate: Certificate | None = None
    error: Refusal | None = None
    retry_time: datetime | None = None
    trouble: str = ""
    wait_time: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it: it is ISSUED or FAILED."""
        return self.state in {OrderState.ISSUED, OrderState.FAILED}


@dataclass(frozen=True, slots=True)
class CertificateNews:
    """What has become of a certificate of the caller (WatchMyCertificates of renewal.proto).

    Attributes:
        certificate_id: The broker's name for it.
        profile: The policy profile that it was issued for.
        dns_names: The names of its subjectAltName.
        serial_number: Its serial number, lower-case hexadecimal digits without leading zeros.
        not_after: End of its validity; None where the broker named no time.
        renew_time: When it should be renewed; now, if that is not after the broker's time. None where nobody knows yet.
        renew_reason: Why then, one line for people; empty where nobody has planned it yet.
        renewal_request_id: The RequestRenewal call that asked for it; empty otherwise.
        revoke_time: When it was revoked; None when it wasn't. One that was revoked is not to be used.
        revocation_reason: Why it was revoked; UNSPECIFIED also where no reason was given.
        public_key_sha256: SHA-256 of its SubjectPublicKeyInfo (DER), 64 lower-case hexadecimal digits.
        new_key: Whether its successor must have another key.
    """

    certificate_id: str
    profile: str
    dns_names: tuple[str, ...] = ()
    serial_number: str = ""
    not_after: datetime | None = None
    renew_time: datetime | None = None
    renew_reason: str = ""
    renewal_request_id: str = ""
    revoke_time: datetime | None = None
    revocation_reason: RevocationReason = RevocationReason.UNSPECIFIED
    public_key_sha256: str = ""
    new_key: bool = False
