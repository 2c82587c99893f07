"""What systemd is told, over a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.runtime import notify
from certplane.runtime.notify import ServiceNotifier
from tests.fakes.clock import ManualClock
from tests.support.waiting import blocking_until

SECOND = timedelta(seconds=1)


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@certplane-{secrets.token_hex(8)}"
    made = Manager(address)
    yield made
    made.socket.close()


async def test_a_service_says_what_it_does(manager: Manager) -> None:
    """Ready, a reload with its time, a status in one line, and the end."""
    async with ServiceNotifier(ManualClock(), {"NOTIFY_SOCKET": manager.address}) as notifier:
        notifier.ready("serving\non port 8443")
        notifier.reloading()
        notifier.status("7 hosts")
    assert manager.heard() == [
        "READY=1\nSTATUS=serving on port 8443",
        "RELOADING=1\nMONOTONIC_USEC=1000000000",
        "STATUS=7 hosts",
        "STOPPING=1",
    ]


async def test_the_watchdog_is_fed_twice_as_often_as_it_wants(manager: Manager) -> None:
    """At once, then at half of WATCHDOG_USEC; no more after the end."""
    clock = ManualClock()
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    async with ServiceNotifier(clock, environment):
        await asyncio.sleep(0)
        for _ in range(2):
            clock.advance(15 * SECOND)
            await asyncio.sleep(0.01)
        clock.advance(14 * SECOND)
        await asyncio.sleep(0.01)
    assert manager.heard() == ["WATCHDOG=1"] * 3 + ["STOPPING=1"]
    assert clock.sleepers == 0


@pytest.mark.parametrize(
    "watchdog",
    [
        pytest.param({}, id="none"),
        pytest.param({"WATCHDOG_USEC": "0"}, id="zero"),
        pytest.param({"WATCHDOG_USEC": "soon"}, id="no number"),
        pytest.param({"WATCHDOG_USEC": "1" * 40}, id="no span"),
        pytest.param({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, id="another process's"),
    ],
)
async def test_nobody_watches(manager: Manager, watchdog: dict[str, str]) -> None:
    """Without a watchdog for this process there is no beat."""
    clock = ManualClock()
    async with ServiceNotifier(clock, {"NOTIFY_SOCKET": manager.address, **watchdog}):
        await asyncio.sleep(0)
        assert clock.sleepers == 0
    assert manager.heard() == ["STOPPING=1"]


@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({}, id="no service manager"),
        pytest.param({"NOTIFY_SOCKET": ""}, id="empty"),
        pytest.param({"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "1000000"}, id="nobody listens"),
        pytest.param({"NOTIFY_SOCKET": f"/{'x' * 200}"}, id="too long"),
    ],
)
async def test_nobody_listens(environment: dict[str, str]) -> None:
    """No service fails for that."""
    async with ServiceNotifier(ManualClock(), environment) as notifier:
        notifier.ready("serving")
        notifier.reloading()
        await asyncio.sleep(0)


async def test_a_start_that_takes_long_asks_for_more_time(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Again and again while the loop is held, no longer once the block has ended, and not for ever."""
    monkeypatch.setattr(notify, "_BETWEEN", timedelta(milliseconds=1))
    notifier = ServiceNotifier(ManualClock(), {"NOTIFY_SOCKET": manager.address})
    heard: list[str] = []

    def hear() -> list[str]:
        heard.extend(manager.heard())
        return heard

    with notifier.extending(timedelta(hours=1)):
        blocking_until(lambda: len(hear()) > 3)
    heard += manager.heard()
    assert set(heard) == {"EXTEND_TIMEOUT_USEC=60000000"}
    with notifier.extending(timedelta(milliseconds=5)):
        blocking_until(lambda: "isn't asked for more time" in caplog.text)
    assert len(manager.heard()) == 5


async def test_a_stop_says_how_long_it_may_take(manager: Manager) -> None:
    """A drain time that was raised needs no other unit."""
    environment = {"NOTIFY_SOCKET": manager.address}
    async with ServiceNotifier(ManualClock(), environment, stop_time=timedelta(minutes=5)):
        pass
    assert manager.heard() == ["STOPPING=1\nEXTEND_TIMEOUT_USEC=300000000"]


async def test_without_a_manager_nobody_is_asked() -> None:
    """No thread is made."""
    with ServiceNotifier(ManualClock(), {}).extending(timedelta(hours=1)):
        assert "notify" not in {thread.name for thread in threading.enumerate()}
