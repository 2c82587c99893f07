# ruff: noqa: N802 - methods bear the names of the proto file
"""`RolloutService`: new certificates for many hosts, ring by ring."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.broker.fleet.index import FleetIndex
from certplane.broker.rollouts.desk import RolloutDesk, Word
from certplane.broker.rollouts.facts import held_certificate
from certplane.broker.rollouts.freezing import ForecastOf
from certplane.broker.rollouts.model import ItemState, Rollout, RolloutAction, RolloutItem
from certplane.broker.rollouts.ports import ItemPlace, RolloutPlace, RolloutStore
from certplane.broker.rollouts.watching import RolloutWatchers, draining
from certplane.broker.services.calls import current_call
from certplane.broker.services.convert import invalid_request, page_size, required_id, token_from_cursor
from certplane.broker.services.fleet_convert import MESSAGE_ROOM, Named, text_of
from certplane.broker.services.rollout_messages import ForecastMessage, item_message, plan_response, rollout_message
from certplane.broker.services.rollouts_convert import (
    item_cursor,
    item_place,
    item_states_of,
    rollout_cursor,
    rollout_place,
    rollout_states_of,
    spec_of,
)
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.health import HealthWord
from certplane.v1 import budget_pb2, rollout_pb2_grpc
from certplane.v1 import rollout_pb2 as pb

RpcContext = grpc.aio.ServicerContext[Any, Any]

_WRITE_TIMEOUT: Final = timedelta(seconds=30)
"""How long one message may wait for a reader."""
_PACE: Final = timedelta(seconds=1)
"""Between two messages of a watch: ten thousand hosts that activate are not ten thousand messages."""
_FAILED: Final = (ItemState.FAILED, ItemState.SILENT)
_MOST_FAILED: Final = 20
_FORECAST_ROOM: Final = timedelta(seconds=30)
"""How long the forecast of a rollout is shown again: it is of all of its certificates that wait."""
_WAITING: Final = (ItemState.WAITING, ItemState.REQUESTED)


class RolloutServicer(rollout_pb2_grpc.RolloutServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["RolloutService"].full_name

    def __init__(
        self,
        desk: RolloutDesk,
        store: RolloutStore,
        watchers: RolloutWatchers,
        *,
        named: Named,
        index: FleetIndex,
        forecast: ForecastOf,
        forecast_message: ForecastMessage | None,
        clock: Clock,
    ) -> None:
        self._desk = desk
        self._store = store
        self._watchers = watchers
        self._named = named
        self._index = index
        self._forecast = forecast
        self._forecast_message = forecast_message
        self._clock = clock
        self._forecasts: dict[str, tuple[float, budget_pb2.Forecast | None]] = {}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(self, server)

    async def PlanRollout(self, request: pb.PlanRolloutRequest, _context: RpcContext) -> pb.PlanRolloutResponse:
        """What it would be."""
        caller, _ = current_call()
        planned = await self._desk.plan(caller, spec_of(request.spec, self._named))
        return plan_response(planned, self._forecast_message, self._clock.now())

    async def CreateRollout(self, request: pb.CreateRolloutRequest, _context: RpcContext) -> pb.CreateRolloutResponse:
        """Begin one; durable when it is answered."""
        caller, request_id = current_call()
        spec = spec_of(request.spec, self._named)
        created = await self._desk.create(caller, request_id, spec, chosen_id=bool(request.request_id))
        return pb.CreateRolloutResponse(rollout=await self._message(created))

    async def GetRollout(self, request: pb.GetRolloutRequest, _context: RpcContext) -> pb.GetRolloutResponse:
        """One, with its rings."""
        rollout = await self._desk.get(required_id("rollout_id", request.rollout_id))
        return pb.GetRolloutResponse(rollout=await self._message(rollout))

    async def ListRollouts(self, request: pb.ListRolloutsRequest, _context: RpcContext) -> pb.ListRolloutsResponse:
        """A page of rollouts; it ends where another one would be too much for a message."""
        states, after = rollout_states_of(request.states), rollout_place(request.page_token)
        most = page_size(request.page_size)
        found = await self._store.list(states, after, most + 1)
        response = pb.ListRolloutsResponse()
        size = 0
        for number, rollout in enumerate(found):
            message = rollout_message(rollout)
            size += message.ByteSize() + 8
            if number == most or (response.rollouts and size > MESSAGE_ROOM):
                last = found[number - 1]
                place = RolloutPlace(last.state.has_ended, last.create_time, last.rollout_id)
                response.next_page_token = token_from_cursor(rollout_cursor(place))
                break
            response.rollouts.append(message)
        return response

    async def ListRolloutItems(
        self, request: pb.ListRolloutItemsRequest, _context: RpcContext
    ) -> pb.ListRolloutItemsResponse:
        """A page of the certificates of a rollout, those that failed first."""
        states, after = item_states_of(request.states), item_place(request.page_token)
        most = page_size(request.page_size)
        rollout = await self._desk.get(required_id("rollout_id", request.rollout_id))
        names = [ring.name for ring in rollout.rings]
        if request.ring and request.ring not in names:
            raise invalid_request("ring", f"is none of the rollout's: {', '.join(names)}")
        ring = names.index(request.ring) if request.ring else None
        found = await self._store.list_items(rollout.rollout_id, states, ring, after, most + 1)
        response = pb.ListRolloutItemsResponse()
        size = 0
        for number, item in enumerate(found):
            message = self._item(rollout, item)
            size += message.ByteSize() + 8
            if number == most or (response.items and size > MESSAGE_ROOM):
                last = found[number - 1]
                place = ItemPlace(last.state.place, last.certificate_id)
                response.next_page_token = token_from_cursor(item_cursor(place))
                break
            response.items.append(message)
        return response

    async def WatchRollout(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, request: pb.WatchRolloutRequest, context: RpcContext
    ) -> None:
        """Send a rollout as it is, and again after each change, until it has ended."""
        rollout_id = required_id("rollout_id", request.rollout_id)
        rollout = await self._desk.get(rollout_id)
        with self._watchers.watching(rollout_id) as watcher:
            while True:
                await self._write(pb.WatchRolloutResponse(rollout=await self._message(rollout)), context)
                if rollout.state.has_ended:
                    return
                await self._clock.sleep(_PACE)
                if not await watcher.next_change():
                    raise draining()
                rollout = await self._desk.get(rollout_id)

    async def PauseRollout(self, request: pb.PauseRolloutRequest, _context: RpcContext) -> pb.PauseRolloutResponse:
        """Release no further host."""
        return pb.PauseRolloutResponse(rollout=await self._say(Word.PAUSE, request))

    async def ResumeRollout(self, request: pb.ResumeRolloutRequest, _context: RpcContext) -> pb.ResumeRolloutResponse:
        """Go on, and try again what failed."""
        return pb.ResumeRolloutResponse(rollout=await self._say(Word.RESUME, request))

    async def AbortRollout(self, request: pb.AbortRolloutRequest, _context: RpcContext) -> pb.AbortRolloutResponse:
        """End it; each host stays with what works there."""
        return pb.AbortRolloutResponse(rollout=await self._say(Word.ABORT, request))

    async def ApproveRollout(
        self, request: pb.ApproveRolloutRequest, _context: RpcContext
    ) -> pb.ApproveRolloutResponse:
        """Let it begin."""
        return pb.ApproveRolloutResponse(rollout=await self._say(Word.APPROVE, request))

    async def FinishRollout(self, request: pb.FinishRolloutRequest, _context: RpcContext) -> pb.FinishRolloutResponse:
        """End it without the hosts that don't come."""
        said = await self._say(Word.FINISH, request, revoke_remaining=request.revoke_remaining)
        return pb.FinishRolloutResponse(rollout=said)

    async def _say(
        self,
        word: Word,
        request: pb.PauseRolloutRequest
        | pb.ResumeRolloutRequest
        | pb.AbortRolloutRequest
        | pb.ApproveRolloutRequest
        | pb.FinishRolloutRequest,
        *,
        revoke_remaining: bool = False,
    ) -> pb.Rollout:
        caller, request_id = current_call()
        rollout_id, reason = required_id("rollout_id", request.rollout_id), text_of("reason", request.reason)
        rollout = await self._desk.say(word, caller, request_id, rollout_id, reason, revoke_remaining=revoke_remaining)
        return await self._message(rollout)

    async def _message(self, rollout: Rollout) -> pb.Rollout:
        """With the hosts that failed, and the forecast of what isn't issued."""
        failed: Sequence[RolloutItem] = ()
        if any(each.state in _FAILED for ring in rollout.rings for each in ring.counts):
            failed = await self._store.list_items(rollout.rollout_id, _FAILED, None, None, _MOST_FAILED)
        items = [self._item(rollout, item) for item in failed]
        return rollout_message(rollout, items, await self._forecast_of(rollout))

    def _item(self, rollout: Rollout, item: RolloutItem) -> pb.RolloutItem:
        host = self._index.hosts.get(item.host)
        held = None if host is None else held_certificate(item, host, None)
        health: HealthWord | None = None if held is None else held.health
        return item_message(item, rollout.rings[item.ring].name, health)

    async def _forecast_of(self, rollout: Rollout) -> budget_pb2.Forecast | None:
        """When its last certificate gets its place; found again after half a minute."""
        if rollout.state.has_ended or self._forecast_message is None:
            self._forecasts.pop(rollout.rollout_id, None)
            return None
        known = self._forecasts.get(rollout.rollout_id)
        if known is not None and self._clock.monotonic() < known[0]:
            return known[1]
        waiting = [item for item in await self._store.items(rollout.rollout_id) if item.state in _WAITING]
        issuer = rollout.spec.issuer if rollout.spec.action is RolloutAction.MOVE else ""
        forecast = await self._forecast(waiting, issuer)
        message = None if forecast is None else self._forecast_message(forecast)
        self._forecasts[rollout.rollout_id] = (self._clock.monotonic() + _FORECAST_ROOM.total_seconds(), message)
        return message

    async def _write(self, message: pb.WatchRolloutResponse, context: RpcContext) -> None:
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT.total_seconds()):
                await context.write(message)
        except TimeoutError as error:
            raise RefusalError(Reason.STREAM_TIMED_OUT, "the watcher doesn't read its stream") from error
