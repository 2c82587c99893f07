"""The shipped alert rules and dashboard against the program: what they ask for is there, and each is explained."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

from certplane.agent.textfile import METRICS as AGENT_METRICS
from certplane.broker.metrics import METRICS, Histogram
from certplane.broker.metrics import Counter as CounterMetric
from tests.support.prometheus import alert_rules, dashboard, dashboard_queries

_ROOT = Path(__file__).parents[3]
_NAMES = {
    name: metric
    for metric in METRICS
    for name in (
        [f"{metric.name}{suffix}" for suffix in ("_bucket", "_count", "_sum")]
        if isinstance(metric, Histogram)
        else [metric.name]
    )
}
_AGENT_LABELS = {name: labels for name, (labels, _) in AGENT_METRICS.items()}
_SELECTOR = re.compile(r"(certplane_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
_TARGET_LABELS = {"job", "instance"}

EXPRESSIONS = [pytest.param(rule["expr"], id=rule["alert"]) for rule in alert_rules()] + [
    pytest.param(query.expression, id=f"{query.panel} {number}") for number, query in enumerate(dashboard_queries())
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_what_is_asked_for_is_there(expression: str) -> None:
    """Each metric of an expression is one of the broker's under its present name, and has the labels that it picks by."""
    found = _SELECTOR.findall(expression)
    assert found or re.match(r"up\{|process_", expression)
    for name, selector in found:
        if name in _AGENT_LABELS:
            assert set(_LABEL.findall(selector)) <= {*_AGENT_LABELS[name], *_TARGET_LABELS}
            continue
        metric = _NAMES[name]
        extra = {"le"} if isinstance(metric, Histogram) else set()
        assert set(_LABEL.findall(selector)) <= {*metric.labels, *_TARGET_LABELS, *extra}, name
        if isinstance(metric, CounterMetric | Histogram) and name != "certplane_audit_events_rescued_total":
            assert re.search(rf"(rate|increase|offset|unless)[^+]*{name}|{name}[^+]* (unless|offset)", expression), name


def test_alerts_are_explained() -> None:
    """Each has a severity, says what is wrong and what to do, and stands in the document's table with its severity."""
    rules = alert_rules()
    assert all(set(rule["annotations"]) == {"summary", "remedy"} for rule in rules)
    text = (_ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(Certplane\w+)` \| (\w+) \|", text, re.MULTILINE))
    assert rows == {rule["alert"]: rule["labels"]["severity"] for rule in rules}


def test_each_alert_is_seen_to_fire() -> None:
    """A rule that is added has a test of promtool's, in which it fires."""
    cases = (_ROOT / "tests" / "cases" / "monitoring" / "alerts.test.yml").read_text(encoding="utf-8")
    fired = {
        match
        for test in yaml.safe_load(cases)["tests"]
        for each in test["promql_expr_test"]
        for sample in each["exp_samples"]
        for match in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in alert_rules()}


def test_panels_have_their_places() -> None:
    """No two have one id or one place, none leaves the grid, and each asks the chosen Prometheus."""
    panels = dashboard()["panels"]
    assert max(Counter(panel["id"] for panel in panels).values()) == 1
    places = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(places.values()) == 1
    assert max(x for x, _ in places) < 24
    sources = [target["datasource"]["uid"] for panel in panels for target in panel.get("targets", [])]
    assert set(sources) == {"${datasource}"}
    assert all('job=~"$job"' in query.expression for query in dashboard_queries())
