"""A figure: what came of the rounds of one ratio, and whether its goal is met."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

_GOAL = re.compile(r"(?P<sign><=|>=) (?P<number>[0-9.]+)")


class Figure(TypedDict):
    """Median, least and most of the rounds' ratios, and the goal they are held against: `<= 2`, `>= 2`, or words."""

    figure: str
    median: float
    least: float
    most: float
    rounds: int
    goal: str


class Kept(Figure):
    """A figure as it is kept: with its section, and the Python and the time of the run."""

    section: str
    python: str
    time: str


def figure(name: str, ratios: Sequence[float], goal: str) -> Figure:
    """The figure of `ratios`, one of each round."""
    return {
        "figure": name,
        "median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "rounds": len(ratios),
        "goal": goal,
    }


def met(median: float, goal: str) -> bool | None:
    """Whether the median meets the goal; None where the goal is no number."""
    found = _GOAL.fullmatch(goal)
    if found is None:
        return None
    limit = float(found["number"])
    return median <= limit if found["sign"] == "<=" else median >= limit


def table(rows: Sequence[Figure]) -> list[str]:
    """The rows as lines."""
    width = max((len(row["figure"]) for row in rows), default=6)
    lines = [f"{'figure':{width}}  {'median':>9}  {'least':>9}  {'most':>9}  rounds  goal"]
    for row in rows:
        word = {True: "met", False: "missed", None: ""}[met(row["median"], row["goal"])]
        numbers = "  ".join(f"{_text(row[key]):>9}" for key in ("median", "least", "most"))
        lines.append(f"{row['figure']:{width}}  {numbers}  {row['rounds']:6}  {row['goal']:8} {word}".rstrip())
    return lines


def goals(kept: Iterable[Kept], wanted: Sequence[tuple[str, str, str]]) -> list[str]:
    """The goals' table: figure, measured, goal, whether it is met; and what measures a figure that was not measured.

    Args:
        kept: what was measured.
        wanted: section, figure and goal of each.
    """
    by_name = {(row["section"], row["figure"]): row for row in kept}
    lines = ["| figure | measured | goal | | Python, rounds |", "|---|---|---|---|---|"]
    for section, name, goal in wanted:
        row = by_name.get((section, name))
        if row is None:
            lines.append(f"| {name} | not measured: `scripts/bench {section}` | {goal} | | |")
            continue
        word = {True: "met", False: "missed", None: ""}[met(row["median"], goal)]
        spread = f"{_text(row['median'])} ({_text(row['least'])} to {_text(row['most'])})"
        lines.append(f"| {name} | {spread} | {goal} | {word} | {row['python'].partition(',')[0]}, {row['rounds']} |")
    return lines


def keep(path: Path, section: str, python: str, time: str, rows: Sequence[Figure]) -> None:
    """Write what a section measured into the file beside what the others did."""
    named = {row["figure"] for row in rows}
    others = [one for one in kept(path) if (one["section"], one["figure"] in named) != (section, True)]
    run = {"section": section, "python": python, "time": time}
    added = [cast("Kept", dict(row) | run) for row in rows]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*others, *added], indent=2) + "\n")


def kept(path: Path) -> list[Kept]:
    """What was measured before; nothing of a file of another form."""
    if not path.exists():
        return []
    rows: list[Any] = json.loads(path.read_text())
    return [row for row in rows if "section" in row]


def _text(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 100 else f"{number:.3g}"
