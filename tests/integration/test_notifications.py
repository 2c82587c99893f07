"""Whole brokers of one database tell a receiver what is wrong with the fleet: once, whichever of them does it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.broker_files import BrokerFiles
from tests.support.planted import plant_an_expired_certificate
from tests.support.waiting import until
from tests.support.webhook_receiver import WebhookReceiver
from tests.support.whole_brokers import configured, starting

pytestmark = pytest.mark.integration

HOST = "web1.certplane.test"


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


async def test_a_trouble_is_told_once_by_the_broker_that_has_the_role(
    tmp_path: Path, postgres_url: str, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, which has no notifications, leaves that role alone; the other one tells, and notes that it did."""
    monkeypatch.setenv("NOTIFY_KEY", "hush")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(starting(configured(tmp_path / "one", postgres_url)))
        await plant_an_expired_certificate(first.stores.fleet, HOST)
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


async def test_people_are_told_of_the_broker_itself(
    tmp_path: Path, receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its own certificate ends soon, before its agents stay away: they are all well."""
    monkeypatch.setenv("NOTIFY_KEY", "hush")
    files, now = BrokerFiles(tmp_path), datetime.now(UTC)
    begin, end = now - timedelta(hours=23), now + timedelta(hours=1)
    files.pair = files.ca.issue_server(["localhost"], not_before=begin, not_after=end)
    async with starting(notifying(files, receiver)):
        (request,) = await until(lambda: receiver.requests)
    assert (request.json["kind"], request.json["severity"]) == ("opened", "critical")
    (trouble,) = request.json["troubles"]
    assert trouble["cause"] == f"BROKER CERTIFICATE_ENDS {socket.gethostname()}"
    assert f"ends at {end:%Y-%m-%dT%H:%M:%SZ}" in trouble["reason"]
    assert "docs/operations.md" in trouble["remedy"]
