"""When services may be reloaded: a span of local time, on all days or some. Pure; daylight saving time included.

    02:00-04:00                         every day, the host's local time
    22:30-05:00                         over midnight: until five the next morning
    sat,sun 02:00-04:00                 days on which it begins
    mon-fri 00:00-24:00 Europe/Berlin   whole days, in a zone of its own

A begin that the spring's hour swallows is at the moment when clocks would have shown it without the change (PEP 495), a
begin that the autumn's hour repeats is the first of the two. So a window opens on each of its days, and never for no
time at all: one that lies within a swallowed hour keeps its length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_FORM = re.compile(
    r"(?:(?P<days>[a-z]{3}(?:[,-][a-z]{3})*) +)?"
    r"(?P<begin>[0-9]{2}:[0-9]{2})-(?P<end>[0-9]{2}:[0-9]{2})"
    r"(?: +(?P<zone>[A-Za-z][A-Za-z0-9_+/-]*))?",
    re.ASCII,
)
_DAY = timedelta(days=1)
_EVERY_DAY = frozenset(range(7))


@dataclass(frozen=True, slots=True)
class ActivationWindow:
    """A window that opens at `begin` on each of `weekdays` (Monday is 0) and closes at `end`.

    An `end` not after `begin` is the next day's. `zone`: None takes the one that `opens` is given, the host's.
    """

    begin: time
    end: time
    weekdays: frozenset[int] = _EVERY_DAY
    zone: tzinfo | None = None

    @classmethod
    def parse(cls, text: str) -> ActivationWindow:
        """`[DAYS] HH:MM-HH:MM [ZONE]`, as the module shows it.

        Raises:
            ValueError: what it must be instead.
        """
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError("must be like 02:00-04:00, sat,sun 22:00-05:00 or mon-fri 02:00-04:00 Europe/Berlin")
        begin, end = _time_of(match["begin"]), _time_of(match["end"], midnight=True)
        if match["begin"] == match["end"]:
            raise ValueError("is empty; write 00:00-24:00 for whole days")
        return cls(begin, end, _days_of(match["days"] or "mon-sun"), _zone_of(match["zone"]))

    def opens(self, now: datetime, local: tzinfo = UTC) -> datetime:
        """When it is open next: `now` itself while it is open.

        Args:
            now: Aware.
            local: The host's zone.
        """
        zone = self.zone or local
        yesterday = now.astimezone(zone).date() - _DAY  # its window may reach over midnight
        for number in range(10):  # a week, and a day on either side
            day = yesterday + number * _DAY
            if day.weekday() in self.weekdays:
                begin, end = self._span(day, zone)
                if now < end:
                    return max(begin, now)
        raise AssertionError("a window without a day")

    def is_open(self, now: datetime, local: tzinfo = UTC) -> bool:
        """Whether it is open."""
        return self.opens(now, local) == now

    def _span(self, day: date, zone: tzinfo) -> tuple[datetime, datetime]:
        first = datetime.combine(day, self.begin)
        last = datetime.combine(day if self.end > self.begin else day + _DAY, self.end)
        begin, end = (moment.replace(tzinfo=zone).astimezone(UTC) for moment in (first, last))
        return begin, end if end > begin else begin + (last - first)


def _time_of(text: str, *, midnight: bool = False) -> time:
    if midnight and text == "24:00":
        return time()
    try:
        return time.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"has the time {text}; hours are 00 to 23, minutes 00 to 59") from error


def _days_of(text: str) -> frozenset[int]:
    days: set[int] = set()
    for item in text.split(","):
        names = item.split("-")
        unknown = [name for name in names if name not in _DAYS]
        if unknown or len(names) > 2:
            raise ValueError(f"has the days {item!a}; days are {', '.join(_DAYS)}, or from-to")
        first, last = _DAYS.index(names[0]), _DAYS.index(names[-1])
        days.update(day % 7 for day in range(first, last + 1 if last >= first else last + 8))
    return frozenset(days)


def _zone_of(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(
            f"has the time zone {name!a}, which this host doesn't know (is its tzdata package installed?)"
        ) from error
