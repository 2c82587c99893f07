"""`directive.json` of a lineage: when the broker last said its certificate should be renewed. The port `DirectiveFile`.

A file of its own, since the status has another writer: the lineage's life keeps it in memory over a whole step.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

from certplane.agent.model import DirectedRenewal, RenewalCause
from certplane.errors import OperationError
from certplane.runtime.files import open_directory

__all__ = ["JsonDirectiveFile"]

_LOG = logging.getLogger(__name__)

_NAME = "directive.json"
_FORMAT = 1


class JsonDirectiveFile:
    """`DirectiveFile` in a lineage's directory. Readable by everybody: nothing in it is secret."""

    def __init__(self, directory: Path) -> None:
        """Nothing is touched before the first call.

        Args:
            directory: The lineage's directory, absolute; made (0755) when it is first needed.
        """
        self._directory = directory

    def load(self) -> DirectedRenewal | None:
        """See `DirectiveFile.load`."""
        try:
            with open_directory(self._directory) as lineage:
                return _from_json(lineage.read(_NAME))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("%s can't be read and counts for nothing: %s", self._directory / _NAME, error)
            return None

    def save(self, directed: DirectedRenewal) -> None:
        """See `DirectiveFile.save`.

        Raises:
            OperationError: the disk refuses; what was saved before is still there.
        """
        document = {
            "format": _FORMAT,
            "certificate_id": directed.certificate_id,
            "renew_time": directed.renew_time.isoformat(),
            "cause": directed.cause.value,
            "reason": directed.reason,
            "explanation_url": directed.explanation_url,
            "renewal_request_id": directed.renewal_request_id,
        }
        try:
            with open_directory(self._directory, create_mode=0o755) as lineage:
                lineage.replace(_NAME, json.dumps(document, indent=1).encode() + b"\n", mode=0o644)
        except OSError as error:
            raise OperationError(f"{self._directory / _NAME} can't be written: {error}") from error


def _from_json(data: bytes) -> DirectedRenewal:
    document: dict[str, Any] = json.loads(data)
    if document["format"] != _FORMAT:
        raise ValueError("written by another release")
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
