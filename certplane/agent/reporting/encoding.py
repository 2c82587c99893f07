"""Reports as the JSON of the spool's files, and back. What can't be read is a ValueError."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from typing import Any

from certplane.agent.model import CertificateReport, HeldCertificate, LineageState, LineageStep, Report

__all__ = ["decode_reports", "encode_reports"]

_FORMAT = 1
_TIMES = ("update_time", "renew_time", "next_attempt_time", "activate_time")
_HELD_TIMES = ("not_before", "not_after", "observe_time")
_HELD = ("issued", "installed", "served")


def encode_reports(epoch: str, reports: list[Report]) -> bytes:
    """One certificate's reports; `epoch` is the counting that their sequences belong to."""
    document = {
        "format": _FORMAT,
        "epoch": epoch,
        "reports": [{"sequence": each.sequence, **_plain(dataclasses.asdict(each.certificate))} for each in reports],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def decode_reports(data: bytes) -> tuple[str, list[Report]]:
    """The epoch and the reports, as written.

    Raises:
        ValueError: not such a file.
    """
    try:
        document: dict[str, Any] = json.loads(data)
        if document["format"] != _FORMAT:
            raise ValueError("written by another release")
        return str(document["epoch"]), [_report(each) for each in document["reports"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a file of reports: {error}") from error


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values that differ from nothing, times as text."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        match value:
            case None | "" | () | 0:
                pass
            case datetime():
                plain[name] = value.isoformat()
            case dict():
                plain[name] = _plain(value)
            case _:
                plain[name] = value
    return plain


def _report(document: dict[str, Any]) -> Report:
    values = _timed(document, _TIMES)
    sequence = int(values.pop("sequence"))
    values["state"] = LineageState(values["state"])
    values["dns_names"] = tuple(map(str, values.get("dns_names", ())))
    if "failed_step" in values:
        values["failed_step"] = LineageStep(values["failed_step"])
    for name in _HELD:
        if name in values:
            values[name] = HeldCertificate(**_timed(values[name], _HELD_TIMES))
    return Report(sequence, CertificateReport(**values))


def _timed(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    values = dict(document)
    for name in names:
        if name in values:
            values[name] = datetime.fromisoformat(values[name])
    return values
