"""`certplanectl incident list` and `incident show`."""

from __future__ import annotations

import argparse

from certplane.ctl.calls import PAGE
from certplane.ctl.session import Session
from certplane.ctl.show.incidents import columns, facts, style_of
from certplane.runtime.command import OK
from certplane.runtime.text import counted
from certplane.v1 import incident_pb2


async def list_incidents(options: argparse.Namespace, session: Session) -> int:
    """The open ones first."""
    request = incident_pb2.ListIncidentsRequest(open_only=options.open, page_size=min(PAGE, options.limit))
    found: list[incident_pb2.Incident] = []
    more = False
    async with session.client() as client:
        async for page in client.incidents(request):
            left = options.limit - len(found)
            found += page.incidents[:left]
            more = bool(page.next_page_token) or len(page.incidents) > left
            if len(found) >= options.limit:
                break
    out = session.out
    if not out.for_people:
        for each in found:
            out.message(each, each.incident_id)
    elif found:
        out.table(columns(session.now()), found)
        out.lines([counted(len(found), "incident")])
    else:
        out.lines(["no incident is open" if options.open else "there was no incident"])
    if more:
        session.say("there are more incidents, shown with a larger --limit")
    return OK


async def show(options: argparse.Namespace, session: Session) -> int:
    """One in full."""
    async with session.client() as client:
        found = await client.incident(options.id)
    out = session.out
    if not out.for_people:
        out.message(found, found.incident_id)
        return OK
    out.facts(facts(found, session.now()), {"state": style_of(found)})
    if found.rollout_id:
        out.line(f"how far that is: {session.command(f'rollout watch {found.rollout_id}')}", folded=True)
    return OK
