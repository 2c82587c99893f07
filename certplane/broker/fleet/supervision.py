"""Time passing for all streams: one task checks each of them every second, and ends those past their limits.

Who is silent, who doesn't answer, who doesn't read, whose stream has lasted long enough, whether policy, trust or the
retry epoch changed; now and then it is recorded that a host is there. Beside it hosts that have come are told their
plans. A bug that one host brings out ends the stream of that host, and is
logged: all others go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.fleet.messages import Goodbye
from certplane.broker.fleet.plan_teller import PlanTeller
from certplane.broker.fleet.refusals import failed, invalid, timed_out
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.fleet.settings import RETRY, StreamSettings
from certplane.broker.fleet.stream import ServedStream, StreamContext
from certplane.errors import RefusalError

_logger = logging.getLogger("certplane.broker.fleet")

_COME_BACK: Final = Goodbye(timedelta(), "this stream has lasted for hours; the next one may be at another broker")
"""No time to stay away, so that a host takes any of its brokers, this one too: that evens their streams out."""
_LASTED: Final = timedelta(minutes=5)
"""Work that ran for as long was well: what ends it afterwards is said, and waited for, as if it were the first time."""
_SLICE: Final = 512
"""Streams that are checked before others get their turn: about a millisecond."""


@dataclass(slots=True, eq=False)
class StreamSupervision:
    """Supervises the streams of one broker, while `run` runs; `hashes` reads what hosts are told is in force."""

    registry: StreamRegistry
    teller: PlanTeller
    hashes: Callable[[], tuple[str, str, str]]
    context: StreamContext

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._check_all, self.teller.run):
                group.create_task(self._keep_up(work), name=f"fleet-{work.__name__.strip('_')}")

    async def _keep_up(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what never ends, and begin it again after a bug."""
        clock, failures, said = self.context.clock, 0, ""
        while True:
            began = clock.monotonic()
            try:
                await work()
            except Exception as error:
                if clock.monotonic() - began >= _LASTED.total_seconds():
                    failures, said = 0, ""
                if repr(error) != said:
                    _logger.exception("stream supervision failed; restarting it shortly")
                said = repr(error)
            failures += 1
            await clock.sleep(RETRY.wait(failures, self.context.rng))

    async def _check_all(self) -> None:
        while True:
            await self.context.clock.sleep(self.context.settings.tick)
            self.record_taken_back()
            self.teller.tell_postponed(self.registry)
            changed = self.context.hashes.change(self.hashes())
            for index, stream in enumerate(self.registry):
                if index % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                try:
                    self._check(stream)
                except Exception:
                    _logger.exception("could not check a host's stream", extra={"fields": {"host": stream.host}})
                    stream.end(failed())
                if changed:
                    stream.wake()

    def _check(self, stream: ServedStream) -> None:
        settings, now = self.context.settings, self.context.clock.monotonic()
        unseen = now - stream.recorded_time
        if (error := overdue(stream, settings, now)) is not None:
            stream.end(error)
        elif stream.session.connect_time is None:
            return
        elif now > stream.age_time and stream.session.unanswered is None:
            stream.age_time = math.inf
            stream.session.say_goodbye(_COME_BACK)
            stream.wake()
        elif unseen > settings.seen_interval.total_seconds():
            stream.record_seen()

    def record_taken_back(self) -> None:
        """Record of whom no refusal stands any more."""
        for host, stream_epoch in self.teller.pop_taken_back():
            self.context.recorder.note_directive_error(host, None, stream_epoch)


def overdue(stream: ServedStream, settings: StreamSettings, now: float) -> RefusalError | None:
    """What ends a stream that is past one of its limits at `now`, of the monotonic clock; None if it is within them."""
    silent, session = now - stream.heard_time, stream.session
    if session.connect_time is None:
        if silent > settings.hello_timeout.total_seconds():
            return invalid("hello", f"did not come within {settings.hello_timeout.seconds} s")
        return None
    if stream.writing_time and now - stream.writing_time > settings.write_timeout.total_seconds():
        return timed_out("the host doesn't read its stream")
    if silent > settings.silence.total_seconds():
        return timed_out("the host has said nothing for three heartbeats")
    if session.unanswered is not None and now - session.asked_time > settings.silence.total_seconds():
        return timed_out("the host doesn't answer a directive")
    return None
