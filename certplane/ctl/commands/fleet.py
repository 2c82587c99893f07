"""`certplanectl fleet`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import AsyncGenerator
from typing import Final

from certplane.ctl.client import Client
from certplane.ctl.filters import fleet_filter, order_of
from certplane.ctl.session import Session
from certplane.ctl.show.fleet import counts_of, host_columns, host_rows, hosts_total, totals, urgency
from certplane.ctl.show.words import alarms
from certplane.errors import OperationError
from certplane.runtime.command import FAILED, OK
from certplane.v1 import fleet_pb2, renewal_pb2

_SCREEN: Final = 20
"""Rows after which the totals are told again: those on top may have left the screen."""


async def fleet(options: argparse.Namespace, session: Session) -> int:
    """All hosts that match, the worst first."""
    out = session.out
    wanted = fleet_filter(options)
    request = fleet_pb2.ListHostsRequest(
        filter=wanted, order_by=order_of(options), brief=out.format is out.format.TABLE
    )
    hosts: list[renewal_pb2.Host] = []
    first = fleet_pb2.ListHostsResponse()
    alarmed = False
    async with session.client() as client:
        if options.check:
            await client.require_hosts(wanted.hosts)
        async for page in _pages(client, request):
            if not first.ByteSize():
                first.CopyFrom(page)
            for host in page.hosts:
                alarmed = alarmed or (options.check and alarms(host.certificates))
                if not out.for_people:
                    out.message(host, host.name)
            if out.for_people:
                hosts += page.hosts
    if out.for_people:
        _show(session, options, hosts, first, filtered=bool(wanted.ByteSize()))
    return FAILED if alarmed else OK


async def _pages(
    client: Client, request: fleet_pb2.ListHostsRequest
) -> AsyncGenerator[fleet_pb2.ListHostsResponse, None]:
    """The broker's pages; one that doesn't know filters, and counts nothing, is asked in its own way."""
    async with contextlib.aclosing(client.hosts(request)) as pages:
        async for page in pages:
            if page.hosts and not page.host_count and request.filter.ByteSize():
                break
            yield page
        else:
            return
    wanted = request.filter
    older = fleet_pb2.ListHostsRequest(
        states=wanted.states, disconnected_only=wanted.disconnected_only, healths=wanted.healths
    )
    known = fleet_pb2.FleetFilter(
        states=wanted.states, disconnected_only=wanted.disconnected_only, healths=wanted.healths
    )
    if known != wanted:
        remedy = "upgrade it, or use --state, --health and --disconnected alone"
        raise OperationError("the broker is older than these filters, and would list all hosts", remedy=remedy)
    async for page in client.hosts(older):
        yield page


def _show(
    session: Session,
    options: argparse.Namespace,
    hosts: list[renewal_pb2.Host],
    first: fleet_pb2.ListHostsResponse,
    *,
    filtered: bool,
) -> None:
    out = session.out
    if not hosts:
        out.lines(["no host matches" if filtered else "no host has reported yet"])
        return
    if options.sort == "health" and not first.host_count:
        hosts.sort(key=urgency)  # an older broker has sent them by name, and counts nothing
    count = first.host_count or len(hosts)
    connected = first.connected_host_count if first.host_count else sum(host.connected for host in hosts)
    services = any(host.kind == renewal_pb2.HOST_KIND_SERVICE for host in hosts)
    total = hosts_total(count, connected, services=services)
    counts = totals(first.health_counts or counts_of(hosts))
    rows = host_rows(hosts)
    out.parts(total, counts)
    out.lines([""])
    out.table(host_columns(hosts, session.now()), rows)
    if len(rows) > _SCREEN:
        out.lines([""])
        out.parts(total, counts)
