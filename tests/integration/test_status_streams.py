"""Hosts' status streams over real mTLS gRPC: what is acknowledged, what is told, and how each misuse ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.support.ca import PrivateCa
from tests.support.edge import HOST, EdgeServer, serve_edge
from tests.support.streams import HostStreamClient, report

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


async def test_a_stream_from_hello_to_hanging_up(edge: EdgeServer) -> None:
    """Hello is answered, reports are acknowledged once they are durable, heartbeats are answered."""
    async with edge.host() as channel:
        host = HostStreamClient(channel)
        welcome = await host.hello(reports=[report(1), report(2, state="DUE")])
        assert welcome.acknowledged_sequence == 2
        assert welcome.heartbeat_interval.ToTimedelta() == timedelta(minutes=1)
        assert welcome.policy_hash == edge.policy.current.hash
        await host.say(report=report(5, state="REQUESTING"))
        assert (await host.read()).acknowledgement.sequence == 5
        await host.heartbeat()
        assert (await host.read()).HasField("heartbeat")
        record = await edge.stores.fleet.get_host(HOST)
        assert record is not None
        assert record.stream is not None
        assert (record.acknowledged_sequence, record.stream.end_time) == (5, None)
        await host.call.done_writing()
        await host.end()
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    assert record.stream is not None
    assert record.stream.end_time is not None
    assert edge.hub.streams == 0
