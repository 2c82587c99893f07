"""When moved windows are an incident. Pure.

A CA moves windows for many reasons, and one certificate whose window is brought forward is that certificate's affair:
it is renewed sooner, as its plan says. Many of one CA within a day are an *incident*: something has happened there.

- A day, since that is the longest wait between two questions about one certificate (`planning.LONGEST_WAIT`): what a CA
  does to many at one moment is heard of within it.
- An issuer has one open incident at most, and whatever its CA brings forward meanwhile belongs to that one: it is the
  same night, and an operator wants one thing to look at.
- Times may lie: a clock that jumped makes windows of one moment look days apart, which costs those of that moment their
  place in an incident at worst. What the certificates' own plans say doesn't come from here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from certplane.broker.incidents.model import Incident
from certplane.broker.renewal.model import WindowMove
from certplane.broker.renewal.planning import LONGEST_WAIT

TOGETHER: Final = LONGEST_WAIT
"""Moves within this time count together."""

_LONGEST_NAME: Final = 40
"""Of an issuer in an incident's id, which has 64 characters and is to be typed."""


@dataclass(frozen=True, slots=True)
class Found:
    """Windows that belong to an incident.

    Attributes:
        issuer: The CA.
        incident: The open one that they join; None: they begin one.
        moves: What belongs to it and didn't before.
    """

    issuer: str
    incident: Incident | None
    moves: Sequence[WindowMove]


def detect(moves: Iterable[WindowMove], incidents: Iterable[Incident], at_least: int) -> Sequence[Found]:
    """What is an incident, by issuer.

    Args:
        moves: Windows that were brought forward and belong to none.
        incidents: Those that are open.
        at_least: So many together begin one; less than 1 is 1.
    """
    by_issuer: defaultdict[str, list[WindowMove]] = defaultdict(list)
    for move in moves:
        if move.forward:
            by_issuer[move.issuer].append(move)
    open_ones: Mapping[str, Incident] = {incident.issuer: incident for incident in incidents}
    found = []
    for issuer in sorted(by_issuer):
        incident = open_ones.get(issuer)
        some = sorted(by_issuer[issuer], key=lambda move: (move.move_time, move.certificate_id))
        if incident is None:
            some = _together(some, max(1, at_least))
        if some:
            found.append(Found(issuer, incident, some))
    return found


def _together(moves: Sequence[WindowMove], at_least: int) -> list[WindowMove]:
    """The last so many or more within `TOGETHER`, of moves by their times; none if there were never so many.

    Not those before the newest one alone: a clock that was years ahead for a moment leaves a move that stays the
    newest for as long.
    """
    times = [move.move_time for move in moves]
    for last in range(len(moves) - 1, at_least - 2, -1):
        first = bisect_right(times, times[last] - TOGETHER)
        if last + 1 - first >= at_least:
            return [*moves[first : last + 1]]
    return []


def explanation_of(moves: Iterable[WindowMove], known: str = "") -> str:
    """Where the CA explains it: what is known already, else what most of the windows say, else nothing."""
    if known:
        return known
    counts: defaultdict[str, int] = defaultdict(int)
    for move in moves:
        counts[move.explanation_url] += bool(move.explanation_url)
    best = max(counts.items(), key=lambda each: (each[1], each[0]), default=("", 0))
    return best[0] if best[1] else ""


def incident_id_of(issuer: str, day: str, number: int) -> str:
    """`ISSUER-YYYYMMDD`; of the second one of a day `ISSUER-YYYYMMDD-2`.

    Args:
        issuer: Its name in the configuration; what an id may not have becomes `_`.
        day: YYYYMMDD.
        number: From 1.
    """
    name = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "_" for each in issuer)
    return f"{name[:_LONGEST_NAME]}-{day}" + (f"-{number}" if number > 1 else "")
