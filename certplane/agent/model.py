"""The agent's domain values: what is on disk, what is asked for, what the broker answered.

Frozen, without behaviour beyond derived facts. Times are aware UTC; serial numbers and hashes are lower-case
hexadecimal; PEM strings end with a newline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from certplane.errors import Refusal
from certplane.fleet_report.model import CertificateState, RenewalCause, RenewalStep


@dataclass(frozen=True, slots=True)
class ActivationHold:
    """A rollout holds a certificate back that is on disk, until it is released.

    `activate_by_time`: when it is used without a word from the broker; None leaves that to this host. `abandoned`: the
    rollout has ended, and it is used when the one in use is due, by this host's own rule, or then. `named_as`: by which
    certificate the broker releases it, where it has taken the place of that one while it was held; else empty.
    """

    rollout_id: str
    activate_by_time: datetime | None = None
    abandoned: bool = False
    named_as: str = ""


@dataclass(frozen=True, slots=True)
class Activation:
    """What the broker says of a certificate that this host holds, or that is on its way: it may be used now.

    `abandoned`: it may be used once the one in use is due.
    """

    certificate_id: str
    rollout_id: str
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class DirectedRenewal:
    """What the broker's last directive says of one certificate, which is over once that certificate is replaced.

    One for the identity has an empty `certificate_id`, and the `serial_number` of the identity that it came to.
    `reason` is for a person; `explanation_url` is where the CA explains it: shown, never fetched (RFC 9773 4.2). Both
    are printable. `rollout_id` and what follows are a rollout's: what replaces the certificate is held back, until
    `activate_by_time` at the latest, or gets a new key whatever agent.yml says of keys. `abandoned`: that rollout has
    ended, and what was asked for by then is held as `ActivationHold` says.
    """

    certificate_id: str
    renew_time: datetime
    cause: RenewalCause
    reason: str = ""
    explanation_url: str = ""
    renewal_request_id: str = ""
    receive_time: datetime | None = field(default=None, compare=False)
    """When this host heard it first; the same directive again is no other one."""
    serial_number: str = ""
    rollout_id: str = ""
    hold_activation: bool = False
    activate_by_time: datetime | None = None
    new_key: bool = False
    abandoned: bool = False

    @property
    def is_of_identity(self) -> bool:
        """Whether it is about this host's identity, which the internal CA renews."""
        return not self.certificate_id

    def hold_on(self, certificate_id: str) -> ActivationHold | None:
        """What holds back the certificate that replaces this one; None if nothing does."""
        if not self.hold_activation or certificate_id != self.certificate_id:
            return None
        return ActivationHold(self.rollout_id, self.activate_by_time, self.abandoned)


@dataclass(frozen=True, slots=True)
class Version:
    """One certificate with its key on disk: `path` is the directory `versions/<number>`.

    `certificate_id` and `renew_time` are what the broker said; empty and None for an imported or identity version.
    `key_type` is a `pki.keys.KeyType` by value, empty where the key (of an imported pair) is of no such kind.
    `taken_over`: it stood at the configured paths before the agent came, and is kept until it is due.
    `directed` is set where `renew_time` is a directive's: `renewal.directed` lays it over what is on disk. `hold` is
    what keeps it unused; None where nothing does, or it was released.
    """

    number: int
    path: Path
    dns_names: tuple[str, ...]
    serial_number: str
    public_key_sha256: str
    not_before: datetime
    not_after: datetime
    certificate_id: str = ""
    renew_time: datetime | None = None
    key_type: str = ""
    directed: DirectedRenewal | None = None
    hold: ActivationHold | None = None
    taken_over: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it was issued to this agent, or taken over by it; else it is kept to be gone back to, and no more."""
        return self.number > 0 or self.taken_over


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """A key that is on disk and the CSR made with it: sent, or about to be. A retry sends the same."""

    csr_pem: str
    public_key_sha256: str
    create_time: datetime
    replaces_certificate_id: str = ""
    order_id: str = ""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate as the broker or the internal CA handed it out. `chain_pem`: issuers, leaf's issuer first."""

    certificate_pem: str
    chain_pem: str
    certificate_id: str = ""
    renew_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class OrderView:
    """The broker's answer to a request: an order, its certificate once issued, its refusal once failed.

    `trouble` is what is in the way of an open one, for people; where that is a limit of the CA, `wait_time` is when the
    broker expects to go on with it.
    """

    order_id: str
    state: str
    certificate: IssuedCertificate | None = None
    error: Refusal | None = None
    retry_time: datetime | None = None
    trouble: str = ""
    wait_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class IdentityView:
    """How the broker sees this host."""

    name: str
    kind: str
    label: str
    serial_number: str
    expire_time: datetime
    profiles: tuple[str, ...]
    broker_time: datetime
    broker_version: str = ""
    contest_time: datetime | None = None
    """Since when somebody else uses this identity too; the broker makes no new orders for it."""
    profile_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names that a certificate of each profile must have; not of all where the broker doesn't say."""


@dataclass(frozen=True, slots=True)
class HookResult:
    """How a hook ended: `exit_status` None when it was killed at its time limit; output is the last 16 KiB, text."""

    exit_status: int | None
    output: str

    @property
    def succeeded(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.exit_status == 0


class InstallMode(StrEnum):
    """How the configured paths show a version: as links, or, for services that can't follow links, as copies."""

    LINK = "link"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class ServedLeaf:
    """The certificate that a service presented in a TLS handshake; hashes and serial number as `Version` has them."""

    serial_number: str
    public_key_sha256: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class ServiceView:
    """What a look at a local service found: `problem` is empty exactly when it serves what it should.

    `leaf` is what it presented last; None if no handshake came to an end.
    """

    leaf: ServedLeaf | None
    problem: str = ""

    @property
    def well(self) -> bool:
        """Whether the service serves what it should."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class LineageStatus:
    """What `status` shows of one certificate, and what the broker is told; written to disk after each step, in order.

    Requests, activations and looks at the service fail and wait apart: `failures`, `next_attempt_time` and `retry_time`
    are the request's, those with `activation` in their name the activation's, those with `verify` the looks'.
    `certplane.agent.renewal.status` has the transitions. A field is only ever added, with a default: a file that an
    older release wrote still loads.
    """

    name: str
    state: CertificateState
    update_time: datetime
    renew_time: datetime | None = None
    renew_reason: str = ""
    failures: int = 0
    next_attempt_time: datetime | None = None
    last_error: str = ""
    rejected_version: int | None = None
    """The version whose reload failed and was rolled back; activation is retried, not issuance."""
    retry_time: datetime | None = None
    """No request before it: a CA said so. Not even a forced one; see `renewal.waiting`."""
    confirmed_version: int | None = None
    """The last version whose activation succeeded. A newer one on disk is still to be activated; it is what a failed
    activation goes back to."""
    activation_failures: int = 0
    next_activation_time: datetime | None = None
    failed_step: RenewalStep | None = None
    """Which step `last_error` is of; None when that is empty."""
    request_error: str = ""
    """What the last of `failures` was; `last_error` may be a later activation's."""
    issued_version: int | None = None
    """The newest on disk."""
    installed_version: int | None = None
    """The one that the configured paths show."""
    activate_after: datetime | None = None
    """When the issued version is activated, while a rollout or a window holds it back."""
    verified_version: int | None = None
    """The version that the service was seen to serve when it was last looked at; None if none of this host's."""
    verify_time: datetime | None = None
    """When it was last looked at, whatever was found; None: never, or there is no `verify`."""
    served_serial_number: str = ""
    """What the service presented then, with its validity; empty and None if no handshake came to an end."""
    served_not_before: datetime | None = None
    served_not_after: datetime | None = None
    verify_failures: int = 0
    """Looks in a row that found something else than what is in place. An activation's own look isn't counted here."""
    next_verify_time: datetime | None = None
    verify_error: str = ""
    """What the last of them found."""
    drift_reloaded: bool = False
    """Whether the one reload that such a find is worth has been made."""
    revoked_versions: tuple[int, ...] = ()
    """Versions on disk that are known to be revoked: replaced at once, and never gone back to."""
    failed_time: datetime | None = None
    """When the last of `failures` was."""
    asked_request: str = ""
    """What the last request asked for, and by which settings: hashes (`renewal.waiting.Asked`). Empty: not known."""
    asked_settings: str = ""
    activated_settings: str = ""
    """The same of the last activation."""
    directed_times: tuple[datetime, ...] = ()
    """When the last renewals came that the broker wanted before their time."""
    held_by_rollout_id: str = ""
    """The rollout that holds the issued version back; empty if none does."""
