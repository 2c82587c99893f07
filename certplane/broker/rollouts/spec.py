"""What is wrong with a rollout that is asked for: everything at once, each with what to do about it. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from certplane.broker.model import RevocationReason
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.model import Halt, Revoke, RingSpec, RolloutAction, RolloutSpec
from certplane.broker.rollouts.rings import Assignment
from certplane.broker.standing_rules import RingRule
from certplane.errors import Reason, RefusalError, Violation
from certplane.runtime.text import counted

MOST_RINGS: Final = 20
MOST_REASON_BYTES: Final = 500
LONGEST_BAKE: Final = timedelta(days=30)
SHORTEST_SILENCE: Final = timedelta(minutes=1)
LONGEST_SILENCE: Final = timedelta(days=1)
_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHOWN: Final = 5
"""Hosts that a refusal names."""


def check(spec: RolloutSpec, now: datetime) -> None:
    """Look at a rollout by itself.

    Raises:
        RefusalError: REQUEST_INVALID, with all that is wrong.
    """
    _refuse([*_what(spec), *_how(spec, now), *_rings(spec.rings), *_halt(spec.halt)])


def check_assignment(spec: RolloutSpec, found: Assignment) -> None:
    """Look at who is in which ring. A share or the rest may be of nobody: such a ring is passed at once.

    Raises:
        RefusalError: REQUEST_INVALID: a ring of labels picks nobody, so that the next one would be the first; or hosts
            are in no ring.
    """
    problems = [
        Violation(
            f"spec.rings[{n}]", f"no host of the rollout has {' and '.join(ring.labels)}: correct or leave it out"
        )
        for n, ring in enumerate(spec.rings)
        if ring.labels and ring.name in found.empty
    ]
    if found.left_out:
        named = ", ".join(found.left_out[:_SHOWN]) + (", ..." if len(found.left_out) > _SHOWN else "")
        without = counted(len(found.left_out), "host is", "hosts are")
        message = f"{without} in no ring ({named}): add a last ring that is the rest"
        problems.append(Violation("spec.rings", message))
    _refuse(problems)


def warnings(spec: RolloutSpec, found: Assignment) -> Sequence[str]:
    """What an operator should know of the rings before."""
    overlapping = [
        f"{counted(count, 'host is', 'hosts are')} picked by the rings {first} and {second}: in {first}"
        for (first, second), count in found.overlaps.items()
    ]
    picked = [ring for ring in spec.rings if not ring.labels]
    return [
        *overlapping,
        *(f"ring {ring.name} has no host: it is passed" for ring in picked if ring.name in found.empty),
    ]


def standing_rings(rules: Sequence[RingRule]) -> tuple[RingSpec, ...]:
    """Policy's rings, for a rollout that begins by itself; with a last one of the rest, since it leaves nobody out."""
    rings = [
        RingSpec(
            rule.name,
            tuple(f"{key}={value}" for key, value in sorted(rule.labels.items())),
            rule.percent,
            rule.rest,
            rule.bake,
        )
        for rule in rules
    ]
    if rings and not rings[-1].rest:
        rings.append(RingSpec("rest" if all(ring.name != "rest" for ring in rings) else "rest.", rest=True))
    return tuple(rings)


def without_empty(rings: Sequence[RingSpec], found: Assignment) -> tuple[RingSpec, ...]:
    """Those of standing rings that pick somebody: an incident may be of hosts of which none is in the first ones."""
    return tuple(ring for ring in rings if ring.name not in found.empty)


def _refuse(problems: Sequence[Violation]) -> None:
    if problems:
        message = "; ".join(f"{one.subject} {one.description}" for one in problems)
        raise RefusalError(Reason.REQUEST_INVALID, message, violations=problems)


def _what(spec: RolloutSpec) -> Iterator[Violation]:
    if spec.selection == Selection():
        yield Violation("spec.selection", "selects nothing: name hosts, profiles, issuers, or all")
    if spec.selection.identities:
        yield Violation("spec.selection", "can't be of identities: renew those with RequestRenewal")
    if spec.action is RolloutAction.MOVE and not spec.issuer:
        yield Violation("spec.issuer", "is required to move: name the issuer that the certificates are to come from")
    if spec.action is not RolloutAction.MOVE and spec.issuer:
        yield Violation("spec.issuer", "is only of a move: leave it empty, or use ACTION_MOVE")


def _how(spec: RolloutSpec, now: datetime) -> Iterator[Violation]:
    if not spec.reason.strip():
        yield Violation("spec.reason", "is required: say why, for hosts' logs and the audit log")
    elif len(spec.reason.encode()) > MOST_REASON_BYTES or not spec.reason.isprintable():
        yield Violation("spec.reason", f"must be printable and at most {MOST_REASON_BYTES} bytes")
    if not 0 <= spec.max_percent_of_name <= 100:
        yield Violation("spec.max_percent_of_name", "must be 1 to 100, or 0 for no bound")
    if spec.deadline is not None and spec.deadline <= now:
        yield Violation("spec.deadline", "is in the past: leave it out, or name a time to come")
    if spec.revoke is Revoke.NEVER and spec.revocation_reason is not RevocationReason.UNSPECIFIED:
        yield Violation("spec.revocation_reason", "is of a revocation: set revoke, or leave it out")
    elif spec.revocation_reason is RevocationReason.KEY_COMPROMISE and spec.action is not RolloutAction.REKEY:
        # Hosts that keep their key would go on with what is out.
        yield Violation("spec.revocation_reason", "says that keys are out: replace them too, with ACTION_REKEY")


def _halt(halt: Halt) -> Iterator[Violation]:
    if halt.failed_hosts < 0:
        yield Violation("spec.halt.failed_hosts", "must be 1 or more")
    if not 0 <= halt.failed_percent <= 100:
        yield Violation("spec.halt.failed_percent", "must be 1 to 100, or 0 for no bound")
    if not halt.failed_hosts and not halt.failed_percent:
        yield Violation("spec.halt", "must have a bound: failed_hosts or failed_percent")
    if not SHORTEST_SILENCE <= halt.silent_after <= LONGEST_SILENCE:
        yield Violation("spec.halt.silent_after", "must be from 1 minute to 1 day")


def _rings(rings: Sequence[RingSpec]) -> Iterator[Violation]:
    if len(rings) > MOST_RINGS:
        yield Violation("spec.rings", f"must be at most {MOST_RINGS}")
    for name, count in Counter(ring.name for ring in rings).items():
        if count > 1:
            yield Violation("spec.rings", f"has {count} rings with the name {name!r}: give each its own")
    for number, ring in enumerate(rings):
        for problem in _ring(ring):
            yield Violation(f"spec.rings[{number}]", problem)
    if any(first.rest for first, _ in pairwise(rings)):
        yield Violation("spec.rings", "must have the rest as its last ring: those after it would pick nobody")


def _ring(ring: RingSpec) -> Iterator[str]:
    if _NAME.fullmatch(ring.name) is None:
        yield "must have a name, 1 to 64 of the characters A-Z a-z 0-9 . _ -"
    if [bool(ring.labels), ring.percent != 0, ring.rest].count(True) != 1:
        yield "must pick hosts by exactly one of labels, percent and rest"
    if not 0 <= ring.percent <= 100:
        yield "must have a percent from 1 to 100"
    for label in ring.labels:
        key, equals, value = label.partition("=")
        if not (key and equals and value):
            yield f"has the label {label!r}, which must be KEY=VALUE"
    if not timedelta() <= ring.bake <= LONGEST_BAKE:
        yield f"must have a bake_duration from 0 to {LONGEST_BAKE.days} days"
