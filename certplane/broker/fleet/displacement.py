"""Streams that aren't their hosts' any more: the hosts have said hello again, here or at another broker.

The row of a host's stream decides (ADR 0033): the broker and the number that it names have the host. The change feed
says which rows to look at. Where a row is *older* than the stream here, or than what was acknowledged on it, the
database was restored: then the host is asked to come back, since only hello brings all that up to date.

A host that comes back is no second holder of its identity, though its first stream may stay open for minutes where a
network was cut: that it was displaced is counted only if somebody still answers on it, with the same certificate.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.fleet.model import RecordedStream
from certplane.broker.fleet.ports import StreamPlaces
from certplane.broker.fleet.refusals import displaced
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.fleet.stream import ServedStream, StreamContext
from certplane.broker.ports import ChangeFollower

_ANSWER: Final = timedelta(milliseconds=400)
"""For a host to answer. With the feed's quarter of a second a displaced stream ends within one."""
_TOGETHER: Final = 128
"""Streams that are looked up at once, before others get their turn."""

CountDisplacement = Callable[[str, datetime], Awaitable[None]]
"""Notes that a stream has displaced another one of the same certificate."""


class Displacement(ChangeFollower):
    """Ends streams that have lost their place, and finds those of `registry` whose hosts are elsewhere by now."""

    def __init__(
        self, places: StreamPlaces, registry: StreamRegistry, context: StreamContext, count: CountDisplacement
    ) -> None:
        self._places = places
        self._registry = registry
        self._context = context
        self._count = count

    @override
    async def changed(self, keys: Collection[str]) -> None:
        await self._compare([host for host in keys if host in self._registry])

    @override
    async def reread(self, since: datetime) -> None:
        hosts = self._registry.hosts
        for start in range(0, len(hosts), _TOGETHER):
            await self._compare(hosts[start : start + _TOGETHER])
            await asyncio.sleep(0)

    async def _compare(self, hosts: Sequence[str]) -> None:
        if not hosts:
            return
        streams = [stream for host in hosts if (stream := self._registry.place_of(host)) is not None]
        before = [(stream, stream.session.durable) for stream in streams]
        found = {row.stream.host: row for row in await self._places.find_streams(hosts)}
        for stream, durable in before:
            # Another one that has come meanwhile is newer than what was read.
            if stream is self._registry.place_of(stream.host):
                self._judge(stream, durable, found.get(stream.host))

    def _judge(self, stream: ServedStream, durable: int, recorded: RecordedStream | None) -> None:
        if recorded is None or _is_older(recorded, stream, durable):
            reason = "the broker's database was restored to before what it had acknowledged; say hello again"
            stream.session.say_goodbye(self._context.goodbye(len(self._registry), reason))
            stream.wake()
            return
        row = recorded.stream
        if row.broker_id != self._context.recorder.store.broker_id:
            self._registry.give_up(stream)
            self._context.recorder.watchers.host_elsewhere(stream.host, self._context.clock.now())
            self.displace(stream, row.identity_serial_number, row.source_ip, row.broker_id)

    def displace(self, stream: ServedStream, serial_number: str, source_ip: str, broker_id: str = "") -> None:
        """End a stream here that isn't its host's any more.

        Args:
            stream: The one that has lost its place.
            serial_number: Of the identity certificate of the stream that has it.
            source_ip: Where that one comes from.
            broker_id: The broker that has it, if that is another one.
        """
        fields = {
            "host": stream.host,
            "serial_number": serial_number,
            "source_ip": source_ip,
            **({"broker_id": broker_id} if broker_id else {}),
            "displaced_serial_number": stream.caller.serial_number,
            "displaced_source_ip": stream.caller.source_ip,
        }
        self._context.log(logging.INFO, "a new stream of a host has displaced its previous one", fields)
        if serial_number == stream.caller.serial_number:
            self._context.recorder.start(self._end_asked(stream), "fleet-displace")
        else:
            stream.end(displaced())

    async def _end_asked(self, stream: ServedStream) -> None:
        if await self._answers(stream):
            self._context.recorder.note(self._count(stream.host, self._context.clock.now()))
        stream.end(displaced())

    async def _answers(self, stream: ServedStream) -> bool:
        """Whether somebody is still there: who has moved says nothing more, and mostly hangs up meanwhile."""
        stream.session.ask()
        stream.wake()
        await self._context.clock.sleep(_ANSWER)
        return stream.session.has_answered and not stream.hung_up


def _is_older(recorded: RecordedStream, stream: ServedStream, durable: int) -> bool:
    """Whether the row is from before the stream, or from before what was acknowledged on it."""
    if recorded.stream.stream_epoch != stream.stream_epoch:
        return recorded.stream.stream_epoch < stream.stream_epoch
    return recorded.epoch != stream.session.epoch or recorded.acknowledged_sequence < durable
