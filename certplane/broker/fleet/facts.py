"""What the health of a certificate is decided by: little enough to keep a whole fleet's in memory."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

import msgspec

from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate
from certplane.runtime.causes import cause_of_error
from certplane.runtime.health import HealthActor, is_persons


class CertificateFacts(msgspec.Struct, frozen=True, gc=False):
    """Of what a host reported of one certificate, all that decides its health, and no text for people.

    `gc=False`: the garbage collector needn't go through forty thousand of these, which refer to texts and times alone.

    Attributes:
        name: In the host's configuration; "identity" for its own; of a service the certificate's id.
        profile: Of the policy; empty for an identity.
        state: Where it is in its renewal. Of a service WAITING.
        dns_names: What the configuration wants; of a service what was issued.
        certificate_id: The broker's name for what is in use; empty if there is none, or it isn't the broker's.
        serial_number: Of what is in use (installed; before anything is, issued); empty if there is none.
        issued_serial_number: Of the newest on the host's disk.
        served_serial_number: Of what the service was last seen to serve; empty without a look.
        served_own: Whether that is a certificate of this host.
        not_before: Start of the validity of what is in use.
        not_after: End of the validity of what is in use; None if there is none.
        served_not_after: End of the validity of what is served.
        renew_time: When the host means to renew.
        next_attempt_time: When what failed is tried again; None if nothing failed.
        activate_time: Until when a rollout or a window holds the newest back.
        update_time: When the host found it so, by its clock.
        failing: Whether a step has failed and is tried again.
        for_a_person: Whether what failed needs a person (`is_persons`).
        error_cause: What causes that, as in `Health`; empty if nothing failed.
        error_actor: Who can act on it.
    """

    name: str
    profile: str = ""
    state: CertificateState = CertificateState.WAITING
    dns_names: tuple[str, ...] = ()
    certificate_id: str = ""
    serial_number: str = ""
    issued_serial_number: str = ""
    served_serial_number: str = ""
    served_own: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None
    served_not_after: datetime | None = None
    renew_time: datetime | None = None
    next_attempt_time: datetime | None = None
    activate_time: datetime | None = None
    update_time: datetime | None = None
    failing: bool = False
    for_a_person: bool = False
    error_cause: str = ""
    error_actor: HealthActor = HealthActor.NOBODY


_ILL = frozenset({CertificateState.FAILED, CertificateState.DEGRADED})


def in_use(status: CertificateStatus) -> HeldCertificate | None:
    """What is at the configured paths; before anything is, what the host has."""
    return status.installed or status.issued


F = TypeVar("F", bound=CertificateFacts)
T = TypeVar("T")


def facts_of(status: CertificateStatus) -> CertificateFacts:
    """The facts of what a host has reported."""
    return facts_as(CertificateFacts, status)


def facts_as(kind: type[F], status: CertificateStatus) -> F:
    """The facts as a value of this kind."""
    held, served, issued = in_use(status), status.served, status.issued
    requests, activations = bool(status.request_failures), bool(status.activation_failures)
    failing = requests or activations
    cause, actor = "", HealthActor.NOBODY
    if failing or status.state in _ILL:
        step = status.failed_step.value if status.failed_step is not None else "request" if requests else "verify"
        cause, actor = cause_of_error(status.last_error, step, status.profile, status.dns_names)
    serial_number = "" if held is None else held.serial_number
    return kind(
        name=status.name,
        profile=status.profile,
        state=status.state,
        dns_names=status.dns_names,
        certificate_id="" if held is None else held.certificate_id,
        serial_number=serial_number,
        issued_serial_number="" if issued is None else _same(issued.serial_number, serial_number),
        served_serial_number="" if served is None else _same(served.serial_number, serial_number),
        served_own=served is not None and _is_own(served, status),
        not_before=None if held is None else held.not_before,
        not_after=None if held is None else held.not_after,
        served_not_after=None if served is None else _same(served.not_after, None if held is None else held.not_after),
        renew_time=status.renew_time,
        next_attempt_time=status.next_attempt_time if failing else None,
        activate_time=status.activate_time,
        update_time=status.update_time,
        failing=failing,
        for_a_person=requests and is_persons(status.last_error),
        error_cause=cause,
        error_actor=actor,
    )


def service_status(facts: CertificateFacts) -> CertificateStatus:
    """What was issued to a service, as if it had reported that it is in use."""
    held = HeldCertificate(facts.serial_number, facts.not_before, facts.not_after, facts.certificate_id)
    return CertificateStatus(
        facts.name,
        facts.state,
        facts.profile,
        facts.dns_names,
        issued=held,
        installed=held,
        renew_time=facts.renew_time,
    )


def _same(value: T, known: T) -> T:
    """The value, as the object that is known where they are equal: mostly they are, and are kept for long."""
    return known if value == known else value


def _is_own(served: HeldCertificate, status: CertificateStatus) -> bool:
    """Whether the host has, or had, what its service serves."""
    own = (status.issued, status.installed)
    return bool(
        served.version
        or served.certificate_id
        or any(each is not None and each.serial_number == served.serial_number for each in own)
    )
