"""Calls where agent.yml names several brokers: what is made at another one, what isn't, and what is said of all."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from certplane.agent.link import broker
from certplane.agent.link.broker import GrpcBroker
from certplane.agent.link.diagnosis import IdentityNotAcceptedError, connection_error
from certplane.agent.link.ending import StreamEnd
from certplane.agent.renewal.due import RenewReason
from certplane.agent.renewal.plan import Request
from certplane.agent.request import BrokerRequest
from certplane.errors import OperationError, Reason, Refusal, RefusalError
from certplane.pki.csr import build_csr
from certplane.rpc.choice import AVOID
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool
from certplane.runtime.progress import SilentProgress
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.loopback import free_port
from tests.fakes.agent_broker import FakeBroker
from tests.fakes.clock import ManualClock
from tests.support.agent_world import AgentWorld
from tests.support.broker_server import BrokerServer
from tests.support.identities import identity_version, new_key
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG, until

SECOND = timedelta(seconds=1)


class Fleet:
    """Two brokers with one CA, and the link of a host that may have either; `moves` counts what the stream is told."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock(SystemClock().now())
        self.agents, self.servers = CertificateAuthority.root("Agents"), CertificateAuthority.root("Servers")
        self.bundle = folder / "server-ca.crt"
        self.bundle.write_bytes(self.servers.pem)
        self.identity = identity_version(folder / "identity", self.agents, "web1.example")
        self.pool = BlockingPool("disk", 1)
        self.brokers = [FakeBroker(self.clock, LocalIssuer()) for _ in range(2)]
        self.running: list[BrokerServer] = []
        self.moves = 0

    async def start(self, stack: contextlib.AsyncExitStack, *names: str, agents: Any = None) -> BrokerServer:
        broker = self.brokers[len(self.running)]
        await broker.use_identity(self.identity)
        server = BrokerServer(broker, agents or self.agents, self.servers.issue("broker", names or ["localhost"]))
        self.running.append(await stack.enter_async_context(server.running()))
        return server

    def moved(self) -> None:
        self.moves += 1

    @contextlib.asynccontextmanager
    async def link(self, *urls: str, first: int = 0) -> AsyncIterator[GrpcBroker]:
        """`first` is the place of the broker that it begins with."""
        link = GrpcBroker(
            urls or [server.url for server in self.running],
            server_ca_bundle=self.bundle,
            timeout=HANG * SECOND,
            clock=self.clock,
            disk=self.pool,
            rng=random.Random(1),
            moved=self.moved,
        )
        link._choice.url = link._choice.urls[first]
        await link.use_identity(self.identity)
        try:
            yield link
        finally:
            await link.close()


@pytest_asyncio.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.pool.close()


def csr() -> str:
    return build_csr(new_key(), sans=["web1.example"])


async def test_a_broker_that_cannot_be_reached_is_passed_over(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """The call is made at the other one, which calls and the stream use from then on."""
    caplog.set_level(logging.INFO)
    async with contextlib.AsyncExitStack() as stack:
        server = await fleet.start(stack)
        async with fleet.link(f"https://localhost:{free_port()}", server.url) as link:
            assert (await link.get_identity()).name == "web1.example"
            assert (link.url, fleet.moves) == (server.url, 1)
            assert f"going on at {server.url}" in caplog.text
            await link.get_identity()
            assert fleet.moves == 1


async def test_a_broker_of_another_name_gets_no_call(fleet: Fleet) -> None:
    """Each URL's own name must be in the certificate: what answers there otherwise isn't the broker."""
    async with contextlib.AsyncExitStack() as stack:
        wrong = await fleet.start(stack, "other.example")
        right = await fleet.start(stack)
        async with fleet.link() as link:
            await link.get_identity()
            assert link.url == right.url
            assert wrong.calls == []


@pytest.mark.parametrize("reason", [Reason.DRAINING, Reason.STORE_UNAVAILABLE])
async def test_what_one_broker_cannot_do_another_one_does(fleet: Fleet, reason: Reason) -> None:
    """The same request, with the same key, and the order goes on there."""
    request = csr()
    async with contextlib.AsyncExitStack() as stack:
        first, second = await fleet.start(stack), await fleet.start(stack)
        first.broker.errors = [RefusalError(reason, "not now", retry_after=10 * SECOND)]
        async with fleet.link() as link:
            order = await link.issue(profile="web", csr_pem=request, replaces_certificate_id="", wait=timedelta())
            assert order.state == "ISSUED"
            assert [call[1].csr_pem for call in (*first.calls, *second.calls)] == [request, request]
            assert [view.state async for view in link.watch_order(order.order_id, SECOND)] == ["ISSUED"]
            assert link.url == second.url


@pytest.mark.parametrize(
    "reason", [Reason.PROFILE_NOT_ALLOWED, Reason.IDENTITY_REVOKED, Reason.RATE_LIMITED, Reason.ISSUER_UNAVAILABLE]
)
async def test_what_every_broker_would_say_is_asked_once(fleet: Fleet, reason: Reason) -> None:
    """A refusal of the host, and what lies behind the brokers, is an answer."""
    async with contextlib.AsyncExitStack() as stack:
        first, second = await fleet.start(stack), await fleet.start(stack)
        first.broker.errors = [RefusalError(reason, "no")]
        async with fleet.link() as link:
            with pytest.raises(RefusalError) as refused:
                await link.get_identity()
            assert refused.value.refusal.reason is reason
            assert (link.url, second.calls, fleet.moves) == (first.url, [], 0)


async def test_brokers_that_all_fail_are_asked_once_each(fleet: Fleet) -> None:
    """No ping-pong: a round, and the caller's own waits; after them one try a call until the time of one is over."""
    async with contextlib.AsyncExitStack() as stack:
        first, second = await fleet.start(stack), await fleet.start(stack)
        for broker in fleet.brokers:
            broker.errors = [RefusalError(Reason.STORE_UNAVAILABLE, "no database") for _ in range(9)]
        async with fleet.link() as link:
            for calls in (2, 3, 4):
                with pytest.raises(RefusalError):
                    await link.get_identity()
                assert len(first.calls) + len(second.calls) == calls
            fleet.clock.advance(AVOID)
            with pytest.raises(RefusalError):
                await link.get_identity()
            assert len(first.calls) + len(second.calls) == 6
            for broker in fleet.brokers:
                broker.errors = []
            await link.get_identity()


async def test_of_brokers_that_are_all_away_each_is_told(fleet: Fleet) -> None:
    """Which, why, and what to do; somebody has to find the one that matters."""
    urls = [f"https://localhost:{free_port()}", "https://no-such-host.invalid:8443"]
    async with fleet.link(*urls) as link:
        with pytest.raises(OperationError) as failed:
            await link.get_identity()
    text = str(failed.value)
    assert text.startswith("none of 2 brokers takes the call: (1) ")
    assert all(url in text for url in urls)
    assert "check that the broker runs" in text
    assert "this host's resolver" in text


async def test_an_identity_that_no_broker_accepts_is_not_accepted(fleet: Fleet) -> None:
    """One broker's old bundle is no reason to go back to the identity before; both brokers' is."""
    stranger = CertificateAuthority.root("Strangers")
    async with contextlib.AsyncExitStack() as stack:
        strict = await fleet.start(stack, agents=stranger)
        right = await fleet.start(stack)
        async with fleet.link() as link:
            assert (await link.get_identity()).name == "web1.example"
            assert link.url == right.url
        async with fleet.link(strict.url, f"https://localhost:{free_port()}") as link:
            with pytest.raises(IdentityNotAcceptedError):
                await link.get_identity()


async def test_a_host_whose_identity_is_over_asks_nobody_else(fleet: Fleet) -> None:
    """No broker would take it: the error says so, and no round is made."""
    async with contextlib.AsyncExitStack() as stack:
        await fleet.start(stack, agents=CertificateAuthority.root("Strangers"))
        await fleet.start(stack)
        fleet.clock.jump(timedelta(days=800))
        async with fleet.link() as link:
            with pytest.raises(OperationError, match="identity expired"):
                await link.get_identity()
            assert fleet.moves == 0


async def test_a_moved_link_keeps_its_broker_through_a_rotation(fleet: Fleet) -> None:
    """A new identity is no reason to go back to a broker that failed a moment ago."""
    async with contextlib.AsyncExitStack() as stack:
        server = await fleet.start(stack)
        async with fleet.link(f"https://localhost:{free_port()}", server.url) as link:
            await link.get_identity()
            await link.use_identity(fleet.identity)
            await link.get_identity()
            assert (link.url, fleet.moves) == (server.url, 1)


async def test_files_that_cannot_be_read_move_nothing(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """In the middle of a replacement, say: the channel that is there stays in use."""
    async with contextlib.AsyncExitStack() as stack:
        first, _ = await fleet.start(stack), await fleet.start(stack)
        async with fleet.link() as link:
            await link.get_identity()
            fleet.bundle.rename(fleet.bundle.with_name("away"))
            first.broker.errors = [RefusalError(Reason.DRAINING, "stops")]
            with pytest.raises(RefusalError):
                await link.get_identity()
            assert (link.url, fleet.moves) == (first.url, 0)
            assert "no new connection to a broker" in caplog.text
            await link.get_identity()


async def test_an_address_is_checked_by_the_urls_name(fleet: Fleet) -> None:
    """Whatever the address: what `check` finds at one of a name's is what the agent would meet there."""
    async with contextlib.AsyncExitStack() as stack:
        server, wrong = await fleet.start(stack), await fleet.start(stack, "other.example")

        async def error(of: BrokerServer, address: str) -> str:
            look = functools.partial(connection_error, address=address)
            return str(await fleet.pool.run(look, of.url, fleet.servers.pem, fleet.identity))

        assert await error(server, "127.0.0.1") == "None"
        assert "address 127.0.0.2, can't be reached" in await error(server, "127.0.0.2")
        assert "address 127.0.0.1, is not trusted: Hostname mismatch" in await error(wrong, "127.0.0.1")


async def test_a_broker_that_gives_no_answer_is_left_for_the_next_call(fleet: Fleet) -> None:
    """One that was stopped, or cut off, with its connection open: the call has used up its time, the next one hasn't."""
    async with contextlib.AsyncExitStack() as stack:
        silent, second = await fleet.start(stack), await fleet.start(stack)
        never = asyncio.Event()
        silent.broker.get_identity = never.wait  # type: ignore[method-assign, assignment]
        async with fleet.link() as link:
            link._timeout = SECOND
            with pytest.raises(OperationError, match=f"{silent.url} didn't answer in time"):
                await link.get_identity()
            assert second.calls == []
            assert (link.url, fleet.moves) == (second.url, 1)
            link._timeout = HANG * SECOND
            assert (await link.get_identity()).name == "web1.example"
        never.set()


@pytest.mark.parametrize(
    ("end", "hold"),
    [
        pytest.param(StreamEnd("x", retry_after=20 * SECOND, goodbye=True), 20 * SECOND, id="goodbye"),
        pytest.param(StreamEnd("x", retry_after=timedelta(), goodbye=True), timedelta(), id="goodbye for its age"),
        pytest.param(StreamEnd("x", goodbye=True), AVOID, id="goodbye with a time that is none"),
        pytest.param(StreamEnd("x", grpc.StatusCode.UNAVAILABLE), AVOID, id="lost"),
        pytest.param(StreamEnd("x", unwell=True), AVOID, id="silent"),
        pytest.param(StreamEnd("x"), None, id="ended"),
        pytest.param(StreamEnd("x", grpc.StatusCode.UNIMPLEMENTED), None, id="older release"),
        pytest.param(StreamEnd("x", grpc.StatusCode.INTERNAL), None, id="a fault"),
    ],
)
def test_what_the_end_of_a_stream_says_of_its_broker(end: StreamEnd, hold: timedelta | None) -> None:
    """How long it is left for another; None where the others would do no better."""
    assert end.hold == hold


@pytest.mark.parametrize("reason", Reason)
def test_only_what_a_broker_says_of_itself_sends_a_host_away(reason: Reason) -> None:
    """Of all refusals four; a broker's time can make the hold longer, not shorter."""
    of_one = {Reason.DRAINING, Reason.STORE_UNAVAILABLE, Reason.AUDIT_UNAVAILABLE, Reason.POLICY_UNAVAILABLE}
    holds = [
        StreamEnd("x", grpc.StatusCode.UNAVAILABLE, Refusal(reason, "x"), after).hold
        for after in (None, SECOND, 10 * AVOID)
    ]
    assert holds == ([AVOID, AVOID, 10 * AVOID] if reason in of_one else [None, None, None])


async def test_an_order_that_is_followed_where_a_host_has_left_is_followed_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old connection ends after its grace: that is an error of the watch, and never the end of who follows."""
    monkeypatch.setattr(broker, "_GRACE", timedelta(seconds=0.1))
    async with contextlib.AsyncExitStack() as stack:
        first, second = await fleet.start(stack), await fleet.start(stack)
        first.broker.states, first.broker.stall = ["PENDING", "PENDING"], asyncio.Event()
        async with fleet.link() as link:
            order = await link.issue(profile="web", csr_pem=csr(), replaces_certificate_id="", wait=timedelta())

            async def follow() -> list[str]:
                return [view.state async for view in link.watch_order(order.order_id, HANG * SECOND)]

            following = asyncio.create_task(follow())
            await until(lambda: any(method == "WatchOrder" for method, *_ in first.calls))
            await link.leave(link.channel, timedelta(seconds=20))
            assert link.url == second.url
            with pytest.raises(OperationError, match="the connection was closed"):
                await following


async def test_an_order_goes_on_at_another_broker_of_the_same_fleet(fleet: Fleet, tmp_path: Path) -> None:
    """The broker that took the request is killed: the same order is followed at the other one, with the pending key."""
    shared = fleet.brokers[1] = fleet.brokers[0]
    shared.states, shared.stall = ["PENDING", "PENDING"], asyncio.Event()
    world = AgentWorld(tmp_path, [{"name": "web"}])
    async with contextlib.AsyncExitStack() as stack, contextlib.AsyncExitStack() as killed:
        first, second = await fleet.start(killed), await fleet.start(stack)
        async with fleet.link() as link:
            request = BrokerRequest(
                world.start().certificates["web"],
                profile="web",
                reuse_key=False,
                broker=link,
                orders=link,
                clock=fleet.clock,
                rng=random.Random(1),
                progress=SilentProgress(),
            )
            asking = asyncio.create_task(request(Request(RenewReason.FIRST, None)))
            await until(lambda: any(method == "WatchOrder" for method, *_ in first.calls))
            await killed.aclose()
            shared.stall.set()

            def ended() -> bool:
                fleet.clock.advance(SECOND)
                return asking.done()

            await until(ended)
            version = await asking
            assert (version.number, link.url) == (1, second.url)
            assert len({call[1].csr_pem for call in first.calls if call[0] == "IssueCertificate"}) == 1
            orders = {
                call[1].order_id for server in (first, second) for call in server.calls if call[0] == "WatchOrder"
            }
            assert orders == {"order-1"}
            assert shared.issued == ["certificate-1"]
    world.close()
