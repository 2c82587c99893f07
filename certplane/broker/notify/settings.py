"""The section `notifications` of broker.yml: who is told, of what, and how often."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Self

from certplane.config.decoding import Check, KeyProblem
from certplane.runtime.health import HealthWord, Severity

NOTIFIER_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)

_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WEEKLY: Final = re.compile(r"([a-z]+) ([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)


def _share(number: int) -> str | None:
    return None if 1 <= number <= 99 else f"is {number}, must be a number of per cent, 1 to 99"


def _severe(severity: Severity) -> str | None:
    return None if severity is not Severity.OK else "is ok, must be warning or critical"


def _not_negative(value: Any) -> str | None:
    return None if value >= timedelta() else "must not be negative"


def _not_ok(healths: tuple[HealthWord, ...]) -> str | None:
    return (
        "has OK, which is no trouble; `life_left` alone picks certificates of any health" if "OK" in healths else None
    )


@dataclass(frozen=True, slots=True)
class WeeklyTime:
    """A moment of each week, UTC: `weekday` 0 is Monday. None of it is never."""

    weekday: int | None
    hour: int = 0
    minute: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """`monday 08:00`, or `never`."""
        if text == "never":
            return cls(None)
        found = _WEEKLY.fullmatch(text)
        if found is None or found[1] not in _DAYS:
            raise ValueError("must be a day and a time in UTC, like `monday 08:00`, or never")
        return cls(_DAYS.index(found[1]), int(found[2]), int(found[3]))

    def latest(self, now: datetime) -> datetime | None:
        """The last such moment up to `now`; None if there never is one."""
        if self.weekday is None:
            return None
        day = now - timedelta(days=(now.weekday() - self.weekday) % 7)
        moment = day.replace(hour=self.hour, minute=self.minute, second=0, microsecond=0)
        return moment if moment <= now else moment - timedelta(days=7)

    def __str__(self) -> str:
        return "never" if self.weekday is None else f"{_DAYS[self.weekday]} {self.hour:02}:{self.minute:02}"


@dataclass(frozen=True, slots=True)
class NotificationRule:
    """Which certificates: those for which all that is written here is true.

    `severity` is at least that; `healths` are exactly those; `profiles` are names in the policy. `life_left` is a share
    of the validity of what is in use: as much of it is left, or less. Without `severity` and `healths` that is asked of
    certificates of any health, those that are `OK` among them; a rule without any key is `severity: warning`.
    """

    severity: Annotated[Severity | None, Check(_severe)] = None
    healths: Annotated[tuple[HealthWord, ...], Check(_not_ok)] = ()
    profiles: tuple[str, ...] = ()
    life_left: Annotated[int | None, Check(_share)] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesSettings:
    """What a notifier is told: of certificates that any of `rules` picks.

    `after` is how long a trouble must have lasted; `repeat` the time between reminders of one, 0 for none; `over`
    whether it is told of the end; `digest` when it gets the week's.
    """

    rules: tuple[NotificationRule, ...] = (NotificationRule(),)
    after: Annotated[timedelta, Check(_not_negative)] = timedelta(minutes=2)
    repeat: Annotated[timedelta, Check(_not_negative)] = timedelta(hours=24)
    over: bool = True
    digest: WeeklyTime = WeeklyTime(None)

    def problems(self) -> Iterator[KeyProblem]:
        """Something is told at all."""
        if not self.rules and self.digest.weekday is None:
            yield KeyProblem("rules", "is empty, and there is no digest: nothing would be told", "write a rule")
