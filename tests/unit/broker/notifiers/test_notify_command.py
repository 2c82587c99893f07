"""`certplane-broker notify test`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from certplane.broker.cli import main
from tests.support.broker_files import BrokerFiles
from tests.support.webhook_receiver import WebhookReceiver


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


def run(tmp_path: Path, notifications: object, *arguments: str) -> int:
    files = BrokerFiles(tmp_path)
    files.settings["notifications"] = notifications
    files.config.write_text(yaml.safe_dump(files.settings))
    return main(["--config", str(files.config), "--json", "notify", "test", *arguments])


def test_each_gets_a_message_and_has_a_row(
    tmp_path: Path, receiver: WebhookReceiver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered; status 1 where one has not arrived, and 0 where those that were asked for have."""
    monkeypatch.delenv("NOSUCH", raising=False)
    both = {
        "good": {"webhook": {"url": receiver.url}},
        "bad": {"webhook": {"url": receiver.url, "signing_secret": "nosuch"}},
    }
    assert run(tmp_path, both) == 1
    bad, good = map(json.loads, capsys.readouterr().out.splitlines())  # the file is sorted
    assert good == {
        "notifier": "good",
        "kind": "webhook",
        "result": "delivered",
        "detail": "it answered with status 204",
    }
    assert (bad["result"], "set the environment variable NOSUCH" in bad["detail"]) == ("failed", True)
    assert run(tmp_path, both, "--notifier", "good") == 0
    assert receiver.kinds == ["test", "test"]


@pytest.mark.parametrize(
    ("notifications", "arguments", "status", "told"),
    [
        ({}, (), 1, "nobody is notified: there are no notifications; write `notifications` in broker.yml"),
        (
            {"oncall": {"webhook": {"url": "https://h.example/"}}},
            ("--notifier", "onkall"),
            2,
            "there is no notifier 'onkall'; there are oncall",
        ),
        (
            {"oncall": {"webhook": {"url": "http://h.example/"}}},
            (),
            2,
            "notifications.oncall.webhook.url: it must be https: credentials are sent to it; use an https URL",
        ),
    ],
)
def test_a_mistake_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    notifications: object,
    arguments: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    """With what to do."""
    assert run(tmp_path, notifications, *arguments) == status
    assert told in capsys.readouterr().err
