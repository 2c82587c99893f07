"""`directive.json` of a lineage: when the broker last said its certificate should be renewed. The port `DirectiveFile`.

A file of its own, since the status has another writer: the lineage's life keeps it in memory over a whole step.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from certplane.agent.install.json_file import LineageJson
from certplane.agent.model import DirectedRenewal, RenewalCause

__all__ = ["JsonDirectiveFile"]


class JsonDirectiveFile:
    """`DirectiveFile` in a lineage's directory."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._file = LineageJson(directory, "directive.json", if_unreadable="counts for nothing")

    def load(self) -> DirectedRenewal | None:
        """See `DirectiveFile.load`."""
        return self._file.load(_from_json)

    def save(self, directed: DirectedRenewal) -> None:
        """See `DirectiveFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        self._file.save(
            {
                "certificate_id": directed.certificate_id,
                "renew_time": directed.renew_time.isoformat(),
                "cause": directed.cause.value,
                "reason": directed.reason,
                "explanation_url": directed.explanation_url,
                "renewal_request_id": directed.renewal_request_id,
            }
        )


def _from_json(document: dict[str, Any]) -> DirectedRenewal:
    renew_time = datetime.fromisoformat(document["renew_time"])
    if renew_time.tzinfo is None:
        raise ValueError("a time without a zone")
    return DirectedRenewal(
        certificate_id=str(document["certificate_id"]),
        renew_time=renew_time,
        cause=RenewalCause(document["cause"]),
        reason=str(document["reason"]),
        explanation_url=str(document["explanation_url"]),
        renewal_request_id=str(document["renewal_request_id"]),
    )
