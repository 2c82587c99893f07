"""What a host reports as a time may be any 64-bit number: it is refused by its field's name, and raises nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from certplane.broker.services.renewal_convert import hello_of, report_of, time_of
from certplane.errors import Reason, RefusalError
from certplane.v1 import renewal_pb2 as pb

NOW = datetime(2026, 11, 28, tzinfo=UTC)
NO_TIMES = {
    "far too late": (2**62, 0),
    "far too early": (-(2**62), 0),
    "just before the year 1": (-62_135_596_801, 0),
    "the year 10000": (253_402_300_800, 0),
    "negative nanoseconds": (1, -1),
    "a second of nanoseconds": (1, 1_000_000_000),
}
Status = pb.CertificateStatus
FIELDS: dict[str, Callable[[Status], object]] = {
    "update_time": lambda status: status.update_time,
    "renew_time": lambda status: status.renew_time,
    "next_attempt_time": lambda status: status.next_attempt_time,
    "activate_time": lambda status: status.activate_time,
    "issued.not_before_time": lambda status: status.issued.not_before_time,
    "installed.not_after_time": lambda status: status.installed.not_after_time,
    "served.not_after_time": lambda status: status.served.not_after_time,
}


def a_report() -> pb.StreamRenewalStatusRequest.Report:
    report = pb.StreamRenewalStatusRequest.Report(sequence=1)
    status = report.certificate
    status.name, status.state = "web", Status.STATE_WAITING
    for held in (status.issued, status.installed, status.served):
        held.serial_number = "1f"
        held.not_before_time.FromDatetime(NOW)
        held.not_after_time.FromDatetime(NOW)
    status.update_time.FromDatetime(NOW)
    return report


def refused(call: Callable[[], object], field: str) -> None:
    with pytest.raises(RefusalError) as caught:
        call()
    assert caught.value.refusal.reason is Reason.REQUEST_INVALID
    assert caught.value.refusal.violations[0].subject.endswith(field)


@pytest.mark.parametrize(("seconds", "nanos"), NO_TIMES.values(), ids=NO_TIMES)
@pytest.mark.parametrize("field", FIELDS)
def test_a_reported_time_that_is_none_is_refused(field: str, seconds: int, nanos: int) -> None:
    """Whichever field it is in."""
    report = a_report()
    report_of(report)
    stamp = FIELDS[field](report.certificate)
    stamp.seconds, stamp.nanos = seconds, nanos  # type: ignore[attr-defined] # a Timestamp
    refused(lambda: report_of(report), field)


@pytest.mark.parametrize(("seconds", "nanos"), NO_TIMES.values(), ids=NO_TIMES)
async def test_a_hosts_time_that_is_none_is_refused(seconds: int, nanos: int) -> None:
    """In hello, and in a heartbeat."""
    hello = pb.StreamRenewalStatusRequest.Hello(agent_version="1", epoch="e", certificate_names=["web"])
    hello.host_time.seconds, hello.host_time.nanos = seconds, nanos
    with pytest.raises(RefusalError) as caught:
        await hello_of(hello)
    assert caught.value.refusal.violations[0].subject == "hello.host_time"
    refused(lambda: time_of("heartbeat.host_time", hello.host_time), "heartbeat.host_time")
