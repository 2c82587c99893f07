"""The look at the database beside the work: when, and who hears of damage."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta

import pytest
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.ports import Soundness
from certplane.broker.soundness import SoundnessWatch
from certplane.errors import Reason, RefusalError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock
from tests.support.memory_store import MemoryStores
from tests.support.waiting import until


class Looks(Soundness):
    """Answers in turn; a refusal is raised."""

    def __init__(self, *answers: Sequence[str] | RefusalError) -> None:
        self.answers = list(answers)

    @override
    async def damage(self) -> Sequence[str]:
        answer = self.answers.pop(0)
        if isinstance(answer, RefusalError):
            raise answer
        return answer


async def test_damage_is_told_to_all_who_can_act(caplog: pytest.LogCaptureFixture) -> None:
    """Not before the first hour; then once a day, whatever the last look found, with its time."""
    clock, meter = ManualClock(), FakeMeter()
    stores = MemoryStores.open(clock)
    looks = Looks([], RefusalError(Reason.STORE_UNAVAILABLE, "busy"), [f"page {number}" for number in range(7)], [])
    watch = SoundnessWatch(looks, audit=stores.audit, trail=AuditTrail(clock), clock=clock, meter=meter)
    caplog.set_level(logging.INFO)
    task = asyncio.create_task(watch.run())
    told = []
    for left, wait in enumerate((timedelta(hours=1), *[timedelta(days=1)] * 3)):
        await until(lambda: clock.sleepers == 1)
        assert len(looks.answers) == 4 - left
        clock.advance(wait)
        await until(lambda done=3 - left: len(looks.answers) == done and clock.sleepers == 1)  # type: ignore[misc]
        told.append(meter.levels[metrics.STORE_DAMAGED])
    assert told == [0, 0, 1, 0]
    assert meter.levels[metrics.STORE_CHECKED] == clock.now().timestamp()
    (event,) = await stores.audit.tail(10)
    assert event["event_type"] == "store_damaged"
    assert event["severity"] == "error"
    assert event["reason"] == "the database is damaged: page 0; page 1; page 2; page 3; page 4 (and 2 more)"
    (line,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "page 4 (and 2 more)" in line.getMessage()
    assert "could not be checked" in caplog.text
    task.cancel()
    await asyncio.wait({task})


async def test_the_same_damage_is_one_event(caplog: pytest.LogCaptureFixture) -> None:
    """The log says each day that it is still there; what the audit log couldn't take is recorded at the next look."""
    clock = ManualClock()
    stores = MemoryStores.open(clock)
    looks = Looks(["page 1"], ["page 1"], ["page 1"], ["page 1", "page 2"], [], ["page 1"])
    watch = SoundnessWatch(looks, audit=stores.audit, trail=AuditTrail(clock), clock=clock, meter=FakeMeter())
    stores.database.audit_down = True
    task = asyncio.create_task(watch.run())
    await until(lambda: clock.sleepers == 1)
    for left, wait in reversed(list(enumerate([*[timedelta(days=1)] * 5, timedelta(hours=1)]))):
        clock.advance(wait)
        await until(lambda done=left: len(looks.answers) == done and clock.sleepers == 1)  # type: ignore[misc]
        stores.database.audit_down = False
    reasons = [str(event["reason"]).partition(": ")[2] for event in await stores.audit.tail(10)]
    assert sorted(reasons) == ["page 1", "page 1", "page 1; page 2"]
    assert len([record for record in caplog.records if record.levelno == logging.CRITICAL]) == 5
    task.cancel()
    await asyncio.wait({task})
