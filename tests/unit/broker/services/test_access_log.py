"""The access log: who is refused again and again fills no disk, and is told of in full."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.services.interceptors.access_log import AccessLog
from tests.fakes.clock import ManualClock

MINUTE = timedelta(minutes=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> AccessLog:
    caplog.set_level(logging.INFO, "certplane.broker.access")
    return AccessLog(clock)


def note(log: AccessLog, reason: str = "RATE_LIMITED", identity: str = "a.example", **more: Any) -> None:
    log.note(
        {
            "method": "m",
            "code": "OK" if not reason else "PERMISSION_DENIED",
            "reason": reason,
            "identity": identity,
            "source_ip": "192.0.2.1",
            **more,
        }
    )


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, int]]:
    """Identity, reason and count of each line."""
    fields = [record.fields for record in caplog.records if record.name == "certplane.broker.access"]  # type: ignore[attr-defined]
    return [(entry["identity"], entry["reason"], entry.get("count", 0)) for entry in fields]


async def test_repeated_refusals_are_two_lines(
    log: AccessLog, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The first at once, and how many more there were when a minute is over, without a further call."""
    for number in range(1000):
        note(log, ms=number)
    assert lines(caplog) == [("a.example", "RATE_LIMITED", 0)]
    await asyncio.sleep(0)
    clock.advance(MINUTE)
    for _ in range(3):
        await asyncio.sleep(0)
    assert lines(caplog) == [("a.example", "RATE_LIMITED", 0), ("a.example", "RATE_LIMITED", 999)]
    assert caplog.records[-1].fields["ms"] == 999  # type: ignore[attr-defined]
    note(log)
    assert len(lines(caplog)) == 3
    log.close()


async def test_what_differs_has_its_own_line(log: AccessLog, caplog: pytest.LogCaptureFixture) -> None:
    """Another identity, another reason, an unknown one from another address: each is told at once."""
    note(log)
    note(log, identity="b.example")
    note(log, reason="CSR_INVALID")
    note(log, identity="")
    note(log, identity="", source_ip="192.0.2.2")
    assert len(lines(caplog)) == 5
    log.close()
    assert len(lines(caplog)) == 5


async def test_a_stranger_with_ever_another_address_is_counted(
    log: AccessLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Addresses are free for who has an IPv6 network; a caller that is known has its line all the same."""
    for number in range(3000):
        note(log, identity="", source_ip=f"2001:db8::{number:x}")
    note(log)
    assert len(lines(caplog)) == 1002
    log.close()
    assert lines(caplog)[-1] == ("", "RATE_LIMITED", 1999)


async def test_every_call_that_was_answered_has_its_line(log: AccessLog, caplog: pytest.LogCaptureFixture) -> None:
    """As many as a host with a thousand certificates makes at once."""
    for _ in range(1000):
        note(log, reason="")
    assert lines(caplog) == [("a.example", "", 0)] * 1000


async def test_answered_calls_in_a_loop_are_counted(
    log: AccessLog, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An hour of twenty calls a second is some thousand lines, and the count of all."""
    for _ in range(1000):
        note(log, reason="")
    for _ in range(3600):
        for _ in range(20):
            note(log, reason="")
        note(log, reason="", identity="b.example")
        clock.advance(timedelta(seconds=1))
    log.close()
    told = [(count or 1) for identity, _, count in lines(caplog) if identity == "a.example"]
    assert len(told) < 3000
    assert sum(told) == 1000 + 3600 * 20


@pytest.mark.parametrize("code", ["CANCELLED", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "UNKNOWN"])
async def test_calls_that_fail_without_a_reason_are_counted(
    log: AccessLog, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """Who gives its calls up as soon as they are made makes thousands a second."""
    for _ in range(1000):
        note(log, reason="", code=code)
    note(log, reason="", identity="b.example", code=code)
    assert len(lines(caplog)) == 2
    log.close()
    assert lines(caplog)[-1] == ("a.example", "", 999)


async def test_nothing_is_lost_at_the_end(log: AccessLog, caplog: pytest.LogCaptureFixture) -> None:
    """A broker that stops tells what it has counted."""
    for _ in range(3):
        note(log)
    log.close()
    assert lines(caplog)[-1] == ("a.example", "RATE_LIMITED", 2)


async def test_windows_are_bounded(
    log: AccessLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When there are too many, the oldest is told early."""
    monkeypatch.setattr("certplane.broker.services.interceptors.access_log._MOST_WINDOWS", 2)
    for identity in ("a", "a", "b", "c"):
        note(log, identity=identity)
    assert ("a", "RATE_LIMITED", 1) in lines(caplog)
    assert len(log._windows) == 2
    log.close()
