"""The values of renewal planning. Frozen; times are aware UTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, NamedTuple

from certplane.fleet_report.model import RenewalCause

_WINDOW_CLOSES: Final = timedelta(minutes=1)
"""So long before its end a window counts as over: an order that is made now reaches the CA a little later."""


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """What a CA says about a certificate's renewal (RFC 9773 4.2): `window_start` is before `window_end`.

    `explanation_url` is printable and bounded, to be shown and never fetched. `retry_after` is the CA's wish, None
    without one.
    """

    window_start: datetime
    window_end: datetime
    explanation_url: str = ""
    retry_after: timedelta | None = None


class RenewalInfoError(Exception):
    """A CA gave no renewal information that could be used (RFC 9773 4.3.3).

    Attributes:
        temporary: asking again soon may help: no answer, a server's error, a rate limit. Otherwise it answered what
            can't be used.
        retry_after: the CA's wish, None without one.
    """

    def __init__(self, message: str, *, temporary: bool, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.temporary = temporary
        self.retry_after = retry_after


class RenewalInfoUnsupportedError(RenewalInfoError):
    """The CA offers no renewal information; it may some day."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=False)


@dataclass(frozen=True, slots=True)
class RenewalPlan:
    """When one certificate should be renewed, and why; the one that is durable is the one that holds.

    `window_start`, `window_end` are the CA's window, None where it gave none; for cause ISSUER `renew_time` was picked
    in it once, at random. `next_check_time` is when the CA is asked again, None before it was asked for the first time.
    `renewal_request_id` names the operator's request for cause OPERATOR. One with an empty `certificate_id` is for the
    host's identity: it is an item of that request, and has no row of its own.

    The last five are a rollout's, whose plans have the cause OPERATOR and no request: the new certificate is held until
    it is released (`HostActivation`) or `activate_by_time` has come, has a new key, and comes from the issuer
    `to_issuer` (empty: as policy says).
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
    rollout_id: str = ""
    hold_activation: bool = False
    activate_by_time: datetime | None = None
    new_key: bool = False
    to_issuer: str = ""

    @property
    def is_of_identity(self) -> bool:
        """Whether it is for the host's identity, which the internal CA renews."""
        return not self.certificate_id

    def in_window(self, now: datetime) -> bool:
        """Whether an order that is made now reaches the CA within its window: what is past is none to it."""
        if self.window_start is None or self.window_end is None:
            return False
        return self.window_start <= now < self.window_end - _WINDOW_CLOSES

    @property
    def told(self) -> tuple[object, ...]:
        """What its host is told of it."""
        wanted = (self.renew_time, self.cause, self.reason, self.explanation_url, self.renewal_request_id)
        return (*wanted, self.rollout_id, self.hold_activation, self.activate_by_time, self.new_key)


@dataclass(frozen=True, slots=True)
class HostActivation:
    """A certificate that its host holds for a rollout, and may use from now on.

    `abandoned`: the rollout was aborted, and the host uses it no sooner than the one in use is due.
    """

    host: str
    certificate_id: str
    rollout_id: str
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class WindowMove:
    """What a CA has done to the renewal window of a certificate in force.

    Attributes:
        certificate_id: Whose window.
        host: Its holder.
        issuer: The CA, by its name in the broker's configuration.
        move_time: When the broker heard of it.
        window_start: Of the window that the CA names now.
        window_end: Likewise.
        due_before: When the certificate was to be renewed before the CA said so.
        explanation_url: Where the CA explains it; empty if it doesn't.
        forward: Whether the certificate is to be replaced sooner for it (`planning.move_of`); if not, the CA has taken
            back what it asked for, or has put it off.
    """

    certificate_id: str
    host: str
    issuer: str
    move_time: datetime
    window_start: datetime
    window_end: datetime
    due_before: datetime
    explanation_url: str = ""
    forward: bool = True


@dataclass(frozen=True, slots=True)
class InForce:
    """A certificate that its holder should be using: not expired, not revoked, not replaced by a newer one of its own.

    `renew_time` is the plan's if it has one, else `lifetime_renew_time`: the one that it was stored with, which its
    lifetime and the policy of that day gave it (`certplane.pki.lifetime`).
    """

    certificate_id: str
    host: str
    profile: str
    issuer: str
    dns_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    lifetime_renew_time: datetime
    plan: RenewalPlan | None = None

    @property
    def renew_time(self) -> datetime:
        """When it should be renewed, as far as is known now."""
        return self.lifetime_renew_time if self.plan is None else self.plan.renew_time


@dataclass(frozen=True, slots=True)
class DueCheck:
    """A certificate in force that its CA should be asked about, and what it is asked with (PEM, the leaf alone)."""

    certificate: InForce
    certificate_pem: str


@dataclass(frozen=True, slots=True)
class Selected:
    """Of a certificate in force, as much as is needed where a whole fleet may be selected.

    `renewal_request_id` is of the operator's request that planned it last, empty without one.
    """

    certificate_id: str
    host: str
    renew_time: datetime
    renewal_request_id: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """Certificates in force that match every field that isn't empty; nothing when all are empty and `all` is False.

    With `identities` it is the identities of `hosts`, or of `all` hosts, instead.

    Attributes:
        all: All that there are, as far as other fields don't narrow it.
        hosts: Of these hosts, by identity.
        profiles: Of these profiles.
        issuers: Of these issuers.
        certificate_ids: These.
        dns_names: With one of these names.
        identities: Identities instead.
        labels: Of hosts that have one of these labels in the policy, as KEY=VALUE. Only for people: whoever sets it
            has looked them up, and `hosts` are those that have one (and were named, if some were).
        serial_numbers: With one of these serial numbers.
        public_keys_sha256: Of one of these keys.
        issued_before: That the broker had before this time.
        window_open: Whose CA wants them replaced now: its window (RFC 9773) has begun.
        incident_id: Of this incident.
    """

    all: bool = False
    hosts: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    issuers: tuple[str, ...] = ()
    certificate_ids: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    identities: bool = False
    labels: tuple[str, ...] = ()
    serial_numbers: tuple[str, ...] = ()
    public_keys_sha256: tuple[str, ...] = ()
    issued_before: datetime | None = None
    window_open: bool = False
    incident_id: str = ""

    def __str__(self) -> str:
        """The fields that are set, for people: `hosts: web1, web2; profiles: shop`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return "; ".join(f"{name.replace('_', ' ')}{_shown(value)}" for name, value in given.items() if value)

    def matcher(self, now: datetime) -> Callable[[Candidate], bool]:
        """Says whether a certificate is what is selected at this time, but for its incident."""
        if self == Selection() or (self.labels and not self.hosts):
            return lambda _: False
        tests = [
            _is_one(attribute, frozenset(wanted))
            for field, attribute in _ONE_OF.items()
            if (wanted := getattr(self, field))
        ]
        if self.dns_names:
            names = frozenset(self.dns_names)
            tests.append(lambda one: not names.isdisjoint(one.dns_names))
        if (end := self.issued_before) is not None:
            tests.append(lambda one: one.create_time < end)
        if self.window_open:
            tests.append(lambda one: one.window_start is not None and one.window_start <= now)
        return lambda one: all(passes(one) for passes in tests)


class Candidate(NamedTuple):
    """Of a certificate in force what a selection looks at."""

    certificate_id: str
    host: str
    profile: str
    issuer: str
    dns_names: Sequence[str]
    serial_number: str
    public_key_sha256: str
    create_time: datetime
    window_start: datetime | None


_ONE_OF: Final = {
    "certificate_ids": "certificate_id",
    "hosts": "host",
    "profiles": "profile",
    "issuers": "issuer",
    "serial_numbers": "serial_number",
    "public_keys_sha256": "public_key_sha256",
}
"""Fields of `Selection`, and what of a certificate must be among their values."""


def _is_one(attribute: str, of: frozenset[str]) -> Callable[[Candidate], bool]:
    value = attrgetter(attribute)
    return lambda one: value(one) in of


def _shown(value: Any) -> str:
    if value is True:
        return ""
    if isinstance(value, datetime):
        return f": {value:%Y-%m-%dT%H:%M:%SZ}"
    return f": {value if isinstance(value, str) else ', '.join(value)}"


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A certificate that something holds up.

    `next_attempt_time` is until when its host waits; None if nothing comes of it before a person has acted.
    """

    host: str
    certificate_id: str
    reason: str
    name: str = ""
    next_attempt_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class RequestedRenewal:
    """What came of an operator's request: `last_renew_time` is of those that got another time, None without any.

    `held_up` are the first of those that something holds up, `held_up_count` how many they are.
    """

    request_id: str
    certificate_count: int
    changed_count: int
    last_renew_time: datetime | None = None
    held_up: tuple[HeldUp, ...] = ()
    held_up_count: int = 0


@dataclass(frozen=True, slots=True)
class RequestItem:
    """One certificate that a request was for, or a host's identity.

    Attributes:
        host: The holder.
        certificate_id: What is to be replaced; empty of an identity.
        renew_time: When.
        planned: Whether the request gave it that time; else it was due as early anyway.
        serial_number: Of the identity's certificate that is to be replaced; else empty.
    """

    host: str
    certificate_id: str
    renew_time: datetime
    planned: bool = True
    serial_number: str = ""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """An operator's request as it is recorded; `certificate_count` is how many it was for.

    Those of a release before items have none.
    """

    requester: str
    request_id: str
    create_time: datetime
    reason: str
    last_renew_time: datetime | None
    certificate_count: int = 0


@dataclass(frozen=True, slots=True)
class FollowedItem:
    """What a request was for, and what the database has of it by now; all but the first three only of a certificate.

    Attributes:
        number: Its place in the request.
        item: What it was for.
        plan_request_id: The request that planned its renewal last; empty if none did.
        in_force: Whether it is in force.
        new_certificate_id: What was issued in its place; empty if nothing was.
        not_after: End of its validity; None if the certificate is no longer kept.
        revoke_time: When it was revoked.
        profile: Of the policy.
        dns_names: Its names.
    """

    number: int
    item: RequestItem
    plan_request_id: str = ""
    in_force: bool = False
    new_certificate_id: str = ""
    not_after: datetime | None = None
    revoke_time: datetime | None = None
    profile: str = ""
    dns_names: tuple[str, ...] = ()
