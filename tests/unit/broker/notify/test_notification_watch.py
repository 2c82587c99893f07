"""From what the fleet is to what receivers have: looks, the outbox, deliveries, and brokers that take over."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker import metrics
from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.broker.notify.delivery import KEEP, Delivery
from certplane.broker.notify.model import OwnTrouble
from certplane.broker.notify.planning import ROOM, SETTLED
from certplane.broker.notify.ports import NotDeliveredError
from certplane.broker.notify.settings import NotificationRule, RulesSettings, WeeklyTime
from certplane.broker.notify.text import body, document, subject
from certplane.broker.notify.watch import NotificationWatch
from certplane.broker.store.batch import store_unavailable
from certplane.errors import RefusalError
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import Health, HealthWord, Severity
from certplane.runtime.ids import TimeOrderedIds
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.fakes.notify import FakeNotifier
from tests.support.memory_store import MemoryStores
from tests.support.waiting import until

SOON = timedelta(seconds=15)
HOUR = timedelta(hours=1)
DNS, RELOAD = "DNS_UNAVAILABLE ns2", "RELOAD nginx.service"


class Fleet:
    """What of `FleetIndex` is looked at."""

    def __init__(self) -> None:
        self.hosts: dict[str, IndexedHost] = {}
        self.fault: RefusalError | None = None
        self.ready = False

    def put(self, host: str, health: str = "OK", cause: str = "", **more: Any) -> None:
        word = HealthWord(health)
        certificate = IndexedCertificate("web", "web", CertificateState.SERVING, health=word, cause=cause)
        self.hosts[host] = IndexedHost(host, host.partition(".")[0], certificates=(certificate,), **more)

    async def walk(self) -> AsyncIterator[IndexedHost]:
        for host in list(self.hosts.values()):
            yield host

    async def settled(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.ready = True


@dataclass
class World:
    """Brokers of one database with their fleet and its receivers."""

    rules: Mapping[str, RulesSettings] = field(default_factory=lambda: {"oncall": RulesSettings()})
    clock: ManualClock = field(default_factory=ManualClock)
    fleet: Fleet = field(default_factory=Fleet)
    meter: FakeMeter = field(default_factory=FakeMeter)
    receivers: dict[str, FakeNotifier] = field(default_factory=dict)
    own: list[OwnTrouble] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stores = MemoryStores.open(self.clock)
        self.receivers = {name: FakeNotifier() for name in self.rules}

    @property
    def outbox(self) -> Any:
        return self.stores.outbox

    @property
    def oncall(self) -> FakeNotifier:
        return self.receivers["oncall"]

    async def explain(self, host: str, certificate: str) -> Health | None:
        known = self.fleet.hosts.get(host)
        if known is None:
            return None
        (found,) = (each for each in known.certificates if each.name == certificate)
        return Health(found.health, f"{host}/{certificate} is ill\n", "help it")

    @asynccontextmanager
    async def broker(self, **rules: RulesSettings) -> AsyncIterator[None]:
        """One that has the role, for the length of the block."""
        notifiers: Mapping[str, RulesSettings] = rules or self.rules
        receivers = {name: self.receivers.setdefault(name, FakeNotifier()) for name in notifiers}
        rng = random.Random(1)
        delivery = Delivery(self.outbox, receivers, clock=self.clock, rng=rng, meter=self.meter)
        watch = NotificationWatch(
            index=self.fleet,  # type: ignore[arg-type] # no more of it is asked
            outbox=self.outbox,
            delivery=delivery,
            notifiers=notifiers,
            explain=self.explain,
            look_at_self=lambda: self.own,
            called="broker1",
            clock=self.clock,
            new_id=TimeOrderedIds(self.clock),
        )
        task = asyncio.create_task(watch.run())
        await self.rest(len(notifiers) + 1)
        try:
            yield
        finally:
            assert not task.done(), task
            task.cancel()
            await asyncio.wait([task])

    async def rest(self, sleepers: int | None = None) -> None:
        """Until all that is to be done now is done: the look and each delivery sleep, and go on sleeping."""
        wanted = sleepers or len(self.receivers) + 1
        calm = 0
        while calm < 20:
            await asyncio.sleep(0)
            calm = calm + 1 if self.clock.sleepers == wanted else 0

    async def pass_time(self, span: timedelta, step: timedelta = SOON) -> None:
        while span > timedelta():
            self.clock.advance(min(step, span))
            span -= step
            await self.rest()


async def test_a_trouble_from_its_beginning_to_its_end() -> None:
    """Opened, worse, still, over: with words of the one that is worst off, and nothing in between."""
    world = World()
    world.fleet.put("web1.example.test")
    world.fleet.put("web2.example.test", connected=True)
    world.fleet.put("api", kind=IdentityKind.SERVICE)
    async with world.broker():
        world.fleet.put("web1.example.test", "FAILING", DNS)
        await world.pass_time(timedelta(minutes=3))
        world.fleet.put("web1.example.test", "EXPIRED", DNS)
        await world.pass_time(timedelta(hours=25), HOUR / 4)
        world.fleet.put("web1.example.test")
        await world.pass_time(SETTLED + 2 * SOON)
        await world.pass_time(timedelta(hours=25), HOUR)
    assert world.oncall.kinds == ["opened", "worse", "still", "over"]
    opened, worse, _, over = world.oncall.messages
    (trouble,) = opened.troubles
    assert (trouble.word, trouble.hosts, trouble.cause) == ("FAILING", ("web1",), DNS)
    assert (trouble.text, trouble.remedy) == ("web1.example.test/web is ill ", "help it")
    assert (opened.fleet.host_count, opened.fleet.connected_count) == (2, 1)
    assert {each.word: each.count for each in opened.fleet.counts} == {"FAILING": 1, "OK": 2}
    assert worse.troubles[0].word is HealthWord.EXPIRED
    assert over.troubles[0].cause == DNS
    assert (await world.outbox.standing()).told == []
    assert world.meter.total(metrics.NOTIFICATIONS, notifier="oncall", result="delivered") == 4


async def test_each_notifier_is_told_what_its_rules_pick() -> None:
    """One hears of what is critical, another one of all."""
    critical = RulesSettings(rules=(NotificationRule(severity=Severity.CRITICAL),))
    world = World({"oncall": critical, "post": RulesSettings()})
    world.fleet.put("web1", "FAILING", RELOAD)
    world.fleet.put("web2", "EXPIRED", DNS)
    async with world.broker():
        await world.pass_time(timedelta(minutes=3))
    told = {name: {each.troubles[0].cause for each in got.messages} for name, got in world.receivers.items()}
    assert told == {"oncall": {DNS}, "post": {DNS, RELOAD}}


async def test_a_host_that_is_gone_meanwhile_is_told_without_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than not at all."""
    world = World()
    world.fleet.put("web1", "UNHEARD", "UNHEARD")

    async def gone(_host: str, _certificate: str) -> None:
        return None

    monkeypatch.setattr(world, "explain", gone)
    async with world.broker():
        await world.pass_time(timedelta(minutes=3))
    (trouble,) = world.oncall.messages[0].troubles
    assert (trouble.word, trouble.text, trouble.hosts) == ("UNHEARD", "", ("web1",))


async def test_what_is_of_the_fleet_as_a_whole_is_told_once() -> None:
    """By a cause without a broker's name: another broker that takes the role goes on with it."""
    world = World({"oncall": RulesSettings()})
    incident = OwnTrouble("INCIDENT acme-20260319", Severity.WARNING, "acme wants 3 replaced", "look", of_fleet=True)
    world.own = [incident]
    for _ in range(2):
        async with world.broker():
            await world.pass_time(timedelta(minutes=5))
    (opened,) = world.oncall.messages
    assert subject(opened) == "[certplane] WARNING: FLEET INCIDENT acme-20260319: acme wants 3 replaced"
    (trouble,) = document(opened)["troubles"]
    assert "health" not in trouble
    assert "certificate" not in body(opened).partition("The fleet now")[0]


async def test_what_is_wrong_with_the_broker_itself_is_told() -> None:
    """Before it hurts a certificate: opened, worse when it is, over; not to those who hear of a profile alone."""
    web = RulesSettings(rules=(NotificationRule(profiles=("web",)), NotificationRule(severity=Severity.CRITICAL)))
    only_web = RulesSettings(rules=(NotificationRule(profiles=("web",)), NotificationRule(life_left=10)))
    world = World({"oncall": RulesSettings(), "night": web, "web": only_web})
    ends = OwnTrouble("CERTIFICATE_ENDS", Severity.WARNING, "it ends at noon", "renew it")
    async with world.broker():
        world.own = [ends]
        await world.pass_time(timedelta(minutes=5))
        world.own = [replace(ends, severity=Severity.CRITICAL, text="it ended at noon")]
        await world.pass_time(timedelta(minutes=5))
        world.own = []
        await world.pass_time(SETTLED + 2 * SOON)
    kinds = {name: receiver.kinds for name, receiver in world.receivers.items()}
    assert kinds == {"oncall": ["opened", "worse", "over"], "night": ["opened", "over"], "web": []}
    opened, worse, over = world.oncall.messages
    cause = "BROKER CERTIFICATE_ENDS broker1"
    assert subject(opened) == f"[certplane] WARNING: {cause}: it ends at noon"
    assert subject(worse) == f"[certplane] CRITICAL: worse: {cause}: it ended at noon"
    assert "What to do: renew it" in body(opened)
    assert "certificate" not in body(over).partition("The fleet now")[0].replace(cause, "")
    (trouble,) = document(worse)["troubles"]
    assert "health" not in trouble
    assert (trouble["cause"], trouble["reason"], trouble["remedy"]) == (cause, "it ended at noon", "renew it")


async def test_another_broker_goes_on_where_one_has_ended() -> None:
    """It tells nothing twice, and the end of what the other one told."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(timedelta(minutes=3))
    async with world.broker():
        await world.pass_time(timedelta(minutes=10))
        world.fleet.put("web1")
        await world.pass_time(SETTLED + 2 * SOON)
    assert world.oncall.kinds == ["opened", "over"]


async def test_two_that_take_themselves_for_the_one_tell_once() -> None:
    """For the second or two that it may take until one notices: what one has recorded the other one doesn't."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        sleepers = world.clock.sleepers
        other = world.broker()
        rest = world.rest
        world.rest = lambda _=None: rest(2 * sleepers)  # type: ignore[assignment, method-assign]
        async with other:
            await world.pass_time(timedelta(minutes=5))
        world.rest = rest  # type: ignore[method-assign]
    assert world.oncall.kinds == ["opened"]


async def test_a_receiver_that_is_away_for_a_day_gets_what_was_said_in_order() -> None:
    """Attempts get rarer; nothing is lost, and nothing else comes but what was said then."""
    world = World()
    world.oncall.away()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(timedelta(hours=1), timedelta(minutes=1))
        world.fleet.put("web1")
        await world.pass_time(timedelta(hours=23), timedelta(minutes=5))
        assert world.meter.levels[metrics.NOTIFICATIONS_WAITING] == 2
        assert world.oncall.faults.count("deliver") < 24 * 12
        world.oncall.faults.heal()
        await world.pass_time(HOUR, timedelta(minutes=5))
    assert world.oncall.kinds == ["opened", "over"]
    (opened, over) = world.oncall.messages
    assert over.create_time - opened.create_time > timedelta(minutes=50)


async def test_what_nobody_takes_for_three_days_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """With a line at level ERROR that says why; the outbox doesn't grow for good."""
    world = World({"oncall": RulesSettings(repeat=timedelta())})
    world.oncall.away("it answered with status 500")
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(KEEP + 2 * HOUR, HOUR)
    assert (await world.outbox.standing()).waiting == {}
    (line,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert "could not be delivered for 3 days: it answered with status 500" in line.getMessage()


async def test_one_message_that_is_refused_holds_up_no_other() -> None:
    """It is tried again by itself."""
    world = World()
    world.oncall.faults.fail("deliver", NotDeliveredError("no such field", refused=True))
    world.fleet.put("web1", "FAILING", DNS)
    world.fleet.put("web2", "FAILING", RELOAD)
    async with world.broker():
        await world.pass_time(HOUR, timedelta(minutes=1))
    assert [message.troubles[0].cause for message in world.oncall.messages] == [RELOAD, DNS]


async def test_a_bug_of_one_receiver_ends_nothing() -> None:
    """It is logged, and that message is tried again later."""
    world = World()
    world.oncall.faults.fail("deliver", ZeroDivisionError())
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(HOUR, timedelta(minutes=1))
    assert world.oncall.kinds == ["opened"]


async def test_an_answer_that_was_noted_is_never_sent_again() -> None:
    """By whatever broker; one that was lost on the way comes again, with its id."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    world.oncall.faults.fail_after("deliver", NotDeliveredError("no answer"))
    async with world.broker():
        await world.pass_time(HOUR, timedelta(minutes=1))
    async with world.broker():
        await world.pass_time(HOUR, timedelta(minutes=1))
    first, second = world.oncall.messages
    assert first == second


async def test_a_broker_that_is_killed_in_an_attempt_leaves_it_to_the_next() -> None:
    """Which begins it when the time of that attempt is over, and not before: the first one may yet be under way."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS, unheard_since=None)
    gate = world.oncall.faults.hold("deliver")
    async with world.broker():
        world.clock.advance(timedelta(minutes=2))
        await until(lambda: world.oncall.faults.count("deliver") or world.clock.advance(SOON))
    gate.set()
    world.oncall.faults.heal()
    async with world.broker():
        assert world.oncall.kinds == []
        await world.pass_time(timedelta(minutes=3))
    assert world.oncall.kinds == ["opened"]


async def test_before_the_fleet_is_known_nothing_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Else all that was told would be over; said once in the log."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(timedelta(minutes=3))
    world.fleet.ready, world.fleet.fault = False, store_unavailable()
    world.fleet.put("web1")
    async with world.broker():
        await world.pass_time(timedelta(minutes=10))
        world.fleet.put("web1", "FAILING", DNS)
        world.fleet.fault = None
        await world.pass_time(timedelta(minutes=10))
    assert world.oncall.kinds == ["opened"]
    assert caplog.text.count("what to notify of could not be told; will retry") == 1


async def test_what_cant_be_recorded_is_not_told() -> None:
    """The database is away while a trouble begins; it is told when that is back."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        world.outbox._faults.fail_always("record", store_unavailable())
        await world.pass_time(timedelta(minutes=5))
        assert world.oncall.messages == []
        world.outbox._faults.heal()
        await world.pass_time(timedelta(minutes=1))
    assert world.oncall.kinds == ["opened"]


async def test_what_cant_be_read_of_the_outbox_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A row of a newer release, say: it is tried again, said once, and the look goes on."""
    world = World()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        world.outbox._faults.fail_always("waiting", ValueError("a kind of a newer release"))
        await world.pass_time(timedelta(minutes=5))
        assert world.oncall.messages == []
        world.outbox._faults.heal()
        await world.pass_time(timedelta(minutes=15))
    assert world.oncall.kinds == ["opened"]
    assert caplog.text.count("taking notifications of oncall from the outbox failed") == 1


async def test_a_digest_comes_each_week() -> None:
    """The first one at the next moment; one that was missed comes when a broker is there again, once."""
    world = World({"post": RulesSettings(rules=(), digest=WeeklyTime(0, 8))})  # it is Monday, noon
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(timedelta(days=6), HOUR)
        assert world.receivers["post"].kinds == []
        await world.pass_time(timedelta(days=1), HOUR)
        assert world.receivers["post"].kinds == ["digest"]
    world.clock.advance(timedelta(days=15))
    async with world.broker():
        await world.pass_time(HOUR)
    first, second = world.receivers["post"].messages
    assert second.create_time - first.create_time > timedelta(days=15)
    assert [trouble.cause for trouble in second.troubles] == [DNS]


async def test_what_was_for_a_notifier_that_is_gone_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """When a broker without it looks."""
    world = World({"oncall": RulesSettings(), "post": RulesSettings()})
    world.receivers["post"].away()
    world.fleet.put("web1", "FAILING", DNS)
    async with world.broker():
        await world.pass_time(timedelta(minutes=3))
    del world.receivers["post"]
    async with world.broker(oncall=RulesSettings()):
        await world.pass_time(SOON)
    standing = await world.outbox.standing()
    assert (standing.waiting, [told.notifier for told in standing.told]) == ({}, ["oncall"])
    assert "dropped notifications of post, which is not configured any more" in caplog.text


async def test_a_receiver_that_is_away_is_told_no_more_than_there_is_room_for() -> None:
    """Then nothing is added until there is, and what is said then is what is so then."""
    world = World({"oncall": RulesSettings(after=timedelta(), repeat=timedelta(), over=False)})
    world.oncall.away()
    async with world.broker():
        for number in range(ROOM + 50):
            world.fleet.put(f"web{number}", "FAILING", f"RELOAD {number}")
            await world.pass_time(SOON)
        assert (await world.outbox.standing()).waiting == {"oncall": ROOM}
        world.fleet.put(f"web{ROOM + 49}")
        world.oncall.faults.heal()
        await world.pass_time(HOUR, timedelta(minutes=1))
    assert len(world.oncall.messages) == ROOM + 1
    assert world.oncall.messages[-1].trouble_count == 49
    assert replace(world.oncall.messages[-1], troubles=()).kind == "opened"
