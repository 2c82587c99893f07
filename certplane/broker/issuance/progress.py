"""What orders under way are at, in words; and which of it other brokers, and the next start, are to know.

Whoever runs an order knows at once what it is at (`Flight`). In the order's row it is written where it is worth it: a
step that failed, or a long wait; once a second at most, many orders in one statement, beside all else. What passes
within a second is never written, and ends with the order's state, which is written anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from certplane.broker.model import Order, OrderProgress
from certplane.broker.ports import OrderStore
from certplane.errors import RefusalError

logger = logging.getLogger(__name__)

LANE: Final = "lane"
"""Waits for an order of the same names."""
TURN: Final = "turn"
"""Waits for one of the places of all orders under way."""
BUDGET: Final = "budget"
"""Waits for a place within its CA's limits."""
PREFLIGHT: Final = "preflight"
"""Looks at CAA records and delegations."""
LOOK: Final = "look"
"""Asks the CA how its order stands."""

WAITS: Final = {
    "propagate": "the name servers to show the TXT records",
    "answer": "the CA's validation",
    "download": "the CA to issue",
    "store": "the database",
}
"""What steps wait for that do nothing by themselves."""

_LONG: Final = timedelta(seconds=5)
"""So long a step may take before it is written what it waits for."""
_MOST: Final = 128
"""Orders of one write: a burst that meets a broken CA is written within seconds all the same."""
_LONGEST_TEXT: Final = 500


class ProgressWriter:
    """Writes what orders are at that run here."""

    def __init__(self, orders: OrderStore) -> None:
        self._orders = orders
        self._written: dict[str, OrderProgress] = {}
        self._failing = False

    async def write(self, under_way: Iterable[Order], now: datetime) -> None:
        """Write what is worth it and isn't written; what can't be is, the next time. Never raises `RefusalError`."""
        open_now = {order.order_id: order for order in under_way if order.state.is_open}
        self._written = {order_id: shown for order_id, shown in self._written.items() if order_id in open_now}
        news: list[tuple[Order, OrderProgress]] = []
        for order in open_now.values():
            written = self._written.get(order.order_id)
            if order.progress != written and (_is_worth_it(order.progress, now) or written is not None):
                news.append((order, order.progress))
        news = news[:_MOST]
        if not news:
            return
        try:
            await self._orders.note_progress([order for order, _ in news])
        except RefusalError as error:
            if not self._failing:
                logger.warning("what orders are at could not be stored; will retry: %s", error)
            self._failing = True
            return
        self._failing = False
        self._written |= {order.order_id: progress for order, progress in news}


def _is_worth_it(progress: OrderProgress, now: datetime) -> bool:
    if progress.step in (LANE, TURN):
        return False  # their places change with each order that ends, and its row shows that it waits
    if progress.failures or progress.trouble:
        return True
    return bool(progress.wait) and progress.step_time is not None and now - progress.step_time > _LONG


def cut(text: str) -> str:
    """A text of `OrderProgress`: what a CA has said may be long."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"


class TroubleTold:
    """Says which trouble of an issuer, or of the DNS, is news for the log: one warning, however many orders meet it."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def is_news(self, subject: str, cause: str) -> bool:
        """Whether `subject` wasn't known to fail for this cause; it is from now on."""
        known = (subject, cause) in self._told
        self._told.add((subject, cause))
        return not known

    def works(self, subjects: Sequence[str], tell: Callable[[str], object]) -> None:
        """These work again: `tell` is called with each that was known not to."""
        for subject in subjects:
            if any(told == subject for told, _ in self._told):
                self._told = {each for each in self._told if each[0] != subject}
                tell(subject)
