"""What a watch asks of a broker, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from certplane.ctl.client import Client
from certplane.ctl.contexts import chosen
from certplane.ctl.settings import load_settings
from certplane.ctl.watch.known import PERIOD
from certplane.ctl.watch.source import ClientSource
from certplane.errors import OperationError
from certplane.v1 import audit_pb2, budget_pb2, fleet_pb2, incident_pb2, order_pb2, rollout_pb2
from tests.support.operators_broker import OperatorsBroker
from tests.support.waiting import no_hang, until
from tests.support.watched_fleet import an_event, an_order
from tests.support.watched_rollouts import Rollout, a_rollout, halted


class Silent(OperatorsBroker):
    """One that never answers."""

    async def _said(self, name: str, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append((name, request))
        await asyncio.Event().wait()
        yield None


@asynccontextmanager
async def source(broker: OperatorsBroker, folder: Path, *hosts: str) -> AsyncIterator[tuple[ClientSource, Client]]:
    async with broker.running(), Client(chosen(load_settings(broker.write_config(folder)), None)) as client:
        yield ClientSource(client, hosts), client


async def test_the_summary_is_of_the_hosts_that_are_watched(tmp_path: Path) -> None:
    """And of the time within which the screen says who is next."""
    broker = OperatorsBroker({"SummarizeFleet": fleet_pb2.SummarizeFleetResponse(hurt_count=3)})
    async with source(broker, tmp_path, "web1", "web2") as (asked, _):
        assert (await asked.summarize()).hurt_count == 3
    (request,) = broker.requests("SummarizeFleet")
    assert list(request.filter.hosts) == ["web1", "web2"]
    assert request.period.ToTimedelta() == PERIOD


async def test_the_newest_events_whatever_the_pages(tmp_path: Path) -> None:
    """A page may be empty without being the last; but of a log that has next to nothing of it not all is read."""

    def page(request: Any) -> audit_pb2.ListAuditEventsResponse:
        number = int(request.page_token or 0)
        events = [an_event(f"{number}-{each}") for each in range(number * 2)]
        return audit_pb2.ListAuditEventsResponse(events=events, next_page_token=str(number + 1))

    broker = OperatorsBroker({"ListAuditEvents": page})
    async with source(broker, tmp_path) as (asked, _):
        wanted = audit_pb2.AuditFilter(identities=["web1"])
        events = await asked.last_events(wanted, 3)
        assert [each.event_id for each in events] == ["1-0", "1-1", "2-0"]
        broker.answers["ListAuditEvents"] = audit_pb2.ListAuditEventsResponse(next_page_token="more")
        assert await asked.last_events(wanted, 3) == []
    assert len(broker.requests("ListAuditEvents")) == 3 + 5
    assert broker.requests("ListAuditEvents")[0].filter == wanted


async def test_the_newest_orders(tmp_path: Path) -> None:
    """So many as are wanted."""
    orders = [an_order() for _ in range(3)]
    broker = OperatorsBroker({"ListOrders": order_pb2.ListOrdersResponse(orders=orders, next_page_token="more")})
    async with source(broker, tmp_path) as (asked, _):
        assert len(await asked.last_orders(order_pb2.OrderFilter(open_only=True), 4)) == 4
    assert broker.requests("ListOrders")[0].filter.open_only


async def test_rollouts_incidents_and_limits(tmp_path: Path) -> None:
    """The first page of each list; a rollout until the broker ends its watch."""
    broker = OperatorsBroker(
        {
            "ListRollouts": rollout_pb2.ListRolloutsResponse(rollouts=[halted()], next_page_token="more"),
            "WatchRollout": [rollout_pb2.WatchRolloutResponse(rollout=each) for each in (a_rollout(), halted())],
            "ListIncidents": incident_pb2.ListIncidentsResponse(incidents=[incident_pb2.Incident(incident_id="i-1")]),
            "GetBudget": budget_pb2.GetBudgetResponse(issuers=[budget_pb2.IssuerBudget(issuer="le")]),
        }
    )
    async with source(broker, tmp_path) as (asked, _):
        assert await asked.last_rollouts(50) == [halted()]
        assert [each.state async for each in asked.watch_rollout("r-7f3a")] == [
            Rollout.STATE_RUNNING,
            Rollout.STATE_HALTED,
        ]
        assert [each.incident_id for each in await asked.last_incidents(50)] == ["i-1"]
        assert [each.issuer for each in (await asked.budget()).issuers] == ["le"]
    assert broker.requests("ListRollouts")[0].page_size == 50
    assert broker.requests("WatchRollout")[0].rollout_id == "r-7f3a"


async def test_a_connection_that_is_closed_under_a_call_is_no_cancellation(tmp_path: Path) -> None:
    """The watch has ended and takes its connection with it: whoever asks beside it hears an error, and asks again."""
    broker = Silent()
    async with source(broker, tmp_path) as (asked, client):
        task = asyncio.ensure_future(asked.host("web1"))
        await until(lambda: broker.calls, by=task)
        await client.__aexit__()
        with pytest.raises(OperationError, match="the connection has ended"):
            async with no_hang():
                await task


async def test_a_cancellation_is_one(tmp_path: Path) -> None:
    """Whoever leaves doesn't wait for an answer."""
    broker = Silent()
    async with source(broker, tmp_path) as (asked, _):
        task = asyncio.ensure_future(asked.summarize())
        await until(lambda: broker.calls, by=task)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
