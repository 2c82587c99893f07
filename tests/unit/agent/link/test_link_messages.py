"""The agent's values as messages of the stream, and the broker's as the agent's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from certplane.agent.link.messages import MAX_HELLO_BYTES, hello
from certplane.agent.link.state import LinkFile, LinkPhase, LinkState
from certplane.fleet_report.model import AgentMode, CertificateState, CertificateStatus, HostFacts, Report
from certplane.rpc.channel import MAX_MESSAGE_BYTES
from certplane.rpc.times import span_of, time_of

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def test_hello_stays_below_the_limit() -> None:
    """However much there is to say: whole reports, from the oldest on."""
    reports = [
        Report(
            number, CertificateStatus(f"c{number}", CertificateState.WAITING, update_time=NOW, last_error="x" * 2000)
        )
        for number in range(1, 100)
    ]
    message, last = hello(
        request_id="r", facts=HostFacts("1"), epoch="e", names=["c"] * 100, reports=reports, host_time=NOW
    )
    assert MAX_HELLO_BYTES - 3000 < message.ByteSize() <= MAX_HELLO_BYTES < MAX_MESSAGE_BYTES
    assert [each.sequence for each in message.hello.reports] == list(range(1, last + 1))


def test_numbers_that_are_no_times_are_none() -> None:
    """A stranger's message ends no stream."""
    assert time_of(Timestamp(seconds=10**15)) is None
    assert span_of(Duration(seconds=10**15)) is None
    assert span_of(Duration(seconds=-1)) is None
    assert span_of(Duration(seconds=1)) == timedelta(seconds=1)


def test_the_links_file_keeps_every_field(tmp_path: Path) -> None:
    """And what can't be read is a link of which nothing is known."""
    state = LinkState(
        LinkPhase.WAITING,
        NOW,
        "no answer",
        NOW + DAY,
        NOW - DAY,
        "1.2.3",
        timedelta(seconds=-4.5),
        "ab",
        "e1",
        "https://b1.example:8443",
        AgentMode.TIMER,
        (NOW - DAY, NOW),
    )
    assert all(getattr(state, name) for name in LinkState.__slots__)
    file = LinkFile(tmp_path)
    assert file.load() == LinkState()
    file.save(state)
    assert file.load() == state
    for content in ("", "[]", '{"format": 2}', '{"format": 1, "phase": "odd"}', "null", "7"):
        (tmp_path / "link.json").write_text(content)
        assert file.load() == LinkState()


def test_a_disk_that_refuses_the_links_file_is_no_error(tmp_path: Path) -> None:
    """It is only shown."""
    LinkFile(tmp_path / "nowhere").save(LinkState())


@pytest.mark.parametrize("phase", LinkPhase)
def test_each_phase_has_its_words(phase: LinkPhase) -> None:
    """For `systemctl status`."""
    assert "broker" in str(LinkState(phase, NOW))
