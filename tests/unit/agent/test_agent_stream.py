"""The agent and its broker, as they speak over a stream: reports in order, and renewals when the broker wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from certplane.agent.link.state import LinkState
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.fleet_report.model import CertificateState
from certplane.rpc.status import refusal_from_status
from certplane.runtime.files import temporary_name
from certplane.v1 import renewal_pb2 as pb
from tests.fakes.clock import ManualClock
from tests.support.agent_world import AgentWorld
from tests.support.renewal_server import RenewalServer
from tests.support.streaming_agent import agent_of, broker, running
from tests.support.waiting import until

HOUR = timedelta(hours=1)
State = pb.CertificateStatus.State


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    made = AgentWorld(tmp_path, [{"name": "web"}, {"name": "api"}])
    yield made
    made.close()


def states(server: RenewalServer, name: str) -> list[str]:
    return [State.Name(each.state).removeprefix("STATE_") for each in server.taken if each.name == name]


def installed(server: RenewalServer, name: str) -> int:
    """The version that the broker knows to be in use, once all is well; 0 before."""
    last = next((each for each in reversed(server.taken) if each.name == name), None)
    return last.installed.version if last is not None and last.state == State.STATE_WAITING else 0


def renewal(
    certificate_id: str, when: object, cause: pb.Renewal.Cause.ValueType = pb.Renewal.CAUSE_OPERATOR
) -> pb.Renewal:
    message = pb.Renewal(certificate_id=certificate_id, cause=cause, reason="keys leaked")
    message.renew_time.FromDatetime(when)  # type: ignore[arg-type] # a datetime
    return message


async def certificate_id(world: AgentWorld, name: str) -> str:
    return (await world.versions(name))[-1].certificate_id


async def test_a_renewal_is_reported_step_by_step(world: AgentWorld) -> None:
    """Each state in its order, the last with what is installed; nothing twice, whatever was sent again."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await until(lambda: installed(server, "web") == 1)
        assert states(server, "web") == ["ABSENT", "DUE", "REQUESTING", "ISSUED", "INSTALLING", "RELOADING", "WAITING"]
        last = [each for each in server.taken if each.name == "web"][-1]
        assert (last.profile, list(last.dns_names)) == ("web", ["web.example"])
        assert last.installed.certificate_id == last.issued.certificate_id == await certificate_id(world, "web")
        assert last.renew_time.ToDatetime(tzinfo=UTC) > world.clock.now()
        assert sorted(server.last.hello.certificate_names) == ["api", "identity", "web"]
        await until(lambda: bool(states(server, "identity")))


async def test_renew_now_renews_at_once_and_once(world: AgentWorld) -> None:
    """An operator's word wakes the one certificate, however fresh it is, and says why; the next one isn't meant."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await until(lambda: installed(server, "web") == installed(server, "api") == 1)
        server.last.direct("n1", renewal(await certificate_id(world, "web"), world.clock.now()))
        await until(lambda: bool(server.last.results))
        assert not server.last.results[0].HasField("error")
        await until(lambda: installed(server, "web") == 2)
        due = [each for each in server.taken if each.name == "web" and each.state == State.STATE_DUE][-1]
        assert due.renew_reason == "an operator asked: keys leaked"
        await asyncio.sleep(0.1)
        assert installed(server, "web") == 2
        assert installed(server, "api") == 1


async def test_a_later_time_is_kept_over_a_restart(world: AgentWorld) -> None:
    """A directive is on disk before it is acknowledged, and the next program plans by it."""
    await world.enroll()
    async with broker(world) as server:
        async with running(world, server):
            await until(lambda: installed(server, "web") == 1)
            when = world.clock.now() + 5 * HOUR
            server.last.direct("n1", renewal(await certificate_id(world, "web"), when, pb.Renewal.CAUSE_ISSUER))
            await until(lambda: bool(server.last.results))
        world.clock.advance(4 * HOUR)
        async with agent_of(world, server) as agent:
            assert (await world.run_once(agent))["web"].renew_time == when
        world.clock.advance(HOUR)
        async with agent_of(world, server) as agent:
            await world.run_once(agent)
        assert len(await world.versions("web")) == 2


async def test_a_certificate_of_another_host_is_refused(world: AgentWorld) -> None:
    """The directive's other half is taken over."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await until(lambda: installed(server, "web") == 1)
        now = world.clock.now()
        server.last.direct("n1", renewal("certificate-99", now), renewal(await certificate_id(world, "web"), now))
        await until(lambda: bool(server.last.results))
        refusal = refusal_from_status(server.last.results[0].error)
        assert refusal is not None
        assert refusal.reason is Reason.CERTIFICATE_NOT_FOUND
        assert "certificate-99" in refusal.message
        await until(lambda: installed(server, "web") == 2)


async def test_a_certificate_that_was_replaced_meanwhile_is_no_error(world: AgentWorld) -> None:
    """Host and broker had crossed: nothing is renewed twice."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await until(lambda: installed(server, "web") == 1)
        old = await certificate_id(world, "web")
        server.last.direct("n1", renewal(old, world.clock.now()))
        await until(lambda: installed(server, "web") == 2)
        server.last.direct("n2", renewal(old, world.clock.now()))
        await until(lambda: len(server.last.results) == 2)
        assert not server.last.results[1].HasField("error")
        await asyncio.sleep(0.1)
        assert len(await world.versions("web")) == 2


@pytest.mark.parametrize(("cause", "most"), [("OPERATOR", 3), ("ISSUER", 3), ("REVOKED", 10)])
async def test_a_broker_that_wants_a_renewal_again_and_again_has_a_few(
    world: AgentWorld, cause: str, most: int
) -> None:
    """Each is an order and a reload of a service: what it wants beyond a handful in an hour waits."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        for count in range(1, most + 2):
            await until(lambda count=count: installed(server, "web") == count)  # type: ignore[misc] # bound now
            newest = await certificate_id(world, "web")
            directive = pb.Renewal(certificate_id=newest, cause=pb.Renewal.Cause.Value(f"CAUSE_{cause}"))
            directive.renew_time.FromDatetime(world.clock.now())
            server.last.direct(f"n{count}", directive)
            await until(lambda count=count: len(server.last.results) == count)  # type: ignore[misc] # bound now
        issued = len(world.broker.issued)
        await asyncio.sleep(0.2)
        assert len(world.broker.issued) == issued
        assert (await world.versions("web"))[-1].number == most + 1
        for _ in range(5):
            world.clock.advance(timedelta(minutes=15))
            await asyncio.sleep(0.02)
        await until(lambda: world.host.certificates["web"].versions.versions()[-1].number == most + 2)


async def test_another_policy_lets_the_refused_try_again(world: AgentWorld) -> None:
    """Who was refused by the one before asks at once, not after its own waiting time."""
    world.broker.profiles = ()
    await world.enroll()
    world.host.link_file.save(LinkState(policy_hash="bb" * 32))  # the one that it is refused under
    async with broker(world) as server, running(world, server):
        await until(lambda: states(server, "web")[-1:] == ["FAILED"] and states(server, "api")[-1:] == ["FAILED"])
        world.broker.profiles = ("web",)
        server.last.direct("n1", policy_hash="aa" * 32)
        await until(lambda: installed(server, "web") == installed(server, "api") == 1)


@pytest.mark.parametrize(
    ("error", "renewed"),
    [
        pytest.param(OperationError("the broker can't be reached: Connection refused"), True, id="was not there"),
        pytest.param(RefusalError(Reason.ISSUER_UNAVAILABLE, "no CA answers"), False, id="said no"),
    ],
)
async def test_a_broker_that_is_there_again_is_asked_at_once(
    world: AgentWorld, error: CertplaneError, renewed: bool
) -> None:
    """Who couldn't reach it doesn't wait out its own patience; who was refused does."""
    await world.enroll()
    world.broker.errors = [error] * 4  # both words about the identity, and both requests
    once = world.agent()
    await once.run_once()
    await once.close()
    assert (await world.status("web")).state is CertificateState.FAILED
    async with broker(world) as server, running(world, server):
        await until(lambda: bool(server.streams) and bool(server.last.reports))
        if renewed:
            await until(lambda: installed(server, "web") == installed(server, "api") == 1)
        else:
            await asyncio.sleep(0.2)
            assert (await world.status("web")).failures == 1


async def test_what_a_single_run_does_is_told(world: AgentWorld) -> None:
    """A timer's agent reports too, and hears what the next run is to do."""
    await world.enroll()
    async with broker(world) as server:
        async with agent_of(world, server) as agent:
            await world.run_once(agent)
        assert states(server, "web")[-1] == "WAITING"
        assert world.host.reports.unacknowledged == 0


async def test_without_a_broker_reports_wait_on_disk(world: AgentWorld) -> None:
    """Certificates keep their own schedule, and the next stream tells all that matters."""
    await world.enroll()
    await world.agent().run_once()
    async with broker(world) as server:
        async with running(world, server):
            await until(lambda: bool(states(server, "api")) and states(server, "web")[-1:] == ["WAITING"])
        assert states(server, "web") == ["ABSENT", "DUE", "REQUESTING", "ISSUED", "INSTALLING", "RELOADING", "WAITING"]
        assert (await world.status("web")).state is CertificateState.WAITING


async def test_a_directive_that_cannot_be_kept_is_refused(world: AgentWorld) -> None:
    """A disk that refuses: nothing is acknowledged that a restart would forget."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await until(lambda: installed(server, "web") == 1)
        (world.folder / "state" / "certificates" / "web" / temporary_name("directive.json")).mkdir()
        server.last.direct("n1", renewal(await certificate_id(world, "web"), world.clock.now()))
        await until(lambda: bool(server.last.results))
        refusal = refusal_from_status(server.last.results[0].error)
        assert refusal is not None
        assert refusal.reason is Reason.STORE_UNAVAILABLE


async def test_a_clock_that_is_wrong_is_said(world: AgentWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The broker's time is measured by, shown, and worth a warning beyond half a minute."""
    await world.enroll()
    async with broker(world) as server:
        server.clock = ManualClock(world.clock.now() - timedelta(minutes=5))
        async with running(world, server) as agent:
            await until(lambda: agent.skew.excessive)
            assert "300 s apart" in caplog.text
        assert world.host.link_file.load().clock_skew == timedelta(minutes=5)
