"""Starting and stopping programs: readiness, stolen ports, and nothing left behind, whatever happens to us."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import textwrap
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

import certplane
from certplane.sandbox.errors import PortTakenError, ServerStartError
from certplane.sandbox.loopback import free_port
from certplane.sandbox.process import ServerProcess, accepts_tcp, start_on_free_port
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

LISTENER = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), reuse_port=False)
print("listening", flush=True)
time.sleep(600)
"""


def program(tmp_path: Path, text: str, *arguments: object) -> list[str]:
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(text))
    return [sys.executable, str(script), *map(str, arguments)]


async def _never() -> bool:
    return False


async def test_is_ready_when_the_probe_says_so(tmp_path: Path) -> None:
    """`start` returns once the server listens; `stop` ends it; its words are in the log."""
    port = free_port()
    server = ServerProcess("listener", program(tmp_path, LISTENER, port), log=tmp_path / "log")
    await server.start(lambda: accepts_tcp("127.0.0.1", port))
    assert (server.running, server.log_text()) == (True, "listening\n")
    await server.stop()
    assert not server.running
    assert not await accepts_tcp("127.0.0.1", port)


async def test_shows_the_log_of_what_ends_early(tmp_path: Path) -> None:
    """A server that ends while starting is an error that holds the end of its log."""
    server = ServerProcess("broken", program(tmp_path, "raise SystemExit('no such file: x')"), log=tmp_path / "log")
    with pytest.raises(ServerStartError, match="ended while starting") as error:
        await server.start(_never)
    assert error.value.log_tail == "no such file: x\n"


async def test_stops_what_doesnt_become_ready(tmp_path: Path) -> None:
    """A server that stays silent is stopped again after its time."""
    server = ServerProcess(
        "silent",
        program(tmp_path, "import time; time.sleep(600)"),
        log=tmp_path / "log",
        ready_within=timedelta(milliseconds=200),
    )
    with pytest.raises(ServerStartError, match="isn't ready"):
        await server.start(_never)
    assert not server.running


async def test_kills_what_ignores_the_stop_signal(tmp_path: Path) -> None:
    """After `stop_within` SIGKILL follows."""
    stubborn = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """
    server = ServerProcess(
        "stubborn", program(tmp_path, stubborn), log=tmp_path / "log", stop_within=timedelta(milliseconds=200)
    )

    async def ready() -> bool:
        return "ready" in server.log_text()

    await server.start(ready)
    await server.stop()
    assert not server.running


async def test_a_stolen_port_is_tried_again(tmp_path: Path) -> None:
    """A server whose port was taken in the meantime is started on another one."""
    with socket.create_server(("127.0.0.1", 0)) as thief:
        stolen = thief.getsockname()[1]
        ports: list[int] = []

        async def start(port: int) -> ServerProcess:
            ports.append(port if ports else stolen)
            command = program(tmp_path, LISTENER, ports[-1])
            server = ServerProcess("listener", command, log=tmp_path / f"log{len(ports)}")

            async def ready() -> bool:
                return "listening" in server.log_text()

            await server.start(ready)
            return server

        server = await start_on_free_port(start)
        await server.stop()
    assert len(ports) == 2


async def test_gives_up_after_some_ports() -> None:
    """When every port is taken, the last error stands."""
    tries = 0

    async def start(_port: int) -> None:
        nonlocal tries
        tries += 1
        raise PortTakenError("listener", "is late")

    with pytest.raises(PortTakenError):
        await start_on_free_port(start, tries=3)
    assert tries == 3


async def test_hides_the_callers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server sees neither our secrets nor settings meant for another."""
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "secret")
    command = program(tmp_path, "import os; print(sorted(os.environ))")
    server = ServerProcess("env", command, log=tmp_path / "log", environment={"MINE": "1"})
    await server.run_to_end()
    assert "CLOUDFLARE_API_TOKEN" not in server.log_text()
    assert "MINE" in server.log_text()


EVERY_SERVER = """
    import asyncio, sys
    from pathlib import Path
    from certplane.sandbox import parts
    from certplane.sandbox.bind import BindServer
    from certplane.sandbox.dns import SandboxDnsServer
    from certplane.sandbox.pebble import Pebble
    from certplane.sandbox.postgres import PostgresCluster
    from certplane.sandbox.step_ca import StepCa

    async def main(folder):
        found = {part.name for part in parts.find_all() if isinstance(part, parts.Part)}
        servers = []
        if "step-ca" in found: servers.append(StepCa(folder / "step-ca"))
        if "bind" in found: servers.append(BindServer(folder / "bind", ["example.test"]))
        if "pebble" in found: servers.append(Pebble(folder / "pebble", "127.0.0.1:9"))
        if "postgresql" in found: servers.append(PostgresCluster())
        for server in servers:
            await server.__aenter__()
        print(len(servers), flush=True)
        await asyncio.sleep(600)

    asyncio.run(main(Path(sys.argv[1])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
async def test_no_server_outlives_a_killed_parent(tmp_path: Path) -> None:
    """After `kill -9` of the program that started them all servers end by themselves."""
    parent = await asyncio.create_subprocess_exec(
        *program(tmp_path, EVERY_SERVER, tmp_path / "servers"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(certplane.__file__).parent.parent)},
    )
    assert parent.stdout is not None
    started = int(await asyncio.wait_for(parent.stdout.readline(), HANG))
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= started
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(_lives(child) for child in children), what="the servers' end")


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
