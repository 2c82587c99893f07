"""Looks now and then whether the database is whole, so that damage is known before what is damaged is needed.

A start doesn't read the whole database: that takes minutes where it is large, and nobody is served meanwhile. Beside
the calls it is read from end to end an hour after the start and then once a day. Damage is said in the log and in the
audit log, and by a metric to alert on; the broker goes on with what can be read.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.events import AuditDecision, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.ports import AuditLog, Meter, Soundness
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker")

_FIRST: Final = timedelta(hours=1)
"""After the start: a fleet that comes back has the disk for itself, and a broker that is restarted often is checked."""
_INTERVAL: Final = timedelta(hours=24)
_SHOWN: Final = 5
REMEDY: Final = "stop the broker, look with `certplane-broker store check`, and restore a copy: docs/operations.md"


class SoundnessWatch:
    """The chore. For the event loop's thread."""

    def __init__(self, soundness: Soundness, *, audit: AuditLog, trail: AuditTrail, clock: Clock, meter: Meter) -> None:
        """Nothing is looked at before `run`."""
        self._soundness = soundness
        self._audit = audit
        self._trail = trail
        self._clock = clock
        self._meter = meter
        self._damage = ""
        self._audited = ""
        """The damage that is in the audit log: it is recorded when it changes, not each day that it lasts."""

    @property
    def damage(self) -> str:
        """What is broken, as this broker last saw it; empty if nothing is, or it hasn't looked."""
        return self._damage

    async def run(self) -> None:
        """Look, until cancelled."""
        await self._clock.sleep(_FIRST)
        while True:
            try:
                await self._look()
            except RefusalError as error:
                _logger.warning("the database could not be checked: %s; next try in a day", error)
            await self._clock.sleep(_INTERVAL)

    async def _look(self) -> None:
        begun = self._clock.monotonic()
        damage = await self._soundness.damage()
        self._meter.level(metrics.STORE_CHECKED, self._clock.now().timestamp())
        self._meter.level(metrics.STORE_DAMAGED, 1 if damage else 0)
        if not damage:
            self._damage = self._audited = ""
            seconds = round(self._clock.monotonic() - begun)
            _logger.info("the database was read from end to end: no damage", extra={"fields": {"seconds": seconds}})
            return
        shown = "; ".join(damage[:_SHOWN])
        more = f" (and {len(damage) - _SHOWN} more)" if len(damage) > _SHOWN else ""
        _logger.critical("the database is damaged: %s%s", shown, more, extra={"fields": {"remedy": REMEDY}})
        reason = self._damage = f"the database is damaged: {shown}{more}"[:1000]
        if reason == self._audited:
            return
        event = self._trail.event(
            AuditEventType.STORE_DAMAGED, severity=AuditSeverity.ERROR, decision=AuditDecision.ERROR, reason=reason
        )
        await self._audit.append([event])
        self._audited = reason
