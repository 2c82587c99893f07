"""How many orders a policy would come to, and how long they take at least. Pure.

As if all were asked for at once, whatever is valid: each certificate that is issued again, and each that a host or
service is given. What limits them is what is known: the broker's own limit of certificates of the same names, and the
limits of the CAs, as if nothing had been ordered there lately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from certplane.broker.budget.claims import claim_of
from certplane.broker.budget.model import BucketKey, IssuerLimits, Limit, Urgency
from certplane.broker.model import Profile
from certplane.broker.policy.changes import Change, PolicyChange, PolicyChanges, Subject
from certplane.broker.policy.limits import WEEK

_NOBODY: Final = Urgency(0, datetime.min.replace(tzinfo=UTC), "")
"""What goes first doesn't matter for when the last goes."""


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

Granted = Callable[[str, str], Profile | None]
"""A policy's profile of this identity and name (`Policy.granted`)."""


def effort(
    changes: PolicyChanges,
    had: Granted,
    granted: Granted,
    budgets: Mapping[str, IssuerLimits],
    private: Collection[str],
    *,
    same_names_per_week: int | None,
) -> PolicyEffort:
    """The orders of a policy's changes, without the hosts.

    Args:
        changes: What it changes.
        had: The profiles of the policy before.
        granted: Its profiles.
        budgets: What each issuer may be asked for, by name; the first is that of profiles that name none.
        private: Issuers that are no public CAs.
        same_names_per_week: The broker's own limit; None or 0 is none.
    """
    orders, names = 0, Counter[tuple[str, tuple[str, ...]]]()
    needed: Counter[BucketKey] = Counter()
    limits: dict[BucketKey, Limit] = {}
    for issuer, profile, known in _ordered(changes.changes, had, granted, next(iter(budgets), ""), private):
        orders += 1
        names[issuer, profile.dns_names] += 1
        if issuer in budgets:
            for need in claim_of(budgets[issuer], profile.dns_names, urgency=_NOBODY).needs:
                if need.takes and not (known and need.unless_known):
                    needed[need.key] += 1
                    limits[need.key] = need.limit
    waits = [max(0, count - limits[key].amount) * limits[key].rate.interval for key, count in needed.items()]
    if same_names_per_week:
        waits += [max(0, -(-count // same_names_per_week) - 1) * WEEK for count in names.values()]
    return PolicyEffort(orders, max(waits, default=timedelta()))


def _ordered(
    changes: tuple[PolicyChange, ...], had: Granted, granted: Granted, default: str, private: Collection[str]
) -> Iterator[tuple[str, Profile, bool]]:
    """Issuer and profile of each order, and whether its names had a certificate before."""
    for change in changes:
        again = change.change is Change.ISSUED_AGAIN
        if again or (change.change is Change.GAINED and change.subject is Subject.GRANT):
            profile = granted(change.identity, change.profile)
            issuer = next(iter(profile.issuers), default) if profile is not None else ""
            if profile is not None and issuer not in private:
                before = had(change.identity, change.profile) if again else None
                yield issuer, profile, before is not None and before.dns_names == profile.dns_names
