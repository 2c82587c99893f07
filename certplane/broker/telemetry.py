"""What the broker measures: the port `Meter` over Prometheus. `metrics_listener` is where it can be read.

Beside what others measure it measures the event loop itself (`watch_loop`).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from typing_extensions import override

from certplane import __version__
from certplane.broker import metrics
from certplane.broker.metrics import Counter, Gauge, Histogram, Metric, Table
from certplane.broker.ports import Meter
from certplane.runtime.clock import Clock

_LOOP_LOOK: Final = timedelta(milliseconds=25)
"""Between looks at the event loop. Something that holds it for longer is always seen; forty wakings cost nothing."""


class PrometheusMeter(Meter):
    """`Meter` over a registry of its own, so that two brokers in one process (tests) don't share figures.

    May be called from any thread.
    """

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._collectors = {metric: self._declare(metric) for metric in metrics.METRICS}
        for metric, collector in self._collectors.items():
            if metric.formerly:
                self.registry.register(_FormerName(metric, collector))
        self._children: dict[tuple[Metric, tuple[str, ...]], Any] = {}
        self._forgotten: set[Metric] = set()
        self.level(metrics.BUILD_INFO, 1, version=__version__, python=platform.python_version())

    @override
    def count(self, counter: Counter, **labels: str) -> None:
        self._child(counter, labels).inc()

    @override
    def observe(self, histogram: Histogram, span: timedelta, **labels: str) -> None:
        self._child(histogram, labels).observe(span.total_seconds())

    @override
    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        self._child(gauge, labels).set(value)
        self._remember(gauge)

    @override
    def table(self, table: Table, rows: Mapping[tuple[str, ...], float]) -> None:
        self._collectors[table].rows = dict(rows)
        self._remember(table)

    @override
    def forget(self, gauge: Gauge) -> None:
        if gauge in self._forgotten:
            return
        self._forgotten.add(gauge)
        self.registry.unregister(self._collectors[gauge])
        if gauge.labels:
            self._collectors[gauge].clear()
            self._children = {key: child for key, child in self._children.items() if key[0] is not gauge}

    @override
    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        self._collectors[gauge].set_function(read)

    def _remember(self, gauge: Gauge) -> None:
        if gauge in self._forgotten:
            self._forgotten.discard(gauge)
            self.registry.register(self._collectors[gauge])

    def _child(self, metric: Metric, labels: dict[str, str]) -> Any:
        if not labels:
            return self._collectors[metric]
        # Several are counted for each call, and the library's own way to a child costs four times what counting does.
        values = tuple(labels.values())
        if tuple(labels) != metric.labels:  # in another order, or not its labels at all
            return self._collectors[metric].labels(**labels)
        child = self._children.get((metric, values))
        if child is None:
            child = self._children[metric, values] = self._collectors[metric].labels(*values)
        return child

    def _declare(self, metric: Metric) -> Any:
        if isinstance(metric, Table):
            table = _Rows(metric)
            self.registry.register(table)
            return table
        if isinstance(metric, Histogram):
            return prometheus.Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry
            )
        kind = prometheus.Counter if isinstance(metric, Counter) else prometheus.Gauge
        return kind(metric.name, metric.help, metric.labels, registry=self.registry)


class _Rows(Collector):
    """A `Table`: its rows are another mapping each time, so that whoever reads one on another thread reads it whole."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.rows: Mapping[tuple[str, ...], float] = {}

    @override
    def collect(self) -> Iterator[Family]:
        family = GaugeMetricFamily(self._table.name, self._table.help, labels=self._table.labels)
        for values, value in self.rows.items():
            family.add_metric(values, value)
        yield family

    def clear(self) -> None:
        self.rows = {}


class _FormerName(Collector):
    """What a collector shows, under the name that the metric had before."""

    def __init__(self, metric: Metric, of: Collector) -> None:
        self._metric, self._of = metric, of

    @override
    def collect(self) -> Iterator[Family]:
        name, former = self._metric.name, self._metric.formerly
        for now in self._of.collect():
            before = Family(former, f"The former name of {name}; the next release has it no more.", now.type)
            before.samples = [each._replace(name=former + each.name.removeprefix(name)) for each in now.samples]
            yield before


async def watch_loop(meter: Meter, clock: Clock) -> None:
    """Observe for good how late this event loop is; something that blocks it is seen as that long a wait."""
    while True:
        due = clock.monotonic() + _LOOP_LOOK.total_seconds()
        await clock.sleep(_LOOP_LOOK)
        meter.observe(metrics.LOOP_LAG, timedelta(seconds=max(0.0, clock.monotonic() - due)))
