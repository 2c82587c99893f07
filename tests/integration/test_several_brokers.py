"""One host and two brokers, over real mTLS: its stream moves from one to the other, and nothing is lost or confused.

Each broker here has a store of its own. That is harder for the agent than brokers on one database: what it reported to
one of them the other has never heard of.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane.broker.fleet.recording import Recorder
from certplane.broker.fleet.settings import StreamSettings
from certplane.errors import Reason, RefusalError
from certplane.fleet_report.model import CertificateState
from certplane.sandbox.loopback import free_port
from tests.support.ca import PrivateCa
from tests.support.edge import HOST, EdgeServer, serve_edge
from tests.support.stream_host import host_of
from tests.support.waiting import until

pytestmark = pytest.mark.integration


async def states_at(edge: EdgeServer) -> list[tuple[int, str]]:
    """The last sequence of the host that is durable there, and the state of its certificate."""
    record = await edge.stores.fleet.get_host(HOST)
    assert record is not None
    return [(record.acknowledged_sequence, each.state.value) for each in record.certificates if each.name == "web"]


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest_asyncio.fixture
async def edges(ca: PrivateCa) -> AsyncIterator[tuple[EdgeServer, EdgeServer]]:
    async with serve_edge(ca) as first, serve_edge(ca) as second:
        yield first, second


async def test_a_goodbye_sends_the_host_to_the_other_broker(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer]
) -> None:
    """With what happened meanwhile, and as the same counting: the other one has it durable before it acknowledges."""
    first, second = edges
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first))
        await first.hub.drain()
        await host.add(CertificateState.REQUESTING)
        await until(lambda: host.is_at(second))
        assert len(first.hub.registry) == 0
        assert await states_at(second) == [(host.spool.reports()[-1].sequence, CertificateState.REQUESTING.value)]
        assert (await second.view.host(HOST)).displaced_streams == 0


async def test_a_broker_that_ends_without_a_word_is_left(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer]
) -> None:
    """And one that is away at the start is passed over."""
    first, second = edges
    away = f"https://localhost:{free_port()}"
    async with host_of(tmp_path, ca, away, first.url, second.url) as host:
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first) or host.is_at(second))
        here, there = (first, second) if host.is_at(first) else (second, first)
        await here.server.stop(timedelta())
        await until(lambda: host.is_at(there))


async def test_a_call_that_moves_takes_the_stream_along(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer]
) -> None:
    """A host is at one broker: who drains refuses orders long before it says goodbye."""
    first, second = edges
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await until(lambda: host.is_at(first))
        await first.server.drain(timedelta(seconds=10))
        with contextlib.suppress(Exception):  # what the other broker says to this CSR isn't what this is about
            await host.link.issue(profile="web", csr_pem="none", replaces_certificate_id="", wait=timedelta())
        await until(lambda: host.is_at(second))
        assert host.link.url == second.url
        await until(lambda: len(first.hub.registry) == 0)


async def test_a_broker_that_knows_yesterday_is_told_today(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer]
) -> None:
    """A restored store has older sequences of the same counting: what a certificate is now is said again, once."""
    first, second = edges
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first))
        yesterday = await states_at(first)
        await first.hub.drain()
        await until(lambda: host.is_at(second))
        for state in (CertificateState.REQUESTING, CertificateState.ISSUED, CertificateState.WAITING):
            await host.add(state)
        await until(lambda: host.is_at(second))
        epoch = host.spool.epoch
        first.hub._draining = False  # as another process with the same store
        first.hub.stay()
        assert await states_at(first) == yesterday
        host.link.answered(first.url)
        await second.hub.drain()
        await until(lambda: host.is_at(first))
        latest = host.spool.reports()[-1].sequence
        assert await states_at(first) == [(latest, CertificateState.WAITING.value)]
        await host.add(CertificateState.DUE)
        await until(lambda: host.is_at(first))
        assert await states_at(first) == [(host.spool.reports()[-1].sequence, CertificateState.DUE.value)]
        assert host.spool.epoch == epoch, "the counting goes on"


async def test_a_store_that_fails_at_all_brokers_makes_no_ping_pong(
    ca: PrivateCa, tmp_path: Path, edges: tuple[EdgeServer, EdgeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is tried once, then the waits grow; the first that works again has the host."""
    first, second = edges
    hellos: list[Recorder] = []

    async def record(recorder: Recorder, *_: Any, **__: Any) -> None:
        hellos.append(recorder)
        raise RefusalError(Reason.STORE_UNAVAILABLE, "no database", retry_after=timedelta(milliseconds=100))

    monkeypatch.setattr(Recorder, "record_reports", record)
    async with host_of(tmp_path, ca, first.url, second.url) as host:
        await until(lambda: len(hellos) >= 4)
        assert hellos[0] is not hellos[1]
        assert host.stream._failures >= 2, "which are waited for"
        monkeypatch.undo()
        await until(lambda: host.is_at(first) or host.is_at(second))


async def test_streams_of_a_lone_broker_go_on_after_their_age(ca: PrivateCa, tmp_path: Path) -> None:
    """An orderly goodbye, another connection, and the next stream at once; nobody counts it as a second holder."""
    streams = StreamSettings(tick=timedelta(milliseconds=50), age=timedelta(seconds=1))
    async with serve_edge(ca, streams=streams) as edge, host_of(tmp_path, ca, edge.url) as host:
        await until(lambda: host.is_at(edge))
        channel = host.link.channel
        await host.add(CertificateState.DUE)
        await until(lambda: host.link.channel is not channel and host.is_at(edge))
        assert (await edge.view.host(HOST)).displaced_streams == 0
