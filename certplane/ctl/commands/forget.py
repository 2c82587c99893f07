"""`certplanectl forget`."""

from __future__ import annotations

import argparse

from certplane.ctl.session import Session
from certplane.runtime.command import FAILED, OK
from certplane.runtime.text import counted


async def forget(options: argparse.Namespace, session: Session) -> int:
    """Have the broker forget a host that is gone; one that isn't is refused by the broker, with why."""
    async with session.client() as client:
        if not options.yes and not await session.agreed(
            f"what is known of {options.name} is forgotten; its certificates and audit events stay"
        ):
            session.say("nothing was forgotten")
            return FAILED
        answer = await client.forget(options.name, options.reason)
    out = session.out
    if out.for_people:
        valid = answer.valid_certificate_count
        left = f"; {counted(valid, 'certificate')} of it valid still, and watched by nobody now" if valid else ""
        out.line(f"{answer.host.name or options.name} is forgotten{left}", folded=True)
    else:
        out.message(answer)
    return OK
