"""A selection of certificates, in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from certplane.ctl.show.words import clock_text
from certplane.v1 import fleet_pb2

_LISTS: Final = (
    ("hosts", "host"),
    ("labels", "label"),
    ("profiles", "profile"),
    ("issuers", "issuer"),
    ("dns_names", "name"),
    ("serial_numbers", "serial"),
    ("public_keys_sha256", "key"),
    ("certificate_ids", "certificate"),
)
_MOST: Final = 5
"""Of one kind that are named."""


def selection_text(selection: fleet_pb2.Selection) -> str:
    """Which are picked, by the names of the options: `issuer le, issued before 2026-11-20 00:00:00Z`."""
    parts = [f"{word} {_named(getattr(selection, field))}" for field, word in _LISTS if getattr(selection, field)]
    if selection.HasField("issued_before_time"):
        parts.append(f"issued before {clock_text(selection.issued_before_time)}")
    if selection.window_open:
        parts.append("that the CA wants replaced")
    if selection.incident_id:
        parts.append(f"of incident {selection.incident_id}")
    return ", ".join(parts) or ("all" if selection.all else "none")


def _named(values: Iterable[str]) -> str:
    words = list(values)
    more = f" and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return f"{' or '.join(words[:_MOST])}{more}"
