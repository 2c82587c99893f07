"""The hub that looks after all streams, and what one host's fault must not do to the others."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.fleet.messages import Goodbye, Hello, Outgoing, Welcome
from certplane.broker.fleet.model import HostRecord
from certplane.broker.fleet.plan_teller import PlanTeller
from certplane.broker.fleet.settings import AGE_JITTER, StreamSettings
from certplane.broker.renewal.model import HostActivation, RenewalPlan
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import (
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalCause,
    Report,
)
from tests.fakes.clock import ManualClock
from tests.support.callers import caller
from tests.support.hub import SECOND, Host, World, running, settled


@pytest.fixture
def world() -> World:
    return World()


def plan(host: str, minutes: int = 0) -> RenewalPlan:
    time = ManualClock().now() + timedelta(minutes=minutes)
    return RenewalPlan(f"certificate-of-{host}", host, time, RenewalCause.OPERATOR, "drill")


def break_telling(world: World, monkeypatch: pytest.MonkeyPatch, well: asyncio.Event) -> None:
    """Have telling hosts their plans fail, except while it is `well`."""

    async def run(_teller: PlanTeller) -> None:
        while well.is_set():
            await world.clock.sleep(SECOND)
        raise ValueError("a bug")

    monkeypatch.setattr(PlanTeller, "run", run)


async def test_a_fault_in_telling_does_not_end_what_looks_after_the_streams(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent host is still noticed."""
    break_telling(world, monkeypatch, asyncio.Event())
    async with running(world, "web1.example") as (host,):
        await world.pass_time(timedelta(minutes=4))
        assert isinstance(host.end, RefusalError)
        assert host.end.refusal.reason is Reason.STREAM_TIMED_OUT
    assert "stream supervision failed" in caplog.text


async def test_a_fault_that_comes_back_after_a_good_while_is_said_again(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that lasts is said once; one of next week is another one, and is tried again as soon."""
    said = "stream supervision failed"
    well = asyncio.Event()
    break_telling(world, monkeypatch, well)
    async with running(world, "web1.example"):
        await world.pass_time(timedelta(minutes=4))
        assert caplog.text.count(said) == 1
        well.set()
        await world.pass_time(timedelta(minutes=10))
        well.clear()
        await world.pass_time(timedelta(minutes=4))
    assert caplog.text.count(said) == 2


async def test_one_host_that_cannot_be_read_keeps_no_other_from_its_plans(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hosts that come together are read about together; with a fault of one, one by one, and later ones too."""

    async def plans_for(record: HostRecord, _in_force: object) -> list[RenewalPlan]:
        return [plan(record.host)]

    monkeypatch.setattr(world.hub._teller, "_plans_for", plans_for)
    world.store.unreadable = frozenset({"web2.example"})
    async with running(world, "web1.example", "web2.example", "web3.example") as (first, second, third):
        await world.pass_time(SECOND)
        assert [len(host.directives) for host in (first, second, third)] == [1, 0, 1]
        fourth = Host(world, "web4.example")
        await world.pass_time(2 * SECOND)
        assert len(fourth.directives) == 1
        fourth.task.cancel()
        await asyncio.wait({fourth.task})
    assert [record.levelno for record in caplog.records if "its renewal plans" in record.message] == [logging.ERROR]


async def test_a_report_that_brings_out_a_fault_ends_its_stream_alone(world: World) -> None:
    """Taken, never acknowledged, and no more is read from that host: it says it again on its next stream."""
    world.store.unwritable = frozenset({"web1.example"})
    async with running(world, "web1.example", "web2.example") as (first, second):
        await first.report(1)
        await second.report(1)
        assert isinstance(first.end, RefusalError)
        assert first.end.refusal.reason is Reason.INTERNAL
        assert [type(message) for message in first.told] == [Welcome]
        assert second.end is None
        assert second.stream is not None
        assert second.stream.session.durable == 1


async def test_nothing_is_said_before_the_welcome(world: World) -> None:
    """A policy that changes while hello waits to be durable is told after it: agents take nothing else for an answer."""
    world.store.held = asyncio.Event()
    async with running(world, "web1.example") as (host,):
        world.hashes = ("p1", "t0", "e0")
        await world.pass_time(3 * SECOND)
        assert host.told == []
        world.store.held.set()
        await settled()
        assert isinstance(host.told[0], Welcome)
        assert host.told[0].policy_hash == "p1"


@pytest.mark.parametrize(
    ("reason", "times"),
    [
        pytest.param(Reason.STORE_UNAVAILABLE, 2, id="the host's disk was full"),
        pytest.param(Reason.INTERNAL, 2, id="a fault of its agent"),
        pytest.param(Reason.CERTIFICATE_NOT_FOUND, 1, id="it has no such certificate"),
    ],
)
async def test_a_directive_that_could_not_be_kept_for_now_is_told_again(
    world: World, monkeypatch: pytest.MonkeyPatch, reason: Reason, times: int
) -> None:
    """Ten minutes later, on the same stream; what was refused for good is not."""

    async def plans_for(record: HostRecord, _in_force: object) -> list[RenewalPlan]:
        wanted = plan(record.host)
        refused: Any = world.hub._teller._refused.get(record.host, ())
        return [] if (wanted.certificate_id, wanted.renew_time) in refused else [wanted]

    monkeypatch.setattr(world.hub._teller, "_plans_for", plans_for)
    async with running(world, "web1.example") as (host,):
        await world.pass_time(SECOND)
        await host.answer(Refusal(reason, "not now"))
        assert len(host.directives) == 1
        for _ in range(11):
            assert host.stream is not None
            world.hub.heartbeat(host.stream, world.clock.now())
            await world.pass_time(timedelta(minutes=1))
        assert len(host.directives) == times


def holding(certificate_id: str, rollout_id: str = "r1") -> CertificateStatus:
    """What a host reports that holds a certificate."""
    issued = HeldCertificate("1f", certificate_id=certificate_id)
    return CertificateStatus("web", CertificateState.ISSUED, issued=issued, held_by_rollout_id=rollout_id)


def told_of(host: Host) -> list[str]:
    """The activations that a host was told, in order."""
    return [each.certificate_id for directive in host.directives for each in directive.activations]


async def test_a_released_certificate_is_told_until_its_host_shows_that_it_knows(world: World) -> None:
    """When the host is connected, when it comes again, and not after its report holds nothing any more."""
    async with running(world, "web1.example", "web2.example") as (first, second):
        await first.report(1, holding("c1"))
        await second.report(1, holding("c2"))
        await world.pass_time(3 * SECOND)
        assert told_of(first) == []
        world.activations.released = [HostActivation("web1.example", "c1", "r1")]
        world.hub.activations_wanted(["web1.example", "web9.example"])
        await world.pass_time(3 * SECOND)
        assert told_of(first) == ["c1"]
        await first.answer()
        assert told_of(second) == []
        again = Host(world, "web1.example")
        await world.pass_time(3 * SECOND)
        assert told_of(again) == ["c1"], "its report still holds it"
        await again.answer()
        await again.report(2, holding("c1", ""))
        world.hub.activations_wanted(["web1.example"])
        await world.pass_time(3 * SECOND)
        assert told_of(again) == ["c1"]
        again.task.cancel()
        await asyncio.wait({again.task})


async def test_a_certificate_that_was_released_before_its_host_had_it_is_told_once_it_has(world: World) -> None:
    """The report that it holds it and the release may cross, as where an aborted rollout's last order comes late."""
    world.activations.released = [HostActivation("web1.example", "c1", "r1", abandoned=True)]
    async with running(world, "web1.example") as (host,):
        world.hub.activations_wanted(["web1.example"])
        await world.pass_time(3 * SECOND)
        assert told_of(host) == []
        await host.report(1, holding("c1"))
        await world.pass_time(3 * SECOND)
        assert told_of(host) == ["c1"]
        assert host.directives[-1].activations[0].abandoned


async def test_hosts_that_hold_nothing_cost_no_question_about_it_but_when_they_come(world: World) -> None:
    """Ten thousand reports of other things are read by nobody."""
    async with running(world, "web1.example") as (host,):
        await world.pass_time(3 * SECOND)
        before = len(world.activations.reads)
        for number in range(1, 20):
            await host.report(number)
        await world.pass_time(3 * SECOND)
        assert len(world.activations.reads) == before


async def test_an_activation_that_could_not_be_kept_for_now_is_told_again(world: World) -> None:
    """The host's disk was full: after ten minutes, without anybody asking."""
    world.activations.released = [HostActivation("web1.example", "c1", "r1")]
    async with running(world, "web1.example") as (host,):
        await host.report(1, holding("c1"))
        await world.pass_time(3 * SECOND)
        await host.answer(Refusal(Reason.STORE_UNAVAILABLE, "disk full"))
        for _ in range(11):
            assert host.stream is not None
            world.hub.heartbeat(host.stream, world.clock.now())
            await world.pass_time(timedelta(minutes=1), timedelta(seconds=10))
        assert told_of(host) == ["c1", "c1"]


async def test_what_hosts_refuse_takes_no_more_room_with_each_change(world: World) -> None:
    """Of each certificate the last refusal is kept."""
    async with running(world, "web1.example") as (host,):
        await world.pass_time(SECOND)
        for minutes in range(5):
            world.hub.plans_changed([plan("web1.example", minutes)])
            await settled()
            await host.answer(Refusal(Reason.REQUEST_INVALID, "no"))
        assert len(host.directives) == 5
        assert len(world.hub._teller._refused["web1.example"]) == 1


async def test_what_a_host_refused_may_be_said_after_it_was_elsewhere(world: World) -> None:
    """It has heard another broker since, and may have taken it there; until then it isn't said again."""
    refused = plan("web1.example")
    async with running(world, "web1.example") as (host,):
        world.hub.plans_changed([refused])
        await settled()
        await host.answer(Refusal(Reason.REQUEST_INVALID, "no"))
        world.hub.plans_changed([refused])
        await settled()
        assert len(host.directives) == 1
        world.hub.was_elsewhere("web1.example")
        world.hub.plans_changed([refused])
        await settled()
        assert len(host.directives) == 2
        await host.answer(Refusal(Reason.REQUEST_INVALID, "no"))
        world.hub.may_have_been_elsewhere()
        world.hub.plans_changed([refused])
        await settled()
        assert len(host.directives) == 3


async def test_a_host_that_refuses_in_a_loop_fills_no_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The first are told with the host's reason; then one a minute, with how many there were."""
    async with running(world, "web1.example") as (host,):
        for minutes in range(100):
            world.hub.plans_changed([plan("web1.example", minutes)])
            await settled()
            await host.answer(Refusal(Reason.REQUEST_INVALID, "no"))
        await world.pass_time(timedelta(minutes=1))
        world.hub.plans_changed([plan("web1.example", 200)])
        await settled()
        await host.answer(Refusal(Reason.REQUEST_INVALID, "no"))
    lines = [record.fields for record in caplog.records if record.message == "a host has refused a directive"]  # type: ignore[attr-defined]
    assert len(lines) == 11
    assert lines[-1]["passed_over"] == 90


async def test_a_store_that_is_down_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Not for each host every five minutes; and again when it is down again."""
    names = [f"web{number}.example" for number in range(5)]

    def said() -> int:
        assert sum("could not read renewal plans" in record.message for record in caplog.records) <= 1
        return sum("could not record" in record.message for record in caplog.records)

    async def beat(hosts: list[Host], span: timedelta) -> None:
        for _ in range(span // timedelta(minutes=1)):
            for host in hosts:
                assert host.stream is not None
                world.hub.heartbeat(host.stream, world.clock.now())
            await world.pass_time(timedelta(minutes=1))

    async with running(world, *names) as hosts:
        world.stores.database.down = True
        await beat(hosts, timedelta(minutes=21))
        assert said() == 1
        world.stores.database.down = False
        await beat(hosts, timedelta(minutes=6))
        world.stores.database.down = True
        await beat(hosts, timedelta(minutes=6))
        assert said() == 2
        world.stores.database.down = False


Said = tuple[str, CertificateState, str]
FLOODS: dict[str, Callable[[int], Said]] = {
    "one outcome in turn with another": lambda n: (
        "web",
        CertificateState.SERVING if n % 2 else CertificateState.FAILED,
        "",
    ),
    "a serial number that nobody had before": lambda n: ("web", CertificateState.SERVING, f"{n:x}"),
    "a certificate of another name each time": lambda n: (f"web{n % 50}", CertificateState.FAILED, f"{n:x}"),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_reports_is_counted(world: World, name: str) -> None:
    """What a host reports in turn, with whatever in it, costs a bounded number of rows; all of it is in the counts."""
    names = ("web", *(f"web{n}" for n in range(50)))
    stream = world.hub.attach(caller(name="web1.example"), "r-1", _say_nothing)
    await world.hub.hello(stream, Hello(HostFacts("0.1.0"), "epoch-1", names, (), world.clock.now()))
    total = 12_000
    for number in range(total):
        certificate, state, serial = FLOODS[name](number)
        held = HeldCertificate(serial) if serial else None
        status = CertificateStatus(certificate, state, served=held, issued=held)
        if number % 50 == 0:
            world.clock.advance(SECOND)
            await settled()
        await world.hub.report(stream, Report(number + 1, status))
    await settled()
    world.hub.detach(stream)
    await settled()
    written = world.stores.database.events
    counted = sum(event.count for event in world.stores.database.counts.values())
    assert len(written) <= 5_020
    assert len(world.stores.database.counts) <= 200
    assert len(written) + counted == total


async def _say_nothing(_message: Outgoing) -> None:
    pass


AGE = timedelta(seconds=100)
"""Less than the silence after which a host is taken for gone."""


def goodbye_of(host: Host) -> Goodbye | None:
    return next((message for message in host.told if isinstance(message, Goodbye)), None)


async def test_streams_that_have_lasted_long_enough_end_one_by_one() -> None:
    """Each at a time of its own, with no time to stay away, and well: it is no refusal."""
    world = World(StreamSettings(age=AGE))
    async with running(world, *(f"web{number}.example" for number in range(20))) as hosts:
        await world.pass_time(AGE * (1 - AGE_JITTER) - SECOND)
        assert not any(goodbye_of(host) for host in hosts)
        ended = [0]
        while ended[-1] < len(hosts):
            await world.pass_time(SECOND)
            ended.append(sum(host.task.done() for host in hosts))
        assert len(ended) <= AGE_JITTER * AGE.total_seconds() + 4, "in all"
        assert max(later - earlier for earlier, later in itertools.pairwise(ended)) < 8, "not together"
        for host in hosts:
            said = goodbye_of(host)
            assert said is not None
            assert said.reconnect_delay == timedelta()
            assert host.end is None
        assert len(world.hub.registry) == 0


async def test_a_directive_is_answered_before_a_stream_ends_for_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer would be lost, and the same thing said again on the next stream."""
    world = World(StreamSettings(age=AGE))

    async def plans_for(record: HostRecord, _in_force: object) -> list[RenewalPlan]:
        return [plan(record.host)]

    monkeypatch.setattr(world.hub._teller, "_plans_for", plans_for)
    async with running(world, "web1.example") as (host,):
        await world.pass_time(AGE + 10 * SECOND)
        assert len(host.directives) == 1
        assert goodbye_of(host) is None
        await host.answer()
        await world.pass_time(2 * SECOND)
        assert goodbye_of(host) is not None


async def test_streams_without_an_age_go_on(world: World) -> None:
    """`server.stream_age: never`: as long as the connection does."""
    async with running(world, "web1.example") as (host,):
        await world.pass_time(AGE + 10 * SECOND)
        assert goodbye_of(host) is None
        assert not host.task.done()
