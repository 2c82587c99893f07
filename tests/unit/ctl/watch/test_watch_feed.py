"""A watch that goes on: what it outlives, what ends it, and what it says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from typing_extensions import override

from certplane.ctl.watch.feed import Feed, NoSuchHostError, WatchDisplay, WatchSource
from certplane.errors import (
    CertplaneError,
    ConfigurationError,
    ConfigurationProblem,
    OperationError,
    Reason,
    RefusalError,
)
from certplane.v1 import renewal_pb2
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until
from tests.support.watched_fleet import FakeFleetSource, certificate, host


class Heard(WatchDisplay):
    """Remembers."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self.complete = 0
        self.interruptions: list[str] = []

    @override
    def show(self, message: renewal_pb2.WatchRenewalsResponse) -> None:
        if message.HasField("host"):
            self.hosts.append(message.host.label)
        self.complete += message.HasField("snapshot_end")

    @override
    def interrupted(self, text: str, again: timedelta) -> None:
        self.interruptions.append(text)


class World:
    """A feed, its broker, its time. `broken` is raised where a new connection is made."""

    def __init__(self, hosts: Sequence[str] = (), *, patient: bool = False) -> None:
        self.clock = ManualClock()
        self.source = FakeFleetSource([host("a", certificate()), host("b", certificate())])
        self.broken: CertplaneError | None = None
        self.feed = Feed(self.connect, hosts, self.clock, patient=patient)
        self.display = Heard()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[WatchSource]:
        if self.broken is not None:
            raise self.broken
        async with self.source as opened:
            yield opened

    async def interrupted_by(self, error: CertplaneError) -> None:
        """The watch that runs ends so, and the time until the next try passes."""
        count = len(self.display.interruptions)
        self.source.tell(error)
        await until(lambda: len(self.display.interruptions) > count)
        await self.next_try()

    async def next_try(self) -> None:
        await until(lambda: self.clock.sleepers)
        self.clock.advance(timedelta(seconds=31))


@asynccontextmanager
async def followed(world: World) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(world.feed.follow(world.display))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


EXPIRED = RefusalError(Reason.IDENTITY_EXPIRED, "the identity expired")
GONE = OperationError("the connection has ended")


async def test_a_watch_outlives_the_broker() -> None:
    """It begins again over a new connection, and says so meanwhile; nothing is left open."""
    world = World()
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        await world.interrupted_by(GONE)
        await until(lambda: world.display.complete == 2, by=task)
    assert world.display.interruptions == ["the connection has ended"]
    assert (world.source.opened, world.source.closed) == (2, 2)


async def test_an_identity_that_was_renewed_meanwhile_is_taken() -> None:
    """What expired under the watch is read again from its file, so it goes on for days."""
    world = World()
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        await world.interrupted_by(EXPIRED)
        await until(lambda: world.display.complete == 2, by=task)
    assert "IDENTITY_EXPIRED" in world.display.interruptions[0]


async def test_a_refusal_of_what_was_read_again_ends_the_watch() -> None:
    """A script hears of an identity that has expired for good, or of a role that was taken away."""
    world = World()
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        world.source.refusals = [EXPIRED]
        await world.interrupted_by(EXPIRED)
        with pytest.raises(RefusalError, match="IDENTITY_EXPIRED"):
            async with no_hang():
                await task


async def test_somebody_who_looks_on_sees_the_refusal_and_what_was_known() -> None:
    """A full screen stays, says why, and goes on once the refusal is gone."""
    world = World(patient=True)
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        world.source.refusals = [EXPIRED, EXPIRED]
        await world.interrupted_by(EXPIRED)
        for seen in (2, 3):
            await until(lambda: len(world.display.interruptions) == seen, by=task)  # noqa: B023 - asked at once
            await world.next_try()
        await until(lambda: world.display.complete == 2, by=task)


async def test_a_file_that_cant_be_read_for_a_moment_is_told_and_read_again() -> None:
    """A renewal of the identity that is half done doesn't end the watch."""
    world = World()
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        world.broken = ConfigurationError([ConfigurationProblem("ctl.yml", 3, "identity.key", "isn't the key", "wait")])
        await world.interrupted_by(GONE)
        await until(lambda: len(world.display.interruptions) == 2, by=task)
        world.broken = None
        await world.next_try()
        await until(lambda: world.display.complete == 2, by=task)
    assert "isn't the key" in world.display.interruptions[1]


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(GONE, id="no-broker"),
        pytest.param(RefusalError(Reason.ROLE_REQUIRED, "not for this identity"), id="no-role"),
        pytest.param(
            ConfigurationError([ConfigurationProblem("ctl.yml", 1, "x", "is wrong", "")]), id="no-configuration"
        ),
    ],
)
async def test_what_never_began_is_a_mistake(error: CertplaneError) -> None:
    """It ends the command at once with what to check, instead of waiting for good."""
    world = World()
    world.broken = error
    with pytest.raises(type(error)):
        async with no_hang():
            await world.feed.follow(world.display)


async def test_a_full_screen_waits_for_a_broker_that_is_down() -> None:
    """Whoever looks on sees why; but a refusal or a wrong file is a mistake there too."""
    world = World(patient=True)
    world.broken = GONE
    async with followed(world) as task:
        await until(lambda: world.display.interruptions, by=task)
        world.broken = None
        await world.next_try()
        await until(lambda: world.display.complete == 1, by=task)
    for error in (EXPIRED, ConfigurationError([ConfigurationProblem("ctl.yml", 1, "x", "is wrong", "")])):
        refused = World(patient=True)
        refused.broken = error
        with pytest.raises(type(error)):
            async with no_hang():
                await refused.feed.follow(refused.display)


async def test_a_broker_that_drains_is_waited_for_from_the_start() -> None:
    """Such a refusal passes, and says when to come back."""
    world = World()
    world.source.refusals = [RefusalError(Reason.DRAINING, "the broker stops", retry_after=timedelta(seconds=20))]
    async with followed(world) as task:
        await world.next_try()
        await until(lambda: world.display.complete == 1, by=task)


@pytest.mark.parametrize("patient", [False, True], ids=["lines", "full-screen"])
async def test_a_host_that_isnt_there_is_an_error(patient: bool) -> None:
    """Instead of an empty table: with all names that are wrong, and what to compare them with."""
    world = World(["a", "nosuch", "b.example.test", "neither"], patient=patient)
    with pytest.raises(NoSuchHostError, match=r"no hosts neither, nosuch in the fleet; compare with"):
        async with no_hang():
            await world.feed.follow(world.display)


async def test_a_host_that_is_forgotten_later_ends_no_watch() -> None:
    """It was there when somebody asked for it; the watch begins again without it."""
    world = World(["a"])
    async with followed(world) as task:
        await until(lambda: world.display.complete == 1, by=task)
        world.source.told = []
        await world.interrupted_by(GONE)
        await until(lambda: world.display.complete == 2, by=task)
