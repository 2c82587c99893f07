"""The stream of certificate news at a broker that a test scripts: what is heard, and how it comes back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from certplane.caller.connection import Connection
from certplane.caller.news import AskAgain, NewsFeed
from certplane.caller.unreachable import CallerFiles
from certplane.caller.values import CertificateNews
from certplane.errors import Reason, Refusal
from certplane.rpc.credentials import KeyPair, ServerTls
from certplane.rpc.status import grpc_status, status_from_refusal
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until, until_in_time

Message = pb.WatchMyCertificatesResponse
SERVERS, CALLERS = CertificateAuthority.root("Servers"), CertificateAuthority.root("Callers")


class Scripted(renewal_pb2_grpc.RenewalServiceServicer):
    """A broker whose streams say what a test puts into them; `calls` has the serial of each that came."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.streams: list[asyncio.Queue[Message | Refusal | None]] = []
        self.refusal: Refusal | None = None
        self.greeting: list[Message] = [listening()]
        self.port = 0

    async def WatchMyCertificates(self, request: Any, context: Any) -> AsyncIterator[Message]:  # noqa: N802
        self.calls.append(context.auth_context()["x509_pem_cert"][0].decode())
        if self.refusal is not None:
            await context.abort_with_status(grpc_status(status_from_refusal(self.refusal)))
        stream: asyncio.Queue[Message | Refusal | None] = asyncio.Queue()
        self.streams.append(stream)
        for message in self.greeting:
            yield message
        while (said := await stream.get()) is not None:
            if isinstance(said, Refusal):
                await context.abort_with_status(grpc_status(status_from_refusal(said)))
            yield said

    @asynccontextmanager
    async def running(self, *, has_service: bool = True) -> AsyncIterator[Scripted]:
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        if has_service:
            renewal_pb2_grpc.add_RenewalServiceServicer_to_server(self, server)
        made = SERVERS.issue("broker", ["localhost"])
        tls = ServerTls(KeyPair(made.key_pem, made.chain_pem), CALLERS.pem)
        self.port = server.add_secure_port(f"127.0.0.1:{self.port}", tls.credentials())
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


def listening(policy: str = "p1") -> Message:
    inside = Message.Listening(heartbeat_interval=Duration(seconds=60), in_force=Message.InForce(policy_hash=policy))
    return Message(listening=inside)


def news(certificate_id: str, **fields: Any) -> Message:
    return Message(news=Message.CertificateNews(certificate_id=certificate_id, profile="api", **fields))


def goodbye(seconds: int) -> Message:
    return Message(goodbye=Message.Goodbye(reconnect_delay=Duration(seconds=seconds), reason="restart"))


class Caller:
    """A feed with one listener."""

    def __init__(self, folder: Path, *ports: int) -> None:
        self.clock = ManualClock(SystemClock().now())
        (folder / "ca.pem").write_bytes(SERVERS.pem)
        self.folder = folder
        self.enroll()
        files = CallerFiles(folder / "me.crt", folder / "me.key", folder / "ca.pem")
        self.connection = Connection(
            [f"https://localhost:{port}" for port in ports],
            files,
            timeout=timedelta(seconds=5),
            clock=self.clock,
            rng=random.Random(1),
        )
        self.feed = NewsFeed(self.connection)
        self.heard: list[CertificateNews | AskAgain] = []

    def enroll(self) -> None:
        CALLERS.issue("api", ["api.certplane.test"]).write(self.folder, "me")

    @property
    def ids(self) -> list[str]:
        return [each.certificate_id if isinstance(each, CertificateNews) else "again" for each in self.heard]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Callable[[], None]]:
        await self.connection.open()
        end = self.feed.listen(self.heard.append)
        try:
            async with no_hang():
                yield end
        finally:
            await self.feed.close()
            await self.connection.close()


@pytest.fixture
async def broker() -> AsyncIterator[Scripted]:
    async with Scripted().running() as running:
        yield running


async def test_what_there_is_then_each_change(broker: Scripted, tmp_path: Path) -> None:
    """Nothing is heard twice, what isn't known is passed over, and a later listener hears what is known."""
    broker.greeting = [news("c1"), news("c2"), listening()]
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        assert caller.ids == ["c1", "c2"]
        for message in (Message(), Message(heartbeat=Message.Heartbeat()), news("c1"), news("c1", renew_reason="now")):
            broker.streams[0].put_nowait(message)
        await until(lambda: len(caller.heard) == 3)
        later: list[Any] = []
        caller.feed.listen(later.append)
        assert {each.certificate_id: each.renew_reason for each in later} == {"c1": "now", "c2": ""}


async def test_another_policy(broker: Scripted, tmp_path: Path) -> None:
    """What was refused is to be asked again; the same policy again says nothing."""
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        for policy in ("p1", "p2"):
            broker.streams[0].put_nowait(Message(in_force=Message.InForce(policy_hash=policy)))
        await until(lambda: caller.heard)
        assert caller.ids == ["again"]


async def test_a_goodbye(broker: Scripted, tmp_path: Path) -> None:
    """The stream comes back when the broker says, not before, and listeners are told to ask again."""
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        broker.streams[0].put_nowait(goodbye(40))
        await until(lambda: not caller.feed.live)
        before = caller.clock.now()
        await until_in_time(caller.clock, lambda: caller.feed.live, step=timedelta(seconds=1))
        assert timedelta(seconds=38) <= caller.clock.now() - before <= timedelta(seconds=60)
        assert caller.ids == ["again"]


async def test_what_is_gone_is_forgotten(broker: Scripted, tmp_path: Path) -> None:
    """A certificate that the next stream doesn't tell of is none to know."""
    broker.greeting = [news("c1"), listening()]
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        broker.greeting = [news("c2"), listening()]
        broker.streams[0].put_nowait(goodbye(1))
        await until_in_time(caller.clock, lambda: "c2" in caller.feed.known and caller.feed.live)
        assert list(caller.feed.known) == ["c2"]


async def test_silence(broker: Scripted, tmp_path: Path) -> None:
    """Three heartbeats without a message end a stream, and begin another one."""
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        before = caller.clock.now()
        await until_in_time(caller.clock, lambda: len(broker.calls) > 1, step=timedelta(seconds=5))
        assert caller.clock.now() - before > timedelta(minutes=3)


async def test_a_broker_without_the_call(tmp_path: Path) -> None:
    """An older release is asked again after 45 minutes at the earliest."""
    async with Scripted().running(has_service=False) as older:
        caller = Caller(tmp_path, older.port)
        async with caller.listening():
            await until(lambda: caller.clock.sleepers)
            caller.clock.advance(timedelta(minutes=40))
            assert not caller.feed.live


async def test_a_denied_identity(broker: Scripted, tmp_path: Path) -> None:
    """It is tried again seldom, but at once when there is another identity."""
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: caller.feed.live)
        broker.refusal = Refusal(Reason.IDENTITY_REVOKED, "denied")
        broker.streams[0].put_nowait(broker.refusal)
        await until(lambda: not caller.feed.live)
        await until_in_time(caller.clock, lambda: len(broker.calls) >= 3, step=timedelta(seconds=5))
        broker.refusal = None
        caller.enroll()
        await until_in_time(caller.clock, lambda: caller.feed.live, step=timedelta(seconds=5))
        assert len(set(broker.calls)) == 2


async def test_another_broker(broker: Scripted, tmp_path: Path) -> None:
    """Where there are two a goodbye leads to the other one within seconds, whatever delay it names."""
    async with Scripted().running() as other:
        caller = Caller(tmp_path, broker.port, other.port)
        async with caller.listening():
            await until(lambda: caller.feed.live)
            first = broker if broker.calls else other
            first.streams[0].put_nowait(goodbye(1800))
            await until(lambda: not caller.feed.live)
            before = caller.clock.now()
            await until_in_time(caller.clock, lambda: caller.feed.live, step=timedelta(seconds=1))
            assert caller.clock.now() - before < timedelta(minutes=1)
            assert len(broker.calls) == len(other.calls) == 1


async def test_nonsense(broker: Scripted, tmp_path: Path) -> None:
    """A message that can't be ends the stream, and no listener hears of it."""
    broker.greeting = [news("\x1b[2J"), listening()]
    caller = Caller(tmp_path, broker.port)
    async with caller.listening():
        await until(lambda: broker.calls)
        await until(lambda: caller.clock.sleepers)
        assert caller.heard == []


async def test_the_last_listener_ends_it(broker: Scripted, tmp_path: Path) -> None:
    """Nobody listens, nobody is connected."""
    caller = Caller(tmp_path, broker.port)
    async with caller.listening() as end:
        await until(lambda: caller.feed.live)
        end()
        await until(lambda: not caller.feed.live)
