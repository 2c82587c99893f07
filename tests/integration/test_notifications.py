"""Whole brokers of one database tell a receiver what is wrong with the fleet: once, whichever of them does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.broker.app import Broker
from certplane.broker.fleet.model import HostStream
from certplane.fleet_report.model import CertificateState, CertificateStatus, HeldCertificate, HostFacts, Report
from tests.support.broker_files import BrokerFiles
from tests.support.waiting import until
from tests.support.webhook_receiver import WebhookReceiver
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration

HOST = "web1.certplane.test"
HOUR = timedelta(hours=1)


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


def notifying(files: BrokerFiles, receiver: WebhookReceiver) -> BrokerFiles:
    webhook = {"url": receiver.url, "signing_secret": "notify/key"}
    files.settings["notifications"] = {
        "oncall": {"webhook": webhook, "rules": [{"severity": "critical"}], "after": "0s"}
    }
    files.write()
    return files


async def report_an_expired_certificate(broker: Broker) -> None:
    """As the host had said it to that broker before it went away."""
    now = datetime.now(UTC)
    held = HeldCertificate("2a", now - HOUR, now - HOUR / 60, "", 1, now - HOUR)
    status = CertificateStatus("web", CertificateState.SERVING, "web", issued=held, installed=held, served=held)
    stream = HostStream(HOST, HostFacts("1.0"), "1f", now + HOUR, "127.0.0.1", now - HOUR, now - HOUR, now - HOUR / 2)
    await broker.stores.fleet.record_reports(HOST, "first", [Report(1, status)], names=["web"], stream=stream)


async def test_a_trouble_is_told_once_by_the_broker_that_has_the_role(
    tmp_path: Path, postgres_url: str, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, which has no notifications, leaves that role alone; the other one tells, and notes that it did."""
    monkeypatch.setenv("NOTIFY_KEY", "hush")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(starting(configured(tmp_path / "one", postgres_url)))
        await report_an_expired_certificate(first)
        await stack.enter_async_context(starting(notifying(configured(tmp_path / "two", postgres_url), receiver)))
        (request,) = await until(lambda: receiver.requests)
        assert request.json["kind"] == "opened"
        (trouble,) = request.json["troubles"]
        assert (trouble["health"], trouble["hosts"]) == ("HEALTH_EXPIRED", ["web1"])
        assert "expired at" in trouble["reason"]
        assert request.headers["webhook-signature"].startswith("v1,")

        async def noted() -> bool:
            standing = await first.stores.outbox.standing()
            return not standing.waiting and [told.cause for told in standing.told] == [trouble["cause"]]

        await until(noted)
        assert len(receiver.requests) == 1
