"""`certplanectl audit`: the log of the fleet, from anywhere."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

from certplane.ctl.calls import PAGE
from certplane.ctl.filters import audit_filter, put_period
from certplane.ctl.session import Session
from certplane.ctl.show.audit import COLUMNS, event_line, finding_line, result_facts, style_of
from certplane.errors import OperationError
from certplane.runtime.command import FAILED, OK
from certplane.runtime.files import sync_folder
from certplane.runtime.pool import BlockingPool
from certplane.runtime.terminal import Style
from certplane.runtime.text import counted
from certplane.v1 import audit_pb2


async def list_events(options: argparse.Namespace, session: Session) -> int:
    """Events that match, the newest first unless asked otherwise."""
    request = audit_pb2.ListAuditEventsRequest(
        filter=audit_filter(options, session.now()),
        oldest_first=options.oldest_first,
        page_size=min(PAGE, options.limit),
    )
    found, more = await _events(session, request, options.limit)
    _show(session, found, more=more)
    return OK


async def tail(options: argparse.Namespace, session: Session) -> int:
    """The last events, the oldest first; with --follow then each new one."""
    wanted = audit_filter(options, session.now())
    if not options.follow:
        request = audit_pb2.ListAuditEventsRequest(filter=wanted, page_size=min(PAGE, options.lines))
        found, more = await _events(session, request, options.lines)
        _show(session, found[::-1], more=more)
        return OK
    out = session.out
    async with session.client() as client:
        async for event in client.tail_audit(wanted, options.lines):
            if out.for_people:
                out.line(event_line(event), style_of(event), folded=True)
            else:
                out.message(event, event.event_id)
    session.say("the broker has ended the tail")
    return OK


async def verify(_: argparse.Namespace, session: Session) -> int:
    """Whether the log is whole; progress goes to standard error."""
    out = session.out
    result: audit_pb2.VerifyAuditLogResponse.Result | None = None
    async with session.client() as client:
        async for message in client.verify_audit():
            match message.WhichOneof("message"):
                case "progress":
                    progress = message.progress
                    session.say(f"{progress.event_count} of about {counted(progress.total_event_count, 'event')}")
                case "finding":
                    if out.for_people:
                        out.line(finding_line(message.finding), Style.BAD, folded=True)
                    else:
                        out.message(message.finding)
                case "result":
                    result = message.result
    if result is None:
        raise OperationError("the broker ended the check without a result", remedy="run it again; see the broker's log")
    if out.for_people:
        style = Style.BAD if result.finding_count else Style.GOOD
        out.facts(result_facts(result), {"findings": style})
    else:
        out.message(result)
    return FAILED if result.finding_count else OK


async def export(options: argparse.Namespace, session: Session) -> int:
    """Lines of the log as they are; a file is there under its name only once it is whole."""
    request = audit_pb2.ExportAuditLogRequest()
    put_period(request, options, session.now())
    async with session.client() as client:
        lines = client.export_audit(request)
        if options.to is None:
            async for piece in lines:
                session.out.raw(piece)
            return OK
        count = await _export_to(options.to, lines)
    session.say(f"{counted(count, 'line')} in {options.to}")
    return OK


async def _export_to(path: Path, lines: AsyncGenerator[str, None]) -> int:
    """Write a new file, durably; returns how many lines it has."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    pool, count = BlockingPool("ctl-export", 1), 0
    try:
        file = await pool.run(_create, temporary, path)
        try:
            async for piece in lines:
                count += piece.count("\n")
                await pool.run(_write, file, piece.encode())
            await pool.run(_finish, file, temporary, path)
        finally:
            os.close(file)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OperationError(
            f"{path} can't be written: {error.strerror or error}", remedy="name another file"
        ) from error
    finally:
        pool.close()
    return count


def _create(temporary: Path, path: Path) -> int:
    if path.exists():
        raise FileExistsError(0, "it is there already", str(path))
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _finish(file: int, temporary: Path, path: Path) -> None:
    os.fsync(file)
    os.link(temporary, path)  # never over a file that has come meanwhile
    sync_folder(path.parent)


async def _events(
    session: Session, request: audit_pb2.ListAuditEventsRequest, limit: int
) -> tuple[list[audit_pb2.AuditEvent], bool]:
    """At most so many events, and whether there are more."""
    found: list[audit_pb2.AuditEvent] = []
    async with session.client() as client:
        async for page in client.audit_events(request):
            left = limit - len(found)
            found += page.events[:left]
            if len(found) >= limit:
                return found, bool(page.next_page_token) or len(page.events) > left
            await asyncio.sleep(0)  # a filter that finds nothing may take many pages: Ctrl-C is heard between them
    return found, False


def _show(session: Session, found: list[audit_pb2.AuditEvent], *, more: bool) -> None:
    out = session.out
    if not out.for_people:
        for event in found:
            out.message(event, event.event_id)
        if more:
            session.say("there are more events, shown with a larger number")
        return
    if found:
        out.table(COLUMNS, found)
    shown = counted(len(found), "event") if found else "no event matches"
    out.line(f"{shown}{'; there are more, shown with a larger number' if more else ''}", folded=True)
