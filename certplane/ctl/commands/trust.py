"""`certplanectl trust plan`."""

from __future__ import annotations

import argparse
from typing import Final

from certplane.config.files import is_input, read_argument
from certplane.ctl.session import Session
from certplane.ctl.show.trust import columns, lines
from certplane.runtime.command import FAILED, OK
from certplane.runtime.terminal import Style

_MOST_BYTES: Final = 60_000
"""What fits into a message (`rpc.channel.MAX_MESSAGE_BYTES`) beside its other fields: some 40 CAs."""


async def plan(options: argparse.Namespace, session: Session) -> int:
    """What would come of an agent CA bundle."""
    content = read_argument(options.file, max_bytes=_MOST_BYTES)
    async with session.client() as client:
        answer = await client.plan_trust_bundle(content.decode(errors="replace"))
    out = session.out
    file = "standard input" if is_input(options.file) else str(options.file)
    for problem in answer.problems:
        session.say(f"{file}: {problem}")
    if out.for_people:
        if answer.cas:
            out.table(columns(session.now()), answer.cas)
            out.lines([""])
        if not answer.problems:
            style = Style.BAD if answer.confirmation else Style.PLAIN
            for line in lines(answer):
                out.line(line, style, folded=True)
    else:
        out.message(answer)
    return FAILED if answer.problems or answer.confirmation else OK
