"""`certplanectl orders`: a list, or live."""

from __future__ import annotations

import argparse

from certplane.ctl.calls import PAGE
from certplane.ctl.filters import order_filter
from certplane.ctl.session import Session
from certplane.ctl.show.orders import columns, order_facts, order_line, style_of
from certplane.runtime.command import OK
from certplane.runtime.text import counted
from certplane.v1 import order_pb2


async def orders(options: argparse.Namespace, session: Session) -> int:
    """Orders that match, the open ones first."""
    wanted = order_filter(options)
    if options.watch:
        return await _watch(session, wanted)
    out = session.out
    found: list[order_pb2.OrderStatus] = []
    request = order_pb2.ListOrdersRequest(filter=wanted, page_size=min(PAGE, options.limit))
    more, open_count = False, 0
    async with session.client() as client:
        async for page in client.orders(request):
            left = options.limit - len(found)
            found += page.orders[:left]
            more = bool(page.next_page_token) or len(page.orders) > left
            open_count = page.open_order_count
            if len(found) >= options.limit:
                break
    if not out.for_people:
        for each in found:
            out.message(each, each.order.order_id)
        if more:
            session.say("there are more orders, shown with a larger --limit")
        return OK
    now = session.now()
    if options.id and found:
        for number, each in enumerate(found):
            out.lines([""] if number else [])
            out.facts(order_facts(each, now), {"state": style_of(each)})
    elif found:
        out.table(columns(now), found)
    shown = counted(len(found), "order") if found else "no order matches"
    cut = "; there are more, shown with a larger --limit" if more else ""
    out.line(f"{shown}{cut}; {open_count} open in the fleet", folded=True)
    return OK


async def _watch(session: Session, wanted: order_pb2.OrderFilter) -> int:
    """The open ones, then a line for each change, until the broker or a signal ends it."""
    out = session.out
    snapshot: list[order_pb2.OrderStatus] | None = []
    async with session.client() as client:
        async for message in client.watch_orders(wanted):
            each = message.order
            if not out.for_people:
                out.message(message, each.order.order_id)
            elif message.HasField("snapshot_end"):
                if snapshot:
                    out.table(columns(session.now()), snapshot)
                elif snapshot is not None:
                    out.lines(["no order is open"])
                snapshot = None
            elif snapshot is not None:
                snapshot.append(each)
            else:
                out.line(f"{session.now():%H:%M:%S} {order_line(each)}", style_of(each), folded=True)
    session.say("the broker has ended the watch")
    return OK
