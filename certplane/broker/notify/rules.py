"""Which certificates a notifier hears of, grouped by what causes their trouble. Pure.

Groups are of a cause alone, whatever the health: a cause that makes more and more certificates OVERDUE is one trouble
that gets worse, not one that ends while another begins. (`FleetIndex.causes` tells each health apart, as a table does,
and has none of those that are `OK`.)
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import IdentityKind
from certplane.broker.notify.model import OF_BROKER, OF_FLEET, OwnTrouble, Trouble
from certplane.broker.notify.settings import NotificationRule
from certplane.runtime.health import Health, HealthActor, HealthWord, Severity
from certplane.runtime.text import printable

_HOSTS: Final = 10
"""Named in a message; the others are counted."""
_MOST: Final = 2000
"""Causes of one notifier; what hosts say may be anything, and a look is to hold nobody up."""
OTHER: Final = "OTHER CAUSES"
"""Where those beyond are counted."""
_CAUSE: Final = 200
_TEXT: Final = 500
_NAME: Final = 100
"""Octets: a cause is at most that anyway, and names of hosts are cut."""


def picks(rule: NotificationRule, certificate: IndexedCertificate, word: HealthWord, now: datetime) -> bool:
    """Whether the rule is about this certificate, which has the health `word` now."""
    if rule.profiles and certificate.profile not in rule.profiles:
        return False
    if rule.life_left is not None and not _ends(certificate, rule.life_left, now):
        return False
    if rule.healths and word not in rule.healths:
        return False
    severity = Health(word).severity
    if rule.severity is Severity.CRITICAL:
        return severity is Severity.CRITICAL
    return severity is not Severity.OK or _any_health(rule)


def of_broker(rules: Sequence[NotificationRule], own: Iterable[OwnTrouble], broker: str) -> Iterator[Trouble]:
    """What a notifier hears of broker or fleet as such: by rules that are about no profile, no health and no lifetime.

    Args:
        rules: Of the notifier.
        own: What is wrong with the broker.
        broker: What that is called.
    """
    severities = {rule.severity for rule in rules if not rule.profiles and not rule.healths and rule.life_left is None}
    for each in own:
        critical = each.severity is Severity.CRITICAL
        if severities & ({None, Severity.WARNING, Severity.CRITICAL} if critical else {None, Severity.WARNING}):
            # What is of the fleet goes on when another broker tells of it.
            cause = f"{OF_FLEET}{each.cause}" if each.of_fleet else f"{OF_BROKER}{each.cause} {broker}"
            yield Trouble(
                printable(cause, _CAUSE),
                HealthWord.WONT_HEAL if critical else HealthWord.FAILING,
                0,
                0,
                text=printable(each.text, _TEXT),
                remedy=printable(each.remedy, _TEXT),
                actor=HealthActor.OPERATOR,
            )


def _any_health(rule: NotificationRule) -> bool:
    return rule.severity is None and not rule.healths and rule.life_left is not None


def _ends(certificate: IndexedCertificate, per_cent: int, now: datetime) -> bool:
    """Whether at most this share of the life of what is in use is left."""
    start, end = certificate.not_before, certificate.end
    if start is None or end is None:
        return False
    return (end - now) * 100 <= (end - start) * per_cent


@dataclass(slots=True)
class _Group:
    """What a trouble is made of."""

    worst: tuple[HealthWord, IndexedHost, IndexedCertificate]
    count: int = 0
    hosts: dict[str, int] = field(default_factory=dict)
    """Each with the rank of its worst certificate."""
    services: set[str] = field(default_factory=set)
    """Those of them that are services."""
    since: datetime | None = None
    next_attempt: datetime | None = None
    end: datetime | None = None

    def add(self, word: HealthWord, host: IndexedHost, certificate: IndexedCertificate) -> None:
        self.count += 1
        name = host.label or host.name
        self.hosts[name] = min(word.rank, self.hosts.get(name, word.rank))
        if host.kind is IdentityKind.SERVICE:
            self.services.add(name)
        if word.rank < self.worst[0].rank:
            self.worst = word, host, certificate
        self.since = _earlier(self.since, certificate.since)
        self.next_attempt = _earlier(self.next_attempt, certificate.next_attempt_time)
        self.end = _earlier(self.end, certificate.end)


class Gathering:
    """Collects the troubles of one notifier, a host at a time: the fleet is looked at in slices."""

    def __init__(self, rules: Sequence[NotificationRule], now: datetime) -> None:
        """Nothing is wrong yet; `now` is when shares of lives are looked at."""
        self._rules = rules
        self._now = now
        self._fine = any(map(_any_health, rules))
        """Whether a certificate that is `OK` may be picked: most are, and are passed over else."""
        self._groups: dict[str, _Group] = {}

    def add(self, host: IndexedHost) -> None:
        """Look at one more host."""
        for certificate in host.certificates:
            word = certificate.health
            if word is HealthWord.OK and not self._fine:
                continue
            rule = next((rule for rule in self._rules if picks(rule, certificate, word, self._now)), None)
            if rule is None:
                continue
            cause = printable(certificate.cause, _CAUSE) or word.value
            if word is HealthWord.OK:  # it has no cause but that little of its life is left
                cause = f"LIFE_LEFT {rule.life_left}%"
            if cause not in self._groups and len(self._groups) >= _MOST:
                cause = OTHER
            group = self._groups.get(cause)
            if group is None:
                group = self._groups[cause] = _Group((word, host, certificate))
            group.add(word, host, certificate)

    def troubles(self) -> Iterator[Trouble]:
        """What was collected, one for each cause; made while it is gone through."""
        for cause, group in self._groups.items():
            yield _trouble(cause, group)


def _trouble(cause: str, group: _Group) -> Trouble:
    hosts: list[tuple[int, str]] = []
    for name, rank in group.hosts.items():  # not sorted as a whole: there may be ten thousand
        if len(hosts) < _HOSTS or (rank, name) < hosts[-1]:
            bisect.insort(hosts, (rank, name))
            del hosts[_HOSTS:]
    word, host, certificate = group.worst
    return Trouble(
        cause=cause,
        word=word,
        certificate_count=group.count,
        host_count=len(group.hosts),
        hosts=tuple(printable(name, _NAME) for _, name in hosts),
        example_host=host.name,
        example_certificate=certificate.name,
        actor=None if word is HealthWord.OK else certificate.actor,
        since=group.since,
        next_attempt=group.next_attempt,
        soonest_end=group.end,
        service_count=len(group.services),
    )


def _earlier(first: datetime | None, second: datetime | None) -> datetime | None:
    return second if first is None else first if second is None else min(first, second)
