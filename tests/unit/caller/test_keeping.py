"""One certificate kept fresh, on a test's clock: when it is asked for, and what happens where that fails."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.caller.folder import FolderStore
from certplane.caller.keeping import Keeping
from certplane.caller.news import AskAgain
from certplane.caller.schedule import MOST_RETRY
from certplane.caller.stored import CertificateStore, MemoryStore
from certplane.caller.values import Certificate, CertificateNews
from certplane.errors import OperationError, Reason, RefusalError
from tests.fakes.caller import RENEW_AFTER, FakeNews, FakeSource
from tests.fakes.clock import ManualClock
from tests.support.waiting import no_hang, until, until_in_time

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
AWAY = OperationError("the broker at https://broker.example can't be reached")


class World:
    """A keeper, what it asks and what it is told."""

    def __init__(self, store: CertificateStore | None = None) -> None:
        self.clock = ManualClock()
        self.source, self.news = FakeSource(self.clock), FakeNews()
        self.store = store or MemoryStore()
        self.keeping = self.make()
        self.heard: list[str] = []

    def make(self, **arguments: object) -> Keeping:
        return Keeping(
            self.source, self.news, self.store, profile="api", clock=self.clock, rng=random.Random(1), **arguments
        )

    @asynccontextmanager
    async def running(self, patience: timedelta = timedelta()) -> AsyncIterator[Keeping]:
        self.keeping.on_change(lambda issued: self.heard.append(issued.certificate.certificate_id))
        async with no_hang():
            await self.keeping.start(patience)
        try:
            yield self.keeping
        finally:
            await self.keeping.close()

    @property
    def current(self) -> Certificate:
        return self.keeping.current.certificate

    async def rests(self) -> None:
        """Wait until both of the keeper's tasks sleep."""
        await until(lambda: self.clock.sleepers >= 2, what="a keeper that has nothing to do")

    async def pass_time(self, span: timedelta, step: timedelta = timedelta(minutes=10)) -> None:
        """Let the clock go on, so that all that becomes due on the way is done when it is."""
        end = self.clock.monotonic() + span.total_seconds()
        while self.clock.monotonic() < end:
            await self.rests()
            self.clock.advance(step)
            for _ in range(20):
                await asyncio.sleep(0)
        await self.rests()


def news_of(certificate: Certificate, **changes: object) -> CertificateNews:
    return replace(
        CertificateNews(certificate.certificate_id, certificate.profile, renew_time=certificate.renew_time), **changes
    )


async def test_the_first_certificate() -> None:
    """Starting returns with a certificate of the profile's names, its key kept before it was asked for."""
    world = World()
    async with world.running():
        assert (world.current.certificate_id, world.current.dns_names) == ("c1", ("api.example",))
        assert world.source.wanted[0].replaces == ""
        assert world.keeping.next_renewal == world.current.renew_time
        await world.rests()


async def test_a_renewal_at_the_brokers_time() -> None:
    """Not a moment before; the new one has another key and replaces the old one."""
    world = World()
    async with world.running():
        await world.pass_time(RENEW_AFTER - 6 * HOUR, step=6 * HOUR)
        assert world.current.certificate_id == "c1"
        await until_in_time(world.clock, lambda: world.heard, step=timedelta(minutes=5))
    assert world.heard == ["c2"]
    first, second = world.source.wanted
    assert (second.replaces, second.public_key_sha256 != first.public_key_sha256) == ("c1", True)


async def test_asked_at_once_by_an_operator() -> None:
    """RequestRenewal reaches a keeper as news, and needs no time to pass, in the first tenth of the lifetime too."""
    world = World()
    async with world.running():
        await world.rests()
        world.news.tell(news_of(world.current, renew_time=world.clock.now(), renewal_request_id="r1"))
        async with no_hang():
            await until(lambda: world.heard == ["c2"])
        await world.rests()
        world.news.tell(world.news.known["c1"])  # of a certificate that isn't in use any more
        await world.pass_time(HOUR)
    assert world.heard == ["c2"]


async def test_a_renew_time_of_now_without_a_request_is_no_loop() -> None:
    """A broker that calls each new certificate due gets the next request in a tenth of the lifetime."""
    world = World()
    world.source.renew_after = -HOUR
    async with world.running():
        await world.pass_time(3 * DAY, step=HOUR)
        assert world.heard == []
        await world.pass_time(7 * DAY, step=HOUR)
        assert world.heard == ["c2"]


async def test_a_revoked_certificate() -> None:
    """It is replaced at once, by another key."""
    world = World()
    async with world.running():
        await world.rests()
        world.news.tell(news_of(world.current, revoke_time=world.clock.now()))
        async with no_hang():
            await until(lambda: world.heard == ["c2"])


async def test_news_that_came_before_the_certificate() -> None:
    """What the stream told of a certificate before its order's answer counts too."""
    world = World()
    world.news.known["c1"] = CertificateNews("c1", "api", revoke_time=world.clock.now())
    async with world.running(), no_hang():
        await until(lambda: world.heard == ["c2"])


async def test_other_names_in_the_policy() -> None:
    """They are asked for when the policy has changed; what was pending for the old ones is given up."""
    world = World()
    async with world.running():
        await world.rests()
        world.source.profiles = {"api": ("api.example", "www.example")}
        world.news.tell(AskAgain())
        await until_in_time(world.clock, lambda: world.heard)
        assert world.current.dns_names == ("api.example", "www.example")


async def test_without_news_the_broker_is_asked() -> None:
    """A broker of an older release: a revocation, or a time that has moved, is learnt within four hours."""
    world = World()
    world.news.live = False
    async with world.running():
        await world.rests()
        key = world.current.public_key_sha256
        world.source.issued[key] = replace(world.source.issued[key], revoke_time=world.clock.now())
        await world.pass_time(4 * HOUR)
        assert world.heard == ["c2"]


async def test_a_broker_that_is_away_for_a_day() -> None:
    """The certificate in use stays, tries get rare, and when the broker is back a new one is there within an hour."""
    world = World()
    async with world.running():
        await world.pass_time(RENEW_AFTER - 6 * HOUR, step=6 * HOUR)
        world.source.failure = AWAY
        asked = world.source.identities
        await world.pass_time(DAY + 6 * HOUR)
        assert (world.current.certificate_id, world.keeping.error) == ("c1", AWAY)
        assert 20 <= world.source.identities - asked <= 90
        world.source.failure = None
        await world.pass_time(HOUR)
        assert (world.current.certificate_id, world.keeping.error) == ("c2", None)


async def test_a_broker_that_is_back_is_asked_at_once() -> None:
    """The stream that comes back wakes a keeper that waits for its next try: it is asked within seconds."""
    world = World()
    async with world.running():
        await world.pass_time(RENEW_AFTER - 6 * HOUR, step=6 * HOUR)
        world.source.failure = AWAY
        await world.pass_time(DAY)
        world.source.failure = None
        world.news.tell(AskAgain())
        before = world.clock.now()
        await until_in_time(world.clock, lambda: world.heard, step=timedelta(seconds=1))
        assert world.clock.now() - before < timedelta(minutes=1)


async def test_a_broker_that_is_away_at_the_start(tmp_path: Path) -> None:
    """A certificate on disk that is valid is enough to start."""
    world = World(FolderStore(tmp_path / "tls", "api"))
    async with world.running():
        pass
    world.source.failure, world.keeping = AWAY, world.make()
    async with world.running() as keeping:
        assert keeping.current.certificate.certificate_id == "c1"
        assert keeping.current.private_key_pem


async def test_no_broker_and_nothing_on_disk() -> None:
    """Starting tries until its time is over, and then says what failed."""
    world = World()
    world.source.failure = AWAY
    starting = asyncio.create_task(world.keeping.start(timedelta(minutes=5)))
    await until_in_time(world.clock, starting.done, step=timedelta(seconds=5))
    with pytest.raises(OperationError, match="can't be reached"):
        await starting
    assert world.source.identities > 5


async def test_a_refusal_that_no_waiting_mends() -> None:
    """A profile that policy doesn't give ends the start at once."""
    world = World()
    world.source.profiles = {"web": ("web.example",)}
    with pytest.raises(RefusalError) as error:
        await world.keeping.start(DAY)
    assert error.value.reason is Reason.PROFILE_NOT_ALLOWED


async def test_the_brokers_word_on_when_to_come_back() -> None:
    """It is followed, but not for longer than a day."""
    world = World()
    async with world.running():
        await world.pass_time(RENEW_AFTER - 6 * HOUR, step=6 * HOUR)
        world.source.failure = RefusalError(Reason.ISSUER_RATE_LIMITED, "wait", retry_after=timedelta(days=300))
        await world.pass_time(7 * HOUR)
        tries = world.source.identities
        await world.pass_time(MOST_RETRY - 3 * HOUR, step=HOUR)
        assert world.source.identities <= tries + 10  # those of the poll
        world.source.failure = None
        await world.pass_time(6 * HOUR, step=HOUR)
        assert world.heard == ["c2"]


async def test_a_key_that_is_spent() -> None:
    """A request whose key was blocked meanwhile is made again with another key."""
    world = World()
    world.source.gate.clear()
    async with no_hang():
        starting = asyncio.create_task(world.keeping.start(timedelta()))
        await until(lambda: world.source.wanted)
        world.source.spent_keys.add(world.source.wanted[0].public_key_sha256)
        world.source.gate.set()
        await starting
    await world.keeping.close()
    assert len({each.public_key_sha256 for each in world.source.wanted}) == 2


async def test_what_was_pending_goes_on(tmp_path: Path) -> None:
    """After a process has died with its request under way the next one sends the same key: one certificate."""
    world = World(FolderStore(tmp_path / "tls", "api"))
    world.source.gate.clear()
    starting = asyncio.create_task(world.keeping.start(timedelta()))
    async with no_hang():
        await until(lambda: world.source.wanted)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    world.source.gate.set()
    world.keeping = world.make()
    async with world.running():
        pass
    first, second = world.source.wanted
    assert (first, len(world.source.issued)) == (second, 1)


async def test_a_callback_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, those after it are called, and the certificate is the new one."""
    world = World()

    async def fails(_: object) -> None:
        raise RuntimeError("a bug of the program")

    world.keeping.on_change(fails)
    async with world.running():
        world.keeping.renew()
        async with no_hang():
            await until(lambda: world.heard == ["c2"])
    assert [record.levelno for record in caplog.records if "callback" in record.message] == [logging.ERROR]


async def test_renew_by_hand() -> None:
    """`renew` needs no reason, and is one renewal."""
    world = World()
    async with world.running():
        world.keeping.renew()
        async with no_hang():
            await until(lambda: world.heard == ["c2"])
        await world.pass_time(DAY)
    assert world.heard == ["c2"]


async def test_the_wall_clock_is_set() -> None:
    """A clock that jumps past the due time is noticed within minutes of the machine's time."""
    world = World()
    async with world.running():
        await world.rests()
        world.clock.jump(RENEW_AFTER + HOUR)
        await world.pass_time(timedelta(minutes=20))
        assert world.heard == ["c2"]
