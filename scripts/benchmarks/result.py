"""A figure: what came of the rounds of one ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypedDict


class Figure(TypedDict):
    """Median, least and most of the rounds' ratios, and the goal they are held against."""

    figure: str
    median: float
    least: float
    most: float
    goal: str


def figure(name: str, ratios: Sequence[float], goal: str) -> Figure:
    """The figure of `ratios`, one of each round."""
    return {
        "figure": name,
        "median": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "goal": goal,
    }
