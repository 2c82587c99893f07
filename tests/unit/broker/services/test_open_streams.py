"""Who looks at open streams, when the clock does what it likes."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from certplane.broker.services.interceptors.open_streams import OpenStreams
from tests.fakes.clock import ManualClock


class EndedError(Exception):
    """What a check ends its stream with."""


async def test_a_clock_that_is_set_back_holds_up_no_round() -> None:
    """Streams whose certificates end in the same second as the clock is set back by an hour: all are looked at on."""
    clock = ManualClock()
    streams = OpenStreams(clock, timedelta(seconds=1))
    denied = False

    def check() -> None:
        if denied:
            raise EndedError

    async def serve(not_after: datetime) -> None:
        with streams.watching(not_after, check):
            await asyncio.Event().wait()

    spans = (0.3, 0.6, 3600.0)
    tasks = [asyncio.create_task(serve(clock.now() + timedelta(seconds=span))) for span in spans]
    for number in range(40):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if number == 3:
            clock.jump(timedelta(hours=-1))
        denied = number > 10
        clock.advance(timedelta(milliseconds=100))
    await asyncio.sleep(0)
    for task in tasks:
        assert task.done()
        with pytest.raises(EndedError):
            task.result()
