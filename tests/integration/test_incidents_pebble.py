"""An incident from the CA to an operator, on a real Pebble with its renewal-info control: it opens, grows, and ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from certplane.broker.app import Broker
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key
from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.parts import PEBBLE_SET_RENEWAL_INFO
from certplane.v1 import certificate_pb2 as pb
from certplane.v1 import incident_pb2, incident_pb2_grpc
from tests.support.called_back import World
from tests.support.deployed_broker import DeployedBroker, issue
from tests.support.parts import need_part
from tests.support.waiting import HANG, until

pytestmark = pytest.mark.integration

HOSTS = [f"web{number}.certplane.test" for number in range(1, 5)]
ALICE = "alice.certplane.test"
POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["{label}.ari.certplane.test"]}},
    "hosts": {host.partition(".")[0]: {"identity": host, "profiles": ["web"]} for host in HOSTS},
    "operators": {"alice": {"identity": ALICE, "roles": ["viewer"]}},
    "incidents": {"at_least": 3},
}
WHY = "https://ca.example/incident-7"
DAY = timedelta(days=1)


@pytest_asyncio.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    if not need_part("pebble").can(PEBBLE_SET_RENEWAL_INFO):
        pytest.skip("this Pebble has no renewal-info control")
    async with Deployment(tmp_path, DeploymentOptions(POLICY)) as deployment:
        for name, value in deployment.broker_environment.items():
            monkeypatch.setenv(name, value)
        yield World(deployment)


def csr_of(host: str) -> str:
    return build_csr(generate_private_key(KeyType.EC_P256), sans=[f"{host.partition('.')[0]}.ari.certplane.test"])


@dataclass
class Called:
    """Hosts with a certificate each, their CA, and what alice is shown."""

    world: World
    broker: Broker
    channels: Mapping[str, grpc.aio.Channel]
    held: dict[str, pb.Certificate] = field(default_factory=dict)

    @property
    def stub(self) -> Any:
        return incident_pb2_grpc.IncidentServiceStub(self.channels[ALICE])

    async def listed(self) -> list[incident_pb2.Incident]:
        answer = await self.stub.ListIncidents(incident_pb2.ListIncidentsRequest(open_only=True), timeout=HANG)
        return list(answer.incidents)

    async def shown(self, incident_id: str) -> incident_pb2.Incident:
        request = incident_pb2.GetIncidentRequest(incident_id=incident_id)
        incident: incident_pb2.Incident = (await self.stub.GetIncident(request, timeout=HANG)).incident
        return incident

    async def seen(self, incident_id: str, **figures: int) -> incident_pb2.Incident:
        """It shows these."""

        async def shows() -> incident_pb2.Incident | None:
            found = await self.shown(incident_id)
            return found if {name: getattr(found, name) for name in figures} == figures else None

        return await until(shows, poll=0.5, what=str(figures))

    async def renew(self, host: str) -> None:
        old = {"certificate_id": self.held[host].certificate_id} if host in self.held else {}
        answer = await issue(self.channels[host], profile="web", csr_pem=csr_of(host), **old)
        self.held.setdefault(host, answer.certificate)

    async def call_back(self, *hosts: str) -> None:
        """Have the CA set their windows into the past, and let the time of the next questions come."""
        past = self.world.clock.now() - DAY
        for host in hosts:
            await self.world.say(self.held[host], past, past + timedelta(hours=1), WHY)
        self.world.clock.step(timedelta(hours=6.5))

    async def all_asked_about(self) -> bool:
        found = await self.broker.stores.renewal_plans.in_force_of(HOSTS, self.world.clock.now())
        return all(one.plan is not None and one.plan.window_start is not None for one in found)


async def test_an_incident_of_a_ca(world: World) -> None:
    """Three are one, a fourth joins, each that is replaced counts; then it is over, and all is audited."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(world.broker())
        deployed = DeployedBroker(world.deployment)
        channels = {host: await stack.enter_async_context(deployed.channel(host)) for host in [*HOSTS, ALICE]}
        called = Called(world, broker, channels)
        for host in HOSTS:
            await called.renew(host)
        await until(called.all_asked_about)
        assert await called.listed() == []

        await called.call_back(*HOSTS[:3])
        (opened,) = await until(called.listed, poll=0.5)
        incident = await called.seen(opened.incident_id, certificate_count=3, replaced_count=0, hurt_count=0)
        assert (incident.state, incident.holder_count) == (incident_pb2.Incident.STATE_OPEN, 3)
        assert incident.explanation_url == WHY
        assert list(incident.hosts) == HOSTS[:3]
        assert incident.deadline.ToSeconds() in {called.held[host].not_after_time.ToSeconds() for host in HOSTS[:3]}
        assert "each host renews by itself" in incident.remedy

        await called.call_back(HOSTS[3])
        await called.seen(incident.incident_id, certificate_count=4)
        for host in HOSTS[:3]:
            await called.renew(host)
        world.clock.step(timedelta(seconds=30))
        left = await called.seen(incident.incident_id, replaced_count=3, in_use_count=3)
        assert list(left.hosts) == [HOSTS[3]]
        await called.renew(HOSTS[3])
        world.clock.step(timedelta(seconds=30))
        await called.seen(incident.incident_id, state=incident_pb2.Incident.STATE_CLOSED)
        assert await called.listed() == []
        (begun,) = await deployed.events(event_type="incident_opened")
        (ended,) = await deployed.events(event_type="incident_closed")
        assert begun["selection"] == ended["selection"] == f"incident: {incident.incident_id}"
        assert "of 4 certificates 4 have a successor in use" in str(ended["reason"])
