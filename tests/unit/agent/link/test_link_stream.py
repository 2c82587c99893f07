"""The status stream against a scripted broker over a real connection, by a clock set by hand."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from typing_extensions import override

from certplane import __version__
from certplane.agent.link.ending import StreamEnd
from certplane.agent.link.open_stream import OpenStream, StreamParts
from certplane.agent.link.state import LinkFile, LinkPhase, LinkState
from certplane.agent.link.stream import StatusStream, reopening_wait
from certplane.agent.model import Activation, ActivationHold, DirectedRenewal
from certplane.agent.reporting.spool import FileReportSpool
from certplane.errors import CertplaneError, OperationError, Reason, Refusal, RefusalError
from certplane.fleet_report.model import CertificateState, CertificateStatus, RenewalCause
from certplane.rpc.status import refusal_from_status
from certplane.runtime.pool import BlockingPool
from certplane.sandbox.loopback import free_port
from certplane.v1 import renewal_pb2 as pb
from tests.fakes.clock import ManualClock
from tests.support.agent_streams import OneBroker
from tests.support.logs import of_certplane
from tests.support.renewal_server import Answer, RenewalServer
from tests.support.waiting import no_hang, until

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def report(number: int, state: CertificateState = CertificateState.WAITING, name: str = "web") -> CertificateStatus:
    return CertificateStatus(name, state, update_time=NOW + timedelta(seconds=number))


def renewal(certificate_id: str = "c1", **more: object) -> pb.Renewal:
    message = pb.Renewal(certificate_id=certificate_id, cause=pb.Renewal.CAUSE_OPERATOR, **more)  # type: ignore[arg-type]
    message.renew_time.FromDatetime(NOW)
    return message


class Taker:
    """`DirectiveTaker` that keeps what it is told."""

    def __init__(self) -> None:
        self.taken: list[DirectedRenewal] = []
        self.activated: list[Activation] = []
        self.hashes: list[str] = []
        self.epochs: list[str] = []
        self.connections = 0
        self.errors: list[Exception] = []

    async def renew(self, renewals: Sequence[DirectedRenewal]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken += renewals

    async def activate(self, activations: Sequence[Activation]) -> None:
        self.activated += activations

    async def connected(self) -> None:
        self.connections += 1

    async def policy_changed(self, policy_hash: str) -> None:
        self.hashes.append(policy_hash)

    async def retry_epoch_changed(self, retry_epoch: str) -> None:
        self.epochs.append(retry_epoch)


class Channels(OneBroker):
    """`ChannelSource` in plain text: `change` is a new identity."""

    def __init__(self) -> None:
        super().__init__()
        self.port = 1
        self.opened: list[grpc.aio.Channel] = []
        self.asked: list[str] = []

    def change(self) -> None:
        self.opened.append(
            grpc.aio.insecure_channel(
                f"127.0.0.1:{self.port}",
                options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)],
            )
        )

    @property
    @override
    def channel(self) -> grpc.aio.Channel:
        return self.opened[-1]

    @override
    async def why_unreachable(self, said: str) -> CertplaneError:
        self.asked.append(said)
        return OperationError("the broker can't be reached")


class World:
    """One host's stream and what it works with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock(NOW)
        self.server = RenewalServer(self.clock)
        self.disk = BlockingPool("disk", 1)
        self.channels = Channels()
        self.taker = Taker()
        self.told: list[datetime] = []
        self.epochs = 0
        self.patience = HOUR
        """Where it isn't what a test is about, no step of the clock is to be longer than it: the network is real."""
        self.start()

    def start(self) -> None:
        """As a new program."""
        self.spool = FileReportSpool(self.folder / "reports", names=["web", "api"], new_epoch=self._epoch)
        parts = StreamParts(
            names=["web", "identity"],
            spool=self.spool,
            directives=self.taker,
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(1),
            told_time=lambda told, _sent, _received: self.told.append(told),
        )
        file = LinkFile(self.folder)

        async def save(state: LinkState) -> None:
            await self.disk.run(file.save, state)

        self.stream = StatusStream(self.channels, parts, patience=self.patience, state=file.load(), save=save)
        loop = asyncio.get_running_loop()
        self.spool.listen(lambda: loop.call_soon_threadsafe(self.stream.report))

    def _epoch(self) -> str:
        self.epochs += 1
        return f"epoch-{self.epochs}"

    async def add(self, *reports: CertificateStatus) -> None:
        for each in reports:
            await self.disk.run(self.spool.add, each)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RenewalServer]:
        """The broker and the stream."""
        async with self.server.running() as server:
            self.channels.port = server.port
            self.channels.change()
            async with self.streaming():
                yield server

    @contextlib.asynccontextmanager
    async def streaming(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.stream.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

    async def pass_until(self, condition: Callable[[], bool], step: timedelta = SECOND) -> None:
        """Let time pass until it holds."""

        def passed() -> bool:
            if condition():
                return True
            self.clock.advance(step)
            return False

        await until(passed, poll=0.005)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made
    for channel in made.channels.opened:
        await channel.close()
    made.disk.close()


async def test_hello_tells_all_that_there_is(world: World) -> None:
    """Names, epoch, version and the reports that wait, in their order; then what comes, as it comes."""
    await world.add(report(1, CertificateState.REQUESTING), report(2))
    async with world.running() as server:
        await until(lambda: bool(server.streams))
        hello = server.last.hello
        assert list(hello.certificate_names) == ["identity", "web"]
        assert (hello.epoch, hello.agent_version) == (world.spool.epoch, __version__)
        assert [each.sequence for each in hello.reports] == [1, 2]
        assert hello.host_time.ToDatetime(tzinfo=UTC) == NOW
        await until(lambda: not world.spool.unacknowledged)
        await world.add(report(3, CertificateState.DUE), report(4, CertificateState.REQUESTING))
        await until(lambda: not world.spool.unacknowledged)
        assert [each.sequence for each in server.last.reports] == [1, 2, 3, 4]
        assert world.stream.state.phase is LinkPhase.CONNECTED
        assert world.stream.state.broker_version == "9.9.9"
        assert world.told == [NOW]


async def test_what_does_not_fit_into_hello_follows(world: World) -> None:
    """A snapshot larger than a message is sent in order, the rest as reports, and nothing twice."""
    world.spool = FileReportSpool(world.folder / "many", names=[f"c{n}" for n in range(200)], new_epoch=lambda: "e")
    world.stream._parts = StreamParts(**{
        **{name: getattr(world.stream._parts, name) for name in StreamParts.__slots__}, "spool": world.spool
    })  # fmt: skip
    for number in range(200):
        await world.add(
            CertificateStatus(
                f"c{number}", CertificateState.FAILED, update_time=NOW, last_error="x" * 1500, renew_reason="y" * 100
            )
        )
    async with world.running() as server:
        await until(lambda: not world.spool.unacknowledged)
        assert 10 < len(server.last.hello.reports) < 50
        assert [each.sequence for each in server.last.reports] == list(range(1, 201))


async def test_a_stream_that_broke_is_opened_again_and_nothing_is_counted_twice(world: World) -> None:
    """What was reported meanwhile comes with the next hello; what the broker has it knows by the number."""
    await world.add(report(1))
    async with world.running() as server:
        await until(lambda: not world.spool.unacknowledged)
        server.last.end(grpc.StatusCode.UNAVAILABLE)
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        await world.add(report(2, CertificateState.DUE))
        assert world.stream.state.next_attempt_time is not None
        await world.pass_until(lambda: len(server.streams) == 2)
        await until(lambda: not world.spool.unacknowledged)
        assert [each.update_time.ToDatetime(tzinfo=UTC) for each in server.taken] == [
            report(1).update_time,
            report(2).update_time,
        ]


async def test_a_lost_acknowledgement_costs_nothing(world: World) -> None:
    """Reports stay until they are acknowledged, and are sent again with each hello."""
    world.server.acknowledges = False
    await world.add(report(1))
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        assert world.spool.unacknowledged == 1
        server.acknowledges = True
        server.last.end()
        await world.pass_until(lambda: len(server.streams) == 2)
        await until(lambda: not world.spool.unacknowledged)
        assert len(server.taken) == 1


async def test_a_broker_that_knows_more_makes_the_counting_start_anew(world: World) -> None:
    """A state directory that was put back would be skipped: it takes another epoch and says all again."""
    await world.add(report(1))
    world.server.acknowledged[world.spool.epoch] = 5000
    async with world.running() as server:
        await world.pass_until(lambda: len(server.streams) == 2)
        await until(lambda: not world.spool.unacknowledged)
        first, second = server.streams
        assert first.hello.epoch != second.hello.epoch
        assert len(server.taken) == 1


async def test_a_directive_is_taken_over_then_acknowledged(world: World) -> None:
    """Its times, its reasons without control characters, and the policy it speaks of."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        sent = renewal(reason="bad \x1b[31mkeys\n", explanation_url="https://ca.example/1", renewal_request_id="r1")
        server.last.direct("n1", sent, policy_hash="ab" * 32)
        await until(lambda: bool(server.last.results))
        assert world.taker.taken == [
            DirectedRenewal("c1", NOW, RenewalCause.OPERATOR, "bad  [31mkeys ", "https://ca.example/1", "r1")
        ]
        assert world.taker.hashes == ["ab" * 32]
        (result,) = server.last.results
        assert result.nonce == "n1"
        assert not result.HasField("error")


async def test_welcome_tells_the_policy_too(world: World) -> None:
    """One that changed while the broker was away isn't missed."""
    world.server.policy_hash = "cd" * 32
    async with world.running():
        await until(lambda: world.taker.hashes == ["cd" * 32])


async def test_a_fault_beside_the_reading_ends_the_stream(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a stream would look well and do nothing; it is opened again."""
    await world.add(report(1))
    monkeypatch.setattr(world.spool, "acknowledge", lambda _: 1 / 0)
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        assert "a bug of this agent" in world.stream.state.last_error
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        await world.pass_until(lambda: len(server.streams) == 2)
        await until(lambda: not world.spool.unacknowledged)


async def test_a_fault_after_the_end_neither_ends_the_streams_nor_opens_them_in_a_loop(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever shows the link's state may fail: that is logged, and the next stream comes after a wait all the same."""

    def shows(state: LinkState) -> None:
        if state.phase is LinkPhase.WAITING:
            raise ValueError("nowhere to show it")

    async with world.running() as server:
        await until(lambda: bool(server.streams))
        world.stream.watch(shows)
        server.last.end(grpc.StatusCode.UNAVAILABLE)
        await until(lambda: "end of the status stream failed" in caplog.text)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(server.streams) == 1
        await world.pass_until(lambda: len(server.streams) == 2)
    assert caplog.text.count("end of the status stream failed") == 1


async def test_what_a_rollout_wants_is_taken_over(world: World) -> None:
    """What is held back, until when, with which key, and what is released; a broker that names no time leaves it to us."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        wanted = renewal(rollout_id="r1", hold_activation=True, new_key=True)
        wanted.activate_by_time.FromDatetime(NOW + timedelta(days=3))
        released = pb.Activation(certificate_id="c9", rollout_id="r0", abandoned=True)
        server.last.direct("n1", wanted, activations=[released])
        server.last.direct("n2", renewal(rollout_id="r1", hold_activation=True))
        await until(lambda: len(server.last.results) == 2)
        assert not any(result.HasField("error") for result in server.last.results)
        assert world.taker.activated == [Activation("c9", "r0", abandoned=True)]
        assert [(each.hold_on("c1"), each.new_key) for each in world.taker.taken] == [
            (ActivationHold("r1", NOW + timedelta(days=3)), True),
            (ActivationHold("r1"), False),
        ]


@pytest.mark.parametrize(
    ("held", "released", "field"),
    [
        pytest.param({"hold_activation": True}, {}, "renewals[0].rollout_id", id="a-hold-of-nobody"),
        pytest.param({"rollout_id": "a b"}, {}, "renewals[0].rollout_id", id="no-rollout"),
        pytest.param({}, {"rollout_id": "r1"}, "activations[0].certificate_id", id="no-certificate"),
        pytest.param({}, {"certificate_id": "c1"}, "activations[0].rollout_id", id="a-release-by-nobody"),
    ],
)
async def test_a_malformed_word_of_a_rollout_is_refused_whole(
    world: World, held: dict[str, Any], released: dict[str, str], field: str
) -> None:
    """Nothing of the directive is taken over; the field is named."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        activation = pb.Activation(**released)
        server.last.direct("n1", renewal(**held), activations=[activation] if released else [])
        await until(lambda: bool(server.last.results))
        refusal = refusal_from_status(server.last.results[0].error)
        assert refusal is not None
        assert refusal.reason is Reason.REQUEST_INVALID
        assert [each.subject for each in refusal.violations] == [field]
        assert (world.taker.taken, world.taker.activated) == ([], [])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        pytest.param(RefusalError(Reason.CERTIFICATE_NOT_FOUND, "no c1 here"), "CERTIFICATE_NOT_FOUND", id="not ours"),
        pytest.param(OperationError("the disk is full"), "STORE_UNAVAILABLE", id="can't be kept"),
        pytest.param(KeyError("a fault of ours"), "INTERNAL", id="a fault"),
    ],
)
async def test_a_directive_that_cannot_be_followed_is_refused(world: World, error: Exception, reason: str) -> None:
    """With the reason; the stream goes on."""
    world.taker.errors = [error]
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        server.last.direct("n1", renewal())
        await until(lambda: len(server.last.results) == 1)
        refusal = refusal_from_status(server.last.results[0].error)
        assert refusal is not None
        assert refusal.reason == reason
        server.last.direct("n2", renewal())
        await until(lambda: len(server.last.results) == 2)
        assert not server.last.results[1].HasField("error")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([renewal("")], id="no certificate"),
        pytest.param([pb.Renewal(certificate_id="c1")], id="no time"),
        pytest.param([renewal()] * 101, id="too many"),
    ],
)
async def test_a_directive_that_is_none_is_refused_whole(world: World, bad: list[pb.Renewal]) -> None:
    """Nothing of it is taken over."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        server.last.direct("n1", *bad)
        await until(lambda: bool(server.last.results))
        refusal = refusal_from_status(server.last.results[0].error)
        assert refusal is not None
        assert refusal.reason is Reason.REQUEST_INVALID
        assert refusal.violations
        assert world.taker.taken == []


async def test_a_nonce_that_comes_again_has_the_same_answer(world: World) -> None:
    """Replayed, it is answered and not done twice."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        for count in (1, 2):
            server.last.direct("n1", renewal())
            await until(lambda count=count: len(server.last.results) == count)  # type: ignore[misc] # bound now
        assert len(world.taker.taken) == 1


async def test_ten_thousand_directives_at_once_cost_one_slot(world: World) -> None:
    """The latest counts; those that it overtook are neither done nor kept. They are read no faster than a broker talks."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        for number in range(10_000):
            server.last.direct(f"n{number}", renewal(f"c{number}"))
        began = world.clock.monotonic()
        await world.pass_until(lambda: bool(server.last.results) and server.last.results[-1].nonce == "n9999")
        assert world.taker.taken[-1].certificate_id == "c9999"
        took = world.clock.monotonic() - began
        assert took >= 90
        assert len(world.taker.taken) <= 21 + 2 * took
        assert world.stream.state.phase is LinkPhase.CONNECTED
        assert len(server.streams) == 1


async def test_the_heart_beats_and_measures_the_clock(world: World) -> None:
    """As often as the broker wants, and each answer tells its time."""
    world.server.heartbeat = 10 * SECOND
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        await world.pass_until(lambda: server.last.heartbeats >= 3)
        await until(lambda: len(world.told) >= 3)
        assert len(server.streams) == 1


async def test_a_silent_broker_is_left(world: World) -> None:
    """Three heartbeats without an answer, and the stream is opened anew."""
    world.server.heartbeat = 10 * SECOND
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        server.beats = False
        await world.pass_until(lambda: "silent" in world.stream.state.last_error, step=5 * SECOND)
        server.beats = True
        await world.pass_until(lambda: len(server.streams) == 2)


async def test_a_broker_that_does_not_greet_is_left(world: World) -> None:
    """Hello has its time limit."""
    world.patience = 5 * MINUTE
    world.start()
    world.server.greets = False
    async with world.running() as server:
        await until(lambda: bool(server.streams))
        await world.pass_until(lambda: "hello in time" in world.stream.state.last_error)
        server.greets = True
        await world.pass_until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)


async def test_goodbye_says_when_to_come_back(world: World) -> None:
    """Not before, and about then."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        goodbye = Answer.Goodbye(reason="the broker stops")
        goodbye.reconnect_delay.FromTimedelta(20 * SECOND)
        server.last.say(goodbye=goodbye)
        server.last.end()
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        assert world.stream.state.next_attempt_time == world.clock.now() + 20 * SECOND
        assert "the broker stops" in world.stream.state.last_error
        await until(lambda: world.clock.sleepers == 1)
        world.clock.advance(19 * SECOND)
        await asyncio.sleep(0.05)
        assert len(server.streams) == 1
        await world.pass_until(lambda: len(server.streams) == 2)


async def test_a_refusal_is_waited_out(world: World) -> None:
    """`RetryInfo` is obeyed, and an identity that isn't accepted is no reason to knock every second."""
    world.server.refusal = Refusal(Reason.IDENTITY_CONTESTED, "two holders", retry_after=5 * MINUTE)
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        assert world.stream.state.last_error == "IDENTITY_CONTESTED: two holders"
        assert world.stream.state.next_attempt_time is not None
        assert world.stream.state.next_attempt_time >= world.clock.now() + 5 * MINUTE
        server.refusal = None
        await until(lambda: world.clock.sleepers == 1)
        world.clock.advance(world.stream.state.next_attempt_time - world.clock.now())
        # No further: the next stream comes over a real socket, and the time for its answer is this clock's.
        await until(lambda: server.streams)


async def test_a_broker_without_streams_is_asked_hourly_and_quietly(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent works with an older broker: one line in the log, no error in its status."""
    server = grpc.aio.server()
    world.channels.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    world.channels.change()
    try:
        async with world.streaming():
            await world.pass_until(lambda: world.stream.state.phase is LinkPhase.UNSUPPORTED)
            assert world.stream.state.last_error == ""
            assert world.stream.state.next_attempt_time is not None
            assert world.stream.state.next_attempt_time >= NOW + 45 * MINUTE
            assert [record.levelname for record in of_certplane(caplog)] == ["WARNING"]
    finally:
        await server.stop(None)


async def test_a_refusal_that_was_lost_is_waited_for_the_next_time(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker that ends the call while hello is written: gRPC then has a status of its own, which says nothing."""
    world.server.refusal = Refusal(Reason.IDENTITY_RETIRED, "there is a newer one")
    read = OpenStream._next
    ends: list[str] = []

    async def lose_first(session: OpenStream) -> pb.StreamRenewalStatusResponse | StreamEnd:
        answer = await read(session)
        assert isinstance(answer, StreamEnd)
        ends.append(answer.text)
        return StreamEnd("INTERNAL: Internal error from Core", grpc.StatusCode.INTERNAL) if len(ends) == 1 else answer

    monkeypatch.setattr(OpenStream, "_next", lose_first)
    cautions: list[timedelta] = []
    wait = OpenStream._await_refusal

    async def count(session: OpenStream) -> None:
        cautions.append(session._caution)
        await wait(session)

    monkeypatch.setattr(OpenStream, "_await_refusal", count)
    async with world.running():
        await world.pass_until(lambda: "IDENTITY_RETIRED" in world.stream.state.last_error)
        assert cautions == [2 * SECOND]
        assert "Internal error" not in caplog.text


async def test_a_broker_that_is_away_is_looked_into_once(world: World) -> None:
    """Each outage costs one diagnosis; the stream comes about as soon as the channel does."""
    world.patience = 30 * SECOND
    world.start()
    world.channels.port = free_port()
    world.channels.change()  # nobody listens there
    async with world.streaming():
        await world.pass_until(lambda: world.stream.state.last_error == "the broker can't be reached")
        since = world.stream.state.since
        await world.pass_until(lambda: world.clock.now() - NOW > 5 * MINUTE, step=10 * SECOND)
        assert world.channels.asked == ["no connection in time"]
        assert (world.stream.state.phase, world.stream.state.since) == (LinkPhase.CONNECTING, since)
        async with world.server.running(world.channels.port):
            await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
            assert world.stream.state.last_error == ""


async def test_a_new_identity_is_heard_before_the_old_one_leaves(world: World) -> None:
    """The next stream says hello on the new channel; the older ends when that is welcome, and nothing is lost."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        server.greets = False
        world.channels.change()
        world.stream.channel_changed()
        await until(lambda: len(server.streams) == 2)
        assert not server.streams[0].ended.is_set()
        await world.add(report(1))
        await until(lambda: len(server.taken) == 1)
        assert server.streams[0].reports, "the older one goes on until the new one is welcome"
        server.streams[1].say(welcome=Answer.Welcome(acknowledged_sequence=server.acknowledged[world.spool.epoch]))
        await until(server.streams[0].ended.is_set)
        await world.add(report(2))
        await until(lambda: not world.spool.unacknowledged)
        assert len(server.taken) == 2
        assert world.stream.state.last_error == ""


async def test_a_waiting_stream_is_opened_at_once_by_a_new_identity(world: World) -> None:
    """What was refused was the other identity."""
    world.server.refusal = Refusal(Reason.IDENTITY_EXPIRED, "it is over")
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        server.refusal = None
        world.channels.change()
        world.stream.channel_changed()
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)


async def test_another_holder_of_the_identity_is_said(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A stream that another one displaces, although this host has but one, is worth a warning and a wait."""
    async with world.running() as server:
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
        server.last.end(Refusal(Reason.STREAM_DISPLACED, "another stream"))
        await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        assert world.stream.state.next_attempt_time is not None
        assert world.stream.state.next_attempt_time >= world.clock.now() + MINUTE
        assert "is it a copy?" in caplog.text


async def test_delivering_ends_with_the_last_acknowledgement(world: World) -> None:
    """A program that ends says what it did, and no more."""
    await world.add(report(1), report(2, CertificateState.DUE))
    async with world.server.running() as server:
        world.channels.port = server.port
        world.channels.change()
        async with no_hang():
            await world.stream.deliver()
        assert len(server.taken) == 2
        assert world.spool.unacknowledged == 0
        assert LinkFile(world.folder).load().phase is LinkPhase.IDLE
        await world.stream.deliver()
        assert len(server.streams) == 1


async def test_who_only_delivers_hears_what_the_broker_wants(world: World) -> None:
    """A host in timer mode has no other stream: policy, retry epoch and directive, though no report waits."""
    server = world.server
    server.policy_hash, server.retry_epoch = "p" * 64, "epoch-of-a-restart"
    server.directive = Answer.Directive(nonce="n1", renewals=[renewal()])
    async with server.running():
        world.channels.port = server.port
        world.channels.change()
        async with no_hang():
            await world.stream.deliver(listen=True)
    assert (world.taker.hashes, world.taker.epochs) == (["p" * 64], ["epoch-of-a-restart"])
    assert [each.certificate_id for each in world.taker.taken] == ["c1"]


async def test_who_only_delivers_waits_a_second_for_a_broker_that_wants_nothing(world: World) -> None:
    """And hears of the retry epoch before the acknowledgement that ends the stream."""
    await world.add(report(1))
    world.server.retry_epoch = "epoch-of-a-restart"
    async with world.server.running() as server:
        world.channels.port = server.port
        world.channels.change()
        began = world.clock.now()
        task = asyncio.create_task(world.stream.deliver(listen=True))
        await until(lambda: world.taker.epochs == ["epoch-of-a-restart"] and not world.spool.unacknowledged)
        await world.pass_until(task.done, step=0.1 * SECOND)
        await task
    assert world.clock.now() - began >= SECOND


async def test_delivering_does_not_wait_for_a_broker_that_is_away(world: World) -> None:
    """Ten seconds; the reports stay."""
    await world.add(report(1))
    world.channels.change()
    task = asyncio.create_task(world.stream.deliver())
    await world.pass_until(task.done)
    await task
    assert world.spool.unacknowledged == 1


async def test_the_links_state_outlives_the_program(world: World) -> None:
    """What the next program finds is what was last known, but not a stream that is no more."""
    async with world.running():
        await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
    loaded = LinkFile(world.folder).load()
    assert loaded.last_connected_time == NOW
    assert loaded.broker_version == "9.9.9"
    world.start()
    assert world.stream.state.phase is LinkPhase.IDLE


def longest(backoff: object, failures: int) -> timedelta:
    return backoff.ceiling(failures)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize(
    ("end", "failures", "wait"),
    [
        pytest.param(StreamEnd("x"), 1, SECOND, id="soon at first"),
        pytest.param(StreamEnd("x"), 20, MINUTE, id="a minute at most"),
        pytest.param(StreamEnd("x", grpc.StatusCode.UNIMPLEMENTED), 1, 75 * MINUTE, id="an older broker"),
        pytest.param(
            StreamEnd("x", refusal=Refusal(Reason.DRAINING, ""), retry_after=10 * SECOND),
            1,
            10 * SECOND,
            id="RetryInfo",
        ),
        pytest.param(StreamEnd("x", refusal=Refusal(Reason.IDENTITY_UNKNOWN, "")), 1, MINUTE, id="refused"),
        pytest.param(
            StreamEnd("x", refusal=Refusal(Reason.IDENTITY_UNKNOWN, "")), 20, 30 * MINUTE, id="refused for long"
        ),
        pytest.param(StreamEnd("x", retry_after=2 * HOUR, goodbye=True), 1, 2 * HOUR, id="goodbye"),
        pytest.param(StreamEnd("x", retry_after=timedelta(), goodbye=True), 9, timedelta(), id="come back at once"),
        pytest.param(StreamEnd("x", goodbye=True), 1, SECOND, id="goodbye without a time"),
        pytest.param(
            StreamEnd("x", retry_after=timedelta.max, goodbye=True), 1, timedelta(days=1), id="no word for years"
        ),
    ],
)
def test_the_wait_before_the_next_stream(end: StreamEnd, failures: int, wait: timedelta) -> None:
    """The longest that the jitter allows."""
    assert reopening_wait(end, failures, longest) == wait


async def test_a_stable_stream_is_no_failure(world: World) -> None:
    """A minute's life makes the next break the first of a new row."""
    async with world.running() as server:
        for number, stable in enumerate((False, False, True), 1):
            await world.pass_until(lambda number=number: len(server.streams) == number)  # type: ignore[misc] # bound now
            await until(lambda: world.stream.state.phase is LinkPhase.CONNECTED)
            assert world.stream._failures == number - 1
            if stable:
                world.clock.advance(MINUTE)
            server.last.end()
            await until(lambda: world.stream.state.phase is LinkPhase.WAITING)
        assert world.stream._failures == 1
