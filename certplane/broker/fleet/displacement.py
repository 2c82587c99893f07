"""Streams here whose hosts have said hello at another broker since: what the change feed says of them ends them.

The row of a host's stream decides (ADR 0033): the broker and the number that it names have the host. Where the row is
*older* than the stream here, the database was restored from before it: then the host is asked to come back, since only
hello brings the row, and what was reported since, up to date.

A host that moves is no second holder of its identity, though its first stream may stay open for minutes where a network
was cut: what displaces it is counted only if somebody still answers on it, with the same certificate.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime, timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.fleet.model import HostStream
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
    """Ends the streams of `registry` whose hosts are elsewhere."""

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
        before = {host: self._registry.place_of(host) for host in hosts}
        found = {stream.host: stream for stream in await self._places.find_streams(hosts)}
        for host, stream in before.items():
            # Another one that has come meanwhile is newer than what was read.
            if stream is not None and stream is self._registry.place_of(host):
                self._judge(stream, found.get(host))

    def _judge(self, stream: ServedStream, row: HostStream | None) -> None:
        if row is None or row.stream_epoch < stream.stream_epoch:
            reason = "the broker's database was restored from before this stream; say hello again"
            stream.session.say_goodbye(self._context.goodbye(len(self._registry), reason))
            stream.wake()
        elif row.broker_id != self._context.recorder.store.broker_id:
            self._registry.give_up(stream)
            self._context.recorder.watchers.host_changed(stream.host, self._context.clock.now())
            self._context.recorder.start(self._displace(stream, row), "fleet-displace")

    async def _displace(self, stream: ServedStream, row: HostStream) -> None:
        same = stream.caller.serial_number == row.identity_serial_number
        if same and await self._answers(stream):
            self._context.recorder.note(self._count(stream.host, self._context.clock.now()))
        stream.end(displaced())
        fields = {
            "host": stream.host,
            "serial_number": row.identity_serial_number,
            "source_ip": row.source_ip,
            "broker_id": row.broker_id,
            "displaced_serial_number": stream.caller.serial_number,
            "displaced_source_ip": stream.caller.source_ip,
        }
        self._context.log(logging.INFO, "a new stream of a host at another broker has displaced the one here", fields)

    async def _answers(self, stream: ServedStream) -> bool:
        """Whether somebody is still there: who has moved says nothing more, and mostly hangs up meanwhile."""
        stream.session.ask()
        stream.wake()
        await self._context.clock.sleep(_ANSWER)
        return stream.session.has_answered and not stream.hung_up
