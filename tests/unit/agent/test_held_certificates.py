"""Certificates that a rollout holds back, from the broker's word to the service, on a real disk and a real stream."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent import lineage, request
from certplane.agent.control import Outcome, ask
from certplane.agent.install import steps
from certplane.agent.keystore import pending
from certplane.agent.model import Activation, DirectedRenewal
from certplane.errors import Reason
from certplane.fleet_report.model import ROLLOUT_FEATURE, CertificateState, RenewalCause
from certplane.rpc.status import refusal_from_status
from certplane.runtime.files import temporary_name
from certplane.v1 import renewal_pb2 as pb
from tests.support.agent_world import AgentWorld
from tests.support.renewal_server import RenewalServer
from tests.support.streaming_agent import agent_of, broker, held_renewal, in_use, last_report, running
from tests.support.waiting import until

DAY = timedelta(days=1)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    made = AgentWorld(tmp_path, [{"name": "web"}, {"name": "api"}])
    yield made
    made.close()


async def hold(world: AgentWorld, server: RenewalServer, *, new_key: bool = False) -> str:
    """Have `web` renewed and held by `rollout-1` for two days; the id of what is held."""
    await until(lambda: in_use(server, "web") == 1 and in_use(server, "api") == 1)
    server.last.direct("hold", await held_renewal(world, "web", new_key=new_key))
    await until(lambda: last_report(server, "web").held_by_rollout_id == "rollout-1")
    await until(lambda: last_report(server, "web").state == pb.CertificateStatus.STATE_ISSUED)
    return last_report(server, "web").issued.certificate_id


def release(server: RenewalServer, nonce: str, certificate_id: str, *, abandoned: bool = False) -> None:
    activation = pb.Activation(certificate_id=certificate_id, rollout_id="rollout-1", abandoned=abandoned)
    server.last.direct(nonce, activations=[activation])


async def answered(server: RenewalServer, nonce: str) -> pb.StreamRenewalStatusRequest.DirectiveResult:
    await until(lambda: any(each.nonce == nonce for each in server.last.results), what=f"the answer to {nonce}")
    return next(each for each in server.last.results if each.nonce == nonce)


async def test_a_held_certificate_is_used_when_it_is_released(world: AgentWorld) -> None:
    """On disk at once, in use when the broker says so; each certificate for itself, and the report says all of it."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        name = await hold(world, server)
        assert ROLLOUT_FEATURE in server.last.hello.features
        report = last_report(server, "web")
        assert (report.installed.version, report.issued.version) == (1, 2)
        by = report.activate_time.ToDatetime(tzinfo=world.clock.now().tzinfo)
        assert by == world.clock.now() + 2 * DAY
        server.last.direct("api", await held_renewal(world, "api"))
        await until(lambda: last_report(server, "api").held_by_rollout_id == "rollout-1")
        release(server, "n1", name)
        assert not (await answered(server, "n1")).HasField("error")
        await until(lambda: in_use(server, "web") == 2)
        assert last_report(server, "web").held_by_rollout_id == ""
        assert in_use(server, "api") == 0
        assert last_report(server, "api").installed.version == 1
        release(server, "n2", name)
        await answered(server, "n2")
        assert len(await world.versions("web")) == 2


@pytest.mark.parametrize("cause", [pb.Renewal.CAUSE_OPERATOR, pb.Renewal.CAUSE_ISSUER, pb.Renewal.CAUSE_REVOKED])
async def test_what_replaces_a_held_certificate_is_held_too(world: AgentWorld, cause: pb.Renewal.Cause) -> None:
    """Renewed before its rollout has let it be used, whoever wants that: the release of the one before counts for it."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        name = await hold(world, server)
        again = pb.Renewal(certificate_id=name, cause=cause, reason="once more")
        again.renew_time.FromDatetime(world.clock.now())
        server.last.direct("again", again)
        await until(lambda: last_report(server, "web").issued.version == 3)
        await until(lambda: last_report(server, "web").state == pb.CertificateStatus.STATE_ISSUED)
        report = last_report(server, "web")
        assert (report.installed.version, report.held_by_rollout_id) == (1, "rollout-1")
        release(server, "n1", name)
        await until(lambda: in_use(server, "web") == 3)


async def test_other_names_are_used_at_once_whatever_holds_the_ones_before(world: AgentWorld) -> None:
    """Whoever keeps the host wants them, and the rollout knows nothing of them."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await hold(world, server)
    web = world.host.certificates["web"]
    (held,) = (each for each in await world.versions("web") if each.hold is not None)
    assert web._hold_after(held.certificate_id) == replace(held.hold, named_as=held.certificate_id)
    web.spec = replace(web.spec, dns_names=("other.example",))
    assert web._hold_after(held.certificate_id) is None


async def test_a_held_certificate_is_used_by_itself_in_time(world: AgentWorld) -> None:
    """The broker has gone: what was issued is used when its time comes, also by an agent that was started since."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await hold(world, server)
    agent = world.agent()
    world.clock.advance(2 * DAY - timedelta(minutes=1))
    await agent.run_once()
    assert (await world.status("web")).held_by_rollout_id == "rollout-1"
    world.clock.advance(timedelta(minutes=2))
    await agent.run_once()
    await agent.close()
    assert (await world.status("web")).confirmed_version == 2


async def test_a_release_is_on_disk_before_it_is_answered(world: AgentWorld) -> None:
    """A disk that refuses gets no thanks; what was answered outlives the agent."""
    await world.enroll()
    web = world.folder / "state" / "certificates" / "web"
    async with broker(world) as server, running(world, server):
        name = await hold(world, server)
        (web / temporary_name("activation.json")).mkdir()
        release(server, "n1", name)
        refusal = refusal_from_status((await answered(server, "n1")).error)
        assert refusal is not None
        assert refusal.reason is Reason.STORE_UNAVAILABLE
        assert last_report(server, "web").held_by_rollout_id == "rollout-1"
        (web / temporary_name("activation.json")).rmdir()
        held = world.host.certificates["web"]
        held.take_activations([Activation(name, "rollout-1")], world.clock.now())  # an agent that was killed then
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    assert (await world.status("web")).confirmed_version == 2


async def test_an_aborted_rollout_s_certificate_waits_for_its_predecessor(world: AgentWorld) -> None:
    """It is used when that one is due by the host's own rule; nobody holds it any more."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        name = await hold(world, server)
        release(server, "n1", name, abandoned=True)
        await answered(server, "n1")
        await until(lambda: last_report(server, "web").held_by_rollout_id == "")
    status = await world.status("web")
    assert status.state is CertificateState.ISSUED
    assert status.activate_after is not None
    assert status.activate_after > world.clock.now() + 20 * DAY


async def test_a_release_that_comes_before_its_certificate_is_kept(world: AgentWorld) -> None:
    """The broker has the certificate before its host has; a release of what never comes does nothing."""
    await world.enroll()
    world.broker.stall = asyncio.Event()
    async with broker(world) as server:
        world.broker.stall.set()
        async with running(world, server):
            await until(lambda: in_use(server, "web") == 1 and in_use(server, "api") == 1)
            world.broker.stall = asyncio.Event()
            world.broker.states = ["PENDING"]
            server.last.direct("n1", await held_renewal(world, "web"))
            await until(lambda: last_report(server, "web").state == pb.CertificateStatus.STATE_REQUESTING)
            coming = f"certificate-{len(world.broker.issued) + 1}"
            release(server, "n2", "certificate-nobody's")
            release(server, "n3", coming)
            await answered(server, "n3")
            world.broker.stall.set()
            await until(lambda: in_use(server, "web") == 2)
            assert last_report(server, "web").installed.certificate_id == coming


async def test_what_is_on_its_way_when_a_rollout_ends_is_held_on(world: AgentWorld) -> None:
    """Its certificate is planned by its lifetime again while the new one is ordered: nobody has let that activate."""
    await world.enroll()
    world.broker.stall = asyncio.Event()
    async with broker(world) as server:
        world.broker.stall.set()
        async with running(world, server):
            await until(lambda: in_use(server, "web") == 1 and in_use(server, "api") == 1)
            world.broker.stall = asyncio.Event()
            world.broker.states = ["PENDING"]
            held = await held_renewal(world, "web")
            server.last.direct("n1", held)
            await until(lambda: last_report(server, "web").state == pb.CertificateStatus.STATE_REQUESTING)
            as_before = pb.Renewal(certificate_id=held.certificate_id, cause=pb.Renewal.CAUSE_LIFETIME)
            as_before.renew_time.FromDatetime(world.clock.now() + 30 * DAY)
            for nonce in ("n2", "n3"):
                server.last.direct(nonce, as_before)
                assert not (await answered(server, nonce)).HasField("error")
            world.broker.stall.set()
            await until(lambda: last_report(server, "web").issued.version == 2)
            late = int((world.clock.now() + 20 * DAY).timestamp())
            await until(lambda: last_report(server, "web").activate_time.seconds > late, what="the plan that follows")
    status = await world.status("web")
    assert (status.state, status.confirmed_version, status.held_by_rollout_id) == (CertificateState.ISSUED, 1, "")


async def test_a_timer_s_run_uses_what_was_released(world: AgentWorld) -> None:
    """It hears of it in the run itself, and doesn't leave it to the next one."""
    await world.enroll()
    async with broker(world) as server:
        async with running(world, server):
            name = await hold(world, server)
        server.directive = pb.StreamRenewalStatusResponse.Directive(
            nonce="n1", activations=[pb.Activation(certificate_id=name, rollout_id="rollout-1")]
        )
        async with agent_of(world, server) as agent:
            await world.run_once(agent)
        assert in_use(server, "web") == 2


async def test_a_new_key_is_made_whatever_agent_yml_says_of_keys(tmp_path: Path) -> None:
    """`key_rotation: reuse` keeps the key over renewals, and not over a rollout that wants another."""
    world = AgentWorld(tmp_path, [{"name": "web", "key_rotation": "reuse"}, {"name": "api", "key_rotation": "reuse"}])
    try:
        await world.enroll()
        async with broker(world) as server, running(world, server):
            name = await hold(world, server, new_key=True)
            release(server, "n1", name)
            await until(lambda: in_use(server, "web") == 2)
            server.last.direct("api", await held_renewal(world, "api"))
            await until(lambda: last_report(server, "api").held_by_rollout_id == "rollout-1")
        first, second = await world.versions("web")
        assert first.public_key_sha256 != second.public_key_sha256
        first, second = await world.versions("api")
        assert first.public_key_sha256 == second.public_key_sha256
    finally:
        world.close()


CASES = (("activate", "web"), ("dance", "web"), ("activate", "nothing"))


async def tell(world: AgentWorld, command: str, name: str) -> Outcome:
    """What the agent that runs answers to a command."""
    outcome = await ask(world.folder / "state", {"command": command, "name": name}, world.progress)
    assert outcome is not None
    return outcome


async def test_what_a_person_does_about_a_hold(world: AgentWorld) -> None:
    """`renew` says that there is one, `activate` uses it; by the agent that runs, and without one."""
    await world.enroll()
    async with broker(world) as server:
        async with running(world, server):
            await hold(world, server)
        async with agent_of(world, server) as agent:
            refused = await agent.by_hand("renew", "web")
            assert not refused.ok
            assert "version 2 waits for rollout rollout-1 to release it, until" in refused.text
            assert refused.text.endswith("`certplane-agent activate web` uses it now")
            done = await agent.by_hand("activate", "web")
            assert (done.ok, done.text) == (True, "version 2 is in use")
            again = await agent.by_hand("activate", "web")
            assert (again.ok, again.text) == (True, "version 2, the newest, is in use already")
        assert in_use(server, "web") == 2
        before = len(server.streams)
        async with running(world, server):
            await until(lambda: len(server.streams) > before)
            server.last.direct("again", await held_renewal(world, "web"))
            await until(lambda: last_report(server, "web").held_by_rollout_id == "rollout-1")
            asked = [await tell(world, command, name) for command, name in CASES]
            assert [(each.ok, each.text.partition(";")[0]) for each in asked] == [
                (True, "version 3 is in use"),
                (False, "this agent doesn't know that command"),
                (False, "the running agent has no certificate of that name"),
            ]


async def test_state_files_of_an_older_agent_load_and_one_reads_ours(world: AgentWorld) -> None:
    """Upgraded, it holds nothing; what an older one doesn't know it passes over."""
    await world.enroll()
    async with broker(world) as server, running(world, server):
        await hold(world, server)
    web = world.folder / "state" / "certificates" / "web"
    for path, members in (
        (web / "versions" / "2" / "metadata.json", ("hold",)),
        (web / "status.json", ("held_by_rollout_id",)),
        (web / "directive.json", ("rollout_id", "hold_activation", "activate_by_time", "new_key")),
    ):
        written = json.loads(path.read_text())
        path.write_text(json.dumps({name: each for name, each in written.items() if name not in members}))
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    assert (await world.status("web")).confirmed_version == 2


async def test_an_activation_file_that_cannot_be_read_releases_nothing(
    world: AgentWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said, and the broker tells again what the host says it holds."""
    await world.enroll()
    async with broker(world) as server:
        async with running(world, server):
            name = await hold(world, server)
        file = world.folder / "state" / "certificates" / "web" / "activation.json"
        file.write_text("{")
        with caplog.at_level(logging.WARNING):
            async with running(world, server):
                await until(lambda: len(server.streams) == 2)
                assert last_report(server, "web").held_by_rollout_id == "rollout-1"
                release(server, "n1", name)
                await until(lambda: in_use(server, "web") == 2)
        assert "activation.json can't be read and is ignored" in caplog.text


STEPS = (
    "keystore.begin",
    "request",
    "install.publish",
    "install.forget",
    "activation",
    "install.switch",
    "install.confirm",
)
"""Those in which something may come to hold a certificate, or to hold it no more; all are walked in tests/e2e."""


class Kills:
    """A kill is a copy of the state directory at a failpoint, at its first pass."""

    def __init__(self, world: AgentWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state, self.copies = world.folder / "state", world.folder / "killed"
        self.points: list[str] = []
        for module in (lineage, request, pending, steps):
            monkeypatch.setattr(module, "failpoint", self.passes)

    def passes(self, name: str) -> None:
        if name.startswith(STEPS) and name not in self.points:
            shutil.copytree(self.state, self.copies / name, symlinks=True, ignore=shutil.ignore_patterns("control"))
            self.points.append(name)

    def put_back(self, name: str) -> None:
        shutil.rmtree(self.state)
        shutil.copytree(self.copies / name, self.state, symlinks=True)


async def test_killed_at_any_step_a_hold_is_kept_and_a_release_is_not_lost(
    world: AgentWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start holds what isn't released, uses what is, and has no second one beside it."""
    await world.enroll()
    await world.agent().run_once()
    kills = Kills(world, monkeypatch)
    web, now = world.host.certificates["web"], world.clock.now()
    first = (await world.versions("web"))[-1].certificate_id
    directed = DirectedRenewal(
        first, now, RenewalCause.OPERATOR, rollout_id="r1", hold_activation=True, activate_by_time=now + 2 * DAY
    )
    assert web.directive is not None
    web.directive.save(directed)
    await world.agent().run_once()
    held_by = len(kills.points)
    assert (await world.status("web")).held_by_rollout_id == "r1"
    name = (await world.versions("web"))[-1].certificate_id
    assert world.host.certificates["web"].take_activations([Activation(name, "r1")], now)
    released_by = kills.points.index("activation.keep.after")
    await world.agent().run_once()
    assert (await world.status("web")).confirmed_version == 2
    assert {"request.issued", "install.publish.before", "install.switch.after"} <= set(kills.points)
    for place, point in enumerate(list(kills.points)):
        kills.put_back(point)
        await world.agent().run_once()
        status = await world.status("web")
        if place < released_by:
            assert (status.confirmed_version, status.held_by_rollout_id) == (1, "r1"), point
            name = (await world.versions("web"))[-1].certificate_id  # another one, where no key was on disk yet
            world.host.certificates["web"].take_activations([Activation(name, "r1")], now)
            await world.agent().run_once()
            status = await world.status("web")
        assert (status.confirmed_version, status.held_by_rollout_id) == (2, ""), point
        assert len(await world.versions("web")) == 2, point
    assert held_by < released_by
