"""The broker's own certificate, its metrics, and who an operator means."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, parser
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser

from certplane.broker import metrics
from certplane.broker.expiry import ExpiryLevel, expiry_level
from certplane.broker.identity_commands import identity_entry
from certplane.broker.metrics import Counter, Gauge, Histogram, Metric, Table
from certplane.broker.metrics_listener import MetricsListener
from certplane.broker.model import DenyEntry
from certplane.broker.telemetry import PrometheusMeter, watch_loop
from certplane.config.values import ListenAddress
from certplane.errors import OperationError
from tests.fakes.clock import ManualClock
from tests.support.issuance import settle

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("passed", "level"),
    [
        pytest.param(0.0, ExpiryLevel.FINE, id="new"),
        pytest.param(0.74, ExpiryLevel.FINE, id="a little over a quarter left"),
        pytest.param(0.75, ExpiryLevel.QUARTER, id="a quarter left"),
        pytest.param(0.87, ExpiryLevel.QUARTER, id="a little over an eighth left"),
        pytest.param(0.875, ExpiryLevel.EIGHTH, id="an eighth left"),
        pytest.param(0.999, ExpiryLevel.EIGHTH, id="about to end"),
        pytest.param(1.0, ExpiryLevel.EXPIRED, id="ended"),
        pytest.param(2.0, ExpiryLevel.EXPIRED, id="long gone"),
    ],
)
@pytest.mark.parametrize("life", [timedelta(days=1), timedelta(days=365)], ids=["a day", "a year"])
def test_expiry_level(passed: float, level: ExpiryLevel, life: timedelta) -> None:
    """The same fractions of the life for a certificate of a day and one of a year."""
    assert expiry_level(START, START + life, START + life * passed) is level


@pytest.mark.parametrize(
    ("arguments", "entry"),
    [
        pytest.param({"name": "WEB1.Example"}, DenyEntry(name="web1.example"), id="name in another case"),
        pytest.param({"name": "spiffe://example/Host/a"}, DenyEntry(name="spiffe://example/Host/a"), id="URI as written"),
        pytest.param({"issuer": "CN=CA", "serial_number": "00:AF:01"}, DenyEntry(issuer="CN=CA", serial_number="af01"), id="openssl's serial"),
        pytest.param({"issuer": "CN=CA", "serial_number": "0xAF01"}, DenyEntry(issuer="CN=CA", serial_number="af01"), id="serial with 0x"),
        pytest.param({"issuer": "CN=CA", "serial_number": "0"}, DenyEntry(issuer="CN=CA", serial_number="0"), id="serial zero"),
        pytest.param({"issuer": "CN=Example CA,O=Example\\, Inc.", "serial_number": "1"}, DenyEntry(issuer="CN=Example CA,O=Example\\, Inc.", serial_number="1"), id="issuer with a comma"),
    ],
)  # fmt: skip
def test_identity_entry(arguments: dict[str, str], entry: DenyEntry) -> None:
    """What an operator types is compared in the form that callers are known by."""
    given = {"name": "", "issuer": "", "serial_number": "", **arguments}
    assert identity_entry(**given) == entry


def test_meter_makes_metrics() -> None:
    """Counters, histograms and gauges become metrics; all are there before their first value."""
    meter = PrometheusMeter()
    meter.count(metrics.EVENTS_RESCUED, to="spill")
    meter.count(metrics.EVENTS_RESCUED, to="spill")
    meter.observe(metrics.STORE_GROUP, timedelta(milliseconds=3))
    meter.level(metrics.ORDERS_OPEN, 7)
    sample = meter.registry.get_sample_value
    assert sample("certplane_audit_events_rescued_total", {"to": "spill"}) == 2
    assert sample("certplane_store_group_duration_seconds_count") == 1
    assert sample("certplane_store_group_duration_seconds_bucket", {"le": "0.005"}) == 1
    assert sample("certplane_orders_open") == 7
    exported = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in meter.registry.collect()
    }
    former = {metric.formerly for metric in metrics.METRICS if metric.formerly}
    assert exported == {metric.name for metric in metrics.METRICS} | former
    assert len(exported) == len(metrics.METRICS) + len(former)


def test_a_former_name_shows_the_same() -> None:
    """Whoever alerts on the former name of a metric is served until the next release."""
    meter = PrometheusMeter()
    meter.observe(metrics.STORE_GROUP, timedelta(milliseconds=3))
    meter.level(metrics.CERTIFICATE_NOT_AFTER, 17, certificate="server")
    sample = meter.registry.get_sample_value
    assert sample("certplane_store_group_seconds_bucket", {"le": "0.005"}) == 1
    assert sample("certplane_store_group_seconds_count") == 1
    assert sample("certplane_certificate_not_after_seconds", {"certificate": "server"}) == 17


def test_a_table_shows_its_rows_alone() -> None:
    """A row that isn't there the next time is gone, and the whole table where another broker shows it."""
    meter = PrometheusMeter()

    def row(host: str) -> float | None:
        labels = {"host": host, "certificate": "web", "profile": "web", "issuer": "ca"}
        return meter.registry.get_sample_value(metrics.NOT_AFTER.name, labels)

    meter.table(metrics.NOT_AFTER, {("a", "web", "web", "ca"): 1, ("b", "web", "web", "ca"): 2})
    assert (row("a"), row("b")) == (1, 2)
    meter.table(metrics.NOT_AFTER, {("b", "web", "web", "ca"): 3})
    assert (row("a"), row("b")) == (None, 3)
    meter.forget(metrics.NOT_AFTER)
    assert row("b") is None
    meter.table(metrics.NOT_AFTER, {("a", "web", "web", "ca"): 4})
    assert (row("a"), row("b")) == (4, None)


NAUGHTY = 'a "b"\\n\n{c="d"} \\ é 😀 #\r'


def test_labels_full_of_quotes_and_newlines() -> None:
    """Whatever a label holds, the exposition is read back as it was, in both formats."""
    meter = PrometheusMeter()
    meter.table(metrics.NOT_AFTER, {(NAUGHTY, "web", "web", "ca"): 1})
    meter.level(metrics.PROFILES_BLOCKED, 1, profile=NAUGHTY)
    for encode, parse in (
        (prometheus_client.generate_latest, parser.text_string_to_metric_families),
        (openmetrics_exposition.generate_latest, openmetrics_parser.text_string_to_metric_families),
    ):
        samples = [each for family in parse(encode(meter.registry).decode()) for each in family.samples]
        assert [each.labels["host"] for each in samples if each.name == metrics.NOT_AFTER.name] == [NAUGHTY]
        assert [each.labels["profile"] for each in samples if each.name == metrics.PROFILES_BLOCKED.name] == [NAUGHTY]


@pytest.mark.parametrize("metric", metrics.METRICS, ids=lambda metric: metric.name)
def test_metrics_can_be_used_as_declared(metric: Metric) -> None:
    """Each takes exactly the labels that it declares."""
    meter = PrometheusMeter()
    labels = dict.fromkeys(metric.labels, "x")
    match metric:
        case Counter():
            meter.count(metric, **labels)
            value = meter.registry.get_sample_value(metric.name, labels)
        case Histogram():
            meter.observe(metric, timedelta(seconds=1), **labels)
            value = meter.registry.get_sample_value(f"{metric.name}_sum", labels)
        case Table():
            meter.table(metric, {tuple(labels.values()): 1})
            value = meter.registry.get_sample_value(metric.name, labels)
        case Gauge():
            meter.level(metric, 1, **labels)
            value = meter.registry.get_sample_value(metric.name, labels)
    assert value == 1


class LateClock(ManualClock):
    """Wakes sleepers later than they asked, as a loop does that something else holds."""

    def __init__(self, late: timedelta) -> None:
        super().__init__()
        self.late = late
        self.looks = 0

    async def sleep(self, span: timedelta) -> None:
        self.advance(span + self.late)
        self.looks += 1
        await asyncio.sleep(0)


async def test_a_loop_that_is_held_is_measured() -> None:
    """What the loop is late by is what the histogram gets; the span between looks is no part of it."""
    meter = PrometheusMeter()
    clock = LateClock(timedelta(milliseconds=15))
    watching = asyncio.create_task(watch_loop(meter, clock))
    await settle()
    watching.cancel()
    await asyncio.wait({watching})
    registry = meter.registry
    seen = {
        le: registry.get_sample_value("certplane_event_loop_lag_seconds_bucket", {"le": le}) for le in ("0.01", "0.02")
    }
    assert seen["0.01"] == 0
    assert seen["0.02"] == registry.get_sample_value("certplane_event_loop_lag_seconds_count") >= 9


def test_metrics_address_that_is_taken() -> None:
    """A taken metrics address is one line that names the key."""
    listener = MetricsListener(ListenAddress("127.0.0.1", 0), CollectorRegistry())
    try:
        with pytest.raises(OperationError, match=r"metrics\.address"):
            MetricsListener(ListenAddress("127.0.0.1", listener.port), CollectorRegistry())
    finally:
        listener.close()
