"""Messages in words, as JSON, and in templates."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from certplane.broker.notify.model import FleetState, HealthCount, Message, MessageKind, Trouble
from certplane.broker.notify.text import body, document, fill, subject
from certplane.runtime.health import HealthActor, HealthWord
from tests.fakes.clock import ManualClock

NOW = ManualClock().now()
TROUBLE = Trouble(
    "DNS_UNAVAILABLE ns2.example.test",
    HealthWord.OVERDUE,
    18,
    12,
    tuple(f"web{number}" for number in range(10)),
    "web0.example.test",
    "shop",
    'ends at noon; last error: ns2 says "no"',
    "see whether ns2 answers",
    HealthActor.DNS,
    NOW - timedelta(hours=1),
    NOW + timedelta(minutes=5),
    NOW + timedelta(days=1),
)
FLEET = FleetState(200, 186, (HealthCount(HealthWord.OVERDUE, 18), HealthCount(HealthWord.OK, 300)), 4)
OPENED = Message("id-1", "oncall", MessageKind.OPENED, NOW, (TROUBLE,), 1, FLEET)
OVER = replace(OPENED, kind=MessageKind.OVER, troubles=(Trouble(TROUBLE.cause, TROUBLE.word, 0, 0, since=NOW),))

SUBJECTS = {
    "opened": (OPENED, "CRITICAL: 18 certificates of 12 hosts OVERDUE: DNS_UNAVAILABLE ns2.example.test"),
    "a single one": (
        replace(OPENED, troubles=(replace(TROUBLE, word=HealthWord.FAILING, certificate_count=1, host_count=1),)),
        "WARNING: 1 certificate of 1 host FAILING: DNS_UNAVAILABLE ns2.example.test",
    ),
    "of services too": (
        replace(OPENED, troubles=(replace(TROUBLE, service_count=1),)),
        "CRITICAL: 18 certificates of 11 hosts and 1 service OVERDUE: DNS_UNAVAILABLE ns2.example.test",
    ),
    "of a service": (
        replace(OPENED, troubles=(replace(TROUBLE, certificate_count=1, host_count=1, service_count=1),)),
        "CRITICAL: 1 certificate of 1 service OVERDUE: DNS_UNAVAILABLE ns2.example.test",
    ),
    "still": (
        replace(OPENED, kind=MessageKind.STILL),
        "CRITICAL: still: 18 certificates of 12 hosts OVERDUE: DNS_UNAVAILABLE ns2.example.test",
    ),
    "many": (
        replace(OPENED, kind=MessageKind.WORSE, trouble_count=30),
        "CRITICAL: worse: 30 troubles, the worst: 18 certificates of 12 hosts OVERDUE: DNS_UNAVAILABLE ns2.example.test",
    ),
    "over": (OVER, "over: DNS_UNAVAILABLE ns2.example.test"),
    "many over": (replace(OVER, trouble_count=11), "over: 11 troubles"),
    "a digest": (replace(OPENED, kind=MessageKind.DIGEST), "the week's digest: 1 trouble"),
    "a good week": (Message("1", "post", MessageKind.DIGEST, NOW), "the week's digest: no trouble"),
    "a test": (Message("1", "post", MessageKind.TEST, NOW), "this is a test of the notifier post"),
}


@pytest.mark.parametrize(("message", "expected"), SUBJECTS.values(), ids=SUBJECTS)
def test_the_subject_says_it_all(message: Message, expected: str) -> None:
    """How bad, how many, and why."""
    assert subject(message) == f"[certplane] {expected}"


def test_the_text_says_who_and_what_to_do() -> None:
    """And how the fleet is."""
    assert body(OPENED).splitlines() == [
        "18 certificates of 12 hosts OVERDUE: DNS_UNAVAILABLE ns2.example.test",
        '  ends at noon; last error: ns2 says "no"',
        "  Seen at: web0.example.test shop",
        "  Hosts: web0, web1, web2, web3, web4, web5, web6, web7, web8, web9 and 2 more",
        "  Since: 2026-11-23 11:00:00 UTC",
        "  Next try: 2026-11-23 12:05:00 UTC",
        "  Soonest end: 2026-11-24 12:00:00 UTC",
        "  Who can act: whoever keeps the DNS of the names",
        "  What to do: see whether ns2 answers",
        "",
        "The fleet now: 200 hosts, 186 connected",
        "Certificates: 18 OVERDUE, 300 OK; 4 end within 7 days",
        "",
        "More: certplanectl summary",
        "",
        "2026-11-23 12:00:00 UTC, message id-1",
    ]


def test_an_end_says_no_more_than_is_known() -> None:
    """Nobody has this cause; what else is wrong with those who had it, the fleet's counts show."""
    lines = body(OVER).splitlines()
    assert lines[:3] == [
        "DNS_UNAVAILABLE ns2.example.test is over",
        "  It was OVERDUE since 2026-11-23 12:00:00 UTC",
        "  No certificate has it now.",
    ]
    assert "Certificates: 18 OVERDUE, 300 OK; 4 end within 7 days" in lines


def test_troubles_that_are_not_named_are_counted() -> None:
    """At the end of the list."""
    assert "and 10 more troubles" in body(replace(OPENED, trouble_count=11)).splitlines()


def test_programs_get_the_dialect_of_certplanectl() -> None:
    """The proto's JSON mapping; what has no value is left out."""
    shown = json.loads(json.dumps(document(OPENED)))
    assert shown["troubles"] == [
        {
            "health": "HEALTH_OVERDUE",
            "cause": TROUBLE.cause,
            "reason": TROUBLE.text,
            "remedy": TROUBLE.remedy,
            "actor": "HEALTH_ACTOR_DNS",
            "certificateCount": 18,
            "hostCount": 12,
            "hosts": list(TROUBLE.hosts),
            "sinceTime": "2026-11-23T11:00:00Z",
            "nextAttemptTime": "2026-11-23T12:05:00Z",
            "soonestNotAfterTime": "2026-11-24T12:00:00Z",
        }
    ]
    assert shown["fleet"]["healthCounts"] == [
        {"health": "HEALTH_OVERDUE", "count": 18},
        {"health": "HEALTH_OK", "count": 300},
    ]
    assert (shown["messageId"], shown["kind"], shown["severity"]) == ("id-1", "opened", "critical")
    assert "troubles" not in document(Message("1", "post", MessageKind.TEST, NOW))


def test_a_template_is_filled_so_that_json_stays_json() -> None:
    """Whatever a host has said: quotes, line breaks, other scripts."""
    nasty = replace(OPENED, troubles=(replace(TROUBLE, text='"},\n\\ \N{SNOWMAN}'),))
    filled = fill('{"text": "$subject", "why": "${reason}", "cost": "$$1"}', nasty, as_json=True)
    assert json.loads(filled) == {"text": subject(nasty), "why": '"},\n\\ \N{SNOWMAN}', "cost": "$1"}
    assert fill("$cause: $hosts", OPENED, as_json=False).startswith("DNS_UNAVAILABLE ns2.example.test: web0, web1")


@pytest.mark.parametrize(("template", "error"), [("$nosuch", KeyError), ("$", ValueError)])
def test_a_template_that_names_nothing_is_an_error(template: str, error: type[Exception]) -> None:
    """Found when the configuration is read."""
    with pytest.raises(error):
        fill(template, OPENED, as_json=False)
