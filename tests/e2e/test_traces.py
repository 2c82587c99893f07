"""One trace from an agent through the broker and its issuing process to CA and DNS, at a real OTLP receiver."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from tests.support.otlp import OtlpReceiver, receiving
from tests.support.parts import need_part
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

_POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
}
_CERTIFICATE = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test"]}
_ISSUE = "certplane.v1.CertificateService/IssueCertificate"
_TO_THE_PROCESS = ["certplane-agent: renew", f"certplane-agent: {_ISSUE}", f"certplane-broker: {_ISSUE}"]


async def test_one_trace_through_all(tmp_path: Path) -> None:
    """Each part of a first certificate is below the agent's decision to get it; secrets and texts are in none."""
    need_part("pebble")
    async with receiving() as receiver:
        tracing = {"tracing": {"endpoint": f"http://127.0.0.1:{receiver.port}"}}
        options = DeploymentOptions(_POLICY, dns_provider="rfc2136", broker=tracing)
        async with Deployment(tmp_path / "deployment", options) as deployment:
            await deployment.start_broker()
            host = deployment.add_host("web1.certplane.test", [_CERTIFICATE], agent=tracing)
            done = await host.run("enroll")
            assert done.status == 0, done.stderr
            await host.start()
            awaited = {"renew", "install", "report", "order", "CreateOrder", "Present", "Remove", "POST", "DNS update"}
            await until(lambda: awaited <= {span.name for span in receiver.spans}, poll=0.2)
        assert ["certplane-agent: renew", "certplane-broker: report"] in map(receiver.path, receiver.spans)
        assert ["certplane-agent: renew", "certplane-agent: install"] in map(receiver.path, receiver.spans)
        (order,) = receiver.named("order")
        assert receiver.path(order) == [*_TO_THE_PROCESS, "certplane-broker: order"]
        for call, exchange in (("CreateOrder", "POST"), ("Present", "DNS update")):
            below = [span for span in receiver.named(exchange) if f"certplane-broker: {call}" in receiver.path(span)]
            assert below, sorted(map(str, map(receiver.path, receiver.spans)))
            assert receiver.path(below[0]) == [
                *receiver.path(order),
                f"certplane-broker: {call}",
                f"certplane-broker-issuing: {call}",
                f"certplane-broker-issuing: {exchange}",
            ]
            assert below[0].trace == order.trace
        assert order.attributes["certplane.profile"] == "web"
        assert order.attributes["certplane.request_id"] in log_of(deployment)
        (called,) = receiver.named(_ISSUE, "certplane-broker")
        assert called.attributes["rpc.response.status_code"] == "OK"
        assert called.attributes["certplane.identity"] == "web1.certplane.test"
        check_attributes(receiver, deployment.dns.endpoint.key.secret)


def log_of(deployment: Deployment) -> str:
    return (deployment.broker_folder / "broker.log").read_text(encoding="utf-8")


def check_attributes(receiver: OtlpReceiver, secret: str) -> None:
    said = json.dumps([span.attributes for span in receiver.spans])
    assert secret not in said
    assert "BEGIN" not in said
    assert not any(key.startswith(("exception", "url", "db")) for span in receiver.spans for key in span.attributes)


async def test_a_collector_that_is_away(tmp_path: Path) -> None:
    """It holds nobody up, and the log says so once for each program."""
    need_part("pebble")
    tracing = {"tracing": {"endpoint": "http://127.0.0.1:9"}}
    async with Deployment(tmp_path / "deployment", DeploymentOptions(_POLICY, broker=tracing)) as deployment:
        await deployment.start_broker()
        host = deployment.add_host("web1.certplane.test", [_CERTIFICATE], agent=tracing)
        for command in (["enroll"], ["run", "--once"]):
            done = await host.run(*command)
            assert done.status == 0, done.stderr
        said = "spans can't be sent: Failed to export"
        assert done.stderr.count(said) == 1
        await deployment.stop_broker()
        assert log_of(deployment).count(said) <= 2  # the issuing process writes there too
        assert "opentelemetry" not in log_of(deployment)
