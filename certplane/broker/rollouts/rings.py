"""Which host of a rollout belongs to which ring. Pure, and the same for the same hosts and rings.

A host belongs to the first ring that picks it. A share is of all hosts of the rollout, rounded up, and picked evenly
from those that are left in the order of their names: of many hosts that serve one thing each ring has its part, rather
than one ring all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from certplane.broker.rollouts.model import RingSpec


@dataclass(frozen=True, slots=True)
class RingHost:
    """A host that is to be put into a ring: with its labels in the policy, and the names of its certificates."""

    host: str
    labels: Mapping[str, str]
    dns_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which hosts the rings have.

    Attributes:
        ring_of: The ring's place, by host.
        left_out: Hosts that no ring picks, sorted.
        empty: Names of rings that pick nobody.
        overlaps: How many hosts two rings pick, by the names of both: of the first one, which has them, and the other.
    """

    ring_of: Mapping[str, int]
    left_out: tuple[str, ...]
    empty: tuple[str, ...]
    overlaps: Mapping[tuple[str, str], int]


def assign(rings: Sequence[RingSpec], hosts: Collection[RingHost]) -> Assignment:
    """Put hosts into rings."""
    order = sorted(hosts, key=lambda host: (host.dns_names, host.host))
    ring_of: dict[str, int] = {}
    overlaps: Counter[tuple[str, str]] = Counter()
    for number, ring in enumerate(rings):
        left = [host for host in order if host.host not in ring_of]
        if ring.labels:
            wanted = [tuple(label.split("=", 1)) for label in ring.labels]
            for host in order:
                if any(host.labels.get(key) != value for key, value in wanted):
                    continue
                earlier = ring_of.setdefault(host.host, number)
                if earlier != number:
                    overlaps[rings[earlier].name, ring.name] += 1
            continue
        picked = left if ring.rest else _evenly(left, -(-len(order) * ring.percent // 100))
        ring_of.update(dict.fromkeys((host.host for host in picked), number))
    used = set(ring_of.values())
    return Assignment(
        ring_of,
        tuple(sorted(host.host for host in order if host.host not in ring_of)),
        tuple(ring.name for number, ring in enumerate(rings) if number not in used),
        overlaps,
    )


def _evenly(hosts: Sequence[RingHost], count: int) -> Sequence[RingHost]:
    """So many of them, at even distances; all if they are fewer."""
    count = min(count, len(hosts))
    return [hosts[n * len(hosts) // count] for n in range(count)]
