"""The durable limits (design, fixed decision 12): counts over order rows, in the transaction that would add one.

Each window slides. A limit of n is reached when the n-th newest thing that counts is still inside the window, and that
thing's leaving is what frees a place: one row answers both questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import BindParameter, bindparam, func, select

from certplane.broker.model import OrderDraft
from certplane.broker.ports import DurableLimits
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import orders
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, Statement
from certplane.errors import Reason, RefusalError, Violation

__all__ = ["LimitCheck"]

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class _Limit:
    name: str
    most: int | None
    window: timedelta


@dataclass(frozen=True, slots=True)
class _Hit:
    limit: _Limit
    frees: datetime


class LimitCheck:
    """Refuses a draft that is over a limit."""

    def __init__(self, compiler: Compiler) -> None:
        time = orders.c.create_time
        mine = (orders.c.identity == bindparam("identity"), time > bindparam("since"))
        same_profile = (*mine, orders.c.profile == bindparam("profile"))
        nth: BindParameter[int] = bindparam("nth")
        newest = select(time).order_by(time.desc()).limit(1).offset(nth)
        self._of_identity = compiler(newest.where(*mine))
        self._of_profile = compiler(newest.where(*same_profile))
        last_use = func.max(time)
        self._of_keys = compiler(
            select(last_use)
            .where(*same_profile)
            .group_by(orders.c.public_key_sha256)
            .order_by(last_use.desc())
            .limit(1)
            .offset(nth)
        )
        self._known_key = compiler(
            select(orders.c.order_id)
            .where(*same_profile, orders.c.public_key_sha256 == bindparam("public_key_sha256"))
            .limit(1)
        )

    def check(self, session: Session, draft: OrderDraft, limits: DurableLimits, now: datetime) -> None:
        """Return if another order may be made.

        Raises:
            RefusalError: RATE_LIMITED, a violation for each limit that is reached, and the time until none is.
        """
        hour = self._values(draft, now, HOUR)
        day = self._values(draft, now, DAY)
        per_identity = _Limit("per_identity_per_hour", limits.per_identity_per_hour, HOUR)
        per_profile = _Limit("per_identity_profile_per_hour", limits.per_identity_profile_per_hour, HOUR)
        new_keys = _Limit("new_keys_per_identity_profile_per_day", limits.new_keys_per_identity_profile_per_day, DAY)
        hits = [
            _hit(session, self._of_identity, hour, per_identity, now),
            _hit(session, self._of_profile, hour, per_profile, now),
        ]
        if new_keys.most is not None and session.one(self._known_key, day) is None:
            hits.append(_hit(session, self._of_keys, day, new_keys, now))
        reached = [hit for hit in hits if hit is not None]
        if reached:
            raise RefusalError(
                Reason.RATE_LIMITED,
                "too many orders were asked for",
                retry_after=max(hit.frees for hit in reached) - now,
                violations=[
                    Violation(hit.limit.name, f"at most {hit.limit.most} in {_spell(hit.limit.window)}")
                    for hit in reached
                ],
            )

    @staticmethod
    def _values(draft: OrderDraft, now: datetime, window: timedelta) -> dict[str, object]:
        return {
            "identity": draft.identity,
            "profile": draft.profile,
            "public_key_sha256": draft.public_key_sha256,
            "since": to_micros(now - window),
        }


def _hit(
    session: Session, statement: Statement, values: dict[str, object], limit: _Limit, now: datetime
) -> _Hit | None:
    """The limit, if it is reached, and when it frees a place."""
    if limit.most is None:
        return None
    if limit.most <= 0:  # no place will ever be free: the time says no more than "not soon"
        return _Hit(limit, now + limit.window)
    row = session.one(statement, {**values, "nth": limit.most - 1})
    return None if row is None else _Hit(limit, from_micros(row[0]) + limit.window)


def _spell(window: timedelta) -> str:
    return "an hour" if window == HOUR else "a day"
