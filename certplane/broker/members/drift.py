"""Says in log and metrics when brokers differ that should be alike, and when they are alike again."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.members.comparison import Difference, Subject, compare
from certplane.broker.members.known import KnownMembers
from certplane.broker.ports import Meter
from certplane.runtime.clock import Clock

logger = logging.getLogger(__name__)

_SAID_ELSEWHERE: Final = {Subject.CLOCK, Subject.LEASE}
"""By the broker that it is about, which knows it first."""
_PATIENCE: Final = {Subject.ACCOUNT: timedelta(seconds=10)}
"""How long a difference isn't logged, since it is to be: each broker hears by itself that the account has a new key."""


class DriftWatch:
    """Compares the brokers whenever one of them has changed."""

    def __init__(self, known: KnownMembers, meter: Meter, clock: Clock) -> None:
        """Nothing is said before `known` tells of something."""
        self._known = known
        self._meter = meter
        self._clock = clock
        self._since: dict[Subject, float] = {}
        self._said: dict[Subject, list[Difference]] = {}
        known.subscribe(self.look)

    def look(self) -> None:
        """Compare now; what is another difference than before is a line."""
        members = self._known.members
        self._meter.level(metrics.BROKERS, len(members))
        found: dict[Subject, list[Difference]] = {}
        for difference in compare(members):
            found.setdefault(difference.subject, []).append(difference)
        for subject in Subject:
            if subject in _SAID_ELSEWHERE:
                continue
            now, before = found.get(subject, []), self._said.get(subject, [])
            self._meter.level(metrics.BROKERS_DIFFER, 1 if now else 0, subject=subject.value)
            if not now:
                self._since.pop(subject, None)
            if now == before or (now and self._may_settle(subject)):
                continue
            self._said[subject] = now
            for difference in now:
                fields = {"subject": subject.value, "remedy": difference.remedy}
                logger.warning("brokers that share this database: %s", difference.text, extra={"fields": fields})
            if not now:
                logger.info("brokers that share this database don't differ any more: %s", subject.value)

    def _may_settle(self, subject: Subject) -> bool:
        """Whether a difference is so new that it may be gone by itself in a moment."""
        now = self._clock.monotonic()
        since = self._since.setdefault(subject, now)
        return timedelta(seconds=now - since) < _PATIENCE.get(subject, timedelta())
