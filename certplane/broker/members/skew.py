"""How far this broker's clock is off the database's, and what is said and done about it.

Brokers compare times that others have written: until when a retired identity may be used, since when a host was silent,
how many orders there were in an hour. Leases alone count by the database's clock. So brokers whose clocks differ decide
differently, by seconds without harm; beyond `MOST` a start is refused. A clock that is set while the broker runs ends
nothing, since hosts would lose a broker that serves them: it is said, as an error, until the clock is right.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Final

from certplane.broker import metrics
from certplane.broker.identity.first_use import GRACE
from certplane.broker.members.ports import DatabaseClock
from certplane.broker.ports import Meter
from certplane.errors import OperationError
from certplane.runtime.clock import Clock
from certplane.runtime.tables import span_text

logger = logging.getLogger(__name__)

NOTICED: Final = timedelta(seconds=5)
"""More than machines with a time service are apart."""
MOST: Final = GRACE
"""As long as a retired identity may still be used: with more, brokers disagree whose an identity is."""
REMEDY: Final = "let a time service set both machines' clocks (chronyc tracking, timedatectl)"


def skew_of(asked: datetime, answered: datetime, told: datetime) -> timedelta:
    """This machine's clock less another one's, at least: it told its time between question and answer.

    What the answer took is no skew, so a slow database isn't taken for a wrong clock.
    """
    if told < asked:
        return asked - told
    return min(answered - told, timedelta())


def skew_text(skew: timedelta) -> str:
    """`skew` for people."""
    span = timedelta(seconds=round(abs(skew).total_seconds()))
    return f"{span_text(span)} {'ahead of' if skew > timedelta() else 'behind'} the database's"


class ClockSkew:
    """This broker's; `current` as the last answer has shown."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.current = timedelta()
        self._said = logging.NOTSET

    def note(self, skew: timedelta) -> None:
        """Take in what an answer shows; what is worth a line is said once."""
        self.current = skew
        self._meter.level(metrics.CLOCK_SKEW, skew.total_seconds())
        level = logging.ERROR if abs(skew) > MOST else logging.WARNING if abs(skew) > NOTICED else logging.NOTSET
        if level == self._said:
            return
        self._said = level
        if level:
            text = "this machine's clock is %s: brokers decide by times that others have written"
            logger.log(level, text, skew_text(skew), extra={"fields": {"remedy": REMEDY}})
        else:
            logger.info("this machine's clock is right again")


async def check_clock(database: DatabaseClock, clock: Clock) -> None:
    """Whether a broker may start with this clock; asked before it writes anything, which would bear a wrong time.

    Raises:
        OperationError: it is off by more than `MOST`.
        RefusalError: STORE_UNAVAILABLE.
    """
    asked = clock.now()
    told = await database.time()
    skew = skew_of(asked, clock.now(), told)
    if abs(skew) > MOST:
        raise OperationError(f"this machine's clock is {skew_text(skew)}", remedy=REMEDY)
