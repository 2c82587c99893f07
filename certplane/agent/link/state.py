"""How the link to the broker is, and the small file that says so to `status`, also when no agent runs."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from certplane.errors import OperationError
from certplane.fleet_report.model import AgentMode
from certplane.runtime.files import open_directory, open_for_reading
from certplane.runtime.json_state import MOST_BYTES, StateError, decode, encode

_NAME = "link.json"

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

    `broker_url` is the broker that has the stream, or had it last. `clock_skew` is this host's clock less the broker's.
    `policy_hash` and `retry_epoch` are what the broker last told. `agent_mode` is how the agent ran last, `run_times`
    when a timer has started it lately.
    """

    phase: LinkPhase = LinkPhase.IDLE
    since: datetime | None = None
    last_error: str = ""
    next_attempt_time: datetime | None = None
    last_connected_time: datetime | None = None
    broker_version: str = ""
    clock_skew: timedelta | None = None
    policy_hash: str = ""
    retry_epoch: str = ""
    broker_url: str = ""
    agent_mode: AgentMode | None = None
    run_times: tuple[datetime, ...] = ()

    def __str__(self) -> str:
        """In a few words, for a person."""
        match self.phase:
            case LinkPhase.CONNECTED:
                return f"connected to {self.broker_url or 'the broker'} since {self.since:%Y-%m-%d %H:%M:%S} UTC"
            case LinkPhase.WAITING:
                return f"not connected to the broker: {self.last_error or 'no answer'}"
            case LinkPhase.UNSUPPORTED:
                return "the broker has no status streams (an older release)"
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
            with open_for_reading(self._directory) as directory:
                return decode(LinkState, directory.read(_NAME, most=MOST_BYTES))
        except (OSError, OperationError, StateError) as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("%s can't be read: %s", self._directory / _NAME, error)
            return LinkState()

    def save(self, state: LinkState) -> None:
        """Replace it. Blocks; a disk that refuses is no reason to stop: it is only shown."""
        try:
            with open_directory(self._directory) as directory:
                directory.replace(_NAME, encode(state), mode=0o644)
        except (OSError, OperationError) as error:
            logger.debug("%s can't be written: %s", self._directory / _NAME, error)
