"""Until when a failed request waits, and what ends the wait."""

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.model import DirectedRenewal, LineageStatus, Version
from certplane.agent.renewal.directed import laid_over
from certplane.agent.renewal.due import LineageSpec, shown_reason
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.failures import Failure, FailureKind, failure_of
from certplane.agent.renewal.plan import Request, Wait, next_step
from certplane.agent.renewal.status import planned, request_failed, request_succeeded
from certplane.agent.renewal.waiting import LEAST_WAIT, Asked, Hold, hold_of
from certplane.errors import Reason, Refusal, Violation
from certplane.fleet_report.model import CertificateState, RenewalCause

NOW = datetime(2026, 11, 28, 3, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
ASKED = Asked("request", "settings")
FAILED = LineageStatus(
    "web", CertificateState.FAILED, NOW - HOUR, failures=3, request_error="RATE_LIMITED: too many", failed_time=NOW - HOUR,
    next_attempt_time=NOW + HOUR, asked_request="request", asked_settings="settings",
)  # fmt: skip
BY_CA = {"request_error": "ISSUER_RATE_LIMITED: 5 a week", "retry_time": NOW + DAY, "next_attempt_time": NOW + DAY}


def directive(
    cause: RenewalCause, received: datetime = NOW, renew: datetime = NOW, rollout_id: str = ""
) -> DirectedRenewal:
    return DirectedRenewal("c1", renew, cause, receive_time=received, rollout_id=rollout_id)


@dataclass(frozen=True)
class Case:
    held: Hold | None
    status: dict[str, Any] = field(default_factory=dict)
    asked: Asked = ASKED
    directed: DirectedRenewal | None = None
    forced: bool = False


OPERATOR, REVOKED, ISSUER, LIFETIME = (
    RenewalCause.OPERATOR,
    RenewalCause.REVOKED,
    RenewalCause.ISSUER,
    RenewalCause.LIFETIME,
)
OURS, THEIRS = Hold(NOW + HOUR), Hold(NOW + DAY, by_issuer=True)
CASES = {
    "our own patience": Case(OURS),
    "a CA's word": Case(THEIRS, BY_CA),
    "patience is over": Case(None, {"next_attempt_time": NOW}),
    "renew NAME": Case(None, forced=True),
    "renew NAME, and a CA's word": Case(THEIRS, BY_CA, forced=True),
    "other names in agent.yml": Case(None, asked=Asked("other", "other")),
    "other names in agent.yml, and a CA's word": Case(None, BY_CA, asked=Asked("other", "other")),
    "other settings": Case(None, asked=Asked("request", "other")),
    "other settings, and a CA's word": Case(THEIRS, BY_CA, asked=Asked("request", "other")),
    "a failure of an older release": Case(OURS, {"asked_request": "", "asked_settings": ""}, asked=Asked("a", "b")),
    "an older release's note of a limit of the broker's": Case(
        OURS, {"retry_time": NOW + HOUR, "next_attempt_time": NOW + MINUTE}
    ),
    "the same, and renew NAME": Case(None, {"retry_time": NOW + DAY, "next_attempt_time": NOW + DAY}, forced=True),
    "an operator's directive": Case(None, directed=directive(OPERATOR)),
    "an operator's directive, and a CA's word": Case(THEIRS, BY_CA, directed=directive(OPERATOR)),
    "a revocation": Case(None, directed=directive(REVOKED)),
    "a revocation, and a CA's word": Case(None, BY_CA, directed=directive(REVOKED)),
    "a revocation that was tried": Case(OURS, directed=directive(REVOKED, NOW - 2 * HOUR)),
    "a revocation that was tried, and a CA's word": Case(THEIRS, BY_CA, directed=directive(REVOKED, NOW - 2 * HOUR)),
    "the CA's window": Case(None, directed=directive(ISSUER)),
    "a directive for later": Case(OURS, directed=directive(OPERATOR, renew=NOW + MINUTE)),
    "the broker's own rule": Case(OURS, directed=directive(LIFETIME)),
    "a directive from the future": Case(OURS, directed=directive(REVOKED, NOW + DAY)),
    "a directive right after the failure": Case(
        Hold(NOW - SECOND + LEAST_WAIT), {"failed_time": NOW - SECOND}, directed=directive(OPERATOR)
    ),
    "nothing has failed": Case(None, {"failures": 0, "next_attempt_time": None}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_holds_a_request_back(case: Case) -> None:
    """A CA's word binds whoever asks, but for a revocation, once; our patience ends when the answer may be another."""
    status = replace(FAILED, **case.status)
    assert hold_of(case.asked, status, case.directed, NOW, forced=case.forced) == case.held


def version(left: timedelta = 60 * DAY) -> Version:
    return Version(1, Path("/nowhere"), ("a",), "1", "f" * 64, NOW - 30 * DAY, NOW + left, certificate_id="c1")


@pytest.mark.parametrize(
    "reason", [Reason.RATE_LIMITED, Reason.NAMES_NOT_ALLOWED, Reason.DNS_REJECTED, Reason.INTERNAL]
)
@pytest.mark.parametrize("left", [6 * MINUTE, HOUR, DAY, 30 * DAY])
@pytest.mark.parametrize("failures", [0, 5, 50])
def test_no_wait_goes_past_half_of_the_life_that_is_left(reason: Reason, left: timedelta, failures: int) -> None:
    """Nor what the broker asks to wait: its limits are its own to hold, and it may be wrong by then."""
    failure = failure_of(Refusal(reason, "no", 7 * DAY), NOW)
    for seed in range(5):
        status = replace(FAILED, failures=failures)
        failed = request_failed(status, failure, NOW, random.Random(seed), version(left))
        assert failed.next_attempt_time is not None
        assert NOW < failed.next_attempt_time <= NOW + left / 2


def test_a_cas_word_may_go_past_the_end() -> None:
    """Asking it sooner is of no use, and is said as it is."""
    failure = failure_of(Refusal(Reason.ISSUER_RATE_LIMITED, "5 a week", DAY), NOW)
    failed = request_failed(FAILED, failure, NOW, random.Random(1), version(HOUR))
    assert failed.next_attempt_time == failed.retry_time == NOW + DAY


def test_a_revoked_certificate_is_not_served_on_for_a_limit() -> None:
    """The broker's wish counts for nothing, and the next try comes within minutes, however many failed."""
    revoked = replace(FAILED, failures=50, revoked_versions=(1,))
    told = Failure(FailureKind.LIMITED, "RATE_LIMITED: 2 a day", told_time=NOW + DAY)
    failed = request_failed(revoked, told, NOW, random.Random(1), version())
    assert failed.next_attempt_time is not None
    assert failed.next_attempt_time <= NOW + 10 * MINUTE


def test_the_limit_is_named() -> None:
    """Wherever the failure is shown: whose limit it is can be told from it."""
    limit = Violation("new_keys_per_identity_profile_per_day", "2 a day, 2 used")
    failure = failure_of(Refusal(Reason.RATE_LIMITED, "too many orders were asked for", violations=(limit,)), NOW)
    assert "new_keys_per_identity_profile_per_day: 2 a day, 2 used" in failure.message
    named = Refusal(Reason.RATE_LIMITED, "new_keys_per_identity_profile_per_day is 2", violations=(limit,))
    assert failure_of(named, NOW).message == "RATE_LIMITED: new_keys_per_identity_profile_per_day is 2"


def test_a_failures_message_is_bounded() -> None:
    """It is kept on disk, and shown."""
    assert len(failure_of(Refusal(Reason.INTERNAL, "x" * 100_000), NOW).message) <= 2000


@pytest.mark.parametrize(
    ("cause", "rollout_id", "most"),
    [(OPERATOR, "", 3), (ISSUER, "", 3), (LIFETIME, "", 3), (REVOKED, "", 10), (OPERATOR, "r-7f3a", 10)],
)
def test_a_broker_that_wants_it_again_and_again_has_it_so_often_in_an_hour(
    cause: RenewalCause, rollout_id: str, most: int
) -> None:
    """Each renewal is a reload of a service; whoever wants more waits, and nothing is due by itself.

    A night's fourth rollout waits for no host: each of them directs a certificate once.
    """
    spec = LineageSpec("web", "host/web")
    status = LineageStatus("web", CertificateState.WAITING, NOW, confirmed_version=1)
    for count in range(most):
        now = NOW + count * SECOND
        facts = laid_over(LineageFacts((version(),), version(), None, status), directive(cause, now, now, rollout_id))
        step = next_step(spec, facts, now).step
        assert isinstance(step, Request)
        assert step.directed
        status = replace(request_succeeded(status, version(), now, directed=True), confirmed_version=1)
    now = NOW + MINUTE
    facts = laid_over(LineageFacts((version(),), version(), None, status), directive(cause, now, now, rollout_id))
    step = next_step(spec, facts, now).step
    assert isinstance(step, Wait)
    assert step.until == NOW + HOUR
    assert f"waits until {NOW + HOUR:%Y-%m-%d %H:%M:%S} UTC" in step.why
    assert "`certplane-agent renew web` doesn't wait" in step.why
    shown = planned(status, next_step(spec, facts, now), now)
    assert shown_reason(spec, shown, facts.versions[0]) == step.why
    assert isinstance(next_step(spec, facts, now, forced=True).step, Request)
    assert isinstance(next_step(spec, facts, step.until).step, Request)


def test_a_renewal_that_is_due_anyway_counts_for_nothing() -> None:
    """A short certificate is renewed as often as it must be, also where the broker names the moment."""
    times = tuple(NOW - MINUTE * each for each in range(9))
    status = LineageStatus("web", CertificateState.WAITING, NOW, confirmed_version=1, directed_times=times)
    short = replace(version(MINUTE), not_before=NOW - 5 * MINUTE)
    facts = laid_over(LineageFacts((short,), short, None, status), directive(LIFETIME))
    step = next_step(LineageSpec("web", "host/web"), facts, NOW).step
    assert isinstance(step, Request)
    assert not step.directed
