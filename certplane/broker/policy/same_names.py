"""Names that several hosts ask for with keys of their own, so that the CA's limit of the same names decides. Pure.

A key doesn't travel, so each holder of a profile needs a certificate of its own, and a CA counts them all together
where their names are the same. Renewals that the CA advises take no place there; the first certificate of each holder
does, and so does a new key for all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from certplane.broker.budget.model import IssuerLimits, Limit, LimitScope
from certplane.broker.model import IdentityKind, Profile
from certplane.broker.policy.document import PolicyDocument
from certplane.runtime.tables import span_text
from certplane.runtime.text import counted

REMEDY: Final = (
    "give each host names of its own ({label} in the profile's dns_names), or some of them a profile with another "
    "issuer in acme.issuers"
)
_NAMES_SHOWN: Final = 3
_SAID: Final = 5


@dataclass(frozen=True, slots=True)
class SameNames:
    """Names of more identities than have a place at once.

    Attributes:
        profile: The profile that gives them; of several the first.
        dns_names: The names.
        identities: How many identities have them.
        limit: The CA's limit of the same names.
        duration: How long it takes until the last has its first certificate; likewise until all have a new key.
    """

    profile: str
    dns_names: tuple[str, ...]
    identities: int
    limit: Limit
    duration: timedelta

    def __str__(self) -> str:
        """For people."""
        more = len(self.dns_names) - _NAMES_SHOWN
        names = ", ".join(self.dns_names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{self.identities} identities get the same names by profile {self.profile} ({names}), each with a key of "
            f"its own, and the CA issues {self.limit.text} for these: it takes {span_text(self.duration)} until each "
            f"has its first certificate, and as long until all have a new key"
        )


def same_names(policy: PolicyDocument, budgets: Mapping[str, IssuerLimits]) -> list[SameNames]:
    """What takes time by a limit of the same names, the longest first.

    As if nothing had been issued; at the first issuer of each profile.

    Args:
        policy: The policy.
        budgets: What each issuer may be asked for, by name, the default one first.
    """
    holders: Counter[int] = Counter()
    profiles: dict[int, Profile] = {}
    for grant in policy.grants:
        for name in () if grant.kind is IdentityKind.OPERATOR else grant.profiles:
            profile = policy.granted(grant.name, name)
            if profile is not None:
                holders[id(profile)] += 1  # hosts with the same names share the value: the names are compared once each
                profiles[id(profile)] = profile
    default = next(iter(budgets), "")
    counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
    first: dict[tuple[str, tuple[str, ...]], tuple[str, Limit]] = {}
    for key, profile in profiles.items():
        budget = budgets.get(next(iter(profile.issuers), default))
        limits = [] if budget is None else [each for each in budget.limits if each.scope is LimitScope.NAMES]
        if budget is not None and limits:
            names = budget.directory_url, profile.dns_names
            counts[names] += holders[key]
            first.setdefault(names, (profile.name, max(limits, key=lambda limit: limit.rate.interval)))
    found = []
    for names, count in counts.items():
        name, limit = first[names]
        if (over := count - limit.amount) > 0:
            found.append(SameNames(name, names[1], count, limit, over * limit.rate.interval))
    return sorted(found, key=lambda each: (-each.duration, each.profile, each.dns_names))


def warnings(found: Sequence[SameNames]) -> list[str]:
    """What a person who writes the policy is told of it: the first few, and how many more."""
    said = [f"{each}; {REMEDY}" for each in found[:_SAID]]
    more = len(found) - _SAID
    return [*said, f"so it is for {counted(more, 'more set')} of names"] if more > 0 else said
