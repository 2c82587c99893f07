"""`IncidentService` over real mTLS gRPC: pages, what is refused and why, and who may ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.incidents.model import Figures, Incident
from certplane.errors import Reason
from certplane.v1 import incident_pb2 as pb
from certplane.v1 import incident_pb2_grpc
from tests.support.ca import PrivateCa
from tests.support.calls import refused
from tests.support.edge import HOST, OPERATOR, EdgeServer, serve_edge
from tests.support.waiting import HANG

pytestmark = pytest.mark.integration

HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def ca() -> PrivateCa:
    return PrivateCa("internal")


@pytest.fixture
async def edge(ca: PrivateCa) -> AsyncIterator[EdgeServer]:
    async with serve_edge(ca) as server:
        yield server


@pytest.fixture
async def incidents(edge: EdgeServer) -> AsyncIterator[Any]:
    """The stub, with an operator's identity."""
    async with edge.channel(edge.ca.issue([OPERATOR])) as channel:
        yield incident_pb2_grpc.IncidentServiceStub(channel)


async def recorded(edge: EdgeServer, number: int, *, closed: bool = False, **values: Any) -> Incident:
    """The incident of an hour."""
    now = edge.clock.now() + number * HOUR
    incident = Incident(f"acme-{number}", f"acme-{number}", now, **values)
    assert await edge.stores.incidents.record(None, incident)
    if closed:
        ended = replace(incident, version=2, close_time=now + HOUR)
        assert await edge.stores.incidents.record(incident, ended)
        return ended
    return incident


async def listed(incidents: Any, **fields: Any) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    request = pb.ListIncidentsRequest(**fields)
    while True:
        page = await incidents.ListIncidents(request, timeout=HANG)
        found += [incident.incident_id for incident in page.incidents]
        assert len(page.incidents) <= (request.page_size or 50)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


async def test_a_list_has_open_ones_first(edge: EdgeServer, incidents: Any) -> None:
    """Then the newest; whatever the size of a page."""
    assert await listed(incidents) == []
    for number in range(4):
        await recorded(edge, number, closed=number > 1)
    assert await listed(incidents) == ["acme-1", "acme-0", "acme-3", "acme-2"]
    assert await listed(incidents, page_size=1) == ["acme-1", "acme-0", "acme-3", "acme-2"]
    assert await listed(incidents, page_size=1, open_only=True) == ["acme-1", "acme-0"]


async def test_one_is_shown_whole(edge: EdgeServer, incidents: Any) -> None:
    """With what to do; what isn't there yet is unset."""
    figures = Figures(12, 9, 4, 3, 2, 1, 1, 1, 7, ("web1", "web2"))
    deadline = edge.clock.now() + HOUR
    await recorded(edge, 0, figures=figures, deadline=deadline, rollout_id="r-7", explanation_url="https://ca.example")
    request = pb.GetIncidentRequest(incident_id="acme-0")
    incident = (await incidents.GetIncident(request, timeout=HANG)).incident
    assert (incident.issuer, incident.state) == ("acme-0", pb.Incident.STATE_OPEN)
    assert (incident.certificate_count, incident.holder_count) == (12, 9)
    assert (incident.replaced_count, incident.in_use_count) == (4, 3)
    assert (incident.hurt_count, incident.failing_count, list(incident.hosts)) == (2, 1, ["web1", "web2"])
    assert (incident.rollout_id, incident.explanation_url) == ("r-7", "https://ca.example")
    assert incident.deadline.ToDatetime(edge.clock.now().tzinfo) == deadline
    assert not incident.HasField("close_time")
    assert not incident.HasField("forecast")
    assert "begin with web1, web2" in incident.remedy
    assert "rollout watch r-7" in incident.remedy


@pytest.mark.parametrize(
    ("call", "request_"),
    [
        ("ListIncidents", pb.ListIncidentsRequest(page_token="nonsense")),
        ("ListIncidents", pb.ListIncidentsRequest(page_token="b3Blbjs7eA")),
        ("ListIncidents", pb.ListIncidentsRequest(page_size=-1)),
        ("GetIncident", pb.GetIncidentRequest()),
    ],
)
async def test_what_makes_no_sense_is_refused(incidents: Any, call: str, request_: Any) -> None:
    """With its field."""
    refusal = await refused(getattr(incidents, call)(request_, timeout=HANG))
    assert refusal.reason is Reason.REQUEST_INVALID


async def test_one_that_is_not_there(incidents: Any) -> None:
    """The refusal says where to look."""
    refusal = await refused(incidents.GetIncident(pb.GetIncidentRequest(incident_id="acme-9"), timeout=HANG))
    assert refusal.reason is Reason.ORDER_NOT_FOUND
    assert "certplanectl incident list" in refusal.refusal.message


async def test_only_viewers_and_operators_may(edge: EdgeServer) -> None:
    """A host is told by its plan."""
    async with edge.channel(edge.ca.issue([HOST])) as channel:
        stub = incident_pb2_grpc.IncidentServiceStub(channel)
        assert (
            await refused(stub.ListIncidents(pb.ListIncidentsRequest(), timeout=HANG))
        ).reason is Reason.ROLE_REQUIRED
