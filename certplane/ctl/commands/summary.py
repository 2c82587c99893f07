"""`certplanectl summary`."""

from __future__ import annotations

import argparse

from certplane.ctl.filters import fleet_filter
from certplane.ctl.session import Session
from certplane.ctl.show.fleet import totals
from certplane.ctl.show.summary import alarms, head, summary_lines
from certplane.runtime.command import FAILED, OK
from certplane.v1 import fleet_pb2


async def summary(options: argparse.Namespace, session: Session) -> int:
    """The five questions of a night."""
    request = fleet_pb2.SummarizeFleetRequest(filter=fleet_filter(options))
    request.period.FromTimedelta(options.period)
    async with session.client() as client:
        if options.check:
            await client.require_hosts(request.filter.hosts)
        answer = await client.summarize(request)
    out = session.out
    if out.for_people:
        out.parts(head(answer), totals(answer.health_counts))
        out.lines([""])
        for line in summary_lines(answer, session.now()):
            out.line(line.text, line.style, folded=line.folded)
    else:
        out.message(answer)
    return FAILED if options.check and alarms(answer) else OK
