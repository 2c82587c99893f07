"""docs/monitoring.md against the program: its table of metrics, and of audit events."""

from __future__ import annotations

import re
from pathlib import Path

from certplane.broker.events import AuditEventType
from certplane.broker.metrics import METRICS, Counter, Histogram

_ROOT = Path(__file__).parents[3]
_DOCUMENT = (_ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
_FORMER_ROW = re.compile(r"^\| `(certplane_\w+)` \| `(certplane_\w+)` \|$", re.MULTILINE)
_METRIC_ROW = re.compile(r"^\| `(certplane_\w+)` \| (\w+) \| (.*?) \| .+ \|$", re.MULTILINE)

KINDS = {Counter: "counter", Histogram: "histogram"}


def test_metrics() -> None:
    """Each metric has a row with its kind and its labels, and a row is a metric."""
    documented = {name: (kind, labels) for name, kind, labels in _METRIC_ROW.findall(_DOCUMENT)}
    assert documented == {
        metric.name: (KINDS.get(type(metric), "gauge"), ", ".join(f"`{label}`" for label in metric.labels))
        for metric in METRICS
    }


def test_former_names() -> None:
    """Each metric that had another name stands there with it."""
    assert dict(_FORMER_ROW.findall(_DOCUMENT)) == {each.name: each.formerly for each in METRICS if each.formerly}


def test_audit_events() -> None:
    """Each type of audit event is named."""
    table = _DOCUMENT.partition("| `event_type` | tells |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if line))) - {
        "---"
    } == {event.value for event in AuditEventType}
