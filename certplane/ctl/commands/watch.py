"""`certplanectl watch`: a full screen on a terminal, else lines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TextIO

from certplane.ctl.session import Session
from certplane.ctl.watch.feed import Connect, Feed, WatchDisplay, WatchSource
from certplane.ctl.watch.lines import JsonLines, PlainLines
from certplane.ctl.watch.page import FLEET, Page
from certplane.ctl.watch.source import ClientSource
from certplane.runtime.command import OK


async def watch(options: argparse.Namespace, session: Session) -> int:
    """Watch until somebody leaves, or a signal; a broker that restarts is waited for."""
    if wants_full_screen(options, session):
        return await show_full_screen(session, options.hosts, FLEET)
    display: WatchDisplay
    if options.json or not sys.stdout.isatty():
        display = JsonLines(sys.stdout, session.say)
    else:
        display = PlainLines(sys.stdout, session.say, session.now, session.out.terminal)
    connect = _connecting(session, options.hosts)
    return await Feed(connect, options.hosts, session.clock, patient=False).follow(display)


def wants_full_screen(options: argparse.Namespace, session: Session) -> bool:
    """Whether one can be shown, and lines aren't wanted; that a package is missing for it is said."""
    if options.plain or options.json or not full_screen(sys.stdin, sys.stdout, os.environ):
        return False
    if find_spec("textual") is None:
        session.say("in lines, since the package textual is missing: install certplane[terminal] for the full screen")
        return False
    return True


async def show_full_screen(session: Session, hosts: Sequence[str], page: Page) -> int:
    """Until somebody leaves, with `page` open above the fleet; the last state stays on the terminal."""
    from certplane.ctl.watch.full import run_full_screen  # noqa: PLC0415 - optional, and half a second to load

    context = session.context
    urls = [str(url) for url in context.settings.broker.all_urls]
    more = f" and {len(urls) - 1} more" if len(urls) > 1 else ""
    name = f"{context.name}: " if len(session.settings.contexts) > 1 else ""
    where = f"{name}{urls[0]}{more}"
    session.out.lines(await run_full_screen(_connecting(session, hosts), where, hosts, session.clock, page=page))
    return OK


def full_screen(stdin: TextIO, stdout: TextIO, environment: Mapping[str, str]) -> bool:
    """Whether a full screen can be shown, and nothing says that plain lines are wanted."""
    dumb = environment.get("TERM", "dumb") in ("dumb", "unknown", "")
    return stdin.isatty() and stdout.isatty() and not dumb and not environment.get("NO_COLOR")


def _connecting(session: Session, hosts: Sequence[str]) -> Connect:
    @asynccontextmanager
    async def connect() -> AsyncIterator[WatchSource]:
        async with session.client() as client:
            yield ClientSource(client, hosts)

    return connect
