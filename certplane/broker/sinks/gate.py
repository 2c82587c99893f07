"""Whether decisions may be made while a required sink is behind.

A sink is a second copy: what is decided is durable in the database first, and nobody waits for a syslog server's round
trip. So `required` bounds how much a sink may lack: while an event is older than `max_lag` and wasn't copied, nothing
is authorised that gives somebody a new certificate or an identity back, with AUDIT_UNAVAILABLE, as under `fail_closed`
while the database is away. What happened all the same is recorded; what takes away (denials, revocations) is never held
up; and who was given a certificate may fetch it again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, AuditEventType
from certplane.broker.ports import AuditGate, Meter
from certplane.broker.sinks.ports import StoredEvents
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.audit")

_LOOK: Final = timedelta(seconds=5)

AUTHORISING: Final = frozenset(
    {
        AuditEventType.CERTIFICATE_AUTHORIZED,
        AuditEventType.IDENTITY_ALLOWED,
        AuditEventType.RENEWAL_REQUESTED,
    }
)
"""Events of decisions that are held up."""


class SinkGate(AuditGate):
    """Looks at the sinks' positions while `run` runs; `check` is for any thread."""

    def __init__(self, log: StoredEvents, required: Mapping[str, timedelta], clock: Clock, meter: Meter) -> None:
        """Open, until it has looked.

        Args:
            log: The log and the positions.
            required: How far each required sink may be behind, by name.
            clock: The time.
            meter: Shows which of them hold decisions up.
        """
        self._log = log
        self._required = required
        self._clock = clock
        self._meter = meter
        self._begin = clock.now()
        self._behind = ""

    @property
    def behind(self) -> str:
        """The sink that holds decisions up; empty if none does."""
        return self._behind

    @override
    def check(self, events: Sequence[AuditEvent]) -> None:
        behind = self._behind
        if behind and any(event.event_type in AUTHORISING for event in events):
            message = f"the audit sink {behind!r} is required, and too far behind"
            raise RefusalError(Reason.AUDIT_UNAVAILABLE, message, retry_after=_LOOK * 2)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except RefusalError as error:
                _logger.warning("could not read how far audit sinks are; will retry: %s", error)
            await self._clock.sleep(_LOOK)

    async def look(self) -> None:
        """Look once.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        now = self._clock.now()
        behind = ""
        for name, most in self._required.items():
            oldest = await self._oldest(name)
            holds_up = oldest is not None and now - oldest > most
            self._meter.level(metrics.SINK_HOLDS_UP, 1 if holds_up else 0, sink=name)
            if holds_up:
                behind = behind or name
        if behind and not self._behind:
            _logger.critical(
                "the required audit sink %s is too far behind: new certificates are refused until it has caught up",
                behind,
            )
        elif self._behind and not behind:
            _logger.warning("the required audit sink %s has caught up: certificates are issued again", self._behind)
        self._behind = behind

    async def _oldest(self, sink: str) -> datetime | None:
        """When the oldest event was recorded that the sink lacks; None if it lacks none."""
        position = await self._log.position(sink)
        if position is None:
            return self._begin  # no broker copies to it: perhaps none has it in its configuration that could
        after = await self._log.sequences(position.high, 1)
        if not after:
            return None
        events = await self._log.events(after[:1])
        return events[0].time if events else None
