"""docs/operations.md against the program: its table of metrics, and of audit events."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from certplane.broker.audit.measures import AUDIT_MEASURES
from certplane.broker.fleet.measures import FLEET_MEASURES
from certplane.broker.issuance.measures import MEASURES
from certplane.broker.model import AuditEventType
from certplane.broker.retention import RETENTION_MEASURES
from certplane.broker.services.interceptors.metrics import Metrics
from certplane.broker.telemetry import LOOP_MEASURES, PrometheusMeter

_ROOT = Path(__file__).parents[3]
_DOCUMENT = (_ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
_METRIC_ROW = re.compile(r"^\| `(certplane_\w+)` \| (\w+) \| (.*?) \| .+ \|$", re.MULTILINE)
_USE = re.compile(r'meter\.(count|observe|level)\(\s*"(\w+)"([^)]*)')


def metrics() -> dict[str, tuple[str, str]]:
    """Every metric by its exposed name: its kind and its labels, with those that adapters make when they need them."""
    made = Metrics()
    meter = PrometheusMeter(
        made.registry, (*MEASURES, *FLEET_MEASURES, *AUDIT_MEASURES, *RETENTION_MEASURES, *LOOP_MEASURES)
    )
    for source in (_ROOT / "certplane" / "broker").rglob("*.py"):
        for kind, name, arguments in _USE.findall(source.read_text(encoding="utf-8")):
            labels = dict.fromkeys(re.findall(r"(\w+)=", arguments.partition("timedelta(")[0]), "x")
            if kind == "count":
                meter.count(name, **labels)
            elif kind == "observe":
                meter.observe(name, timedelta(), **labels)
            else:
                meter.level(name, 0, **labels)
    return {_exposed(metric): (metric.type, _labels(made.registry, metric)) for metric in made.registry.collect()}


def _exposed(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def _labels(registry: CollectorRegistry, metric: Metric) -> str:
    collector = registry._names_to_collectors[_exposed(metric)]
    return ", ".join(f"`{label}`" for label in collector._labelnames)


def test_metrics() -> None:
    """Each metric has a row with its kind and its labels, and a row is a metric."""
    documented = {name: (kind, labels) for name, kind, labels in _METRIC_ROW.findall(_DOCUMENT)}
    assert len(MEASURES) < len(documented)
    assert documented == metrics()


def test_audit_events() -> None:
    """Each type of audit event is named."""
    table = _DOCUMENT.partition("| `event_type` | tells |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line))) - {
        "---"
    } == {event.value for event in AuditEventType}
