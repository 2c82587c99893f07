"""What the broker measures: the port `Meter` over Prometheus. `metrics_listener` is where it can be read.

Beside what others measure it measures the event loop itself (`watch_loop`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from typing_extensions import override

from certplane.broker.issuance.measures import MEASURES, Measure
from certplane.broker.ports import Meter
from certplane.runtime.clock import Clock

T = TypeVar("T")

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From a group commit to an order that waits for slow DNS."""

_LOOP_LAG: Final = "event_loop_lag"
_LOOP_LOOK: Final = timedelta(milliseconds=25)
"""Between looks at the event loop. Something that holds it for longer is always seen; forty wakings cost nothing."""

LOOP_MEASURES: Final = (
    Measure(_LOOP_LAG, "duration", (), "How late the event loop came to what was due: what every call waits beside."),
)


class PrometheusMeter(Meter):
    """`Meter`: a measure becomes a metric `certplane_<name>`, made when it is first used if nobody declared it.

    May be called from any thread.
    """

    def __init__(self, registry: CollectorRegistry, measures: Iterable[Measure] = MEASURES) -> None:
        """Declare `measures`, so that they have their help text and are there before their first value."""
        self._registry = registry
        self._help = {measure.name: measure.help for measure in measures}
        self._lock = threading.Lock()
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self._gauges: dict[str, Gauge] = {}
        self._children: dict[tuple[object, ...], Counter] = {}
        for measure in measures:
            match measure.kind:
                case "counter":
                    self._counter(measure.name, measure.labels)
                case "duration":
                    self._histogram(measure.name, measure.labels)
                case "level":
                    self._gauge(measure.name, measure.labels)

    @override
    def count(self, name: str, **labels: str) -> None:
        # Several are counted for each call, and looking a child up by its labels costs four times what counting does.
        key = (name, *labels.items())
        child = self._children.get(key)
        if child is None:
            counter = self._counters.get(name) or self._counter(name, tuple(labels))
            child = self._children[key] = counter.labels(**labels) if labels else counter
        child.inc()

    @override
    def observe(self, name: str, span: timedelta, **labels: str) -> None:
        histogram = self._histograms.get(name) or self._histogram(name, tuple(labels))
        (histogram.labels(**labels) if labels else histogram).observe(span.total_seconds())

    @override
    def level(self, name: str, value: float, **labels: str) -> None:
        gauge = self._gauges.get(name) or self._gauge(name, tuple(labels))
        (gauge.labels(**labels) if labels else gauge).set(value)

    def _counter(self, name: str, labels: tuple[str, ...]) -> Counter:
        def make() -> Counter:
            return Counter(f"certplane_{name}", self._text(name), labels, registry=self._registry)

        return self._once(self._counters, name, make)

    def _histogram(self, name: str, labels: tuple[str, ...]) -> Histogram:
        def make() -> Histogram:
            text = self._text(name)
            return Histogram(f"certplane_{name}_seconds", text, labels, buckets=_SECONDS, registry=self._registry)

        return self._once(self._histograms, name, make)

    def _gauge(self, name: str, labels: tuple[str, ...]) -> Gauge:
        def make() -> Gauge:
            return Gauge(f"certplane_{name}", self._text(name), labels, registry=self._registry)

        return self._once(self._gauges, name, make)

    def _text(self, name: str) -> str:
        return self._help.get(name, name.replace("_", " "))

    def _once(self, made: dict[str, T], name: str, make: Callable[[], T]) -> T:
        with self._lock:
            if name not in made:
                made[name] = make()
            return made[name]


async def watch_loop(meter: Meter, clock: Clock) -> None:
    """Observe for good how late this event loop is; something that blocks it is seen as that long a wait."""
    while True:
        due = clock.monotonic() + _LOOP_LOOK.total_seconds()
        await clock.sleep(_LOOP_LOOK)
        meter.observe(_LOOP_LAG, timedelta(seconds=max(0.0, clock.monotonic() - due)))
