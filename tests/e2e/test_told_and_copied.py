"""A broker that is killed while it tells people, or copies the audit log: what comes of it is what the next one makes."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from certplane.broker.audit import SpillFallback
from certplane.broker.store import open_stores
from tests.support.broker_files import BrokerFiles
from tests.support.planted import plant_an_expired_certificate
from tests.support.waiting import HANG, blocking_until
from tests.support.webhook_receiver import WebhookReceiver

pytestmark = pytest.mark.e2e

KILLED = -9


class Broker:
    """One that is started again and again over the same files."""

    def __init__(self, folder: Path) -> None:
        self.files = BrokerFiles(folder)
        self.database = folder / "broker.db"
        self.log_length = 0

    def start(self, failpoint: str = "") -> subprocess.Popen[bytes]:
        self.files.write()
        environment = {**os.environ, "CERTPLANE_FAILPOINTS": f"{failpoint}=kill" if failpoint else ""}
        command = [sys.executable, "-m", "certplane.broker", "serve", "-c", str(self.files.config)]
        with (self.files.directory / "broker.log").open("ab") as log:
            self.log_length = log.tell()
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def until_serving(self) -> None:
        """Wait for the broker that was started last: it can be stopped then."""
        log = self.files.directory / "broker.log"
        blocking_until(lambda: b'"message":"serving"' in log.read_bytes()[self.log_length :], what="the broker")

    def run_until_killed(self, failpoint: str) -> None:
        with self.start(failpoint) as process:
            assert process.wait(timeout=HANG) == KILLED

    def query(self, sql: str) -> list[tuple[object, ...]]:
        with closing(sqlite3.connect(self.database, isolation_level=None, timeout=HANG)) as database:
            return database.execute(sql).fetchall()


def test_a_message_is_told_until_its_receiver_has_answered(tmp_path: Path) -> None:
    """Killed before it was sent it isn't there; killed before the answer was noted it comes again, with its id."""
    broker = Broker(tmp_path)

    async def plant() -> None:
        fallback = SpillFallback("fail_open", tmp_path / "spill")
        async with open_stores(path=broker.database, audit=fallback) as stores:
            await plant_an_expired_certificate(stores.fleet, broker.files.host)

    asyncio.run(plant())
    with WebhookReceiver() as receiver:
        broker.files.settings["notifications"] = {"oncall": {"webhook": {"url": receiver.url}, "after": "0s"}}
        broker.run_until_killed("notification.deliver.before")
        assert receiver.requests == []
        # Else the next attempt begins two minutes later: the first one might still be under way.
        broker.query("UPDATE notification_outbox SET next_attempt_time = 0")
        broker.run_until_killed("notification.deliver.after")
        assert receiver.kinds == ["opened"]
        broker.query("UPDATE notification_outbox SET next_attempt_time = 0")
        with broker.start() as process:
            broker.until_serving()
            blocking_until(lambda: not broker.query("SELECT * FROM notification_outbox"), what="the end of the message")
            process.terminate()
            assert process.wait(timeout=HANG) == 0
        assert receiver.kinds == ["opened", "opened"]
        assert len({request.message_id for request in receiver.requests}) == 1
        assert [row[3] for row in broker.query("SELECT * FROM notification_troubles")] == [1]


def test_a_file_has_each_event_once(tmp_path: Path) -> None:
    """Killed before a batch was appended, killed before that was noted, and stopped: all events, in the log's order."""
    broker = Broker(tmp_path)
    archive = tmp_path / "audit.jsonl"
    broker.files.settings["audit"] = {"sinks": {"archive": {"file": {"path": str(archive)}}}}
    with broker.start() as process:  # it begins with what is recorded from then on
        broker.until_serving()
        blocking_until(lambda: _has_begun(broker), what="the sink's beginning")
        process.terminate()
        assert process.wait(timeout=HANG) == 0
    (low,) = (row[0] for row in broker.query("SELECT low FROM audit_sinks"))
    broker.run_until_killed("audit.sink.send.before")
    broker.run_until_killed("audit.sink.send.after")
    with broker.start() as process:
        broker.until_serving()
        blocking_until(lambda: _ids(archive) == _recorded(broker, low), what="a whole copy")
        process.terminate()
        assert process.wait(timeout=HANG) == 0
    assert len(_ids(archive)) >= 4  # three starts and a stop


def _has_begun(broker: Broker) -> bool:
    try:
        return bool(broker.query("SELECT * FROM audit_sinks"))
    except sqlite3.OperationalError:  # it is being made
        return False


def _ids(archive: Path) -> list[str]:
    return [json.loads(line)["event_id"] for line in archive.read_text().splitlines()] if archive.exists() else []


def _recorded(broker: Broker, low: object) -> list[object]:
    rows = broker.query("SELECT event_id, sequence FROM audit_events ORDER BY sequence")
    return [event_id for event_id, sequence in rows if sequence > low]  # type: ignore[operator] # both are numbers
