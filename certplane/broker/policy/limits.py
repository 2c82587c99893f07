"""Which durable limits a new order has to keep, and what is said when it can't. Pure.

The limits are there for hosts that run wild, and for neighbours: the CA's budget for a name set belongs to everybody.
So they count orders and certificates whatever their key, and hold up nobody whose renewal is due, or was asked for by
an operator, the CA or an operator's revocation (`OrderCause.asked_for`): those have a limit of their own, far above
what happens in daily work.

What a host revokes itself is replaced beyond its own limits, but from the CA's budget for the name set: without that,
to revoke and to ask again would be the way round every limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final

from certplane.broker.model import OrderCause
from certplane.broker.ports import DurableLimits
from certplane.errors import Reason, RefusalError, Violation

HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(days=7)
AHEAD: Final = DAY
"""How far ahead an order's time may be: of more, the clock was set back since, and it must not count for a year."""

_KEPT: Final = 1
"""Certificates of a name set and week that are kept for what was revoked: a public CA issues five."""

_SPELT: Final = {HOUR: "an hour", DAY: "a day", WEEK: "a week"}


class Counted(Enum):
    """What a limit counts. Certificates are orders that are open or were finalised; the others are all orders."""

    ORDERS_OF_IDENTITY = auto()
    """That nobody has asked for."""
    ORDERS_OF_PROFILE = auto()
    """Of the identity and profile, that nobody has asked for."""
    KEYS_OF_PROFILE = auto()
    """Different keys of these, if the order's own isn't one of them."""
    CERTIFICATES_OF_PROFILE = auto()
    """Of the identity and profile, that nobody has asked for."""
    EARLY_OF_PROFILE = auto()
    """Certificates of the identity and profile that replaced what was far from due."""
    CERTIFICATES_OF_NAMES = auto()
    """Of exactly these names, whoever's and why ever, but for those that the CA advised: it doesn't count them."""
    ASKED_FOR_OF_PROFILE = auto()
    """Orders of the identity and profile that were asked for."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit; `name` is its key below `rate_limits`, `most` 0 allows nothing."""

    name: str
    most: int
    window: timedelta
    counted: Counted


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit that leaves no room, and when it does again."""

    limit: Limit
    frees: datetime


def limits_on(cause: OrderCause, limits: DurableLimits) -> tuple[Limit, ...]:
    """The limits that an order of this cause has to keep, of those that are set."""
    if cause.asked_for:
        names = ["asked_for_per_identity_profile_per_hour"]
    else:
        names = ["per_identity_per_hour", "per_identity_profile_per_hour", "certificates_per_name_set_per_week"]
        if cause is not OrderCause.WITHDRAWN:
            names += ["new_keys_per_identity_profile_per_day", "certificates_per_identity_profile_per_day"]
        if cause is OrderCause.EARLY:
            names.append("early_renewals_per_identity_profile_per_day")
    kept = _KEPT if cause is OrderCause.WITHDRAWN else 0
    return tuple(
        Limit(name, most + (kept if counted is Counted.CERTIFICATES_OF_NAMES else 0), window, counted)
        for name, (window, counted) in _LIMITS.items()
        if name in names and (most := getattr(limits, name)) is not None
    )


_LIMITS: Final = {
    "per_identity_per_hour": (HOUR, Counted.ORDERS_OF_IDENTITY),
    "per_identity_profile_per_hour": (HOUR, Counted.ORDERS_OF_PROFILE),
    "new_keys_per_identity_profile_per_day": (DAY, Counted.KEYS_OF_PROFILE),
    "certificates_per_identity_profile_per_day": (DAY, Counted.CERTIFICATES_OF_PROFILE),
    "early_renewals_per_identity_profile_per_day": (DAY, Counted.EARLY_OF_PROFILE),
    "certificates_per_name_set_per_week": (WEEK, Counted.CERTIFICATES_OF_NAMES),
    "asked_for_per_identity_profile_per_hour": (HOUR, Counted.ASKED_FOR_OF_PROFILE),
}


def limit_refusal(reached: Sequence[ReachedLimit], cause: OrderCause, now: datetime) -> RefusalError:
    """RATE_LIMITED: each limit that is reached, its value and its end, and who isn't held up by it."""
    frees = max(one.frees for one in reached)
    said = ", ".join(f"rate_limits.{one.limit.name} (at most {_spell(one.limit)})" for one in reached)
    message = f"the broker's limit is reached: {said}; the next is possible at {frees:%Y-%m-%dT%H:%M:%SZ}"
    if cause is OrderCause.EARLY:
        message = f"the certificate is far from due, and {message}"
    if any(one.limit.counted is Counted.CERTIFICATES_OF_NAMES for one in reached):
        message += "; the week is of exactly these names, whichever hosts have them, as public CAs count"
    if not cause.asked_for:
        message += (
            "; a renewal that is due, or that an operator asks for (`certplanectl renew`), isn't held up by it; to "
            "allow more, raise it in broker.yml (0 is no limit) and reload the broker"
        )
    return RefusalError(
        Reason.RATE_LIMITED,
        message,
        retry_after=frees - now,
        violations=[
            Violation(one.limit.name, f"at most {_spell(one.limit)}, until {one.frees:%Y-%m-%dT%H:%M:%SZ}")
            for one in reached
        ],
    )


def _spell(limit: Limit) -> str:
    return f"{limit.most} in {_SPELT[limit.window]}"
