"""What a failure is about, read from its text: the same for all hosts that one cause affects."""

from __future__ import annotations

import time

import pytest

from certplane.errors import Reason
from certplane.runtime.causes import _ACTORS, cause_of_error, cause_text, subject_of
from certplane.runtime.health import MOST_CAUSE, HealthActor

NAMES = ("shop.example.test", "*.shop.example.test")

SUBJECTS = {
    "a server": ("ns2.example.org (192.0.2.1) lacks the record", "ns2.example.org"),
    "a server, in capitals": ("NS2.Example.org doesn't answer", "ns2.example.org"),
    "a unit": ("the reload ended with status 1: Job for nginx.service failed.", "nginx.service"),
    "the host of a URL": ("https://acme.example.net/directory: no answer", "acme.example.net"),
    "the record's name, and then a server": (
        "the TXT record at _acme-challenge.shop.example.test isn't visible: ns1.example.org lacks it",
        "ns1.example.org",
    ),
    "its own names alone": ("www.shop.example.test has no CAA record, nor has shop.example.test", ""),
    "a path": ("nginx: [emerg] /etc/nginx/nginx.conf:12 is wrong", ""),
    "an address": ("192.0.2.1 refused the connection", ""),
    "a number": ("the file has 1.5 MB", ""),
    "a function": ("os.rename() failed", ""),
    "a path without a beginning": ("conf.d/shop.conf is wrong", ""),
    "a mail address of two names": ("tell dns.admin@example.org", ""),
    "a mail address": ("tell admin@example.org", ""),
    "the end of a sentence": ("no disk. Try again", ""),
    "nothing": ("", ""),
}


@pytest.mark.parametrize(("message", "subject"), SUBJECTS.values(), ids=SUBJECTS)
def test_what_a_message_is_about(message: str, subject: str) -> None:
    """The first server or unit that it names; never the certificate's own names, which differ from host to host."""
    assert subject_of(message, NAMES) == subject


CAUSES = {
    "a refusal by DNS": ("DNS_UNAVAILABLE: ns2.example.org is silent", "DNS_UNAVAILABLE ns2.example.org", HealthActor.DNS),
    "the policy": ("NAMES_NOT_ALLOWED: lacks store.example.org", "NAMES_NOT_ALLOWED shop", HealthActor.OPERATOR),
    "a limit": ("RATE_LIMITED: too many (orders_per_day: 5)", "RATE_LIMITED", HealthActor.OPERATOR),
    "a CA's limit": ("ISSUER_RATE_LIMITED: too many", "ISSUER_RATE_LIMITED", HealthActor.ISSUER),
    "no reason of ours": ("can't be reached: Connection refused", "REQUEST", HealthActor.HOST),
    "another release's reason": ("SOMETHING_NEW: what it says", "REQUEST", HealthActor.HOST),
    "no words": ("", "REQUEST", HealthActor.HOST),
}  # fmt: skip


@pytest.mark.parametrize(("error", "cause", "actor"), CAUSES.values(), ids=CAUSES)
def test_the_cause_of_a_request_that_failed(error: str, cause: str, actor: HealthActor) -> None:
    """Its reason, and who can act on it; the step, where the broker refused nothing."""
    assert cause_of_error(error, "request", "shop", NAMES) == (cause, actor)


def test_a_cause_is_bounded() -> None:
    """However long the name is that a host's hook has printed; and found at once."""
    assert len(cause_text("reload", "x" * 5000)) == MOST_CAUSE
    begun = time.perf_counter()
    for text in ("a." * 1000, "a" * 2000, "a-" * 1000 + "(", "a.b(" * 500, "//" * 1000):
        subject_of(text, NAMES)
    assert time.perf_counter() - begun < 1


def test_of_every_refusal_somebody_is_named() -> None:
    """Who keeps the broker, unless it is said otherwise."""
    for reason in Reason:
        _, actor = cause_of_error(f"{reason}: words", "request")
        assert actor is _ACTORS.get(reason, HealthActor.OPERATOR)
