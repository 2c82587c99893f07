"""The broker's domain values: callers, profiles, orders, certificates, audit events.

All are frozen, hold no behaviour beyond derived facts, and know neither gRPC nor SQL. Times are aware UTC. Serial
numbers are lower-case hexadecimal without leading zeros; hashes are lower-case hexadecimal SHA-256; DNS names are
canonical (lower case, A-labels, `certplane.pki.names`) and tuples of them sorted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.errors import Refusal

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class IdentityKind(StrEnum):
    """What policy says an identity is."""

    HOST = "host"
    SERVICE = "service"
    OPERATOR = "operator"


ROLES: Final = frozenset({"viewer", "operator", "admin"})
"""The roles that open something at the broker; policy may have other words, which only `GetIdentity` shows.

An operator may do what a viewer may, an admin what an operator may, and besides what takes certificates away from a
whole fleet.
"""


@dataclass(frozen=True, slots=True)
class Grant:
    """What policy gives to one identity."""

    name: str
    kind: IdentityKind
    label: str
    profiles: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Of a host: for names, selections, rings and tables; not to be changed."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is calling, established anew on every call; `name` is the SAN that policy knows."""

    name: str
    kind: IdentityKind
    label: str
    profiles: tuple[str, ...]
    roles: tuple[str, ...]
    serial_number: str
    issuer: str
    provisioner: str
    not_after: datetime
    source_ip: str = ""
    user_agent: str = ""
    not_before: datetime = _LONG_AGO
    """Start of its certificate's validity: which of two certificates of one identity is the newer."""
    anchor: str = ""
    """The CA of the bundle that its certificate leads to (`certplane.pki.identity.anchor_of`)."""


@dataclass(frozen=True, slots=True)
class Profile:
    """One certificate that policy lets some identities have.

    `hash` is over everything that decides what certificate comes out (names, key types, challenge, issuer settings,
    credentials' name), so that an edited profile is another profile to the cache and to open orders.
    """

    name: str
    kind: str
    """`wildcard`, `multi_san` or `mixed`."""
    dns_names: tuple[str, ...]
    """Those of one identity (`Policy.granted`), or as they are written, with placeholders (`Policy.find_profile`)."""
    hash: str
    challenge: str = "dns-01"
    credentials: str = ""
    """Name of the DNS provider's secret; empty for the configured default."""
    acme_profile: str = ""
    issuers: tuple[str, ...] = ()
    """Issuers by name, to be tried in this order; empty is the configured default."""
    renew_before: timedelta | None = None
    key_types: tuple[str, ...] = ("ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096")
    """Values of `certplane.pki.keys.KeyType`."""


class OrderState(StrEnum):
    """Where an order is; values are stored and shown. Forward only; FAILED can follow any but ISSUED."""

    PENDING = "PENDING"
    AUTHORIZED = "AUTHORIZED"
    VALIDATING = "VALIDATING"
    FINALIZING = "FINALIZING"
    ISSUED = "ISSUED"
    FAILED = "FAILED"

    @property
    def is_open(self) -> bool:
        """Whether the order still wants work; the unique index covers the open ones."""
        return self not in (OrderState.ISSUED, OrderState.FAILED)


@dataclass(frozen=True, slots=True)
class TxtRecord:
    """A TXT record that the broker wrote: enough to find and remove it after a restart.

    `name` is the record's absolute name without the final dot; `record_id` is the provider's, empty if it has none.
    """

    zone: str
    name: str
    value: str
    record_id: str = ""
    credentials: str = ""


class OrderCause(StrEnum):
    """Why an order is asked for, as far as the broker can tell; values are stored and shown.

    `asked_for` are those that somebody else than the caller wants, or that are due: limits for hosts that run wild
    don't hold them up.
    """

    ORDINARY = "ordinary"
    """A first certificate, another one beside those that there are, and whatever isn't one of the others."""
    EARLY = "early"
    """The renewal of what is far from due, which nobody but the caller wants."""
    WITHDRAWN = "withdrawn"
    """In place of what its own holder has revoked."""
    REVOKED = "revoked"
    """In place of what an operator has revoked."""
    OPERATOR = "operator"
    """An operator asked for it."""
    ISSUER = "issuer"
    """The CA advises it: its window has begun (RFC 9773)."""
    DUE = "due"
    """The renewal of what is in use and due."""

    @property
    def asked_for(self) -> bool:
        """Whether limits for hosts that run wild don't hold it up."""
        return self in _ASKED_FOR


_ASKED_FOR = frozenset({OrderCause.REVOKED, OrderCause.OPERATOR, OrderCause.ISSUER, OrderCause.DUE})


@dataclass(frozen=True, slots=True)
class OrderDraft:
    """An order before the store has given it an id and times; what makes it unique is `key`."""

    identity: str
    profile: str
    profile_hash: str
    dns_names: tuple[str, ...]
    public_key_sha256: str
    csr_der: bytes
    issuer: str
    request_id: str
    identity_serial: str = ""
    replaces_certificate_id: str = ""
    identity_issuer: str = ""
    """With `identity_serial`, the identity's certificate that asked; empty in rows of before it was kept."""
    identity_anchor: str = ""
    """The CA of the bundle that it led to."""
    cause: OrderCause = OrderCause.ORDINARY
    """Why it is wanted; the store makes ORDINARY of what another order has taken already."""
    ask_time: datetime | None = None
    """Since when somebody else than the caller wants it."""
    retry_epoch: str = ""
    """In which retry epoch it is asked for."""
    renewal_request_id: str = ""
    """The operators' request that wants it, with the cause OPERATOR; the audit log names it."""
    rollout_id: str = ""
    """The rollout that wants it, with the cause OPERATOR, or ISSUER where the CA does too; the audit log names it."""
    to_issuer: str = ""
    """The issuer that it must come from, since that rollout moves to it; empty: any that the profile allows."""

    @property
    def key(self) -> tuple[str, str, tuple[str, ...], str, str]:
        """Identity of the work (design, fixed decision 3): equal keys are one open order."""
        return (self.identity, self.profile_hash, self.dns_names, self.public_key_sha256, self.replaces_certificate_id)


@dataclass(frozen=True, slots=True)
class OrderProgress:
    """What an open order is at. Whoever runs it knows; where a step fails or waits, others soon do, by its row.

    Attributes:
        step: The step under way, or that is tried again: one of `issuance.steps.STEPS`, or a word of
            `issuance.progress` for what comes before. Empty: nothing is under way.
        step_time: When it began, or began to wait.
        failures: How often it has failed in a row.
        trouble: Why it failed last, for people; stays until the order's state changes.
        next_attempt: When what failed is tried again.
        wait: What it waits for, for people; empty while it works.
        place_time: While it waits for a place within its CA's limits, when there will be one, as far as can be told.
    """

    step: str = ""
    step_time: datetime | None = None
    failures: int = 0
    trouble: str = ""
    next_attempt: datetime | None = None
    wait: str = ""
    place_time: datetime | None = None


NO_PROGRESS: Final = OrderProgress()
"""Of an order that nobody has begun to run, or that has ended."""


@dataclass(frozen=True, slots=True)
class Order(OrderDraft):
    """A durable order with its journal of what was done outside.

    `acme_order_url` is durable before the order's challenges are touched, `txt_records` before a challenge is answered,
    FINALIZING before the CSR is sent.
    """

    order_id: str = ""
    state: OrderState = OrderState.PENDING
    create_time: datetime = field(kw_only=True)
    update_time: datetime = field(kw_only=True)
    acme_order_url: str = ""
    txt_records: tuple[TxtRecord, ...] = ()
    certificate_id: str = ""
    error: Refusal | None = None
    retry_time: datetime | None = None
    finalize_time: datetime | None = None
    """When it was decided to send the CSR: from then on there may be a certificate of it."""
    holder: str = ""
    """The broker that runs it (`members`); empty if it was given back."""
    epoch: int = 0
    """How often it was taken. Who writes on it says which take was theirs: nobody else's write counts any more."""
    lane: str | None = None
    """What a CA may take for the same order: the order waits for its turn there, or has it. Where brokers share a
    database, until its records are removed."""
    turn_time: datetime | None = None
    """Since when it has its turn in its lane: no other order of any broker has then."""
    places: tuple[str, ...] = ()
    """Buckets of the CA's limits (`budget.model.BucketKey.digest`) of which it has taken a place for its order at the
    CA, the one of `acme_order_url` or the next one."""
    progress: OrderProgress = NO_PROGRESS
    """What it is at; in its row as `issuance.progress` has written it last."""

    @property
    def trouble(self) -> str:
        """Why its last step failed and is tried again, or what it goes on without."""
        return self.progress.trouble


@dataclass(frozen=True, slots=True)
class CertificateRecord:
    """A stored certificate. `chain_pem` is the issuers, leaf's issuer first, without the root.

    `renew_time` is capped: never later than half of the real life when the profile's `renew_before` is longer.
    `deliver_time` is when it was first handed out; None means that its holder may not have it.
    """

    certificate_id: str
    order_id: str
    identity: str
    profile: str
    profile_hash: str
    issuer: str
    dns_names: tuple[str, ...]
    public_key_sha256: str
    serial_number: str
    certificate_pem: str
    chain_pem: str
    not_before: datetime
    not_after: datetime
    renew_time: datetime
    create_time: datetime
    acme_order_url: str = ""
    deliver_time: datetime | None = None
    revoke_time: datetime | None = None
    revocation_reason: RevocationReason | None = None
    withdrawn: bool = False
    """Revoked by its own holder, and by no operator."""


class RevocationReason(StrEnum):
    """RFC 5280 5.3.1, the reasons a subscriber may give."""

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"


class KeyRotation(StrEnum):
    """Whether a renewal makes a new key."""

    ALWAYS = "always"
    REUSE = "reuse"


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What the store knows of a public key: who used it first, and what it may still be used for.

    `blocked`: compromised, or the CA may have issued for it what isn't stored; nobody gets anything for it. `spent`: a
    certificate of it was revoked; its other certificates stand, and there is no new one, for its holder neither.
    """

    identity: str
    blocked: bool
    spent: bool = False


@dataclass(frozen=True, slots=True)
class DenyEntry:
    """An identity that an operator has shut out: one certificate (`issuer` and `serial_number`), or a `name`."""

    name: str = ""
    issuer: str = ""
    serial_number: str = ""
    reason: str = ""
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class IdentityUse:
    """One certificate of an identity, and a use of it.

    `time` is what the place says where it stands: when the certificate was first used, retired, or used in spite of it.
    """

    issuer: str
    serial_number: str
    not_before: datetime
    time: datetime
    source_ip: str = ""

    @property
    def certificate(self) -> tuple[str, str]:
        """What tells this certificate from every other one: its issuer and its serial number."""
        return (self.issuer, self.serial_number)


@dataclass(frozen=True, slots=True)
class KnownIdentity:
    """What is known of the certificates that a host has used for its identity (design, fixed decision 11).

    `active` was taken into use last, unless an operator decided for another. `newest` is the latest `not_before` that
    was ever active: no older certificate comes into use by itself. `retired` were active before, the one retired last
    first; a short list (`certplane.broker.identity.first_use`). `contest` is the use of a retired one that made the
    identity contested; None when it isn't, or an operator has decided.
    """

    name: str
    active: IdentityUse
    newest: datetime
    retired: tuple[IdentityUse, ...] = ()
    contest: IdentityUse | None = None
    displaced_count: int = 0
    """How often one status stream of the identity has displaced another of the same certificate."""
    displace_time: datetime | None = None


class ChangeKind(StrEnum):
    """What a row of the change feed says has changed; values are stored."""

    IDENTITY = "identity"
    """An identity in the ledger; the key is its name."""
    DENY_ENTRY = "deny_entry"
    """An entry of the deny-list; the key is its name, or its serial number and issuer."""
    CERTIFICATE_REVOKED = "certificate_revoked"
    """The key is the certificate_id."""
    ORDER = "order"
    """An order has another state, or another holder; the key is its order_id. As all below, told where brokers share a
    database."""
    PLAN = "plan"
    """A certificate's renewal plan; the key is the certificate_id."""
    STREAM = "stream"
    """A host's stream has begun or ended, or what is recorded of it has changed; the key is the host's name."""
    REPORT = "report"
    """A host has reported of its certificates. The key is the host's name and, each after a space, the names of the
    certificates, unless they are many."""
    HOLD = "hold"
    """What an issuer is not to be asked for, or that it is out of reach; the key is `issuance.holds.key_text`'s."""
    CONDITION = "condition"
    """A profile's orders bring certificates again, or fail for another reason than before; the key is its name."""
    IDENTITY_RENEWAL = "identity_renewal"
    """An operator wants a host's identity renewed; the key is the host's name."""
    RETRY_EPOCH = "retry_epoch"
    """What was refused may succeed now; the key is empty."""
    ACCOUNT = "account"
    """An issuer's ACME account, or its key; the key is the issuer."""
    BROKER_REQUEST = "broker_request"
    """Something is asked of a broker, or answered; the key is the broker_id, or the request's."""
    INCIDENT = "incident"
    """An incident has begun, or is another one; the key is its incident_id."""
    MEMBER = "member"
    """A broker has come or left, or another policy, say, is in force there; the key is its broker_id."""
    ROLLOUT = "rollout"
    """A rollout is there, or is another one than before; the key is its rollout_id."""
    WATCH = "watch"
    """A service watches its certificates, or doesn't any more; the key is its name."""
    ACTIVATION = "activation"
    """A certificate that a host holds for a rollout was released, or abandoned; the key is the host's name."""


@dataclass(frozen=True, slots=True)
class EnrollmentReport:
    """What an identity last said that it runs."""

    identity: str
    agent_version: str
    host_facts: tuple[tuple[str, str], ...]
    identity_serial_number: str
    record_time: datetime


class IssuerOrderStatus(StrEnum):
    """RFC 8555 7.1.6."""

    PENDING = "pending"
    READY = "ready"
    PROCESSING = "processing"
    VALID = "valid"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class DnsChallenge:
    """A challenge still to be met: dns-01 (RFC 8555 8.4), or dns-persist-01 where it is `standing`.

    `record_name` is `_acme-challenge.<domain>` without the final dot, `record_value` the TXT content, unquoted.
    `key_authorization` (RFC 8555 8.1) is for DNS APIs that make the record themselves; it is no secret. The record of a
    standing one is the domain's owner's, who has published it for good: nothing is written, and its value isn't told.
    """

    domain: str
    record_name: str
    record_value: str
    authorization_url: str
    challenge_url: str
    key_authorization: str = ""
    standing: bool = False


@dataclass(frozen=True, slots=True)
class IssuerOrder:
    """An order as the CA has it; `challenges` are those not yet valid, empty unless the order is pending.

    `trouble` is why the challenges of a new order could not be fetched: the order is made and stands all the same; of a
    pending one whose challenges were answered, what it waits for.
    `finalize_url`, `certificate_url` (empty: not told) and `retry_after` (how long it wants to be left alone) are the
    CA's words that came with the status, so that the issuer's next step needn't ask for them again.
    `replaces` is of a new order: whether the CA took it for the renewal of what it was told that it replaces.
    """

    url: str
    status: IssuerOrderStatus
    challenges: tuple[DnsChallenge, ...] = ()
    trouble: Refusal | None = None
    finalize_url: str = ""
    certificate_url: str = ""
    retry_after: timedelta | None = None
    replaces: bool = False


class ScopeKind(StrEnum):
    """What a CA's limit, or another of its "not now", is about."""

    ACCOUNT = "account"
    """Everything that is asked of the issuer with its account."""
    DOMAIN = "domain"
    """A registered domain: it and every name below it."""
    NAME = "name"
    """One name; its wildcard too, which is proved by the same record."""
    NAME_SET = "name_set"
    """The very set of names of the order that was refused."""


@dataclass(frozen=True, slots=True)
class Scope:
    """For what a CA refuses to be asked again; `value` is the DNS name of a DOMAIN or a NAME.

    Its text is the `subject` of a refusal's violation, so that it is stored with the order and told to the agent.
    """

    kind: ScopeKind
    value: str = ""

    def __str__(self) -> str:
        """`account`, `name_set`, `domain:shop.test`, `name:www.shop.test`."""
        return f"{self.kind.value}:{self.value}" if self.value else self.kind.value

    @classmethod
    def parse(cls, text: str) -> Scope | None:
        """The scope of this text, None if it is none."""
        kind, _, value = text.partition(":")
        needs_value = kind in {ScopeKind.DOMAIN, ScopeKind.NAME}
        return cls(ScopeKind(kind), value) if kind in set(ScopeKind) and bool(value) is needs_value else None

    @classmethod
    def over(cls, dns_names: tuple[str, ...]) -> Iterator[Scope]:
        """Every scope that an order for `dns_names` falls under: each name's parents are domains, as far as we know."""
        yield cls(ScopeKind.ACCOUNT)
        yield cls(ScopeKind.NAME_SET)
        for dns_name in dns_names:
            name = dns_name.removeprefix("*.")
            yield cls(ScopeKind.NAME, name)
            while name:
                yield cls(ScopeKind.DOMAIN, name)
                name = name.partition(".")[2]


class PreflightResult(StrEnum):
    """What a look at one precondition said."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PreflightCheck:
    """One precondition of a profile's orders: `check` is its kind, `subject` what was looked at."""

    check: str
    subject: str
    result: PreflightResult
    detail: str
    remedy: str = ""
