"""What the broker measures: the port `Meter` over Prometheus. `metrics_listener` is where it can be read.

Beside what others measure it measures the event loop itself (`watch_loop`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import prometheus_client as prometheus
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.metrics import Counter, Gauge, Histogram, Metric
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
        self._children: dict[tuple[Metric, tuple[str, ...]], Any] = {}
        self._forgotten: set[Gauge] = set()

    @override
    def count(self, counter: Counter, **labels: str) -> None:
        self._child(counter, labels).inc()

    @override
    def observe(self, histogram: Histogram, span: timedelta, **labels: str) -> None:
        self._child(histogram, labels).observe(span.total_seconds())

    @override
    def level(self, gauge: Gauge, value: float, **labels: str) -> None:
        self._child(gauge, labels).set(value)
        if gauge in self._forgotten:
            self._forgotten.discard(gauge)
            self.registry.register(self._collectors[gauge])

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
        if isinstance(metric, Histogram):
            return prometheus.Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self.registry
            )
        kind = prometheus.Counter if isinstance(metric, Counter) else prometheus.Gauge
        return kind(metric.name, metric.help, metric.labels, registry=self.registry)


async def watch_loop(meter: Meter, clock: Clock) -> None:
    """Observe for good how late this event loop is; something that blocks it is seen as that long a wait."""
    while True:
        due = clock.monotonic() + _LOOP_LOOK.total_seconds()
        await clock.sleep(_LOOP_LOOK)
        meter.observe(metrics.LOOP_LAG, timedelta(seconds=max(0.0, clock.monotonic() - due)))
