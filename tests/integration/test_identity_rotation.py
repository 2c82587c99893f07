"""First use activates, over real mTLS: one identity that two holders have, whoever of them renews it first.

The certificates are those that a CA makes for one name, one after the other; the broker's clock is moved, so that
minutes pass at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from certplane.broker.events import AuditDecision, AuditEventType, AuditSeverity
from certplane.broker.identity.first_use import GRACE, settle
from certplane.broker.model import ChangeKind, Grant, IdentityKind
from certplane.broker.services.interceptors.status import REQUEST_ID_KEY
from certplane.errors import Reason
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.fakes.policy import FakePolicy
from tests.support.ca import Leaf, PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, SERVICE, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

Channel = grpc.aio.Channel

MADE = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=12)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


class Holder:
    """Somebody with a certificate of the identity, and the channels that the test has opened for it."""

    def __init__(self, world: World, leaf: Leaf) -> None:
        self._world = world
        self.leaf = leaf
        self.channel: Channel

    async def connect(self) -> Holder:
        self.channel = await self._world.open(self.leaf)
        return self

    async def copy(self) -> Holder:
        """A second holder of the same certificate and key: a stolen disk, a cloned machine, a snapshot."""
        return await Holder(self._world, self.leaf).connect()

    async def renew(self) -> None:
        """The next certificate, and a channel with it; the old channel is dropped."""
        self.leaf = self._world.issue()
        self.channel = await self._world.open(self.leaf)

    async def call(self) -> enrollment_pb2.Identity:
        stub = enrollment_pb2_grpc.EnrollmentServiceStub(self.channel)
        metadata = ((REQUEST_ID_KEY, "r-1"),)
        return (await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG, metadata=metadata)).identity

    async def reason(self) -> Reason | None:
        """How a call is refused; None if it is served."""
        try:
            await self.call()
        except grpc.aio.AioRpcError:
            return (await refused(self.call())).reason
        return None

    def stream(self) -> Any:
        return health_pb2_grpc.HealthStub(self.channel).Watch(health_pb2.HealthCheckRequest(), timeout=HANG)


class World:
    """One edge, and holders of one host's identity."""

    def __init__(self, edge: EdgeServer, stack: AsyncExitStack) -> None:
        self.edge = edge
        self._stack = stack
        self._made = MADE

    def issue(self, names: tuple[str, ...] = (HOST,)) -> Leaf:
        """The next certificate: a minute younger than the last."""
        self._made += MINUTE
        return self.edge.ca.issue(names, not_before=self._made)

    async def open(self, leaf: Leaf) -> Channel:
        return await self._stack.enter_async_context(self.edge.channel(leaf))

    async def holder(self, *names: str) -> Holder:
        return await Holder(self, self.issue(names or (HOST,))).connect()

    def wait(self, span: timedelta) -> None:
        self.edge.clock.shift += span

    def events(self, event_type: AuditEventType) -> list[Any]:
        return [event for event in self.edge.stores.database.events if event.event_type is event_type]

    @property
    def contested(self) -> bool:
        known = self.edge.stores.identities.known(HOST)
        return known is not None and known.contest is not None


@pytest.fixture
async def world(ca: PrivateCa) -> AsyncIterator[World]:
    async with serve_edge(ca) as edge, AsyncExitStack() as stack:
        yield World(edge, stack)


async def test_first_calls_at_once_are_one_activation(world: World) -> None:
    """Twenty calls of a host that the broker has never seen: all are served, one event tells."""
    host = await world.holder()
    answers = await asyncio.gather(*(host.call() for _ in range(20)))
    assert {answer.serial_number for answer in answers} == {host.leaf.serial_number}
    (event,) = world.events(AuditEventType.IDENTITY_ACTIVATED)
    assert (event.identity, event.request_id, event.source_ip) == (HOST, "r-1", "127.0.0.1")
    assert host.leaf.serial_number in event.reason


async def test_ordinary_rotation_contests_nothing(world: World) -> None:
    """An agent renews, calls, lets its old channel end, day after day: nobody is refused, nothing is contested."""
    host = await world.holder()
    await host.call()
    for _ in range(3):
        old = await host.copy()
        await host.renew()
        await host.call()
        world.wait(MINUTE)
        assert await old.reason() is None  # its last calls, over the old channel
        await old.channel.close()
        world.wait(timedelta(hours=1))
        assert await host.reason() is None
    assert not world.contested
    assert len(world.events(AuditEventType.IDENTITY_ACTIVATED)) == 4
    assert world.edge.denied == []


async def test_two_rotations_within_five_minutes(world: World) -> None:
    """Each certificate has its own five minutes, whatever came after it."""
    host = await world.holder()
    first = await host.copy()
    await host.call()
    await host.renew()
    second = await host.copy()
    await host.call()
    world.wait(2 * MINUTE)
    await host.renew()
    await host.call()
    assert (await first.reason(), await second.reason()) == (None, None)
    world.wait(3 * MINUTE)
    assert (await first.reason(), await second.reason()) == (Reason.IDENTITY_RETIRED, None)


async def test_copy_renews_first(world: World) -> None:
    """The owner comes second: it is told, the operator too, and the copy gets no certificate out of it."""
    owner = await world.holder()
    await owner.call()
    copy = await owner.copy()
    await copy.renew()
    await copy.call()
    assert not world.contested  # so far it looks like an ordinary rotation
    assert await owner.reason() is None
    world.wait(GRACE)
    answer = await refused(owner.call())
    assert answer.reason is Reason.IDENTITY_RETIRED
    assert copy.leaf.serial_number in answer.refusal.message
    assert "ask an operator" in answer.refusal.message
    assert world.contested
    # Neither is shut out for good, neither hides: the copy's calls say so, and the owner can still renew.
    assert (await copy.call()).HasField("contest_time")
    await owner.renew()
    assert (await owner.call()).HasField("contest_time")
    world.wait(GRACE)
    assert await copy.reason() is Reason.IDENTITY_RETIRED
    assert await owner.reason() is None
    assert world.contested


async def test_owner_renews_first(world: World) -> None:
    """The copy comes second: it is refused, and the owner, who isn't, sees that there is another holder."""
    owner = await world.holder()
    await owner.call()
    copy = await owner.copy()
    await owner.renew()
    await owner.call()
    world.wait(GRACE)
    assert await copy.reason() is Reason.IDENTITY_RETIRED
    assert (await owner.call()).HasField("contest_time")
    (event,) = world.events(AuditEventType.IDENTITY_CONTESTED)
    assert (event.severity, event.decision) == (AuditSeverity.ERROR, AuditDecision.DENY)
    assert copy.leaf.serial_number in event.reason
    assert owner.leaf.serial_number in event.reason
    assert world.edge.denied == ["IDENTITY_RETIRED"] * 2


async def test_a_contest_is_audited_once(world: World) -> None:
    """However often the retired one comes, alone or twenty times at once; each refusal is a denial."""
    host = await world.holder()
    await host.call()
    old = await host.copy()
    await host.renew()
    await host.call()
    world.wait(GRACE)
    reasons = await asyncio.gather(*(refused(old.call()) for _ in range(20)))
    assert {answer.reason for answer in reasons} == {Reason.IDENTITY_RETIRED}
    await old.reason()
    assert len(world.events(AuditEventType.IDENTITY_CONTESTED)) == 1


async def test_restored_snapshot(world: World) -> None:
    """A machine that comes back with a certificate of two rotations ago, which this broker has long forgotten."""
    host = await world.holder()
    await host.call()
    snapshot = host.leaf
    for _ in range(3):
        world.wait(timedelta(hours=1))
        await host.renew()
        await host.call()
    restored = Holder(world, snapshot)
    await restored.connect()
    assert await restored.reason() is Reason.IDENTITY_RETIRED
    assert world.contested


async def test_snapshot_that_this_broker_never_saw(world: World) -> None:
    """A certificate made before the known one, but never used here, doesn't come into use."""
    unused = world.issue()
    host = await world.holder()
    await host.call()
    restored = await Holder(world, unused).connect()
    assert await restored.reason() is Reason.IDENTITY_RETIRED
    assert world.contested


async def test_database_from_a_backup(world: World) -> None:
    """A broker that knows last week's certificates meets this week's: they come into use, and nobody is contested."""
    host = await world.holder()
    await host.call()
    (backup,) = world.edge.stores.database.identities.values()
    for _ in range(3):
        world.wait(timedelta(hours=1))
        await host.renew()
        await host.call()
    world.edge.stores.database.put_identity(backup)
    assert await host.reason() is None
    assert not world.contested


async def test_two_certificates_of_one_second(world: World) -> None:
    """Renewed twice within a second: the second one is not older, so it comes into use; the first has its grace."""
    first = Holder(world, world.edge.ca.issue([HOST], not_before=MADE))
    second = Holder(world, world.edge.ca.issue([HOST], not_before=MADE))
    await first.connect()
    await second.connect()
    await first.call()
    await second.call()
    assert await first.reason() is None
    world.wait(GRACE)
    assert await first.reason() is Reason.IDENTITY_RETIRED


async def test_row_40_stream_of_a_retired_certificate_is_closed(world: World) -> None:
    """It lasts as long as its five minutes, and that it was open contests nothing: only a new call does."""
    host = await world.holder()
    stream = host.stream()
    assert (await stream.read()).status == health_pb2.HealthCheckResponse.SERVING
    old = await host.copy()
    await host.renew()
    await host.call()
    world.wait(GRACE - MINUTE)
    await asyncio.sleep(3 * world.edge.recheck.total_seconds())
    assert not stream.done()
    world.wait(MINUTE)
    assert (await refused(stream.read())).reason is Reason.IDENTITY_RETIRED
    assert not world.contested
    assert world.edge.denied == ["IDENTITY_RETIRED"]
    assert await old.reason() is Reason.IDENTITY_RETIRED
    assert world.contested


async def test_operator_decides(world: World) -> None:
    """The chosen certificate goes on, the other one is shut out, on its open stream too; its renewals go on as ever."""
    owner = await world.holder()
    await owner.call()
    copy = await owner.copy()
    await copy.renew()
    stream = copy.stream()
    await stream.read()
    world.wait(GRACE)
    assert await owner.reason() is Reason.IDENTITY_RETIRED
    stores = world.edge.stores
    (known,) = await stores.identities.identities()
    settlement = settle(known, (owner.leaf.issuer, owner.leaf.serial_number), world.edge.clock.now())
    assert settlement is not None
    assert await stores.identities.settle(known, settlement.known, settlement.denied, [], [])
    await stores.changes.reread(ChangeKind.DENY_ENTRY)  # as a broker hears of what a command has changed
    assert not (await owner.call()).HasField("contest_time")
    assert (await refused(stream.read())).reason is Reason.IDENTITY_REVOKED
    assert await copy.reason() is Reason.IDENTITY_REVOKED
    await owner.renew()
    assert await owner.reason() is None
    assert not world.contested


@pytest.mark.parametrize("name", [SERVICE, OPERATOR])
async def test_hosts_only(world: World, name: str) -> None:
    """A program or a person may hold several certificates and use them in any order."""
    first = await world.holder(name)
    second = await world.holder(name)
    await second.call()
    world.wait(timedelta(hours=1))
    assert (await first.reason(), await second.reason()) == (None, None)
    assert world.edge.stores.identities.known(name) is None


async def test_host_that_became_a_service(world: World) -> None:
    """What policy says now counts: a contest of a former host binds nobody."""
    host = await world.holder()
    old = await host.copy()
    await old.call()
    await host.renew()
    await host.call()
    world.wait(GRACE)
    assert await old.reason() is Reason.IDENTITY_RETIRED
    world.edge.policy.policy = FakePolicy.of([Grant(HOST, IdentityKind.SERVICE, "web1")])
    assert await old.reason() is None
    assert not (await host.call()).HasField("contest_time")


async def test_activation_that_can_not_be_recorded(world: World) -> None:
    """Neither ledger nor audit log: the call is refused with a time to come back, and a later one activates."""
    host = await world.holder()
    world.edge.stores.database.down = True
    assert (await refused(host.call())).reason is Reason.STORE_UNAVAILABLE
    world.edge.stores.database.down = False
    world.edge.stores.database.audit_down = True
    assert (await refused(host.call())).reason is Reason.AUDIT_UNAVAILABLE
    world.edge.stores.database.audit_down = False
    assert await host.reason() is None
    assert world.edge.denied == []  # nothing was decided about the caller


async def test_contest_that_can_not_be_recorded(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The retired one is refused all the same; the next time that it comes, it is recorded."""
    host = await world.holder()
    old = await host.copy()
    await old.call()
    await host.renew()
    await host.call()
    world.wait(GRACE)
    world.edge.stores.database.down = True
    assert (await refused(old.call())).reason is Reason.IDENTITY_RETIRED
    assert not world.contested
    assert "could not be recorded" in caplog.text
    world.edge.stores.database.down = False
    await old.reason()
    assert world.contested
