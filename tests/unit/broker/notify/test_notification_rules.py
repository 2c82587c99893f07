"""Which certificates a notifier hears of, and how they are grouped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.notify.model import Trouble
from certplane.broker.notify.rules import OTHER, Gathering, picks
from certplane.broker.notify.settings import NotificationRule
from certplane.fleet_report.model import CertificateState
from certplane.runtime.health import HealthActor, HealthWord, Severity
from tests.fakes.clock import ManualClock

NOW = ManualClock().now()
DAY = timedelta(days=1)
DNS = "DNS_UNAVAILABLE ns2.example.test"


def certificate(
    health: str = "OK", cause: str = "", *, name: str = "web", days_left: int = 60, **more: Any
) -> IndexedCertificate:
    return IndexedCertificate(
        name,
        "web",
        CertificateState.SERVING,
        health=HealthWord(health),
        cause=cause,
        not_before=NOW + (days_left - 90) * DAY,
        not_after=NOW + days_left * DAY,
        **more,
    )


def found(gathering: Gathering) -> dict[str, Trouble]:
    return {trouble.cause: trouble for trouble in gathering.troubles()}


CASES = {
    "a rule without keys takes what is a warning": (NotificationRule(), "FAILING", 60, True),
    "and what is critical": (NotificationRule(), "EXPIRED", -1, True),
    "and nothing that is right, however little is left": (NotificationRule(), "OK", 1, False),
    "critical leaves warnings out": (NotificationRule(severity=Severity.CRITICAL), "FAILING", 60, False),
    "critical takes what won't heal": (NotificationRule(severity=Severity.CRITICAL), "WONT_HEAL", 60, True),
    "a health alone": (NotificationRule(healths=(HealthWord.MISMATCHED,)), "MISMATCHED", 60, True),
    "not another one, though it is worse": (NotificationRule(healths=(HealthWord.MISMATCHED,)), "EXPIRED", -1, False),
    "both are asked for": (NotificationRule(Severity.CRITICAL, (HealthWord.FAILING,)), "FAILING", 60, False),
    "a share of the life alone takes any health": (NotificationRule(life_left=10), "OK", 9, True),
    "at the share itself": (NotificationRule(life_left=10), "FAILING", 9, True),
    "not above it": (NotificationRule(life_left=10), "FAILING", 10, False),
    "a share with a severity": (NotificationRule(Severity.WARNING, life_left=10), "OK", 1, False),
    "a share that is passed": (NotificationRule(life_left=10), "EXPIRED", -5, True),
    "another profile": (NotificationRule(profiles=("mail",)), "EXPIRED", -1, False),
    "one of its profiles": (NotificationRule(profiles=("mail", "web")), "EXPIRED", -1, True),
}


@pytest.mark.parametrize(("rule", "health", "days_left", "picked"), CASES.values(), ids=CASES)
def test_a_rule_picks_what_matches_all_of_it(rule: NotificationRule, health: str, days_left: int, picked: bool) -> None:
    """Severity, health, profile and what is left of the life, as far as they are written."""
    assert picks(rule, certificate(health, days_left=days_left), HealthWord(health), NOW) is picked


def test_what_has_no_certificate_has_no_life() -> None:
    """A share of a life that isn't there is of nothing."""
    none = IndexedCertificate("web", "web", CertificateState.ABSENT)
    assert not picks(NotificationRule(life_left=99), none, HealthWord.OK, NOW)


def test_one_cause_is_one_trouble_whatever_the_health() -> None:
    """With the worst of its healths first, certificates and hosts counted, and the first moment of each kind."""
    gathering = Gathering([NotificationRule()], NOW)
    for number in range(15):
        failing = certificate("FAILING", DNS, since=NOW - number * DAY, next_attempt_time=NOW + DAY)
        gathering.add(IndexedHost(f"id{number}", f"web{number:02}", certificates=(failing, certificate(name="b"))))
    late = certificate("OVERDUE", DNS, name="late", days_left=3, actor=HealthActor.DNS)
    gathering.add(IndexedHost("shop.example.test", "shop", certificates=(late, certificate("FAILING", DNS))))
    gathering.add(IndexedHost("other", certificates=(certificate("STALE_SERVED", "RELOAD nginx.service"),)))
    troubles = found(gathering)
    assert set(troubles) == {DNS, "RELOAD nginx.service"}
    trouble = troubles[DNS]
    assert (trouble.word, trouble.certificate_count, trouble.host_count) == (HealthWord.OVERDUE, 17, 16)
    assert trouble.hosts == ("shop", *(f"web{number:02}" for number in range(9)))
    assert (trouble.example_host, trouble.example_certificate) == ("shop.example.test", "late")
    assert (trouble.since, trouble.next_attempt) == (NOW - 14 * DAY, NOW + DAY)
    assert (trouble.soonest_end, trouble.actor) == (NOW + 3 * DAY, HealthActor.DNS)
    assert troubles["RELOAD nginx.service"].hosts == ("other",)


def test_a_silent_host_is_one_of_the_trouble_of_silent_hosts() -> None:
    """Its certificates that are right but for that are UNHEARD in the index; what is worse with it keeps its cause."""
    gathering = Gathering([NotificationRule()], NOW)
    expired = certificate("EXPIRED", DNS, name="old")
    for name, since, worse in (("web1", NOW - DAY, (expired,)), ("web2", NOW - 2 * DAY, ())):
        unheard = certificate("UNHEARD", "UNHEARD", since=since, actor=HealthActor.HOST)
        gathering.add(IndexedHost(name, unheard_since=since, certificates=(unheard, *worse)))
    troubles = found(gathering)
    assert (troubles[DNS].word, troubles[DNS].certificate_count) == (HealthWord.EXPIRED, 1)
    silent = troubles["UNHEARD"]
    assert (silent.word, silent.hosts, silent.since) == (HealthWord.UNHEARD, ("web1", "web2"), NOW - 2 * DAY)
    assert silent.actor is HealthActor.HOST


def test_what_is_right_and_ends_soon_is_a_trouble_of_its_rule() -> None:
    """It has no cause but that little of its life is left."""
    gathering = Gathering([NotificationRule(), NotificationRule(life_left=20)], NOW)
    gathering.add(IndexedHost("web1", certificates=(certificate(days_left=17), certificate("FAILING", DNS))))
    troubles = found(gathering)
    assert {cause: trouble.word for cause, trouble in troubles.items()} == {"LIFE_LEFT 20%": "OK", DNS: "FAILING"}
    assert troubles["LIFE_LEFT 20%"].actor is None


def test_words_of_a_host_are_one_clean_line() -> None:
    """What a host calls itself or its cause ends no header and no line of a message."""
    gathering = Gathering([NotificationRule()], NOW)
    gathering.add(IndexedHost("a\r\nBcc: b", certificates=(certificate("FAILING", "RELOAD\n\x1b[31m"),)))
    ((cause, trouble),) = found(gathering).items()
    assert cause == trouble.cause == "RELOAD  [31m"
    assert trouble.hosts == ("a  Bcc: b",)


def test_causes_without_end_are_counted_together() -> None:
    """Hosts may say anything: what is beyond two thousand causes is one trouble more."""
    gathering = Gathering([NotificationRule()], NOW)
    for number in range(2010):
        gathering.add(IndexedHost(f"web{number}", certificates=(certificate("FAILING", f"RELOAD {number}"),)))
    troubles = found(gathering)
    assert (len(troubles), troubles[OTHER].certificate_count) == (2001, 10)
