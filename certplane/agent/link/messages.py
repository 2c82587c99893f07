"""Messages of the status stream, from and into the agent's values; they stop here.

What a broker says is checked as a stranger's: times that are none, more than the protocol allows and unknown causes are
refused; text loses its control characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from certplane.agent.model import Activation, DirectedRenewal
from certplane.errors import Reason, RefusalError, Violation
from certplane.fleet_report.messages import CAUSES, write_facts, write_status
from certplane.fleet_report.model import HostFacts, RenewalCause, Report
from certplane.rpc.times import time_of, timestamp
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

MAX_HELLO_BYTES: Final = 60_000
"""Of 64 KiB: what doesn't fit follows as reports."""
_MOST_RENEWALS: Final = 100
_MOST_ACTIVATIONS: Final = 100
_MOST_TEXT: Final = 500
_MOST_URL: Final = 2000
_ID: Final = re.compile(r"[!-~]{1,128}")
_ROLLOUT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ROLLOUT_PROBLEM: Final = "must be 1 to 64 of the characters A-Z a-z 0-9 . _ -"
_EPOCH: Final = re.compile(r"[!-~]{1,64}")
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""No certificate of today is to be renewed before: what is earlier is nonsense."""


def hello(
    *,
    request_id: str,
    facts: HostFacts,
    epoch: str,
    names: Sequence[str],
    reports: Sequence[Report],
    host_time: datetime,
) -> tuple[pb.StreamRenewalStatusRequest, int]:
    """The first message, with as many of `reports` as fit, and the last sequence that is in it (0 for none)."""
    message = pb.StreamRenewalStatusRequest.Hello(
        request_id=request_id,
        epoch=epoch,
        certificate_names=sorted(names),
        host_time=timestamp(host_time),
    )
    write_facts(facts, message)
    size, last = message.ByteSize(), 0
    for report in reports:
        encoded = report_message(report)
        size += encoded.ByteSize() + 4  # tag and length
        if size > MAX_HELLO_BYTES:
            break
        message.reports.append(encoded)
        last = report.sequence
    return pb.StreamRenewalStatusRequest(hello=message), last


def report_message(report: Report, traceparent: str = "") -> pb.StreamRenewalStatusRequest.Report:
    """One report."""
    message = pb.StreamRenewalStatusRequest.Report(sequence=report.sequence, traceparent=traceparent)
    write_status(report.certificate, message.certificate)
    return message


def directed_renewals(directive: pb.StreamRenewalStatusResponse.Directive) -> list[DirectedRenewal]:
    """What a directive wants.

    Raises:
        RefusalError: REQUEST_INVALID, naming each field that is wrong.
    """
    wrong = []
    if len(directive.renewals) > _MOST_RENEWALS:
        wrong.append(Violation("renewals", f"holds {len(directive.renewals)} entries; at most {_MOST_RENEWALS}"))
    renewals = []
    for number, each in enumerate(directive.renewals[:_MOST_RENEWALS]):
        if each.identity:
            if each.certificate_id:
                wrong.append(Violation(f"renewals[{number}].certificate_id", "must be empty of an identity"))
                continue
        elif _ID.fullmatch(each.certificate_id) is None:
            wrong.append(Violation(f"renewals[{number}].certificate_id", "must be 1 to 128 printable octets"))
            continue
        when = time_of(each.renew_time) if each.HasField("renew_time") else None
        if when is None or when < _EARLIEST:
            wrong.append(Violation(f"renewals[{number}].renew_time", "is missing, or no time"))
            continue
        if (each.hold_activation or each.rollout_id) and _ROLLOUT.fullmatch(each.rollout_id) is None:
            wrong.append(Violation(f"renewals[{number}].rollout_id", _ROLLOUT_PROBLEM))
            continue
        renewals.append(
            DirectedRenewal(
                certificate_id=each.certificate_id,
                renew_time=when,
                # a cause of a newer broker: obeyed as its own rule would be, which can do no harm
                cause=CAUSES.get(each.cause, RenewalCause.LIFETIME),
                reason=printable(each.reason, _MOST_TEXT),
                explanation_url=printable(each.explanation_url, _MOST_URL),
                renewal_request_id=printable(each.renewal_request_id, _MOST_TEXT),
                rollout_id=each.rollout_id,
                hold_activation=each.hold_activation,
                # without one, or with what is none, this host knows how long it may wait
                activate_by_time=time_of(each.activate_by_time) if each.HasField("activate_by_time") else None,
                new_key=each.new_key,
            )
        )
    _check(wrong)
    return renewals


def activations(directive: pb.StreamRenewalStatusResponse.Directive) -> list[Activation]:
    """Which certificates that are held back a directive releases.

    Raises:
        RefusalError: REQUEST_INVALID, naming each field that is wrong.
    """
    wrong = []
    if len(directive.activations) > _MOST_ACTIVATIONS:
        text = f"holds {len(directive.activations)} entries; at most {_MOST_ACTIVATIONS}"
        wrong.append(Violation("activations", text))
    found = []
    for number, each in enumerate(directive.activations[:_MOST_ACTIVATIONS]):
        if _ID.fullmatch(each.certificate_id) is None:
            wrong.append(Violation(f"activations[{number}].certificate_id", "must be 1 to 128 printable octets"))
        elif _ROLLOUT.fullmatch(each.rollout_id) is None:
            wrong.append(Violation(f"activations[{number}].rollout_id", _ROLLOUT_PROBLEM))
        else:
            found.append(Activation(each.certificate_id, each.rollout_id, each.abandoned))
    _check(wrong)
    return found


def _check(wrong: Sequence[Violation]) -> None:
    if wrong:
        raise RefusalError(Reason.REQUEST_INVALID, "the directive is malformed", violations=wrong)


def epoch_of(text: str) -> str:
    """A retry epoch, which is opaque; empty where a peer's is none."""
    return text if _EPOCH.fullmatch(text) is not None else ""
