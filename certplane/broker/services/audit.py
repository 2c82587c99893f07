# ruff: noqa: N802 - methods bear the names of the proto file
"""`AuditService`: the audit log of all brokers of the database, for operators."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.broker.event_filter import EventFilter
from certplane.broker.ports import AuditReader, ShownEvent
from certplane.broker.proof.checkpoints import Verifier
from certplane.broker.proof.exporting import export
from certplane.broker.proof.lines import Reads
from certplane.broker.proof.ports import AuditProof
from certplane.broker.proof.reading import DatabaseVerification
from certplane.broker.services.audit_convert import (
    event_filter,
    event_message,
    finding_message,
    moment,
    place_of,
    result_message,
)
from certplane.broker.services.convert import invalid_request, page_size, token_from_cursor
from certplane.broker.services.fleet_convert import MESSAGE_ROOM
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.v1 import audit_pb2 as pb
from certplane.v1 import audit_pb2_grpc

RpcContext = grpc.aio.ServicerContext[Any, Any]

_LOOK: Final = timedelta(seconds=1)
"""Between two looks for what has come: one read of the newest rows for each follower."""
_WRITE_TIMEOUT: Final = timedelta(seconds=30)
"""How long one message may wait for a reader."""
_PAST: Final = 20
_MOST_PAST: Final = 500
_PAST_PAGES: Final = 16
"""Pages of the log that are read for the past: each some thousand events."""
_MOST_FINDINGS: Final = 1000
_PROGRESS: Final = timedelta(seconds=2)


class AuditServicer(audit_pb2_grpc.AuditServiceServicer):
    """See the proto file: the comment of each method there is its contract."""

    service = pb.DESCRIPTOR.services_by_name["AuditService"].full_name

    def __init__(
        self,
        reader: AuditReader,
        proof: AuditProof,
        *,
        read: Reads,
        verifier: Callable[[], Awaitable[Verifier]],
        identities: Callable[[str], frozenset[str]],
        draining: Callable[[], bool],
        clock: Clock,
    ) -> None:
        """`read` makes the public format of what is stored, `verifier` reads the keys that are trusted now."""
        self._reader = reader
        self._proof = proof
        self._read = read
        self._verifier = verifier
        self._identities = identities
        self._draining = draining
        self._clock = clock

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        audit_pb2_grpc.add_AuditServiceServicer_to_server(self, server)

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, _context: RpcContext
    ) -> pb.ListAuditEventsResponse:
        """A page of events; it ends where another one would be too much for a message."""
        wanted = event_filter(request.filter, self._identities, self._clock.now())
        after, most = place_of(request.page_token), page_size(request.page_size)
        page = await self._reader.page(wanted, after=after, limit=most, oldest_first=request.oldest_first)
        response = pb.ListAuditEventsResponse()
        size, last = 0, page.after
        for index, event in enumerate(page.events):
            message = event_message(event)
            size += message.ByteSize() + 8
            if response.events and size > MESSAGE_ROOM:
                last = page.events[index - 1].sequence
                break
            response.events.append(message)
        response.next_page_token = "" if last is None else token_from_cursor(str(last))
        return response

    async def TailAuditEvents(  # type: ignore[override]  # it writes: the stub knows only handlers that yield
        self, request: pb.TailAuditEventsRequest, context: RpcContext
    ) -> None:
        """Send the last events, then each new one."""
        wanted = event_filter(request.filter, self._identities, self._clock.now())
        if not -1 <= request.past_count <= _MOST_PAST:
            raise invalid_request("past_count", f"must be from -1 to {_MOST_PAST}")
        past = 0 if request.past_count < 0 else request.past_count or _PAST
        tail = await self._reader.follow()
        events = await self._past(wanted, past)
        for event in reversed(events):
            await _write(context, pb.TailAuditEventsResponse(event=event_message(event)))
        shown = {event.sequence for event in events}
        while not self._draining():
            for event in await tail.new():
                if event.sequence not in shown and wanted.picks(event.time, event.record):
                    await _write(context, pb.TailAuditEventsResponse(event=event_message(event)))
            await self._clock.sleep(_LOOK)
        raise RefusalError(Reason.DRAINING, "the broker is shutting down; follow again shortly")

    async def _past(self, wanted: EventFilter, limit: int) -> Sequence[ShownEvent]:
        """The newest that are picked; a filter that picks few is looked for in so much of the log, and no more."""
        events: list[ShownEvent] = []
        after: int | None = None
        for _ in range(_PAST_PAGES if limit else 0):
            page = await self._reader.page(wanted, after=after, limit=limit - len(events))
            events += page.events
            after = page.after
            if len(events) == limit or after is None:
                break
        return events

    async def VerifyAuditLog(  # type: ignore[override]
        self, _request: pb.VerifyAuditLogRequest, context: RpcContext
    ) -> None:
        """Read the log, and say what doesn't hold."""
        verification = DatabaseVerification(self._proof, await self._verifier())
        total = await self._proof.newest()
        sent, told = 0, self._clock.monotonic()
        async with aclosing(verification.run()) as pages:
            async for found in pages:
                for finding in found[: _MOST_FINDINGS - sent]:
                    await _write(context, finding_message(finding))
                sent = min(_MOST_FINDINGS, sent + len(found))
                if self._clock.monotonic() - told >= _PROGRESS.total_seconds():
                    told = self._clock.monotonic()
                    progress = pb.VerifyAuditLogResponse.Progress(
                        event_count=verification.result.event_count, total_event_count=total
                    )
                    await _write(context, pb.VerifyAuditLogResponse(progress=progress))
        await _write(context, result_message(verification.result))

    async def ExportAuditLog(  # type: ignore[override]
        self, request: pb.ExportAuditLogRequest, context: RpcContext
    ) -> None:
        """Send the log as lines."""
        start = moment("start_time", request.start_time) if request.HasField("start_time") else None
        end = moment("end_time", request.end_time) if request.HasField("end_time") else None
        lines = export(self._proof, self._reader.place_of, self._read, start=start, end=end)
        ready: list[str] = []
        size = 0
        async with aclosing(lines) as found:
            async for line in found:
                octets = len(line.encode()) + 1
                if ready and size + octets > MESSAGE_ROOM:
                    await _write(context, pb.ExportAuditLogResponse(lines="".join(ready)))
                    ready, size = [], 0
                ready.append(f"{line}\n")
                size += octets
        await _write(context, pb.ExportAuditLogResponse(lines="".join(ready)))


async def _write(context: RpcContext, message: object) -> None:
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT.total_seconds()):
            await context.write(message)
    except TimeoutError as error:
        raise RefusalError(Reason.STREAM_TIMED_OUT, "the reader doesn't read its stream") from error
