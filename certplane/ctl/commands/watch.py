"""`certplanectl watch`: a full screen on a terminal, else lines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TextIO

from certplane.ctl.session import Session
from certplane.ctl.watch.feed import Feed, FleetSource, WatchDisplay
from certplane.ctl.watch.lines import JsonLines, PlainLines
from certplane.ctl.watch.source import ClientSource
from certplane.runtime.command import OK


async def watch(options: argparse.Namespace, session: Session) -> int:
    """Watch until somebody leaves, or a signal; a broker that restarts is waited for."""

    @asynccontextmanager
    async def connect() -> AsyncIterator[FleetSource]:
        async with session.client() as client:
            yield ClientSource(client, options.hosts)

    if not options.plain and not options.json and full_screen(sys.stdin, sys.stdout, os.environ):
        if find_spec("textual") is not None:
            from certplane.ctl.watch.full import run_full_screen  # noqa: PLC0415 - optional, and half a second to load

            context = session.context
            urls = [str(url) for url in context.settings.broker.all_urls]
            more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
            name = f"{context.name}: " if len(session.settings.contexts) > 1 else ""
            where = f"{name}{urls[0]}{more}"
            session.out.lines(await run_full_screen(connect, where, options.hosts, session.clock))
            return OK
        session.say("in lines, since the package textual is missing: install certplane[terminal] for the full screen")
    display: WatchDisplay
    if options.json or not sys.stdout.isatty():
        display = JsonLines(sys.stdout, session.say)
    else:
        display = PlainLines(sys.stdout, session.say, session.now, session.out.terminal)
    return await Feed(connect, options.hosts, session.clock, patient=False).follow(display)


def full_screen(stdin: TextIO, stdout: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a full screen can be shown, and nothing says that plain lines are wanted."""
    dumb = environment.get("TERM", "dumb") in ("dumb", "unknown", "")
    return stdin.isatty() and stdout.isatty() and not dumb and not environment.get("NO_COLOR")
