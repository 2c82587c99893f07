"""Whether what a reload takes away may be a mistake of what wrote the file, so that a person is to confirm it. Pure.

A fleet is shut out within seconds: by a template whose data is missing, by a file of another site, by half a file that
is a whole one. A start asks nobody: a person who restarts a broker looks at it.
"""

from __future__ import annotations

from typing import Final

from certplane.broker.model import IdentityKind
from certplane.broker.policy.changes import Change, Count, PolicyChange, PolicyChanges, Subject
from certplane.broker.policy.document import PolicyDocument
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.text import counted

CONFIRM: Final = "check what wrote the file; if this is intended, run `certplane-broker reload --confirm`"
"""The remedy: for a policy `certplanectl policy reload --confirm` does as well."""

_SHOWN: Final = 10
"""Losses that are named; the others are counted."""

_SUMMED: Final = (
    Subject.HOST,
    Subject.SERVICE,
    Subject.OPERATOR,
    Subject.ROLE,
    Subject.GRANT,
    Subject.PROFILE,
    Subject.NAME,
)


class UnconfirmedError(ConfigurationError):
    """What was read is in order, and takes so much away that a person has to confirm it."""

    def __init__(self, file: str, message: str, *, line: int | None = None, key: str = "") -> None:
        super().__init__([ConfigurationProblem(file, line, key, message, CONFIRM)])


def check_removal(
    before: PolicyDocument, after: PolicyDocument, changes: PolicyChanges, *, file: str, guard: int
) -> None:
    """Whether a policy may take the place of another without being confirmed.

    Args:
        before: The policy in force.
        after: The other one.
        changes: What is different.
        file: Where it was read.
        guard: `policy.guard`: how much of the hosts, or of the grants, may be removed, in per cent. What one identity
            alone loses is never too much: otherwise each removal from a small fleet were.

    Raises:
        UnconfirmedError: it removes every host and service, every profile that one had, or more than `guard`.
    """
    served = [grant for grant in before.grants if grant.kind is not IdentityKind.OPERATOR]
    left = [grant for grant in after.grants if grant.kind is not IdentityKind.OPERATOR]
    if served and not left:
        everybody = counted(len(served), "host or service", "hosts and services")
        raise UnconfirmedError(file, f"would lock out all of the policy in force: {everybody}")
    if any(grant.profiles for grant in served) and not any(grant.profiles for grant in left):
        message = "would leave no host or service a profile, so that nobody gets a certificate any more"
        raise UnconfirmedError(file, message)
    losses = [
        change
        for change in changes.changes
        if change.change is Change.LOST and change.subject in {Subject.HOST, Subject.GRANT}
    ]
    hosts, grants = changes.count(Subject.HOST), changes.count(Subject.GRANT)
    if len({change.identity for change in losses}) > 1 and (_exceeds(hosts, guard) or _exceeds(grants, guard)):
        message = (
            f"would remove {_part(hosts, 'host')} and {_part(grants, 'grant')}, and policy.guard allows {guard} %: "
            f"{_listed(losses)}"
        )
        raise UnconfirmedError(file, message)


def summary(changes: PolicyChanges) -> str:
    """What is different, for a log line or an audit event: counts, then the first losses; empty if nothing is."""
    parts = [
        f"{count.subject.value}s {count.before} -> {count.after} (+{count.gained} -{count.lost})"
        for count in map(changes.count, _SUMMED)
        if count.gained or count.lost
    ]
    if changes.issued_again:
        parts.append(f"certificates issued again: {changes.issued_again}")
    if losses := [change for change in changes.changes if change.change is Change.LOST]:
        parts.append(f"lost: {_listed(losses)}")
    return "; ".join(parts)


def _exceeds(count: Count, guard: int) -> bool:
    return count.lost * 100 > count.before * guard


def _part(count: Count, noun: str) -> str:
    share = f" ({count.lost * 100 // count.before} %)" if count.before else ""
    return f"{count.lost} of {counted(count.before, noun)}{share}"


def _listed(losses: list[PolicyChange]) -> str:
    """The first of them: hosts, then what others lose."""
    gone = {change.identity for change in losses if not change.profile and not change.name}
    texts = [
        " ".join(filter(None, (change.subject.value, change.identity, change.profile, change.name)))
        for change in losses
        if change.identity not in gone or not (change.profile or change.name)
    ]
    more = len(texts) - _SHOWN
    return f"{', '.join(texts[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"
