"""The durable limits (design, fixed decision 12): counts over order rows, in the transaction that would add one.

Which ones apply is `certplane.broker.policy.limits`' to say; here each of the things it counts is a query. Each window
slides. A limit of n is reached when the n-th newest thing that counts is still inside the window, and that thing's
leaving is what frees a place: one row answers both questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import and_, bindparam, func, or_, select, text

from certplane.broker.model import OrderCause, OrderDraft
from certplane.broker.policy.limits import AHEAD, DAY, Counted, Limit, ReachedLimit, limit_refusal, limits_on
from certplane.broker.ports import DurableLimits
from certplane.broker.store.locks import lock_key
from certplane.broker.store.rows import from_micros, to_micros
from certplane.broker.store.schema import certificates, orders
from certplane.broker.store.session import Session
from certplane.broker.store.statements import Compiler, limited_to
from certplane.pki.names import names_sha256

_MOST: Final = 2**31
"""Rows: a higher limit is never reached, and no number for a database."""
_ASKED_FOR: Final = tuple(str(cause) for cause in OrderCause if cause.asked_for)


class LimitCheck:
    """Says why an order is wanted after all, and refuses a draft that is over a limit."""

    def __init__(self, compiler: Compiler) -> None:
        time, cause = orders.c.create_time, orders.c.cause
        inside = (time > bindparam("since"), time <= bindparam("until"))
        mine = (orders.c.identity == bindparam("identity"), *inside)
        same_profile = (*mine, orders.c.profile == bindparam("profile"))
        asked_for = or_(*(cause == each for each in _ASKED_FOR))
        unasked = and_(*(cause != each for each in _ASKED_FOR))
        spent = text("(end_time IS NULL OR finalize_time IS NOT NULL)")  # word for word the index's condition
        same_names = (orders.c.names_sha256 == bindparam("names_sha256"), *inside)
        newest = select(time).order_by(time.desc()).suffix_with(limited_to(1, skip=True))
        last_use = func.max(time)
        self._statements = {
            counted.name: compiler(statement)
            for counted, statement in {
                Counted.ORDERS_OF_IDENTITY: newest.where(*mine, unasked),
                Counted.ORDERS_OF_PROFILE: newest.where(*same_profile, unasked),
                Counted.KEYS_OF_PROFILE: select(last_use)
                .where(*same_profile, unasked)
                .group_by(orders.c.public_key_sha256)
                .order_by(last_use.desc())
                .suffix_with(limited_to(1, skip=True)),
                Counted.CERTIFICATES_OF_PROFILE: newest.where(*same_profile, unasked, spent),
                Counted.EARLY_OF_PROFILE: newest.where(*same_profile, cause == str(OrderCause.EARLY), spent),
                Counted.CERTIFICATES_OF_NAMES: newest.where(*same_names, cause != str(OrderCause.ISSUER), spent),
                Counted.ASKED_FOR_OF_PROFILE: newest.where(*same_profile, asked_for),
            }.items()
        }
        any_order = select(orders.c.order_id).suffix_with(limited_to(1))
        self._known_key = compiler(
            any_order.where(*same_profile, orders.c.public_key_sha256 == bindparam("public_key_sha256"))
        )
        self._replaced = compiler(
            any_order.where(
                orders.c.replaces_certificate_id == bindparam("replaces_certificate_id"),
                text("state = 'ISSUED'"),  # word for word the index's condition
            )
        )
        self._being_replaced = compiler(
            any_order.where(
                orders.c.identity == bindparam("identity"),
                orders.c.replaces_certificate_id == bindparam("replaces_certificate_id"),
                text("end_time IS NULL"),
            )
        )
        self._since = compiler(any_order.where(*same_profile, spent))
        born = select(certificates.c.create_time).where(
            certificates.c.certificate_id == bindparam("replaces_certificate_id")
        )
        followed = select(cause, orders.c.replaces_certificate_id, time)
        self._follower = compiler(
            followed.where(*same_profile, spent, time > born.scalar_subquery())
            .order_by(time)
            .suffix_with(limited_to(1))
        )

    def cause(self, session: Session, draft: OrderDraft, now: datetime) -> OrderCause:
        """Why the order is wanted: what another one has taken already is asked for no more.

        One that doesn't say what it replaces has taken the newest certificate that there was.
        """
        if not (draft.cause.asked_for or draft.cause is OrderCause.WITHDRAWN):
            return draft.cause
        values: dict[str, object] = {"identity": draft.identity, "profile": draft.profile}
        if draft.replaces_certificate_id:
            values["replaces_certificate_id"] = draft.replaces_certificate_id
            taken = session.one(self._replaced, values) or session.one(self._being_replaced, values)
        else:
            taken = None
        if taken is None and draft.ask_time is not None:
            span = {"since": to_micros(draft.ask_time), "until": to_micros(now + AHEAD)}
            if not draft.replaces_certificate_id:
                taken = session.one(self._since, {**values, **span})
            else:
                follower = session.one(self._follower, {**values, **span, "since": 0})
                if follower is not None and follower[0] in _ASKED_FOR and not follower[1]:
                    taken = follower if follower[2] > span["since"] else None
        return draft.cause if taken is None else OrderCause.ORDINARY

    @staticmethod
    def locks(draft: OrderDraft, limits: DurableLimits) -> Sequence[int]:
        """What a transaction has to have for itself to decide on the draft: of its identity, and of a limited name set.

        By the identity too where nothing is limited: what was asked for once is taken once.
        """
        keys = [lock_key("orders of identity", draft.identity)]
        if limits.certificates_per_name_set_per_week is not None:
            keys.append(lock_key("orders of names", names_sha256(draft.dns_names)))
        return keys

    def check(self, session: Session, draft: OrderDraft, limits: DurableLimits, now: datetime) -> None:
        """Return if another order may be made.

        Raises:
            RefusalError: RATE_LIMITED, a violation for each limit that is reached, and the time until none is.
        """
        values: dict[str, object] = {
            "identity": draft.identity,
            "profile": draft.profile,
            "names_sha256": names_sha256(draft.dns_names),
            "public_key_sha256": draft.public_key_sha256,
        }
        applying = limits_on(draft.cause, limits)
        today = {"since": to_micros(now - DAY), "until": to_micros(now + AHEAD)}
        if session.one(self._known_key, {**values, **today}) is not None:
            applying = tuple(limit for limit in applying if limit.counted is not Counted.KEYS_OF_PROFILE)
        reached = [hit for limit in applying if (hit := self._reached(session, limit, values, now)) is not None]
        if reached:
            raise limit_refusal(reached, draft.cause, now)

    def _reached(self, session: Session, limit: Limit, values: dict[str, object], now: datetime) -> ReachedLimit | None:
        if limit.most <= 0:  # no place will ever be free: the time says no more than "not soon"
            return ReachedLimit(limit, now + limit.window)
        ahead = min(limit.window, AHEAD)
        span = {
            "since": to_micros(now - limit.window),
            "until": to_micros(now + ahead),
        }
        nth = self._statements[limit.counted.name].skipping(min(limit.most, _MOST) - 1)
        row = session.one(nth, {**values, **span})
        return None if row is None else ReachedLimit(limit, from_micros(row[0]) + limit.window)
