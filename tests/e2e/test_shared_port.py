"""Broker programs on one port: two that share it, one that may not, and each reached by its own `reload`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from tests.support.killing import settle_on_a_port
from tests.support.parts import need_part
from tests.support.several_brokers import Broker
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["web.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
}


@pytest_asyncio.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[Deployment]:
    need_part("pebble")
    async with Deployment(tmp_path, DeploymentOptions(POLICY, dns_provider="rfc2136")) as made:
        settle_on_a_port(made)
        yield made


def listeners(port: int) -> int:
    """How many sockets listen on a port, of either family: gRPC's are of IPv6, for addresses of IPv4 too (proc(5))."""
    rows = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in (Path("/proc/net") / name).read_text(encoding="ascii").splitlines()[1:]
    ]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)


async def test_brokers_share_a_port_if_both_say_so(deployment: Deployment) -> None:
    """A third one without the key ends with cause and remedy; each of the two is reloaded by its own file."""
    port = deployment.broker_port
    first, second = (Broker(deployment, number, port=port, reuse_port=True) for number in (1, 2))
    third = Broker(deployment, 3, port=port)
    try:
        await first.start()
        alone = listeners(port)
        assert alone >= 1
        await second.start()
        await until(lambda: listeners(port) == 2 * alone, what="the second one on the port")
        refused = await third.run("serve")
        assert refused.status == 1
        assert "Address already in use" in refused.stderr
        assert "each has `server.reuse_port: true`" in refused.stderr
        for broker in (first, second):
            reloaded = await broker.run("reload")
            assert reloaded.status == 0, reloaded.stderr
        await second.process.stop()
        assert listeners(port) == alone
        assert (await first.run("reload")).status == 0
        assert (await second.run("reload")).status == 1
    finally:
        for broker in (first, second):
            await broker.process.stop()
