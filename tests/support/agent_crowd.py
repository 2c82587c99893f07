"""Many agents in one process: each with an agent.yml, a state directory and connections of its own, as `run` has them.

    python -P tests/support/agent_crowd.py FILE...

Sixty programs would take longer to start than all that a test looks at. Each agent enrolls with its token and then runs
until SIGTERM. Standard output has a line of JSON for each change of an agent's link to the brokers; log lines and faults
go to standard error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
import time
from contextvars import ContextVar
from pathlib import Path

from certplane.agent.app import Agent
from certplane.agent.control import FanOut
from certplane.agent.host import Host
from certplane.agent.settings import load_settings
from certplane.runtime.logging import setup

_AT_ONCE = 8
"""Agents that enroll together."""
_host: ContextVar[str] = ContextVar("host", default="")
"""Whose agent a task is of; those that it starts inherit it."""


class Teller:
    """Says how the agent's link is: `certplane.agent.wiring.Shows`."""

    def __init__(self, host: str) -> None:
        self._host = host

    def ready(self, status: str) -> None:
        """It runs."""
        self.status(status)

    def status(self, status: str) -> None:
        """Its link has changed."""
        connected = "; connected to " in status
        line = {"host": self._host, "time": time.monotonic(), "connected": connected, "status": status}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def naming(record: logging.LogRecord) -> bool:
    """Put the host's name before its line."""
    record.msg = f"{_host.get()}: {record.msg}"
    return True


async def live(config: Path, stop: asyncio.Event, turns: asyncio.Semaphore) -> None:
    """One agent from its token to the end."""
    host = Host(load_settings(config))
    _host.set(host.settings.identity.name)
    events = FanOut()
    try:
        with host.lock():
            token = host.settings.identity.bootstrap_token
            async with turns:
                if token is not None and token.exists():  # it is gone once it was used
                    await host.enroll(events, force=False)
            agent = Agent(host, events)
            try:
                await agent.run(stop, events, show=Teller(host.settings.identity.name))
            finally:
                await agent.close()
    finally:
        host.close()


async def main(configs: list[Path]) -> None:
    """All agents until SIGTERM; the first that fails ends them all."""
    setup("info", "text", "stderr")
    for handler in logging.getLogger().handlers:
        handler.addFilter(naming)
    stop, turns = asyncio.Event(), asyncio.Semaphore(_AT_ONCE)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with asyncio.TaskGroup() as group:
        for config in configs:
            group.create_task(live(config, stop, turns), name=str(config))


if __name__ == "__main__":
    asyncio.run(main([Path(each) for each in sys.argv[1:]]))
