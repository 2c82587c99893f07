# ruff: noqa: N802 - methods bear the names of the proto file
"""`BudgetService`: what the CAs' limits leave, and how long orders would take by them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import grpc

from certplane.broker.fleet.forecasting import Forecasts
from certplane.broker.services.budget_convert import forecast_message, issuer_message, issuers_of, names_of
from certplane.broker.services.convert import invalid_request
from certplane.broker.services.fleet_convert import Named, selection_of
from certplane.errors import Refusal
from certplane.rpc.times import put_time
from certplane.runtime.clock import Clock
from certplane.v1 import budget_pb2 as pb
from certplane.v1 import budget_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

HeldUntil = Callable[[str], tuple[datetime, Refusal] | None]
"""Until when, and why, no order goes to the issuer of this name; None if they do."""


class BudgetServicer(budget_pb2_grpc.BudgetServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["BudgetService"].full_name

    def __init__(
        self, forecasts: Forecasts, held: HeldUntil, *, issuers: Collection[str], named: Named, clock: Clock
    ) -> None:
        """`issuers` are those of the configuration; `named` knows what hosts are called."""
        self._forecasts, self._held = forecasts, held
        self._issuers, self._named = issuers, named
        self._clock = clock

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        budget_pb2_grpc.add_BudgetServiceServicer_to_server(self, server)

    async def GetBudget(self, request: pb.GetBudgetRequest, _context: RpcContext) -> pb.GetBudgetResponse:
        """The limits, with what is left of them."""
        issuers = issuers_of("issuers", request.issuers, self._issuers)
        now = self._clock.now()
        views = await self._forecasts.overview(issuers, names_of(request.dns_names))
        response = pb.GetBudgetResponse(
            issuers=(issuer_message(view, self._held(view.limits.issuer)) for view in views)
        )
        put_time(now, response.budget_time)
        return response

    async def ForecastOrders(
        self, request: pb.ForecastOrdersRequest, _context: RpcContext
    ) -> pb.ForecastOrdersResponse:
        """When the last of a selection would be ordered."""
        if not request.HasField("selection"):
            raise invalid_request("selection", "is required: name hosts, labels, profiles or issuers, or all")
        selection = selection_of(request.selection, self._named)
        if selection.identities:
            raise invalid_request("selection.identities", "can't be forecast: the internal CA issues them, unlimited")
        if request.issuer:
            issuers_of("issuer", [request.issuer], self._issuers)
        found, count = await self._forecasts.of_selection(selection, request.issuer)
        return pb.ForecastOrdersResponse(forecast=forecast_message(found), certificate_count=count)
