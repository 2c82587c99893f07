"""Between the messages of streams and fleet, and the broker's values: what a host may say is checked here, once.

Hosts are known, not trusted: sizes, names, times and enums are those of the proto file's comments, or the message is
REQUEST_INVALID with the field's name. Texts for people lose what can't be printed instead: an error message of some
hook shall not keep a host from reporting it.
"""

from __future__ import annotations

import asyncio
import functools
from datetime import datetime
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

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
from certplane.broker.services.calls import valid_request_id
from certplane.broker.services.convert import invalid_request
from certplane.errors import Reason, Refusal
from certplane.fleet_report.fields import FieldError
from certplane.fleet_report.messages import (
    ACTOR_NUMBERS,
    CAUSE_NUMBERS,
    HEALTH_NUMBERS,
    read_facts,
    read_status,
    write_status,
)
from certplane.fleet_report.model import NAME, CertificateStatus, HostFacts, Report
from certplane.rpc.status import refusal_from_status
from certplane.rpc.times import put_time
from certplane.rpc.times import time_of as moment_of
from certplane.runtime.health import MOST_CAUSE, Health
from certplane.runtime.sharing import SharedTexts
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

_texts: Final = SharedTexts()


@functools.lru_cache(maxsize=1024)
def _shared(facts: HostFacts) -> HostFacts:
    """One object for equal facts: they are kept while the stream is open, and most hosts' are alike."""
    return facts


_SLICE: Final = 32
"""Reports read in one go: a quarter of a millisecond."""

_MAX_NAMES: Final = 1000
_MAX_REASON: Final = 500

# What hosts say.


async def hello_of(message: pb.StreamRenewalStatusRequest.Hello) -> Hello:
    """The first message of a stream. Others get their turn while its reports are read.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    at = "hello"
    request_id = valid_request_id(message.request_id) if message.request_id else ""
    try:
        facts = _shared(read_facts(message))
    except FieldError as error:
        raise invalid_request(f"{at}.{error.field}", error.problem) from error
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
        facts=facts,
        epoch=_name(f"{at}.epoch", message.epoch),
        certificate_names=names,
        reports=tuple(reports),
        host_time=time_of(f"{at}.host_time", message.host_time),
        request_id=request_id,
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
    try:
        status = read_status(message.certificate)
    except FieldError as error:
        raise invalid_request(f"{at}.certificate.{error.field}", error.problem) from error
    if names is not None and status.name not in names:
        raise invalid_request(f"{at}.certificate.name", "isn't one of hello.certificate_names")
    return Report(message.sequence, status)


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
    moment = moment_of(message)
    if moment is None:
        raise invalid_request(field, "is not a time")
    return moment


def _name(field: str, text: str) -> str:
    try:
        return NAME.check(field, text)
    except FieldError as error:
        raise invalid_request(field, error.problem) from error


# What the broker says.


def outgoing_message(message: Outgoing, broker_version: str) -> pb.StreamRenewalStatusResponse:
    """A message to a host."""
    response = pb.StreamRenewalStatusResponse()
    match message:
        case Acknowledgement():
            response.acknowledgement.sequence = message.sequence
        case Heartbeat():
            put_time(message.broker_time, response.heartbeat.broker_time)
        case Directive():
            response.directive.nonce = message.nonce
            for plan in message.renewals:
                renewal_message(plan, response.directive.renewals.add())
            response.directive.policy_hash = message.policy_hash
            response.directive.trust_bundle_hash = message.trust_bundle_hash
            response.directive.retry_epoch = message.retry_epoch
            for each in message.activations:
                response.directive.activations.add(
                    certificate_id=each.certificate_id, rollout_id=each.rollout_id, abandoned=each.abandoned
                )
        case Welcome():
            welcome = response.welcome
            put_time(message.broker_time, welcome.broker_time)
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
    message.identity = plan.is_of_identity
    put_time(plan.renew_time, message.renew_time)
    message.cause = CAUSE_NUMBERS[plan.cause]
    message.reason = plan.reason
    message.explanation_url = plan.explanation_url
    message.renewal_request_id = plan.renewal_request_id
    message.rollout_id = plan.rollout_id
    message.hold_activation = plan.hold_activation
    if plan.activate_by_time is not None:
        put_time(plan.activate_by_time, message.activate_by_time)
    message.new_key = plan.new_key
    return message


def status_message(status: CertificateStatus, health: Health) -> pb.CertificateStatus:
    """A certificate as its host has reported it, and how bad that is."""
    message = pb.CertificateStatus(
        health=HEALTH_NUMBERS[health.word],
        health_reason=printable(health.text, _MAX_REASON),
        health_remedy=printable(health.remedy, _MAX_REASON),
        health_cause=printable(health.cause, MOST_CAUSE),
        health_actor=ACTOR_NUMBERS[health.actor],
    )
    if health.since is not None:
        put_time(health.since, message.health_since_time)
    write_status(status, message)
    return message
