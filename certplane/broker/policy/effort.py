"""How many orders a policy would come to, and how long they take at least. Pure.

As if all were asked for at once, whatever is valid: each certificate that is issued again, and each that a host or
service is given. What limits them is what is known: the broker's own limit of certificates of the same names, and the
published limits of public CAs, by their directories.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.model import Profile
from certplane.broker.policy.changes import Change, PolicyChange, PolicyChanges, Subject
from certplane.broker.policy.limits import WEEK

_LETS_ENCRYPT: Final = ".letsencrypt.org/"
_NEW_ORDERS: Final = (300, timedelta(hours=3))
"""Let's Encrypt, of an account: https://letsencrypt.org/docs/rate-limits/."""
_SAME_NAMES: Final = 5
"""Likewise, of the same names in a week."""


@dataclass(frozen=True, slots=True)
class PolicyEffort:
    """What a policy would come to.

    Attributes:
        orders: How many at public CAs.
        duration: How long they take at least.
        hosts_lost: Connected hosts that would lose all certificates.
    """

    orders: int = 0
    duration: timedelta = timedelta()
    hosts_lost: int = 0


NO_EFFORT: Final = PolicyEffort()


def effort(
    changes: PolicyChanges,
    granted: Callable[[str, str], Profile | None],
    directories: Mapping[str, str],
    private: Collection[str],
    *,
    same_names_per_week: int | None,
) -> PolicyEffort:
    """The orders of a policy's changes, without the hosts.

    Args:
        changes: What it changes.
        granted: Its profiles, by identity and name.
        directories: The directory's URL of each issuer, by name; the first is that of profiles that name none.
        private: Issuers that are no public CAs.
        same_names_per_week: The broker's own limit; None or 0 is none.
    """
    wanted = Counter(_ordered(changes.changes, granted, next(iter(directories), ""), private))
    duration = timedelta()
    of_issuer = Counter[str]()
    for (issuer, _), count in wanted.items():
        public = _LETS_ENCRYPT in directories.get(issuer, "")
        limits = [limit for limit in (same_names_per_week, _SAME_NAMES if public else None) if limit]
        if limits:
            duration = max(duration, _waits(count, min(limits)) * WEEK)
        if public:
            of_issuer[issuer] += count
    most, window = _NEW_ORDERS
    for count in of_issuer.values():
        duration = max(duration, _waits(count, most) * window)
    return PolicyEffort(wanted.total(), duration)


def _waits(count: int, most: int) -> int:
    """How often the window has to pass before the last one."""
    return max(0, -(-count // most) - 1)


def _ordered(
    changes: tuple[PolicyChange, ...],
    granted: Callable[[str, str], Profile | None],
    default: str,
    private: Collection[str],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Issuer and names of each order."""
    for change in changes:
        again = change.change is Change.ISSUED_AGAIN
        if again or (change.change is Change.GAINED and change.subject is Subject.GRANT):
            profile = granted(change.identity, change.profile)
            issuer = next(iter(profile.issuers), default) if profile is not None else ""
            if profile is not None and issuer not in private:
                yield issuer, profile.dns_names
