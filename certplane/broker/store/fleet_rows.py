"""Rows of the fleet's tables to domain values and back. Pure.

A certificate's status is one JSON array that is only read back whole (`cells`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from certplane.broker.fleet.model import HostStream
from certplane.broker.store.cells import Cells, Columns, decode_json, encode_json
from certplane.broker.store.statements import Row
from certplane.fleet_report.model import CertificateStatus, HostFacts

_FACTS: Final = Columns(HostFacts)
_HOST, _, *_OTHERS = HostStream.__dataclass_fields__
STREAM_COLUMNS: Final = (_HOST, *_FACTS.names, *_OTHERS)
"""What `stream_from_row` reads and `stream_row` gives, in this order."""

_STREAM: Final = Cells(HostStream)
_STATUS: Final = Cells(CertificateStatus)


def encode_status(status: CertificateStatus) -> str:
    """The status as a JSON array."""
    return encode_json(_STATUS.of(status))


def decode_status(text: str) -> CertificateStatus:
    """The status of `encode_status`."""
    return _STATUS.value(decode_json(text))


def stream_row(stream: HostStream) -> tuple[Any, ...]:
    """The columns of a stream's row."""
    host, _, *others = _STREAM.of(stream)
    return (host, *_FACTS.of(stream.facts), *others)


def stream_from_row(row: Row) -> HostStream:
    """The stream of a row of `STREAM_COLUMNS`."""
    host, *others = row
    facts = _FACTS.value(others[: len(_FACTS.names)])
    return replace(_STREAM.value((host, None, *others[len(_FACTS.names) :])), facts=facts)
