"""This machine's clock beside the database's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from typing_extensions import override

from certplane.broker import metrics
from certplane.broker.members.membership import Membership
from certplane.broker.members.model import Member, Renewal
from certplane.broker.members.ports import DatabaseClock, MemberStore
from certplane.broker.members.skew import MOST, NOTICED, ClockSkew, check_clock, skew_of
from certplane.errors import OperationError
from tests.fakes.audit import FakeMeter
from tests.fakes.clock import ManualClock

SECOND = timedelta(seconds=1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "skew"),
    [(0, 0), (2, 0), (3, 0), (-60, 60), (63, -60)],
    ids=["as it was asked", "meanwhile", "as it was answered", "a minute ahead", "a minute behind"],
)
def test_what_an_answer_shows(told: int, skew: int) -> None:
    """The time that the answer took, three seconds here, is no skew."""
    assert skew_of(NOW, NOW + 3 * SECOND, NOW + told * SECOND) == skew * SECOND


def test_a_wrong_clock_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Seconds are nothing, more is a warning, and what no broker may start with an error; that it is right again is told."""
    caplog.set_level(logging.INFO)
    skew = ClockSkew(FakeMeter())
    hour = timedelta(hours=1)
    for each in (timedelta(), NOTICED, -2 * NOTICED, -3 * NOTICED, hour, hour, SECOND, SECOND):
        skew.note(each)
    assert [(record.levelname, record.message.partition(":")[0]) for record in caplog.records] == [
        ("WARNING", "this machine's clock is 10s behind the database's"),
        ("ERROR", "this machine's clock is 1h 0m ahead of the database's"),
        ("INFO", "this machine's clock is right again"),
    ]


async def test_an_hour_off_no_broker_starts() -> None:
    """The refusal says by how much and what sets clocks; up to five minutes a broker starts."""
    clock = ManualClock()
    for most in (MOST, -MOST):
        await check_clock(OtherClock(clock, most), clock)
    for wrong in (timedelta(hours=1), -timedelta(hours=1)):
        with pytest.raises(OperationError, match=r"1h 0m (ahead of|behind) the database's") as caught:
            await check_clock(OtherClock(clock, wrong), clock)
        assert "time service" in str(caught.value)


class OtherClock(MemberStore, DatabaseClock):
    """A database whose clock differs from the broker's by `skew`."""

    broker_id = "broker-1"

    def __init__(self, clock: ManualClock, skew: timedelta) -> None:
        self._clock, self._skew = clock, skew
        self.said: list[Member] = []

    @override
    async def renew(self, member: Member, span: timedelta) -> Renewal:
        self.said.append(member)
        return Renewal(stood=True, time=self._clock.now() - self._skew)

    @override
    async def time(self) -> datetime:
        return self._clock.now() - self._skew

    @override
    async def leave(self) -> None:
        raise AssertionError

    @override
    async def end(self, broker_id: str) -> bool:
        raise AssertionError

    @override
    async def living(self) -> Sequence[Member]:
        raise AssertionError

    @override
    async def roles(self) -> Mapping[str, Sequence[str]]:
        raise AssertionError


async def test_members_hear_of_it() -> None:
    """With the renewal after the one that has shown it; the metric has it at once."""
    clock, meter = ManualClock(), FakeMeter()
    store = OtherClock(clock, timedelta(minutes=2))
    me = Member("", "machine", "[::]:8443", "1", clock.now(), "p", "t", "c")
    membership = Membership(store, lambda: me, clock, meter)
    await membership.join()
    await membership.join()
    assert [member.clock_skew for member in store.said] == [timedelta(), timedelta(minutes=2)]
    assert meter.levels[metrics.CLOCK_SKEW] == 120
