"""How the link to the broker is, and the small file that says so to `status`, also when no agent runs."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from certplane.errors import OperationError
from certplane.runtime.files import open_directory

__all__ = ["LinkFile", "LinkPhase", "LinkState"]

_NAME = "link.json"
_FORMAT = 1
_TIMES = ("since", "next_attempt_time", "last_connected_time")

logger = logging.getLogger(__name__)


class LinkPhase(StrEnum):
    """Where the stream is."""

    IDLE = "idle"
    """Never tried."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"
    """Tried, and tried again at `next_attempt_time`."""
    UNSUPPORTED = "unsupported"
    """The broker is of a release without streams; certificates are renewed all the same."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """What is known of the link.

    `clock_skew` is this host's clock less the broker's. `policy_hash` is that of the policy of which the last directive
    told.
    """

    phase: LinkPhase = LinkPhase.IDLE
    since: datetime | None = None
    last_error: str = ""
    next_attempt_time: datetime | None = None
    last_connected_time: datetime | None = None
    broker_version: str = ""
    clock_skew: timedelta | None = None
    policy_hash: str = ""

    def __str__(self) -> str:
        """In a few words, for a person."""
        match self.phase:
            case LinkPhase.CONNECTED:
                return f"connected to the broker since {self.since:%Y-%m-%d %H:%M:%S} UTC"
            case LinkPhase.WAITING:
                return f"not connected to the broker: {self.last_error or 'no answer'}"
            case LinkPhase.UNSUPPORTED:
                return "the broker is of a release without status streams"
            case LinkPhase.CONNECTING:
                return f"connecting to the broker{f': {self.last_error}' if self.last_error else ''}"
            case LinkPhase.IDLE:
                return "not connected to the broker"


class LinkFile:
    """`link.json` in the state directory. Written by the agent that runs, read by anybody: nothing in it is secret."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir

    def load(self) -> LinkState:
        """What was saved last. Blocks; what can't be read counts as nothing."""
        try:
            with open_directory(self._directory) as directory:
                return _from_json(directory.read(_NAME))
        except (OSError, OperationError, ValueError, KeyError, TypeError) as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("%s can't be read: %s", self._directory / _NAME, error)
            return LinkState()

    def save(self, state: LinkState) -> None:
        """Replace it. Blocks; a disk that refuses is no reason to stop: it is only shown."""
        try:
            with open_directory(self._directory) as directory:
                directory.replace(_NAME, _to_json(state), mode=0o644)
        except (OSError, OperationError) as error:
            logger.debug("%s can't be written: %s", self._directory / _NAME, error)


def _to_json(state: LinkState) -> bytes:
    document: dict[str, Any] = {"format": _FORMAT}
    for name, value in dataclasses.asdict(state).items():
        match value:
            case datetime():
                document[name] = value.isoformat()
            case timedelta():
                document[name] = value.total_seconds()
            case _:
                document[name] = value
    return json.dumps(document, indent=1).encode() + b"\n"


def _from_json(data: bytes) -> LinkState:
    document: dict[str, Any] = json.loads(data)
    if document.pop("format") != _FORMAT:
        raise ValueError("written by another release")
    for name in _TIMES:
        if document.get(name) is not None:
            document[name] = datetime.fromisoformat(document[name])
    if document.get("clock_skew") is not None:
        document["clock_skew"] = timedelta(seconds=document["clock_skew"])
    document["phase"] = LinkPhase(document["phase"])
    return LinkState(**document)
