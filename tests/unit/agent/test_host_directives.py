"""Directives about certificates that aren't here: those that are on their way, and those that aren't."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast
from unittest import mock

import pytest

from certplane.agent.directives import HostDirectives
from certplane.agent.lineage import Lineage
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.model import DirectedRenewal, PendingRequest, Version
from certplane.agent.ports import DirectiveFile, VersionStore
from certplane.errors import OperationError, Reason, RefusalError
from certplane.fleet_report.model import RenewalCause
from tests.support.agent_world import AgentWorld
from tests.support.lineages import LocalIssuer
from tests.support.waiting import HANG, until

COMING = "certificate-on-its-way"
HOUR = timedelta(hours=1)


class Life:
    """A life that is told to wake."""

    woken = 0
    wants_again = False

    def wake(self) -> None:
        self.woken += 1

    def try_again(self) -> None:
        self.woken += 1


@pytest.fixture
def world(tmp_path: Path) -> Iterator[AgentWorld]:
    made = AgentWorld(tmp_path, [{"name": "web"}, {"name": "api"}])
    yield made
    made.close()


async def directives_of(world: AgentWorld, life: Life) -> tuple[HostDirectives, Lineage]:
    """Those of a host whose agent does nothing else; and one of its certificates."""
    await world.enroll()
    agent = world.agent()
    await agent.run_once()
    await agent.close()
    host = world.start()
    taker = HostDirectives(
        host.certificates,
        dict.fromkeys(host.certificates, cast("LineageRunner", life)),
        identity=host.identity,
        identity_runner=cast("LineageRunner", life),
        disk=host.disk,
        clock=world.clock,
        policy_hash="",
        on_policy=lambda _: None,
        retry_epoch="",
        on_retry_epoch=lambda _: None,
        rng=host.rng,
    )
    return taker, host.certificates["api"]


def request_from(lineage: Lineage) -> PendingRequest:
    """A request is under way."""
    return lineage.keys.begin(common_name="", sans=["api.example"], replaces_certificate_id="", reuse_key=False)


async def time_passes(world: AgentWorld, task: asyncio.Task[None]) -> None:
    def passed() -> bool:
        world.clock.advance(timedelta(milliseconds=200))
        return task.done()

    await until(passed, poll=0.005)


async def test_a_certificate_that_is_on_its_way_is_waited_for(world: AgentWorld) -> None:
    """The broker may hear of the CA's window before the host has the certificate: no error, and the time counts."""
    life = Life()
    taker, lineage = await directives_of(world, life)
    request = request_from(lineage)
    directed = DirectedRenewal(COMING, world.clock.now() + 5 * HOUR, RenewalCause.ISSUER)
    task = asyncio.create_task(taker.renew([directed]))
    await until(lambda: world.clock.sleepers)
    issued = LocalIssuer(now=world.clock.now()).issue(request.csr_pem, certificate_id=COMING)
    lineage.versions.stage(issued)
    assert not life.woken
    await time_passes(world, task)
    await task
    assert life.woken == 1
    assert lineage.directive is not None
    assert lineage.directive.load() == directed


async def test_a_directive_is_followed_though_its_stream_ends_meanwhile(world: AgentWorld) -> None:
    """What is on disk wakes its certificate: told again by the next broker it would be nothing new."""
    life = Life()
    taker, lineage = await directives_of(world, life)
    known = lineage.versions.versions()[-1].certificate_id
    assert lineage.directive is not None
    keep, reached, go_on = lineage.directive.save, threading.Event(), threading.Event()

    def slowly(directed: DirectedRenewal) -> None:
        reached.set()
        assert go_on.wait(HANG)
        keep(directed)

    with mock.patch.object(lineage.directive, "save", slowly):
        task = asyncio.create_task(taker.renew([DirectedRenewal(known, world.clock.now(), RenewalCause.OPERATOR)]))
        await until(reached.is_set, what="a directive that the disk takes")
        task.cancel()
        go_on.set()
        await asyncio.wait([task])
    assert task.cancelled()
    assert life.woken == 1


async def test_a_certificate_that_never_comes_is_not_waited_for_long(world: AgentWorld) -> None:
    """A request that is under way for hours holds up no directive."""
    taker, lineage = await directives_of(world, Life())
    request_from(lineage)
    began = world.clock.now()
    task = asyncio.create_task(taker.renew([DirectedRenewal("another-host's", began, RenewalCause.ISSUER)]))
    await time_passes(world, task)
    with pytest.raises(RefusalError, match="another-host's") as refused:
        await task
    assert refused.value.refusal.reason is Reason.CERTIFICATE_NOT_FOUND
    assert world.clock.now() - began < timedelta(minutes=1)


async def test_without_a_request_nothing_is_waited_for(world: AgentWorld) -> None:
    """What isn't here and isn't expected is refused at once; what is here beside it is taken over."""
    taker, lineage = await directives_of(world, Life())
    known = lineage.versions.versions()[-1].certificate_id
    renewals = [DirectedRenewal(each, world.clock.now(), RenewalCause.ISSUER) for each in ("another-host's", known)]
    with pytest.raises(RefusalError, match="another-host's"):
        await asyncio.wait_for(taker.renew(renewals), HANG)
    assert lineage.directive is not None
    assert lineage.directive.load() == renewals[1]


class UnreadableVersions:
    """The versions of a lineage on a damaged disk."""

    def versions(self) -> tuple[Version, ...]:
        raise OperationError("versions can't be read: input/output error")


class FullDirective:
    """The directive's file on a full disk."""

    def load(self) -> DirectedRenewal | None:
        return None

    def save(self, _directed: DirectedRenewal) -> None:
        raise OperationError("directive.json can't be written: no space left")


async def test_a_lineage_that_cannot_be_read_keeps_no_other_from_its_directive(world: AgentWorld) -> None:
    """What is another one's is taken over; what may be that one's is refused for now, not as unknown."""
    life = Life()
    taker, lineage = await directives_of(world, life)
    directed = DirectedRenewal(
        lineage.versions.versions()[-1].certificate_id, world.clock.now() + HOUR, RenewalCause.OPERATOR
    )
    taker._lineages["web"].versions = cast("VersionStore", UnreadableVersions())
    await taker.renew([directed])
    assert life.woken == 1
    with pytest.raises(OperationError, match="input/output"):
        await taker.renew([directed, DirectedRenewal(COMING, world.clock.now(), RenewalCause.OPERATOR)])


async def test_what_was_kept_is_followed_although_the_disk_refuses_the_rest(world: AgentWorld) -> None:
    """Told again it would be nothing new, and its lineage would sleep on."""
    life = Life()
    taker, lineage = await directives_of(world, life)
    other = taker._lineages["web"]
    now = world.clock.now()
    directed = [
        DirectedRenewal(each.versions.versions()[-1].certificate_id, now, RenewalCause.OPERATOR)
        for each in (lineage, other)
    ]
    other.directive = cast("DirectiveFile", FullDirective())
    with pytest.raises(OperationError, match="no space"):
        await taker.renew(directed)
    assert life.woken == 1


async def test_the_identity_is_renewed_when_an_operator_asks(world: AgentWorld) -> None:
    """The time is kept for the identity in force, through restarts; told again by another broker it is nothing new."""
    life = Life()
    taker, _ = await directives_of(world, life)
    identity = world.host.identity
    wanted = DirectedRenewal("", world.clock.now(), RenewalCause.OPERATOR, "key ceremony")
    await taker.renew([wanted])
    await taker.renew([wanted])
    assert life.woken == 1
    current = identity.versions.current()
    assert current is not None
    facts = identity.read_facts(world.clock.now())
    assert facts.versions[-1].renew_time == wanted.renew_time
    assert facts.versions[-1].directed == replace(wanted, serial_number=current.serial_number)


async def test_an_identity_that_is_being_replaced_is_not_asked_for_again(world: AgentWorld) -> None:
    """The two have crossed: the next one is on disk already."""
    life = Life()
    taker, _ = await directives_of(world, life)
    identity = world.host.identity
    request = identity.keys.begin(common_name="", sans=["web1.example"], replaces_certificate_id="", reuse_key=False)
    identity.versions.stage(LocalIssuer(now=world.clock.now()).issue(request.csr_pem, certificate_id=""))
    await taker.renew([DirectedRenewal("", world.clock.now(), RenewalCause.OPERATOR)])
    assert not life.woken
    assert identity.directive is not None
    assert identity.directive.load() is None
