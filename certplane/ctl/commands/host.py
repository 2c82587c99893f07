"""`certplanectl host`."""

from __future__ import annotations

import argparse

from certplane.ctl.session import Session
from certplane.ctl.show.host import sections
from certplane.ctl.show.words import health_style
from certplane.runtime.command import OK


async def host(options: argparse.Namespace, session: Session) -> int:
    """One host in full."""
    async with session.client() as client:
        found = await client.host(options.name)
    out = session.out
    if not out.for_people:
        out.message(found, found.name)
        return OK
    for number, (facts, health) in enumerate(sections(found, session.now())):
        if number:
            out.lines([""])
        out.facts(facts, {"health": health_style(health)})
    return OK
