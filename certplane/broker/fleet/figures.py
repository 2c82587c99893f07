"""The figures of the whole fleet, as metrics: how many certificates of which health, which ends soonest, who is there.

A round counts every host and certificate into a `FleetFigures`, then shows all of it. Profiles are those of the policy:
what a host calls one is its own word, and would make a label of a stranger's choice. Pure but for the meter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from certplane.broker import metrics
from certplane.broker.ports import Meter
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthWord

WITHIN_DAYS: Final = (1, 7, 14, 30)
"""Counted by these: what is about to end, and what a month's plan has to know."""

_MOST_VALUES: Final = 100
"""Of one label: more make no picture, and each is some series."""
_OTHERS: Final = "(others)"
"""No value of a label: it has characters that those haven't."""


class Link(StrEnum):
    """Whether a host is there; values are a metric's label."""

    UP = "up"
    """It has a stream."""
    DOWN = "down"
    NEVER = "never"
    """The policy has it, and it never came."""


class FleetFigures:
    """Those of one round."""

    def __init__(
        self, now: datetime, most_hosts: int, knows_profile: Callable[[str], bool], keys: Sequence[str] = ()
    ) -> None:
        """Counts at `now`. In a fleet of more than `most_hosts` no certificate has a row of its own.

        `keys` are those of labels that certificates are counted by.
        """
        self._keys = keys
        self._labelled: Counter[tuple[str, str, HealthWord]] = Counter()
        self._now, self._most_hosts, self._knows_profile = now, most_hosts, knows_profile
        self._links: Counter[Link] = Counter()
        self._healths: Counter[HealthWord] = Counter()
        self._states: Counter[CertificateState] = Counter()
        self._soonest: dict[str, datetime] = {}
        self._ending: Counter[tuple[str, int]] = Counter()
        self._rows: dict[tuple[str, ...], float] = {}
        self._hosts = 0

    def add_host(self, link: Link, number: int = 1) -> None:
        """Count a host, or several."""
        self._links[link] += number
        self._hosts += number
        if self._hosts > self._most_hosts:
            self._rows.clear()

    def add_certificate(
        self,
        host: str,
        name: str,
        *,
        profile: str,
        issuer: str,
        state: CertificateState | None,
        health: HealthWord,
        not_after: datetime | None,
    ) -> None:
        """Count a certificate of the host that was counted last.

        Args:
            host: Its identity's name.
            name: The certificate's name in agent.yml.
            profile: As the host says; "" for its identity.
            issuer: The name of the CA's configuration; "" if the broker didn't issue what is in use.
            state: Where its renewal is.
            health: How bad it is with it.
            not_after: The end of what is in use; None if nothing is.
        """
        self._healths[health] += 1
        if state is not None:
            self._states[state] += 1
        if not_after is None:
            return
        known = profile if self._knows_profile(profile) else ""
        if self._hosts <= self._most_hosts:
            self._rows[host, name, known, issuer] = not_after.timestamp()
        if not known:
            return
        self._soonest[known] = min(not_after, self._soonest.get(known, not_after))
        for days in WITHIN_DAYS:
            if not_after - self._now <= timedelta(days=days):
                self._ending[known, days] += 1

    def add_labels(self, labels: Mapping[str, str], healths: Iterable[HealthWord]) -> None:
        """Count a host's certificates by its labels."""
        for key in self._keys:
            if (value := labels.get(key)) is not None:
                self._labelled.update((key, value, word) for word in healths)

    def _label_rows(self) -> dict[tuple[str, ...], float]:
        """Each label's words, those without a certificate too; values beyond the most frequent are one."""
        values: Counter[tuple[str, str]] = Counter()
        for (key, value, _), count in self._labelled.items():
            values[key, value] += count
        shown = {
            (key, value)
            for wanted in self._keys
            for key, value in [each for each, _ in values.most_common() if each[0] == wanted][:_MOST_VALUES]
        }
        rows: dict[tuple[str, ...], float] = {(*each, word.value): 0.0 for each in shown for word in HealthWord}
        for (key, value, word), count in self._labelled.items():
            row = (key, value if (key, value) in shown else _OTHERS, word.value)
            rows[row] = rows.get(row, 0.0) + count
        return rows

    def show(self, meter: Meter, before: frozenset[str]) -> frozenset[str]:
        """Show all of it; the profiles that are shown now: those of `before` too, if nothing of theirs is in use."""
        for link in Link:
            meter.level(metrics.HOSTS, self._links[link], link=link.value)
        for state in CertificateState:
            meter.level(metrics.CERTIFICATES, self._states[state], state=state.value)
        for word in HealthWord:
            meter.level(metrics.HEALTH, self._healths[word], health=word.value)
        profiles = before.union(self._soonest)
        for profile in profiles:
            end = self._soonest.get(profile)
            meter.level(metrics.SOONEST_END, math.inf if end is None else end.timestamp(), profile=profile)
            for days in WITHIN_DAYS:
                meter.level(metrics.ENDING, self._ending[profile, days], profile=profile, days=str(days))
        meter.table(metrics.NOT_AFTER, self._rows)
        meter.table(metrics.LABEL_HEALTH, self._label_rows())
        return profiles


SHOWN: Final = (
    metrics.HEALTH,
    metrics.CERTIFICATES,
    metrics.SOONEST_END,
    metrics.ENDING,
    metrics.NOT_AFTER,
    metrics.LABEL_HEALTH,
    metrics.HOSTS,
)
"""All that `FleetFigures.show` shows: forgotten where another broker shows them."""
