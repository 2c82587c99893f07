"""`certplanectl context`: which fleets ctl.yml has, and which one commands are for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from certplane.ctl.contexts import choose, chosen
from certplane.ctl.session import Session
from certplane.errors import ConfigurationError
from certplane.runtime.columns import Column
from certplane.runtime.command import OK
from certplane.runtime.terminal import Style


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    urls: tuple[str, ...]
    current: bool


_COLUMNS: Final[Sequence[Column[_Row]]] = (
    Column("IN USE", lambda row: "*" if row.current else "", 1),
    Column("CONTEXT", lambda row: row.name, 0, style=lambda row: Style.STRONG if row.current else Style.PLAIN),
    Column("BROKERS", lambda row: " ".join(row.urls), 2, least=20),
)


async def list_contexts(_: argparse.Namespace, session: Session) -> int:
    """All contexts; none is in use where none was chosen."""
    settings, out = session.settings, session.out
    try:
        current = chosen(settings, session.named).name
    except ConfigurationError:
        current = None
    names = list(settings.contexts) or [""]
    rows = [
        _Row(name, tuple(map(str, settings.named(name).settings.broker.all_urls)), name == current) for name in names
    ]
    if out.for_people:
        out.table(_COLUMNS, rows)
        return OK
    for row in rows:
        if out.format is out.format.NAME:
            out.lines([row.name] if row.name else [])
        else:
            name = {"name": row.name} if row.name else {}
            out.object({**name, "brokers": list(row.urls), "inUse": row.current})
    return OK


async def use(options: argparse.Namespace, session: Session) -> int:
    """Keep a choice for the commands to come."""
    choose(session.settings, options.name)
    session.say(f"commands are for {options.name} from now on, by {session.settings.source.file}")
    return OK
