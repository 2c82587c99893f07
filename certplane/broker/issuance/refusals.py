"""Why this broker opens no order now, although another one may."""

from __future__ import annotations

from datetime import timedelta

from certplane.errors import Reason, RefusalError

_COME_BACK = timedelta(seconds=5)
"""A restarting broker is usually back by then."""


def draining_refusal() -> RefusalError:
    """The broker is stopping."""
    return RefusalError(Reason.DRAINING, "the broker is stopping; ask again", retry_after=_COME_BACK)


def leaseless_refusal() -> RefusalError:
    """This broker can't know whether it alone would run an order."""
    message = "this broker has lost its lease on the database: another one, or this one in some seconds, can answer"
    return RefusalError(Reason.STORE_UNAVAILABLE, message, retry_after=_COME_BACK)
