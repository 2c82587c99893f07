"""A server of certplane.client whose certificate changes again and again under load: what its clients notice.

examples/python/https_server.py serves with a real broker, Pebble and an operator who has its certificate renewed, each
time when the one before is presented. Requests come at a steady rate, each fifth on a connection of its own, the others
on lasting ones; one is lost if it isn't answered as it should be. The time of an answer is from when its request was
due. The rate that was reached says whether the machine had time for all of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.result import Figure, figure
from certplane.sandbox.loopback import free_port
from tests.support.client_site import ClientSite, Load
from tests.support.waiting import until

_EXAMPLE: Final = Path(__file__).resolve().parents[2] / "examples" / "python" / "https_server.py"
_CHANGES: Final = 100
_RATE: Final = 200.0
_WORDS: Final = ("certplane", "Client", "Keeper", "keeper")
"""A line with one of them is about certificates."""


def measure(folder: Path, *, share: float) -> list[Figure]:
    """Once; `share` makes the changes fewer."""
    changes = max(3, int(_CHANGES * share))
    load, seconds = asyncio.run(_served(folder, changes))
    text = _EXAMPLE.read_text().partition('"""\n\n')[2]
    lines = sum(any(word in line for word in _WORDS) for line in text.splitlines())
    print(f"{load.answered} requests answered, {len(load.lost)} lost: {load.lost[:3]}", file=sys.stderr)
    return [
        figure(f"requests lost over {changes} certificate changes at {_RATE:.0f} req/s", [len(load.lost)], "<= 0"),
        figure("the same, requests answered", [load.answered], ""),
        figure("the same, requests/s that were reached", [load.reached], ""),
        figure("the same, slowest answer, ms", [load.slowest * 1000], ""),
        figure("from a request for a renewal until a client sees the new certificate, s", seconds, ""),
        figure("lines of a Python service that keeps its own certificate", [lines], "<= 10"),
    ]


async def _served(folder: Path, changes: int) -> tuple[Load, list[float]]:
    async with ClientSite.running(folder) as site:
        port, config = free_port(), await site.config()
        log = (folder / "server.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(_EXAMPLE),
            str(config),
            "api",
            str(port),
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            cwd=folder,
            env=os.environ,
        )
        try:
            assert process.stdout is not None
            await process.stdout.readline()
            load, ended = Load(port, await site.roots(), rate=_RATE, own_each=5), asyncio.Event()
            running = asyncio.create_task(load.run(ended))
            taken = [await _change(site, folder, load, running) for _ in range(changes)]
            ended.set()
            await running
            return load, taken
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()


async def _change(site: ClientSite, folder: Path, load: Load, running: asyncio.Task[None]) -> float:
    """Seconds from the request until a client sees another certificate."""
    await until(lambda: load.serials, what="a first request", by=running)
    seen = len(load.serials)
    facts = (folder / "tls" / "current" / "certificate.json").read_text()
    begun = time.perf_counter()
    await site.request_renewal(facts.partition('"certificate_id": "')[2].partition('"')[0])
    await until(lambda: len(load.serials) > seen, poll=0.01, what="the new certificate", by=running)
    return time.perf_counter() - begun
