"""What becomes of an order that brings no certificate. Public names of `certplane.client`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Self

from typing_extensions import override

from certplane.caller.values import Order
from certplane.errors import OperationError, Reason, Refusal, RefusalError


class OrderFailedError(RefusalError):
    """An order ended without a certificate; `reason` says why (docs/errors.md).

    Attributes:
        order_id: The broker's name for the order.
        retry_time: When asking again makes a new order (UTC); None where the broker named no time.
    """

    order_id: str
    retry_time: datetime | None

    @classmethod
    @override
    def of(cls, refusal: Refusal) -> OrderFailedError:
        """The error of a refusal alone, without an order."""
        error = cls(refusal.reason, refusal.message)
        error.refusal, error.order_id, error.retry_time = refusal, "", None
        return error

    @classmethod
    def of_order(cls, order: Order, now: datetime) -> Self:
        """The error of an order that has failed; `retry_after` is until its `retry_time`, if that is later."""
        refusal = order.error or Refusal(Reason.INTERNAL, f"order {order.order_id} ended without a certificate")
        until = timedelta() if order.retry_time is None else max(order.retry_time - now, timedelta())
        after = max(refusal.retry_after or timedelta(), until) or None
        error = cls(
            refusal.reason,
            refusal.message,
            retry_after=after,
            violations=refusal.violations,
            problems=refusal.problems,
        )
        error.order_id, error.retry_time = order.order_id, order.retry_time
        return error


class OrderUnderWayError(OperationError):
    """The time that was given is over, and the order goes on: the same request joins it.

    Attributes:
        order_id: The broker's name for the order.
    """

    def __init__(self, order: Order) -> None:
        waits = f": {order.trouble}" if order.trouble else ""
        super().__init__(
            f"order {order.order_id} is still {order.state}{waits}", remedy="ask again with the same key to join it"
        )
        self.order_id = order.order_id
