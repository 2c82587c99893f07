"""A `DenialRecorder` that keeps every denial, an `EventRecorder` that writes every event, and a `Meter` that a test reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from typing_extensions import override

from certplane.broker.events import AuditEvent, EventKind
from certplane.broker.metrics import Counter as CounterMetric
from certplane.broker.metrics import Gauge, Histogram, Metric, Table
from certplane.broker.ports import AuditLog, Meter


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


class FakeMeter(Meter):
    """`Meter` in memory."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[Metric, tuple[tuple[str, str], ...]]] = Counter()
        self.spans: dict[Metric, list[timedelta]] = {}
        self.timed: list[tuple[Metric, tuple[tuple[str, str], ...]]] = []
        self.levels: dict[Metric, float] = {}
        self.labelled: dict[tuple[Metric, tuple[tuple[str, str], ...]], float] = {}
        self.tables: dict[Metric, Mapping[tuple[str, ...], float]] = {}
        self.watched: dict[Metric, Callable[[], float]] = {}
        self._moved: set[Metric] = set()

    @property
    def moved(self) -> set[Metric]:
        """What was counted, timed, set to something else than 0, though only for a while, or isn't 0 at this look."""
        self._moved |= {gauge for gauge, read in self.watched.items() if read()}
        return self._moved

    @override
    def count(self, counter: CounterMetric, **labels: str) -> None:
        self._check(counter, labels)
        self.counts[counter, tuple(sorted(labels.items()))] += 1
        self._moved.add(counter)

    @override
    def observe(self, histogram: Histogram, span: timedelta, **labels: str) -> None:
        self._check(histogram, labels)
        self.spans.setdefault(histogram, []).append(span)
        self.timed.append((histogram, tuple(sorted(labels.items()))))
        self._moved.add(histogram)

    @override
    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        self._check(gauge, labels)
        self.levels[gauge] = value
        self.labelled[gauge, tuple(sorted(labels.items()))] = value
        if value:
            self._moved.add(gauge)

    @override
    def table(self, table: Table, rows: Mapping[tuple[str, ...], float]) -> None:
        assert all(len(row) == len(table.labels) for row in rows), f"{table.name} has labels {table.labels}"
        self.tables[table] = dict(rows)
        if rows:
            self._moved.add(table)

    @override
    def forget(self, gauge: Gauge) -> None:
        self.levels.pop(gauge, None)
        self.tables.pop(gauge, None)

    @override
    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        self._check(gauge, {})
        self.watched[gauge] = read

    def total(self, counter: CounterMetric, **labels: str) -> int:
        """How often `counter` was counted with these labels among its own."""
        wanted = set(labels.items())
        return sum(count for (known, has), count in self.counts.items() if known is counter and wanted <= set(has))

    def _check(self, metric: Metric, labels: dict[str, str]) -> None:
        """A metric always comes with exactly its labels, as the port's contract says."""
        assert labels.keys() == set(metric.labels), metric.name
