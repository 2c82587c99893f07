"""Between `OrderService`'s messages and the broker's values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from certplane.broker.issuance.listing import OrderPlace, OrderQuery
from certplane.broker.issuance.overview import OrderView
from certplane.broker.services.calls import valid_request_id
from certplane.broker.services.convert import (
    STATES,
    cursor_from_token,
    invalid_request,
    order_message,
    token_from_cursor,
)
from certplane.rpc.times import put_time, span_of
from certplane.runtime.text import printable
from certplane.v1 import order_pb2 as pb

_MOST_VALUES: Final = 100
"""Of one condition."""
_MOST_TEXT: Final = 256
_LONGEST: Final = 500
_PLACE: Final = re.compile(r"(open|ended);(?:([0-9T:.+-]{19,40});([!-~]{1,128}))?")
_ORDER_STATES: Final = {number: state for state, number in STATES.items()}


def query_of(filter_: pb.OrderFilter, identities: Callable[[str], frozenset[str]], now: datetime) -> OrderQuery:
    """The orders that a filter picks; `identities` finds those of a name or label.

    Raises:
        EdgeRefusalError: REQUEST_INVALID.
    """
    for field in ("order_ids", "states", "identities", "profiles", "issuers", "dns_names", "reasons"):
        values = getattr(filter_, field)
        if len(values) > _MOST_VALUES:
            raise invalid_request(f"filter.{field}", f"must be at most {_MOST_VALUES}")
        if any(isinstance(value, str) and not 0 < len(value) <= _MOST_TEXT for value in values):
            raise invalid_request(f"filter.{field}", f"must each have 1 to {_MOST_TEXT} characters")
    if any(state not in _ORDER_STATES for state in filter_.states):
        raise invalid_request("filter.states", "must each be a state of an order")
    within = span_of(filter_.within) if filter_.HasField("within") else None
    if filter_.HasField("within") and (within is None or within <= timedelta()):
        raise invalid_request("filter.within", "must be a time that is longer than nothing")
    return OrderQuery(
        order_ids=frozenset(filter_.order_ids),
        states=frozenset(_ORDER_STATES[state] for state in filter_.states),
        open_only=filter_.open_only,
        identities=frozenset().union(*map(identities, filter_.identities)),
        profiles=frozenset(filter_.profiles),
        issuers=frozenset(filter_.issuers),
        dns_names=frozenset(name.lower() for name in filter_.dns_names),
        reasons=frozenset(filter_.reasons),
        since=None if within is None else _before(now, within),
        request_id=valid_request_id(filter_.request_id) if filter_.request_id else "",
    )


def _before(now: datetime, span: timedelta) -> datetime:
    try:
        return now - span
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC)


def place_of(token: str) -> OrderPlace | None:
    """The place that a page token names; None for the first page.

    Raises:
        EdgeRefusalError: REQUEST_INVALID, no token of this broker.
    """
    if not token:
        return None
    match = _PLACE.fullmatch(cursor_from_token(token))
    part, text, order_id = match.groups() if match is not None else ("", "", "")
    try:
        time = datetime.fromisoformat(text) if text is not None else None
    except ValueError:
        time = None
    if not part or (time is None) is not (text is None) or (time and time.tzinfo is None):
        raise invalid_request("page_token", "is not a token of this broker")
    return OrderPlace(part == "ended", time, order_id or "")


def token_of(place: OrderPlace | None) -> str:
    """The page token of a place; empty at the end."""
    if place is None:
        return ""
    part = "ended" if place.ended else "open"
    where = "" if place.time is None else f"{place.time.isoformat()};{place.order_id}"
    return token_from_cursor(f"{part};{where}")


def status_message(view: OrderView) -> pb.OrderStatus:
    """An order as an operator sees it."""
    order, progress = view.order, view.order.progress
    message = pb.OrderStatus(
        order=order_message(order),
        identity=order.identity,
        cause=order.cause,
        request_id=order.request_id,
        step=progress.step,
        step_failures=progress.failures,
        wait_reason=printable(view.wait, _LONGEST),
        budget=printable(view.budget, _LONGEST),
        broker_id=view.broker_id,
        broker_name=view.broker_name,
        acme_order_url=order.acme_order_url,
    )
    if progress.step_time is not None:
        put_time(progress.step_time, message.step_time)
    if progress.next_attempt is not None:
        put_time(progress.next_attempt, message.next_attempt_time)
    return message
