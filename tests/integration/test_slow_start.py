"""A start and a stop that take long are told to systemd, over a real socket, by the program's own serving."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.serving import serve
from certplane.broker.settings import load_settings
from certplane.broker.store import files as store_files
from certplane.runtime import notify
from tests.support.broker_files import BrokerFiles
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration


async def test_a_slow_migration_keeps_asking_for_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs, and no longer once the port answers; a stop says what its drain time needs."""
    files = BrokerFiles(tmp_path)
    address = str(tmp_path / "notify")
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as manager:
        manager.bind(address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setattr(notify, "_BETWEEN", timedelta(milliseconds=20))
        migrate, go_on = store_files.migrate, threading.Event()

        def slow(*arguments: Any) -> None:
            assert go_on.wait(HANG)
            migrate(*arguments)

        def listen() -> int:
            while True:
                try:
                    heard.append(manager.recv(4096).decode())
                except BlockingIOError:
                    return len(heard)

        monkeypatch.setattr(store_files, "migrate", slow)
        settings = load_settings(files.config)
        serving = asyncio.create_task(serve(settings))
        await until(lambda: listen() > 3, by=serving)
        assert set(heard) == {"EXTEND_TIMEOUT_USEC=60000000"}
        go_on.set()
        await until(lambda: listen() and heard[-1].startswith("READY=1"), by=serving)
        signal.raise_signal(signal.SIGTERM)
        await serving
        gc.unfreeze()  # which the program does not, since it ends
        listen()
    most = settings.server.drain_timeout + timedelta(seconds=30)
    assert heard[-1] == f"STOPPING=1\nEXTEND_TIMEOUT_USEC={most // timedelta(microseconds=1)}"
