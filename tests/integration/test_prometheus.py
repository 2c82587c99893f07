"""The shipped rules and dashboard on a real Prometheus that scrapes a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.broker import metrics
from certplane.broker.app import Broker, open_broker
from certplane.broker.metrics import Counter, Histogram, Metric
from certplane.broker.metrics_listener import MetricsListener
from certplane.broker.prepared import prepare
from certplane.broker.settings import load_settings
from certplane.broker.telemetry import PrometheusMeter
from certplane.config.values import ListenAddress
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.sandbox.loopback import steady_port
from certplane.v1 import renewal_pb2
from tests.support.broker_files import BrokerFiles
from tests.support.parts import need_part
from tests.support.prometheus import RULES, alert_rules, dashboard_queries, promtool, running_prometheus
from tests.support.streams import HostStreamClient
from tests.support.waiting import no_hang, until

pytestmark = pytest.mark.integration

CASES = Path(__file__).parents[1] / "cases" / "monitoring" / "alerts.test.yml"
NAUGHTY = 'a "profile"\\\nwith {every="thing"}\\n'
"""What no policy allows as a name, and a label takes all the same."""

RARE: list[tuple[Metric, dict[str, str]]] = [
    (metrics.ORDERS_ENDED, {"profile": "web", "reason": "ISSUED"}),
    (metrics.ORDERS_OPENED, {"cause": "due"}),
    (metrics.RPC_CALLS, {"method": "IssueCertificate", "code": "OK", "reason": ""}),
    (metrics.RPC_SECONDS, {"method": "IssueCertificate"}),
    (metrics.ORDER_DURATION, {"reason": "ISSUED"}),
    (metrics.REQUESTS, {"profile": "web", "result": "NAMES_NOT_ALLOWED"}),
    (metrics.LIMITS_REACHED, {"limit": "per_identity_per_hour"}),
    (metrics.PROFILES_BLOCKED, {"profile": NAUGHTY}),
    (metrics.CA_CALLS, {"issuer": "ca", "call": "create_order", "result": "ok"}),
    (metrics.DNS_CALLS, {"call": "present", "result": "DNS_UNAVAILABLE"}),
    (metrics.EVENTS_RESCUED, {"to": "spill"}),
    (metrics.EVENTS_COALESCED, {"type": "certificate_delivered"}),
    (metrics.BROKERS_DIFFER, {"subject": "policy"}),
    (metrics.SINK_LAG, {"sink": "siem"}),
    (metrics.SINK_HOLDS_UP, {"sink": "siem"}),
    (metrics.SINK_FAILURES, {"sink": "siem"}),
    (metrics.NOTIFICATIONS_WAITING, {"notifier": "oncall"}),
    (metrics.NOTIFICATIONS, {"notifier": "oncall", "result": "failed"}),
    (metrics.INCIDENT_CERTIFICATES, {"issuer": "ca", "state": "open"}),
    (metrics.INCIDENT_DEADLINE, {"issuer": "ca"}),
    (metrics.BUDGET_LEFT, {"issuer": "ca", "limit": "names"}),
    (metrics.BUDGET_PLACES, {"issuer": "ca", "limit": "names"}),
]
"""What a broker without calls and a CA doesn't show, and what is rare."""


async def run_promtool(*arguments: str | Path) -> str:
    tool = promtool(need_part("prometheus"))
    process = await asyncio.create_subprocess_exec(
        tool, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with no_hang():
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_rules_are_what_promtool_takes() -> None:
    """Each is valid, and none is doubled."""
    assert f"{len(alert_rules())} rules found" in await run_promtool("check", "rules", "--lint-fatal", RULES)


async def test_rules_fire_when_they_should() -> None:
    """Promtool's unit tests: each alert, when it fires, and when not yet or not any more."""
    assert "SUCCESS" in await run_promtool("test", "rules", CASES)


def move(meter: PrometheusMeter, metric: Metric, labels: dict[str, str], value: float = 1) -> None:
    match metric:
        case Counter():
            meter.count(metric, **labels)
        case Histogram():
            meter.observe(metric, timedelta(seconds=value), **labels)
        case metrics.Table():
            meter.table(metric, {tuple(labels.values()): value})
        case metrics.Gauge():
            meter.level(metric, value, **labels)


@contextlib.asynccontextmanager
async def broker_with_a_host(folder: Path) -> AsyncIterator[Broker]:
    """A broker whose host has reported a certificate, then started anew: the figures of a fleet are told at a start."""
    files = BrokerFiles(folder)
    files.settings["metrics"] = {"address": "127.0.0.1:0"}
    files.write()
    async with open_broker(prepare(load_settings(files.config))) as broker:
        credentials = channel_credentials(files.ca.root_pem, files.identity().pair)
        async with open_channel(f"https://localhost:{broker.port}", credentials) as channel:
            host = HostStreamClient(channel)
            await host.hello()
            end = datetime.now(UTC) + timedelta(days=20)
            held = renewal_pb2.CertificateStatus.Held(serial_number="3e7", not_after_time=end)
            holds = dict.fromkeys(("issued", "installed", "served"), held)
            await host.acknowledged(await host.report(profile="web", **holds))
            host.call.cancel()
    async with open_broker(prepare(load_settings(files.config))) as broker:
        yield broker


async def test_panels_show_a_real_broker(tmp_path: Path) -> None:
    """Each query of the dashboard gives series, labels full of quotes and line breaks among them."""
    part = need_part("prometheus")
    async with broker_with_a_host(tmp_path) as broker:
        assert broker.metrics_listener is not None
        target = f"127.0.0.1:{broker.metrics_listener.port}"
        async with running_prometheus(part, tmp_path / "prometheus", [target]) as prometheus:
            waiting = {
                query.expression.replace("$__rate_interval", "1m").replace("$job", ".+"): query.panel
                for query in dashboard_queries()
            }

            async def all_shown() -> bool:
                for metric, labels in RARE:
                    move(broker.meter, metric, labels)
                for expression in list(waiting):
                    if await prometheus.query(expression):
                        del waiting[expression]
                return not waiting

            with contextlib.suppress(AssertionError):
                await until(all_shown, poll=0.5)
            assert waiting == {}
            (blocked,) = await prometheus.query("certplane_profiles_blocked == 1")
            assert blocked["metric"]["profile"] == NAUGHTY
            (row, *_) = await prometheus.query(
                'certplane_fleet_certificate_not_after_timestamp_seconds{certificate="web"}'
            )
            assert row["metric"]["host"] == "web1.certplane.test"
            assert await prometheus.query("certplane_rpc_seconds_count or certplane_store_group_seconds_count")


HURT: list[tuple[Metric, dict[str, str], float]] = [
    *((metrics.HEALTH, {"health": word}, 2) for word in ("EXPIRED", "OVERDUE", "UNHEARD")),
    (metrics.SOONEST_END, {"profile": "web"}, 1),
    *((metrics.INCIDENT_CERTIFICATES, {"issuer": NAUGHTY, "state": state}, 1) for state in ("open", "hurt")),
    (metrics.BUDGET_WAIT, {"issuer": NAUGHTY}, 90_000),
    *((metrics.ROLLOUTS, {"state": state}, 1) for state in ("halted", "finishing")),
    (metrics.ROLLOUTS_LATE, {}, 1),
    (metrics.ROLLOUT_RING_SECONDS, {}, 90_000),
    (metrics.IDENTITIES_CONTESTED, {}, 1),
    (metrics.PROFILES_BLOCKED, {"profile": NAUGHTY}, 1),
    (metrics.ISSUING_UP, {}, 0),
    (metrics.ISSUING_RESTARTS, {"reason": "ended"}, 1),
    (metrics.ORDERS_ENDED, {"profile": NAUGHTY, "reason": "DNS_REJECTED"}, 1),
    (metrics.CA_CALLS, {"issuer": "ca", "call": "create_order", "result": "ISSUER_UNAVAILABLE"}, 1),
    (metrics.DNS_CALLS, {"call": "present", "result": "DNS_UNAVAILABLE"}, 1),
    (metrics.LIMITS_REACHED, {"limit": "per_identity_per_hour"}, 1),
    (metrics.LEASE, {}, 0),
    (metrics.BROKERS, {}, 0),
    (metrics.BROKERS_DIFFER, {"subject": "policy"}, 1),
    (metrics.ROLES_HELD, {"role": "upkeep"}, 0),
    (metrics.CLOCK_SKEW, {}, 400),
    (metrics.CERTIFICATE_NOT_AFTER, {"certificate": "server"}, 1),
    (metrics.RELOADS, {"what": "policy", "result": "rejected"}, 1),
    (metrics.LOOP_LAG, {}, 2),
    (metrics.EVENTS_RESCUED, {"to": "spill"}, 1),
    (metrics.SPACE_LOW, {}, 1),
    (metrics.STORE_DAMAGED, {}, 1),
    (metrics.STORE_GROUP, {}, 5),
    (metrics.JOURNAL_RETRIES, {}, 1),
    (metrics.SINK_LAG, {"sink": NAUGHTY}, 90),
    (metrics.SINK_HOLDS_UP, {"sink": NAUGHTY}, 1),
    (metrics.NOTIFICATIONS_WAITING, {"notifier": NAUGHTY}, 1),
    (metrics.AUDIT_UNPROVEN, {"why": "no_checkpoint"}, 1),
    (metrics.AUDIT_UNPROVEN, {"why": "changed"}, 1),
]
"""A broker with which everything is wrong."""

OF_OTHERS = {"CertplaneHostsGone", "CertplaneFleetNotMeasured", "CertplaneAgentCertificateHurt", "CertplaneAgentSilent"}
"""What a fresh Prometheus, one with figures of the fleet, or a broker can't show; promtool's tests do."""


async def test_alerts_of_a_broker_in_trouble(tmp_path: Path) -> None:
    """Each rule meets what it is for, as the broker shows it, and its words are made without an error."""
    part, meter = need_part("prometheus"), PrometheusMeter()
    with contextlib.closing(MetricsListener(ListenAddress("127.0.0.1", 0), meter.registry)) as listener:
        targets = [f"127.0.0.1:{listener.port}", f"127.0.0.1:{steady_port()}"]
        async with running_prometheus(part, tmp_path / "prometheus", targets) as prometheus:
            wanted = {rule["alert"] for rule in alert_rules()} - OF_OTHERS

            async def all_noticed() -> bool:
                for metric, labels, value in HURT:
                    if isinstance(metric, metrics.Table):  # all of its rows at once
                        rows = {tuple(of.values()): row for each, of, row in HURT if each is metric}
                        meter.table(metric, rows)
                        continue
                    for _ in range(4):
                        move(meter, metric, labels, value)
                return wanted == {alert["labels"]["alertname"] for alert in await prometheus.alerts()}

            with contextlib.suppress(AssertionError):
                await until(all_noticed, poll=0.5)
            alerts = await prometheus.alerts()
            assert {alert["labels"]["alertname"] for alert in alerts} == wanted
            texts = [text for alert in alerts for text in alert["annotations"].values()]
            assert not [text for text in texts if re.search(r"<(error|no value)|\{\{", text)]
