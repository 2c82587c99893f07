"""Several brokers on one port (SO_REUSEPORT): who may join, who may not, and that every connection gets to one of them."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.control import ControlServer, ReloadRequest, ReloadResult, _short, control_socket, request_reload
from certplane.broker.services.server import PortError
from tests.support.ca import PrivateCa
from tests.support.deployed_broker import get_identity
from tests.support.edge import HOST, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


async def test_two_brokers_share_a_port(ca: PrivateCa) -> None:
    """Each gets connections, all calls are answered, and who stops leaves the port to the other."""
    async with serve_edge(ca, reuse_port=True) as first:
        async with serve_edge(ca, reuse_port=True, address=f"127.0.0.1:{first.port}") as second:
            identity = ca.issue([HOST])
            made = 0
            while not (first.calls and second.calls):  # the kernel draws; 200 times the same is no chance
                async with first.channel(identity) as channel:
                    await get_identity(channel)
                made += 1
                assert made < 200
            assert first.calls + second.calls == made
        before = first.calls
        for number in range(1, 21):
            async with first.channel(identity) as channel:
                await get_identity(channel)
            assert first.calls == before + number


@pytest.mark.parametrize(("there", "comes"), [(False, True), (True, False), (False, False)])
async def test_a_broker_without_the_key_shares_nothing(ca: PrivateCa, there: bool, comes: bool) -> None:
    """Whichever of the two lacks it, the second one is refused, and says who can share."""
    async with serve_edge(ca, reuse_port=there) as edge:
        with pytest.raises(PortError, match="Address already in use") as refused:
            EdgeServer(ca, reuse_port=comes, address=f"127.0.0.1:{edge.port}")
        assert "`server.reuse_port: true`" in refused.value.remedy


_LISTEN = """
import os, socket, sys
os.setuid(65534)
taken = socket.socket()
taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
try:
    taken.bind(("127.0.0.1", int(sys.argv[1])))
except OSError as error:
    print(os.strerror(error.errno))
else:
    print("has joined")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_another_user_takes_no_share(ca: PrivateCa) -> None:
    """The kernel refuses it: a user of the machine can't get hosts' connections by listening too."""
    async with serve_edge(ca, reuse_port=True) as edge:
        work = [sys.executable, "-I", "-c", _LISTEN, str(edge.port)]
        said = await asyncio.to_thread(
            subprocess.run, work, capture_output=True, text=True, timeout=HANG, check=True, cwd="/"
        )
        assert said.stdout == "Address already in use\n"


async def test_the_check_for_the_port_takes_no_connection(ca: PrivateCa) -> None:
    """A start beside another broker answers nobody before it serves: no connection is lost to it."""
    async with serve_edge(ca, reuse_port=True) as edge:
        second = EdgeServer(ca, reuse_port=True, address=f"127.0.0.1:{edge.port}")
        identity = ca.issue([HOST])
        for _ in range(20):
            async with edge.channel(identity) as channel:
                await get_identity(channel)
        assert second.port == 0
        await second.server.start()
        assert second.port == edge.port
        await second.server.stop(timedelta())


async def test_two_brokers_of_one_file_keep_the_firsts_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`certplane-broker reload` still reaches the first; the second says that it can't be reached, and why."""
    path = control_socket(tmp_path, tmp_path / "broker.yml")

    def named(name: str) -> ReloadResult:
        return ReloadResult(ok=True, lines=(name,))

    async def first(_: ReloadRequest) -> ReloadResult:
        return named("first")

    async def second(_: ReloadRequest) -> ReloadResult:
        return named("second")

    async with ControlServer(path, first):
        async with ControlServer(path, second):
            assert (await request_reload(path)).lines == ("first",)
        assert "give each its own file" in caplog.text
        assert (await request_reload(path)).lines == ("first",)
    with _short(path) as address, socket.socket(socket.AF_UNIX) as left:
        left.bind(address)  # as a broker that was killed leaves it
    async with ControlServer(path, second):
        assert (await request_reload(path)).lines == ("second",)
    assert control_socket(tmp_path, tmp_path / "broker-2.yml") != path
