"""Between the messages of streams and fleet, and the broker's values: what a host may say is checked here, once.

Hosts are known, not trusted: sizes, names, times and enums are those of the proto file's comments, or the message is
REQUEST_INVALID with the field's name. Texts for people lose what can't be printed instead: an error message of some
hook shall not keep a host from reporting it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from certplane.broker.fleet.health import FLEET_WORDS
from certplane.broker.fleet.messages import (
    Acknowledgement,
    Directive,
    DirectiveResult,
    Goodbye,
    Heartbeat,
    Hello,
    Outgoing,
    Welcome,
)
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.services.convert import invalid_request, timestamp, unix_time
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    RenewalCause,
    RenewalStep,
    Report,
)
from certplane.pki.names import has_dns_syntax, shown_name
from certplane.rpc import times
from certplane.rpc.status import refusal_from_status
from certplane.runtime.health import Health, HealthWord
from certplane.runtime.sharing import SharedTexts
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SERIAL: Final = re.compile(r"0|[1-9a-f][0-9a-f]{0,39}")
_ID: Final = re.compile(r"[!-~]{0,128}")

_texts: Final = SharedTexts()

_SLICE: Final = 32
"""Reports read in one go: a quarter of a millisecond."""

_MAX_VERSION: Final = 64
_MAX_NAMES: Final = 1000
_MAX_DNS_NAMES: Final = 100
_MAX_REASON: Final = 500
_MAX_ERROR: Final = 2000
_MAX_COUNT: Final = 2**31 - 1

STATES: Final[Mapping[int, CertificateState]] = {
    number: CertificateState(name.removeprefix("STATE_").lower())
    for name, number in pb.CertificateStatus.State.items()
    if number != pb.CertificateStatus.STATE_UNSPECIFIED
}
HEALTHS: Final[Mapping[int, HealthWord]] = {
    number: HealthWord(name.removeprefix("HEALTH_"))
    for name, number in pb.Health.items()
    if number != pb.HEALTH_UNSPECIFIED
}
_HEALTH_NUMBERS: Final[Mapping[HealthWord, pb.Health.ValueType]] = {
    word: pb.Health.Value(f"HEALTH_{word}") for word in FLEET_WORDS
}
_STEPS: Final[Mapping[int, RenewalStep | None]] = {
    number: RenewalStep(name.removeprefix("STEP_").lower()) if number else None
    for name, number in pb.CertificateStatus.Step.items()
}
_STATE_NUMBERS: Final = {state: pb.CertificateStatus.State.ValueType(number) for number, state in STATES.items()}
_STEP_NUMBERS: Final = {step: pb.CertificateStatus.Step.ValueType(number) for number, step in _STEPS.items()}
_CAUSES: Final = {
    RenewalCause.LIFETIME: pb.Renewal.CAUSE_LIFETIME,
    RenewalCause.ISSUER: pb.Renewal.CAUSE_ISSUER,
    RenewalCause.OPERATOR: pb.Renewal.CAUSE_OPERATOR,
    RenewalCause.REVOKED: pb.Renewal.CAUSE_REVOKED,
}


# What hosts say.


async def hello_of(message: pb.StreamRenewalStatusRequest.Hello) -> Hello:
    """The first message of a stream. Others get their turn while its reports are read.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    at = "hello"
    version = message.agent_version
    if not version or len(version.encode()) > _MAX_VERSION or not version.isprintable():
        raise invalid_request(f"{at}.agent_version", f"must be 1 to {_MAX_VERSION} bytes, printable")
    names = tuple(map(_texts.share, message.certificate_names))  # kept while the stream is open; most hosts' are alike
    if not 1 <= len(names) <= _MAX_NAMES:
        raise invalid_request(f"{at}.certificate_names", f"must be 1 to {_MAX_NAMES} names")
    for name in names:
        _name(f"{at}.certificate_names", name)
    if len(set(names)) != len(names):
        raise invalid_request(f"{at}.certificate_names", "names a certificate twice")
    if not message.HasField("host_time"):
        raise invalid_request(f"{at}.host_time", "is required")
    known, reports = frozenset(names), []
    for index, report in enumerate(message.reports, 1):
        reports.append(report_of(report, f"{at}.reports[{index - 1}]", names=known))
        if index % _SLICE == 0:
            await asyncio.sleep(0)
    return Hello(
        agent_version=_texts.share(version),
        epoch=_name(f"{at}.epoch", message.epoch),
        certificate_names=names,
        reports=tuple(reports),
        host_time=_time(f"{at}.host_time", message.host_time),
    )


def report_of(
    message: pb.StreamRenewalStatusRequest.Report, at: str = "report", *, names: frozenset[str] | None = None
) -> Report:
    """A report; `names` are those that it may be of, if they are looked at here.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if message.sequence < 1:
        raise invalid_request(f"{at}.sequence", "must be 1 or more")
    if not message.HasField("certificate"):
        raise invalid_request(f"{at}.certificate", "is required")
    status = _status(message.certificate, f"{at}.certificate")
    if names is not None and status.name not in names:
        raise invalid_request(f"{at}.certificate.name", "isn't one of hello.certificate_names")
    return Report(message.sequence, status)


def _status(message: pb.CertificateStatus, at: str) -> CertificateStatus:
    state = STATES.get(message.state)
    if state is None:
        raise invalid_request(f"{at}.state", "is required, and one that this broker knows")
    if message.failed_step not in _STEPS:
        raise invalid_request(f"{at}.failed_step", "isn't one that this broker knows")
    if message.profile:
        _name(f"{at}.profile", message.profile)
    if len(message.dns_names) > _MAX_DNS_NAMES:
        raise invalid_request(f"{at}.dns_names", f"must be at most {_MAX_DNS_NAMES} names")
    for field, count in (
        ("request_failures", message.request_failures),
        ("activation_failures", message.activation_failures),
    ):
        if not 0 <= count <= _MAX_COUNT:
            raise invalid_request(f"{at}.{field}", "must not be negative")
    return CertificateStatus(
        name=_name(f"{at}.name", message.name),
        state=state,
        profile=message.profile,
        dns_names=tuple(sorted(_dns_name(f"{at}.dns_names", name) for name in message.dns_names)),
        failed_step=_STEPS[message.failed_step],
        issued=_held(message, "issued", at),
        installed=_held(message, "installed", at),
        served=_held(message, "served", at),
        renew_time=_optional_time(message, "renew_time", at),
        renew_reason=_text(f"{at}.renew_reason", message.renew_reason, _MAX_REASON),
        last_error=_text(f"{at}.last_error", message.last_error, _MAX_ERROR),
        request_failures=message.request_failures,
        activation_failures=message.activation_failures,
        next_attempt_time=_optional_time(message, "next_attempt_time", at),
        activate_time=_optional_time(message, "activate_time", at),
        update_time=_optional_time(message, "update_time", at),
    )


def _held(
    message: pb.CertificateStatus, field: Literal["issued", "installed", "served"], at: str
) -> HeldCertificate | None:
    if not message.HasField(field):
        return None
    held = getattr(message, field)
    at = f"{at}.{field}"
    if _ID.fullmatch(held.certificate_id) is None:
        raise invalid_request(f"{at}.certificate_id", "is not an id of this broker")
    if _SERIAL.fullmatch(held.serial_number) is None:
        raise invalid_request(f"{at}.serial_number", "must be lower-case hexadecimal without leading zeros")
    if held.version < 0:
        raise invalid_request(f"{at}.version", "must not be negative")
    return HeldCertificate(
        serial_number=held.serial_number,
        not_before=_optional_time(held, "not_before_time", at),
        not_after=_optional_time(held, "not_after_time", at),
        certificate_id=held.certificate_id,
        version=held.version,
        observe_time=_optional_time(held, "observe_time", at),
    )


def directive_result(message: pb.StreamRenewalStatusRequest.DirectiveResult) -> DirectiveResult:
    """The answer to a directive; whatever the host says against it stands for itself.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    if not message.nonce:
        raise invalid_request("directive_result.nonce", "is required")
    if not message.HasField("error"):
        return DirectiveResult(message.nonce)
    refusal = refusal_from_status(message.error)
    if refusal is None:
        text = printable(message.error.message, _MAX_REASON) or "no reason given"
        refusal = Refusal(Reason.INTERNAL, text)
    return DirectiveResult(message.nonce, refusal)


def time_of(field: str, message: Timestamp) -> datetime:
    """The time of a timestamp, to the microsecond.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, it is none between the years 1 and 9999.
    """
    return _time(field, message)


def _time(field: str, message: Timestamp) -> datetime:
    moment = times.time_of(message)
    if moment is None:
        raise invalid_request(field, "is not a time")
    return moment


def _optional_time(message: pb.CertificateStatus | pb.CertificateStatus.Held, field: str, at: str) -> datetime | None:
    return _time(f"{at}.{field}", getattr(message, field)) if message.HasField(field) else None  # type: ignore[arg-type]  # each caller names a field of its message


def _name(field: str, text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise invalid_request(field, "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -")
    return text


def _dns_name(field: str, text: str) -> str:
    if not has_dns_syntax(text):  # no more: it is what the host's configuration says, and names nothing here
        raise invalid_request(field, f"has {shown_name(text)}, which is no DNS name in lower case and A-labels")
    return text


def _text(field: str, text: str, limit: int) -> str:
    if len(text.encode()) > limit:
        raise invalid_request(field, f"must be at most {limit} bytes")
    return printable(text, limit)


# What the broker says.


def outgoing_message(message: Outgoing, broker_version: str) -> pb.StreamRenewalStatusResponse:
    """A message to a host."""
    response = pb.StreamRenewalStatusResponse()
    match message:
        case Acknowledgement():
            response.acknowledgement.sequence = message.sequence
        case Heartbeat():
            response.heartbeat.broker_time.CopyFrom(timestamp(message.broker_time))
        case Directive():
            response.directive.nonce = message.nonce
            for plan in message.renewals:
                renewal_message(plan, response.directive.renewals.add())
            response.directive.policy_hash = message.policy_hash
            response.directive.trust_bundle_hash = message.trust_bundle_hash
            response.directive.retry_epoch = message.retry_epoch
        case Welcome():
            welcome = response.welcome
            welcome.broker_time.CopyFrom(timestamp(message.broker_time))
            welcome.broker_version = broker_version
            welcome.acknowledged_sequence = message.acknowledged_sequence
            welcome.heartbeat_interval.FromTimedelta(message.heartbeat_interval)
            welcome.policy_hash = message.policy_hash
            welcome.trust_bundle_hash = message.trust_bundle_hash
            welcome.retry_epoch = message.retry_epoch
        case Goodbye():
            response.goodbye.reconnect_delay.FromTimedelta(message.reconnect_delay)
            response.goodbye.reason = message.reason
    return response


def renewal_message(plan: RenewalPlan, message: pb.Renewal | None = None) -> pb.Renewal:
    """When a certificate is to be renewed, and why; written into `message`, if given, which saves a copy."""
    if message is None:
        message = pb.Renewal()
    message.certificate_id = plan.certificate_id
    message.renew_time.seconds, message.renew_time.nanos = unix_time(plan.renew_time)
    message.cause = _CAUSES[plan.cause]
    message.reason = plan.reason
    message.explanation_url = plan.explanation_url
    message.renewal_request_id = plan.renewal_request_id
    return message


def status_message(status: CertificateStatus, health: Health) -> pb.CertificateStatus:
    """A certificate as its host has reported it, and how bad that is."""
    return pb.CertificateStatus(
        name=status.name,
        profile=status.profile,
        dns_names=status.dns_names,
        state=_STATE_NUMBERS[status.state],
        failed_step=_STEP_NUMBERS[status.failed_step],
        issued=_held_message(status.issued),
        installed=_held_message(status.installed),
        served=_held_message(status.served),
        renew_time=_timestamp(status.renew_time),
        renew_reason=status.renew_reason,
        last_error=status.last_error,
        request_failures=status.request_failures,
        activation_failures=status.activation_failures,
        next_attempt_time=_timestamp(status.next_attempt_time),
        activate_time=_timestamp(status.activate_time),
        update_time=_timestamp(status.update_time),
        health=_HEALTH_NUMBERS[health.word],
        health_reason=printable(health.text, _MAX_REASON),
        health_remedy=printable(health.remedy, _MAX_REASON),
    )


def _held_message(held: HeldCertificate | None) -> pb.CertificateStatus.Held | None:
    if held is None:
        return None
    return pb.CertificateStatus.Held(
        certificate_id=held.certificate_id,
        serial_number=held.serial_number,
        not_before_time=_timestamp(held.not_before),
        not_after_time=_timestamp(held.not_after),
        version=held.version,
        observe_time=_timestamp(held.observe_time),
    )


def _timestamp(time: datetime | None) -> Timestamp | None:
    return None if time is None else timestamp(time)
