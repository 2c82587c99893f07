"""Which of many equal audit events are written, and which are only counted. Pure: no waiting, no clock of its own.

The first event of a kind is written at once and opens a window. Further ones of the kind are counted until the window
ends; then one summary says how many there were, since when, until when, and what the last one said.

Whoever makes events can also make kinds (a report about another certificate, a call from another address). So each
identity has a budget of windows: when it is used up, its events are counted under their *wider* kind, which an
identity can't invent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.events import AuditEvent, EventKind

_KINDS: Final = 10_000
"""Windows open at once, some ten MB. More only means that the oldest are closed, and written, early."""


@dataclass(slots=True, eq=False)
class Window:
    """One kind from its first event to its end; `repeats` are those that came after the first."""

    key: tuple[str, ...]
    ends: float
    first: AuditEvent
    last: AuditEvent
    repeats: int = 0
    summary_id: str = ""
    """The summary's event_id once it has one: what is kept of it before the window ends is the same event."""
    written: bool = False
    """Whether the summary is an event by now."""


class WindowBudget:
    """How many windows an identity may open: `burst` at once, and another one each `refill`."""

    def __init__(self, burst: int, refill: timedelta, most: int = 20_000) -> None:
        self._burst = float(burst)
        self._refill = refill.total_seconds()
        self._most = most
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # by the last use

    def left(self, identity: str, now: float) -> int:
        """How many windows the identity may open now."""
        return int(self._level(identity, now))

    def take(self, identity: str, now: float) -> bool:
        """Open one, if that is allowed."""
        level = self._level(identity, now)
        self._levels[identity] = (max(level - 1, 0.0) if level >= 1 else level, now)
        self._levels.move_to_end(identity)
        while len(self._levels) > self._most:
            self._levels.popitem(last=False)
        return level >= 1

    def give_back(self, identity: str) -> None:
        """One that was taken wasn't needed."""
        if identity in self._levels:
            level, time = self._levels[identity]
            self._levels[identity] = (min(self._burst, level + 1), time)

    def _level(self, identity: str, now: float) -> float:
        level, time = self._levels.get(identity, (self._burst, now))
        return min(self._burst, level + (now - time) / self._refill)


class Windows:
    """The windows that are open. Times are seconds of monotonic time."""

    def __init__(self, length: timedelta, most: int = _KINDS, budget: WindowBudget | None = None) -> None:
        """`budget` None: every kind has a window of its own."""
        self._length = length.total_seconds()
        self._most = most
        self._budget = budget
        self._open: OrderedDict[tuple[str, ...], Window] = OrderedDict()  # by their end, since all are of one length
        self._closed: list[Window] = []

    def admit(self, kind: EventKind, event: AuditEvent, now: float) -> Window | None:
        """Count the event, and return its window; None if it is a first one, to be written: its window is open now."""
        if self.begin(kind, event, now):
            return None
        window = self._find(kind, now)
        assert window is not None
        window.repeats += 1
        window.last = event
        return window

    def begin(self, kind: EventKind, event: AuditEvent, now: float) -> bool:
        """Whether the event is a first one, to be written: its window is open now. Else it isn't counted yet."""
        if self._find(kind, now) is not None:
            return False
        key = kind.key
        if self._budget is not None and not self._budget.take(kind.identity, now):
            key = kind.wider
        self._close(self._open.pop(key, None))
        while len(self._open) >= self._most:
            self._close(self._open.popitem(last=False)[1])
        self._open[key] = Window(key, now + self._length, event, event)
        return True

    def forget(self, kind: EventKind, event: AuditEvent) -> None:
        """`event`, a first one, was not written: the next one of its kind is the first again."""
        for key in (kind.key, kind.wider):
            window = self._open.get(key)
            if window is not None and window.first is event:
                self._close(self._open.pop(key))
                if self._budget is not None and key == kind.key:
                    self._budget.give_back(kind.identity)

    def take_ended(self, now: float) -> list[Window]:
        """The windows that have ended with something to tell; they are forgotten."""
        while self._open and next(iter(self._open.values())).ends <= now:
            self._close(self._open.popitem(last=False)[1])
        ended, self._closed = self._closed, []
        return ended

    def take_all(self) -> list[Window]:
        """All windows with something to tell, as when the broker stops; they are forgotten."""
        while self._open:
            self._close(self._open.popitem(last=False)[1])
        return self.take_ended(float("-inf"))

    def next_end(self) -> float | None:
        """When the next window ends; None if none is open."""
        if self._closed:
            return float("-inf")
        return next(iter(self._open.values())).ends if self._open else None

    def _find(self, kind: EventKind, now: float) -> Window | None:
        if self._is_open(kind.key, now):
            return self._open[kind.key]
        if self._budget is None or self._budget.left(kind.identity, now) or not self._is_open(kind.wider, now):
            return None
        return self._open[kind.wider]

    def _is_open(self, key: tuple[str, ...], now: float) -> bool:
        window = self._open.get(key)
        return window is not None and now < window.ends

    def _close(self, window: Window | None) -> None:
        if window is not None and window.repeats:
            self._closed.append(window)
