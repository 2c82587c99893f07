"""The operator's calls about rollouts, incidents, and what the CAs' limits leave, one method each."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final

from certplane.ctl.calls import Calls, request_id
from certplane.v1 import (
    budget_pb2,
    budget_pb2_grpc,
    incident_pb2,
    incident_pb2_grpc,
    rollout_pb2,
    rollout_pb2_grpc,
)

_Rollout: Final = rollout_pb2_grpc.RolloutServiceStub
_Incident: Final = incident_pb2_grpc.IncidentServiceStub
_Budget: Final = budget_pb2_grpc.BudgetServiceStub
_PLAN_SECONDS: Final = 60.0
"""A plan of a large fleet, and its forecast, take some seconds at a busy broker."""


class CampaignCalls(Calls):
    """Those calls. All that changes something is safe to repeat."""

    async def plan_rollout(self, spec: rollout_pb2.RolloutSpec) -> rollout_pb2.PlanRolloutResponse:
        """What a rollout would be."""
        request = rollout_pb2.PlanRolloutRequest(spec=spec)
        return await self._one(request, lambda channel: _Rollout(channel).PlanRollout, seconds=_PLAN_SECONDS)

    async def create_rollout(self, name: str, spec: rollout_pb2.RolloutSpec) -> rollout_pb2.Rollout:
        """Begin one; the same `name`, a request id, never begins a second one."""
        request = rollout_pb2.CreateRolloutRequest(request_id=name, spec=spec)
        answer = await self._one(request, lambda channel: _Rollout(channel).CreateRollout, seconds=_PLAN_SECONDS)
        return answer.rollout

    async def rollout(self, rollout_id: str) -> rollout_pb2.Rollout:
        """One with its rings."""
        request = rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)
        return (await self._one(request, lambda channel: _Rollout(channel).GetRollout)).rollout

    async def rollouts(
        self, request: rollout_pb2.ListRolloutsRequest
    ) -> AsyncGenerator[rollout_pb2.ListRolloutsResponse, None]:
        """Rollouts, page by page."""
        async for page in self._pages(request, lambda channel: _Rollout(channel).ListRollouts):
            yield page

    async def rollout_items(
        self, request: rollout_pb2.ListRolloutItemsRequest
    ) -> AsyncGenerator[rollout_pb2.ListRolloutItemsResponse, None]:
        """Certificates of a rollout, page by page."""
        async for page in self._pages(request, lambda channel: _Rollout(channel).ListRolloutItems):
            yield page

    async def watch_rollout(self, rollout_id: str) -> AsyncGenerator[rollout_pb2.Rollout, None]:
        """A rollout as it is and after each change, until it has ended or the broker ends it."""
        request = rollout_pb2.WatchRolloutRequest(request_id=request_id(), rollout_id=rollout_id)
        async for message in self._connection.stream(lambda channel: _Rollout(channel).WatchRollout(request)):
            yield message.rollout

    async def pause_rollout(self, rollout_id: str, reason: str) -> rollout_pb2.Rollout:
        """Release no further host."""
        request = rollout_pb2.PauseRolloutRequest(rollout_id=rollout_id, reason=reason)
        return (await self._one(request, lambda channel: _Rollout(channel).PauseRollout)).rollout

    async def resume_rollout(self, rollout_id: str, reason: str) -> rollout_pb2.Rollout:
        """Go on with one that is paused or halted."""
        request = rollout_pb2.ResumeRolloutRequest(rollout_id=rollout_id, reason=reason)
        return (await self._one(request, lambda channel: _Rollout(channel).ResumeRollout)).rollout

    async def abort_rollout(self, rollout_id: str, reason: str) -> rollout_pb2.Rollout:
        """End one where it is."""
        request = rollout_pb2.AbortRolloutRequest(rollout_id=rollout_id, reason=reason)
        return (await self._one(request, lambda channel: _Rollout(channel).AbortRollout)).rollout

    async def approve_rollout(self, rollout_id: str, reason: str) -> rollout_pb2.Rollout:
        """Let one begin that waits for it."""
        request = rollout_pb2.ApproveRolloutRequest(rollout_id=rollout_id, reason=reason)
        return (await self._one(request, lambda channel: _Rollout(channel).ApproveRollout)).rollout

    async def finish_rollout(self, rollout_id: str, reason: str, *, revoke_remaining: bool) -> rollout_pb2.Rollout:
        """End one whose last hosts don't come."""
        request = rollout_pb2.FinishRolloutRequest(
            rollout_id=rollout_id, reason=reason, revoke_remaining=revoke_remaining
        )
        return (await self._one(request, lambda channel: _Rollout(channel).FinishRollout)).rollout

    async def incidents(
        self, request: incident_pb2.ListIncidentsRequest
    ) -> AsyncGenerator[incident_pb2.ListIncidentsResponse, None]:
        """Incidents, page by page."""
        async for page in self._pages(request, lambda channel: _Incident(channel).ListIncidents):
            yield page

    async def incident(self, incident_id: str) -> incident_pb2.Incident:
        """One in full."""
        request = incident_pb2.GetIncidentRequest(incident_id=incident_id)
        return (await self._one(request, lambda channel: _Incident(channel).GetIncident)).incident

    async def budget(self, request: budget_pb2.GetBudgetRequest) -> budget_pb2.GetBudgetResponse:
        """What the CAs' limits leave."""
        return await self._one(request, lambda channel: _Budget(channel).GetBudget)

    async def forecast(self, request: budget_pb2.ForecastOrdersRequest) -> budget_pb2.ForecastOrdersResponse:
        """When a selection would be ordered."""
        return await self._one(request, lambda channel: _Budget(channel).ForecastOrders, seconds=_PLAN_SECONDS)
