"""Reports as the JSON of the spool's files, and back. What can't be read is a `StateError`."""

from typing import Any, Final

from certplane.fleet_report.model import CertificateStatus, Report
from certplane.runtime.json_state import StateError, decode_object, encode_object, members_of, value_of

# What the message of a report holds: one more, and no stream could send it, nor anything after it.
_MOST_SEQUENCE: Final = 2**53  # with room to count on
_MOST_FAILURES: Final = 2**31 - 1


def encode_reports(epoch: str, reports: list[Report]) -> bytes:
    """One certificate's reports; `epoch` is the counting that their sequences belong to."""
    told = [{"sequence": each.sequence, **_told(members_of(each.certificate))} for each in reports]
    return encode_object({"epoch": epoch, "reports": told})


def decode_reports(data: bytes) -> tuple[str, list[Report]]:
    """The epoch and the reports, as written.

    Raises:
        StateError: not such a file.
    """
    document = decode_object(data)
    epoch, reports = document.get("epoch"), document.get("reports")
    if not isinstance(epoch, str) or not isinstance(reports, list):
        raise StateError("not a file of reports")
    return epoch, [_report(each) for each in reports]


def _told(members: dict[str, Any]) -> dict[str, Any]:
    """The members that say something; what isn't there has its default."""
    told = {name: _told(value) if isinstance(value, dict) else value for name, value in members.items()}
    return {name: value for name, value in told.items() if value}


def _report(members: Any) -> Report:
    certificate = value_of(CertificateStatus, members)
    if certificate.update_time is None:
        raise StateError("a report without a time")
    if not all(0 <= each <= _MOST_FAILURES for each in (certificate.request_failures, certificate.activation_failures)):
        raise StateError("not a number of failures")
    sequence = members.get("sequence")
    if type(sequence) is not int or not 1 <= sequence <= _MOST_SEQUENCE:
        raise StateError("a report without a sequence")
    return Report(sequence, certificate)
