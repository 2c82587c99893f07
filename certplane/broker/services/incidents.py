# ruff: noqa: N802 - methods bear the names of the proto file
"""`IncidentService`: what CAs do to many certificates at once."""

from __future__ import annotations

from typing import Any

import grpc

from certplane.broker.incidents.model import Incident
from certplane.broker.incidents.ports import IncidentReader, place_of
from certplane.broker.services.convert import invalid_request, page_size
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.broker.services.incident_forecasts import ForecastsOfIncidents
from certplane.broker.services.incidents_convert import incident_message, place_from, token_from
from certplane.errors import Reason, RefusalError
from certplane.v1 import incident_pb2 as pb
from certplane.v1 import incident_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]


class IncidentNotFoundError(RefusalError):
    """There is no such incident."""

    def __init__(self) -> None:
        super().__init__(
            Reason.ORDER_NOT_FOUND,
            "there is no such incident; ListIncidents, `certplanectl incident list`, has those there are, and those of "
            "before store.keep are removed",
        )


class IncidentServicer(incident_pb2_grpc.IncidentServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["IncidentService"].full_name

    def __init__(self, incidents: IncidentReader, forecasts: ForecastsOfIncidents | None = None) -> None:
        """Without `forecasts` none is shown."""
        self._incidents = incidents
        self._forecasts = forecasts

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        incident_pb2_grpc.add_IncidentServiceServicer_to_server(self, server)

    async def ListIncidents(self, request: pb.ListIncidentsRequest, _context: RpcContext) -> pb.ListIncidentsResponse:
        """A page; it ends where another one would be too much for a message."""
        after, most = place_from(request.page_token), page_size(request.page_size)
        found = await self._incidents.list_incidents(after, most + 1, open_only=request.open_only)
        response, size = pb.ListIncidentsResponse(), 0
        for number, incident in enumerate(found):
            message = await self._message(incident)
            size += message.ByteSize() + 8
            if response.incidents and (number == most or size > MESSAGE_ROOM):
                response.next_page_token = token_from(place_of(found[number - 1]))
                break
            response.incidents.append(message)
        return response

    async def GetIncident(self, request: pb.GetIncidentRequest, _context: RpcContext) -> pb.GetIncidentResponse:
        """One incident."""
        if not request.incident_id:
            raise invalid_request("incident_id", "is required")
        incident = await self._incidents.get_incident(request.incident_id)
        if incident is None:
            raise IncidentNotFoundError
        return pb.GetIncidentResponse(incident=await self._message(incident))

    async def _message(self, incident: Incident) -> pb.Incident:
        """With the forecast of what isn't replaced yet, and whether that is too late."""
        if self._forecasts is None or incident.close_time is not None:
            return incident_message(incident)
        return incident_message(incident, await self._forecasts.of(incident.incident_id))
