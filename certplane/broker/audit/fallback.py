"""The audit failure modes, as the store sees them.

- `fail_closed`: what can't be audited doesn't happen; nothing is ever rescued.
- `fail_open`: an event that the database doesn't take goes to the log (`certplane.audit`, level ERROR), to the spill
  file, and is counted; what it tells of goes on. If the spill file fails too (a full disk usually holds both: put the
  spill file on another one), the log line is all there is, and says so.

`mirror_to_log` writes each durable event to the same logger at INFO, for a log collector.

An event is a field of its log line, not its text, so that a JSON log carries it as an object.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.audit.spill import SpillFile
from certplane.broker.ports import AuditFallback, Meter, NullMeter
from certplane.runtime.text import counted

_log = logging.getLogger("certplane.audit")

FailureMode = Literal["fail_closed", "fail_open"]


class SpillFallback(AuditFallback):
    """`AuditFallback` with a spill file; counts `EVENTS_RESCUED` by `to`: `spill`, or `log` where that failed."""

    def __init__(
        self,
        failure_mode: FailureMode,
        spill_path: Path,
        *,
        mirror_to_log: bool = False,
        meter: Meter | None = None,
    ) -> None:
        """`spill_path` is not touched before it is needed."""
        self._fail_open = failure_mode == "fail_open"
        self._spill = SpillFile(spill_path)
        self._mirror = mirror_to_log
        self._meter = meter or NullMeter()
        self._lock = threading.Lock()
        self.spilled = 0
        """Events in the spill file since the start."""
        self.lost = 0
        """Events that are in the log alone."""

    @property
    @override
    def fail_open(self) -> bool:
        return self._fail_open

    @property
    @override
    def mirrors(self) -> bool:
        return self._mirror

    @property
    @override
    def rescued(self) -> int:
        return self.spilled + self.lost

    @override
    def rescue(self, records: Sequence[str], cause: Exception) -> None:
        with self._lock:  # the writer's thread, and one for events that didn't fit into its queue
            for record in records:
                _log.error(
                    "an audit event is not in the database (%s)", cause, extra={"fields": {"event": json.loads(record)}}
                )
            try:
                self._spill.append(records)
            except OSError as error:
                self.lost += len(records)
                _log.error(
                    "could not spill %s; this log is their only copy: %s", counted(len(records), "audit event"), error
                )
                to = "log"
            else:
                self.spilled += len(records)
                to = "spill"
        for _ in records:
            self._meter.count(metrics.EVENTS_RESCUED, to=to)

    @override
    def written(self, records: Sequence[str]) -> None:
        for record in records if self._mirror else ():
            _log.info("audit event", extra={"fields": {"event": json.loads(record)}})
