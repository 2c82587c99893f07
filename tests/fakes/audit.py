"""A `DenialRecorder` that keeps every denial, an `EventRecorder` that writes every event, and a `Meter` that a test reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from certplane.broker.model import AuditEvent, EventKind
from certplane.broker.ports import AuditLog


class FakeDenialRecorder:
    """`DenialRecorder` that coalesces nothing: each denial is appended to the audit log, if there is one."""

    def __init__(self, audit: AuditLog | None = None) -> None:
        self.events: list[AuditEvent] = []
        self._audit = audit

    async def record(self, event: AuditEvent) -> None:
        if self._audit is not None:
            await self._audit.append([event])
        self.events.append(event)


class FakeEventRecorder:
    """`EventRecorder` that counts nothing together: each event is written."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    async def record(self, _kind: EventKind, events: Sequence[AuditEvent]) -> None:
        await self._audit.append(events)

    def begin(self, _kind: EventKind, _event: AuditEvent) -> bool:
        return True

    def withdraw(self, _kind: EventKind, _event: AuditEvent) -> None:
        pass


class FakeMeter:
    """`Meter` in memory."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.spans: dict[str, list[timedelta]] = {}
        self.levels: dict[str, float] = {}
        self._labels: dict[str, frozenset[str]] = {}

    def count(self, name: str, **labels: str) -> None:
        self._check(name, labels)
        self.counts[name, tuple(sorted(labels.items()))] += 1

    def observe(self, name: str, span: timedelta, **labels: str) -> None:
        self._check(name, labels)
        self.spans.setdefault(name, []).append(span)

    def level(self, name: str, value: float, **labels: str) -> None:
        self._check(name, labels)
        self.levels[name] = value

    def total(self, name: str, **labels: str) -> int:
        """How often `name` was counted with these labels among its own."""
        wanted = set(labels.items())
        return sum(count for (known, has), count in self.counts.items() if known == name and wanted <= set(has))

    def _check(self, name: str, labels: dict[str, str]) -> None:
        """A name always comes with the same label names, as the port's contract says."""
        assert self._labels.setdefault(name, frozenset(labels)) == frozenset(labels), name
