"""How a bucket fills and empties: the generic cell rate algorithm (ITU-T I.371; Boulder's `ratelimits/gcra.go`). Pure.

The CA's own bucket is the one that counts, and it may count an order up to `Rate.lag` later than it is counted here: a
certificate when it is issued, an order after the call was repeated. From a full bucket, a burst of `amount` fits all
the same: what the CA hasn't counted yet can't be in anybody's way. From then on, all that the CA has counted late is
there later than computed, by the same span: never more, since orders that follow each other closely are counted one
after the other whenever they come. So a bucket knows since when it has not been full, and the lag counts from there.

Nothing of this is lost to who waits: where orders wait for long, the next place is as much later as the last one was.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from certplane.broker.budget.model import FULL, Level, Rate

_CLOCKS_DIFFER: Final = timedelta(minutes=5)
"""Brokers' clocks may: what another has just taken isn't of a clock that was set back."""
_ZERO: Final = timedelta()


def free_time(level: Level, rate: Rate) -> datetime:
    """From when on there is a place; in the past if there is one."""
    needed = level.full_time - (rate.amount - 1) * rate.interval
    return level.since if level.since >= needed else needed + rate.lag


def spare_time(level: Level, rate: Rate) -> datetime:
    """From when on there are two places, or all where a bucket has one: the last is not to be risked."""
    if rate.amount == 1:
        return free_time(level, rate)
    return free_time(Level(level.since, level.full_time + rate.interval), rate)


def places_left(level: Level, rate: Rate, now: datetime) -> int:
    """How many places there are, from 0 to `amount`."""
    taken = level.full_time + min(max(now - level.since, _ZERO), rate.lag) - now
    return min(rate.amount, max(0, rate.amount - -(-taken // rate.interval)))


def whole_time(level: Level, rate: Rate) -> datetime:
    """From when on all places are there."""
    return level.full_time + rate.lag


def take(level: Level, rate: Rate, now: datetime) -> Level:
    """The level with one place less: also where there is none, since what the CA has counted is counted."""
    if now >= level.full_time + rate.lag:
        return Level(now, now + rate.interval)
    return Level(level.since, max(level.full_time, now) + rate.interval)


def give_back(level: Level, rate: Rate) -> Level:
    """The level with one place more, which was taken and not used."""
    full_time = level.full_time - rate.interval
    return Level(level.since, full_time) if full_time > level.since else FULL


def emptied(rate: Rate, now: datetime, until: datetime) -> Level:
    """The level of which the next place is there at `until`, and those after it as ever."""
    needed = until - rate.lag
    return Level(min(now, needed) - rate.interval, needed + (rate.amount - 1) * rate.interval)


def sane(level: Level, rate: Rate, now: datetime, told_until: datetime | None) -> Level:
    """The level as it can be: what is fuller than empty was written before a clock was set back, or a limit changed."""
    most = max(now, told_until or now) + rate.amount * rate.interval + _CLOCKS_DIFFER
    if level.full_time <= most:
        return level
    return Level(min(level.since, now), most)
