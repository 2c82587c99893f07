"""What a host in a loop leaves on the disk of a real broker: bounded in rows, complete in what it tells."""

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.e2e.test_broker_program import serving
from tests.support.audit_rows import AUDIT_ROWS, records
from tests.support.broker_files import BrokerFiles
from tests.support.waiting import HANG

pytestmark = pytest.mark.e2e

REPORTS = 1_000


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    files = BrokerFiles(tmp_path)
    files.settings["server"] |= {"calls_per_identity_per_second": 100_000, "calls_burst": 100_000}
    files.settings["audit"] = {"failure_mode": "fail_closed"}
    files.write()
    return files


def report(files: BrokerFiles, port: int, count: int = REPORTS) -> None:
    """The same report `count` times, some at once."""

    async def calls() -> None:
        credentials = channel_credentials(files.ca.root_pem, files.identity().pair)
        async with open_channel(f"https://localhost:{port}", credentials) as channel:
            stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
            request = enrollment_pb2.ReportEnrollmentRequest(agent_version="1", identity_serial_number="ab")
            for _ in range(count // 50):
                await asyncio.gather(*(stub.ReportEnrollment(request, timeout=HANG) for _ in range(50)))

    asyncio.run(calls())


def events(files: BrokerFiles) -> list[dict[str, Any]]:
    """The events about enrollments, as the database has them."""
    with closing(sqlite3.connect(files.directory / "broker.db")) as database:
        found = records(database.execute(AUDIT_ROWS))
    return [record for record in found if record.get("identity") == files.host and "reported" in str(record)]


def check(told: list[dict[str, Any]]) -> None:
    first, summary = told
    assert (first["event_type"], summary["event_type"]) == ("enrollment_reported", "events_coalesced")
    assert summary["count"] == REPORTS - 1
    assert first["event_id"] in summary["reason"]
    assert summary["timestamp"] > first["timestamp"]


def test_a_stop_tells_all_of_it(files: BrokerFiles) -> None:
    """One event and one count for a thousand reports, all durable when the broker has stopped."""
    with serving(files) as program:
        report(files, program.port)
        assert len(events(files)) == 1
        assert program.stop() == 0
    check(events(files))


def test_a_kill_loses_none_of_it(files: BrokerFiles) -> None:
    """What was answered was counted on the disk: the next start makes the event of it."""
    with serving(files) as program:
        report(files, program.port)
        program.stop(signal.SIGKILL)
    assert len(events(files)) == 1
    with serving(files):
        check(events(files))
