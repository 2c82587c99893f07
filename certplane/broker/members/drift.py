"""Says in log and metrics when brokers differ that should be alike, and when they are alike again."""

from __future__ import annotations

import logging
from typing import Final

from certplane.broker import metrics
from certplane.broker.members.comparison import Difference, Subject, compare
from certplane.broker.members.known import KnownMembers
from certplane.broker.ports import Meter

logger = logging.getLogger(__name__)

_SAID_ELSEWHERE: Final = {Subject.CLOCK, Subject.LEASE}
"""By the broker that it is about, which knows it first."""


class DriftWatch:
    """Compares the brokers whenever one of them has changed."""

    def __init__(self, known: KnownMembers, meter: Meter) -> None:
        """Nothing is said before `known` tells of something."""
        self._known = known
        self._meter = meter
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
            if now == before:
                continue
            self._said[subject] = now
            for difference in now:
                fields = {"subject": subject.value, "remedy": difference.remedy}
                logger.warning("brokers that share this database: %s", difference.text, extra={"fields": fields})
            if not now:
                logger.info("brokers that share this database don't differ any more: %s", subject.value)
