"""How a status changes, and how long failures wait."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.agent.model import LineageStatus, ServedLeaf, ServiceView, Version
from certplane.agent.renewal.due import RenewReason
from certplane.agent.renewal.failures import (
    Failure,
    FailureKind,
    failure_of,
    is_final_for_key,
    is_refused_by_policy,
    is_unreached,
    request_backoff,
)
from certplane.agent.renewal.plan import Activate, Plan, Request, Verify, Wait
from certplane.agent.renewal.status import (
    activated,
    activating,
    activation_failed,
    going_back,
    is_well,
    looked,
    new_status,
    planned,
    reloading,
    request_failed,
    request_succeeded,
    requesting,
    revoked,
    settle_clock,
    settle_jump,
    verified,
    verify_failed,
    verifying,
)
from certplane.errors import (
    CertplaneError,
    ConfigurationError,
    OperationError,
    ProblemDocument,
    Reason,
    Refusal,
    RefusalError,
)
from certplane.fleet_report.model import CertificateState, RenewalStep

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
LEAF = ServedLeaf("1", "f" * 64, NOW - 60 * DAY, NOW + 30 * DAY)
STRANGER = replace(LEAF, serial_number="2")
ACME = "urn:ietf:params:acme:error:"


def version(number: int = 1, left: timedelta = 30 * DAY) -> Version:
    return Version(number, Path("/nowhere"), ("a",), "1", "f" * 64, NOW - 60 * DAY, NOW + left)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_its_patience(reason: Reason) -> None:
    """Whatever a broker says, the agent knows how long to wait."""
    failure = failure_of(RefusalError(reason, "because"), NOW)
    assert failure.message == f"{reason}: because"
    assert failure.kind in FailureKind
    assert failure.retry_time is None


@pytest.mark.parametrize(
    ("cause", "unreached", "refused"),
    [
        pytest.param(OperationError("the broker can't be reached: refused"), True, False, id="no connection"),
        pytest.param(RefusalError(Reason.PROFILE_NOT_ALLOWED, "no"), False, True, id="policy"),
        pytest.param(RefusalError(Reason.ISSUER_UNAVAILABLE, "no CA"), False, False, id="the CA"),
    ],
)
def test_whose_word_ends_a_wait(cause: CertplaneError, unreached: bool, refused: bool) -> None:
    """A broker that is there again, or another policy; whatever an activation did meanwhile."""
    status = new_status("www", NOW)
    assert not is_unreached(status)
    assert not is_refused_by_policy(status)
    failed = request_failed(status, failure_of(cause, NOW), NOW, random.Random(1), version())
    older = replace(failed, request_error="")  # as a release without it has written
    later = going_back(failed, RenewalStep.RELOAD, "KEY_WEAK: said the hook", NOW)
    for each in (failed, older, later):
        assert (is_unreached(each), is_refused_by_policy(each)) == (unreached, refused)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        pytest.param(OperationError("no connection"), FailureKind.UNREACHABLE, id="no connection"),
        pytest.param(ConfigurationError([]), FailureKind.UNREACHABLE, id="anything else"),
        pytest.param(RefusalError(Reason.DRAINING, ""), FailureKind.UNREACHABLE, id="broker stops"),
        pytest.param(RefusalError(Reason.RATE_LIMITED, ""), FailureKind.LIMITED, id="our limit"),
        pytest.param(RefusalError(Reason.ISSUER_RATE_LIMITED, ""), FailureKind.LIMITED, id="the CA's limit"),
        pytest.param(RefusalError(Reason.PROFILE_NOT_ALLOWED, ""), FailureKind.REFUSED, id="policy"),
        pytest.param(RefusalError(Reason.ISSUER_REJECTED, ""), FailureKind.REJECTED, id="the CA"),
        pytest.param(Refusal(Reason.DNS_REJECTED, ""), FailureKind.REJECTED, id="a failed order's refusal"),
    ],
)
def test_failures_are_of_a_kind(cause: CertplaneError | Refusal, kind: FailureKind) -> None:
    """Who can end a failure decides how long it waits."""
    assert failure_of(cause, NOW).kind is kind


@pytest.mark.parametrize(
    ("after", "told", "retry_time"),
    [
        pytest.param(None, None, None, id="nobody said"),
        pytest.param(HOUR, None, NOW + HOUR, id="the refusal's"),
        pytest.param(None, NOW + DAY, NOW + DAY, id="the order's"),
        pytest.param(HOUR, NOW + DAY, NOW + DAY, id="the later: the order's"),
        pytest.param(DAY, NOW + HOUR, NOW + DAY, id="the later: the refusal's"),
        pytest.param(None, NOW + 365 * DAY, NOW + 7 * DAY, id="a broker whose clock is a year ahead"),
        pytest.param(timedelta.max, None, NOW + 7 * DAY, id="without end"),
    ],
)
def test_retry_time_is_the_latest_that_was_said(
    after: timedelta | None, told: datetime | None, retry_time: datetime | None
) -> None:
    """A refusal's span counts from its arrival; of several the latest counts. A CA's binds, the broker's is a wish."""
    assert failure_of(Refusal(Reason.ISSUER_RATE_LIMITED, "", after), NOW, told).retry_time == retry_time
    assert failure_of(OperationError("", retry_after=after), NOW, told).retry_time == retry_time
    wish = failure_of(Refusal(Reason.RATE_LIMITED, "", after), NOW, told)
    assert (wish.retry_time, wish.told_time) == (None, retry_time)


@pytest.mark.parametrize(
    ("refusal", "final"),
    [
        pytest.param(Refusal(Reason.KEY_REUSED, ""), True, id="the key was seen elsewhere"),
        pytest.param(Refusal(Reason.KEY_WEAK, ""), True, id="the key is weak"),
        pytest.param(Refusal(Reason.CSR_INVALID, ""), True, id="the CSR is wrong"),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "", problems=(ProblemDocument(f"{ACME}badPublicKey", ""),)),
            True,
            id="the CA won't have the key",
        ),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "", problems=(ProblemDocument(f"{ACME}badCSR", ""),)),
            True,
            id="nor the CSR",
        ),
        pytest.param(
            Refusal(Reason.ISSUER_REJECTED, "", problems=(ProblemDocument(f"{ACME}caa", ""),)), False, id="CAA"
        ),
        pytest.param(Refusal(Reason.NAMES_NOT_ALLOWED, ""), False, id="policy may change"),
        pytest.param(Refusal(Reason.IDENTITY_EXPIRED, ""), False, id="the identity may be renewed"),
    ],
)
def test_key_is_given_up_only_when_it_can_never_succeed(refusal: Refusal, final: bool) -> None:
    """A retry sends the same CSR, unless the CSR itself is what was refused."""
    assert is_final_for_key(refusal) == final


@pytest.mark.parametrize(
    ("kind", "left", "shortest", "longest"),
    [
        pytest.param(FailureKind.UNREACHABLE, 30 * DAY, 5 * SECOND, 30 * MINUTE, id="unreachable"),
        pytest.param(FailureKind.UNREACHABLE, 6 * HOUR, 5 * SECOND, 15 * MINUTE, id="unreachable, hours left"),
        pytest.param(FailureKind.UNREACHABLE, -DAY, 5 * SECOND, 2 * MINUTE, id="unreachable, expired"),
        pytest.param(FailureKind.LIMITED, 30 * DAY, 10 * MINUTE, DAY, id="limited"),
        pytest.param(FailureKind.LIMITED, 3 * DAY, 10 * MINUTE, 3 * HOUR, id="limited, short-lived"),
        pytest.param(FailureKind.REFUSED, 30 * DAY, MINUTE, 6 * HOUR, id="refused"),
        pytest.param(FailureKind.REJECTED, 30 * DAY, 15 * MINUTE, DAY, id="rejected"),
        pytest.param(FailureKind.REJECTED, -DAY, 15 * MINUTE, 30 * MINUTE, id="rejected, expired"),
    ],
)
def test_waits_fit_the_failure_and_the_life_that_is_left(
    kind: FailureKind, left: timedelta, shortest: timedelta, longest: timedelta
) -> None:
    """Waits grow to a ceiling by kind, which shrinks with the life that is left, never below the kind's floor."""
    backoff = request_backoff(kind, version(left=left), NOW)
    assert backoff.ceiling(50) == longest
    waits = [backoff.wait(failures, random.Random(failures)) for failures in range(1, 60)]
    assert min(waits) >= shortest
    assert max(waits) <= longest
    assert max(waits) > longest * 0.8


def test_ca_that_rejects_is_not_asked_five_times_an_hour() -> None:
    """Let's Encrypt allows five failed validations per name and hour: the shortest waits make four."""
    assert 5 * request_backoff(FailureKind.REJECTED, None, NOW).floor > HOUR


def test_short_certificate_still_gets_its_tries() -> None:
    """With half of six days left, a CA that is down for a day costs at most a third of what is left."""
    backoff = request_backoff(FailureKind.LIMITED, version(left=3 * DAY), NOW)
    assert backoff.ceiling(99) * 24 <= 3 * DAY


def test_failed_request_says_when_it_may_be_repeated() -> None:
    """A failure counts, and keeps the cause and both waiting times."""
    failure = Failure(FailureKind.LIMITED, "ISSUER_RATE_LIMITED: too many", NOW + 2 * DAY)
    failed = request_failed(new_status("www", NOW), failure, NOW, random.Random(1), None)
    assert failed.state is CertificateState.FAILED
    assert (failed.failures, failed.last_error) == (1, "ISSUER_RATE_LIMITED: too many")
    assert failed.retry_time == failed.next_attempt_time == NOW + 2 * DAY
    again = request_failed(failed, Failure(FailureKind.UNREACHABLE, "no connection"), NOW, random.Random(1), None)
    assert (again.failures, again.retry_time) == (2, None)
    assert again.next_attempt_time is not None
    assert NOW < again.next_attempt_time <= NOW + MINUTE


@given(
    kind=st.sampled_from(FailureKind),
    failures=st.integers(0, 1000),
    told=st.none() | st.timedeltas(-DAY, 30 * DAY),
    left=st.none() | st.timedeltas(-30 * DAY, 90 * DAY),
    seed=st.integers(0, 99),
)
def test_no_wait_is_shorter_than_what_was_said(
    kind: FailureKind, failures: int, told: timedelta | None, left: timedelta | None, seed: int
) -> None:
    """The next attempt is after now, and never before the time that the CA named."""
    retry_time = None if told is None else NOW + told
    newest = None if left is None else version(left=left)
    before = replace(new_status("www", NOW), failures=failures)
    failed = request_failed(before, Failure(kind, "", retry_time), NOW, random.Random(seed), newest)
    assert failed.next_attempt_time is not None
    assert failed.next_attempt_time > NOW
    assert retry_time is None or failed.next_attempt_time >= retry_time


def test_activation_does_not_hide_a_request_that_fails() -> None:
    """While the newest version waited for its activation the next request failed: that is told again afterwards."""
    rng = random.Random(1)
    status = request_failed(new_status("www", NOW), Failure(FailureKind.REFUSED, "policy says no"), NOW, rng, version())
    status = activation_failed(
        activating(status, NOW, rng), "no room", NOW, rng, step=RenewalStep.INSTALL, rejected_version=None, current=None
    )
    assert (status.last_error, status.failed_step) == ("no room", RenewalStep.INSTALL)
    done = activated(activating(status, NOW, rng), version(), NOW)
    assert (done.last_error, done.failed_step, done.failures) == ("policy says no", RenewalStep.REQUEST, 1)
    assert request_succeeded(done, version(2), NOW).last_error == ""


def test_success_forgets_every_failure() -> None:
    """A certificate that came ends all waiting, also that of an older version's activation."""
    failed = replace(
        new_status("www", NOW),
        failures=3,
        last_error="no",
        retry_time=NOW + DAY,
        next_attempt_time=NOW + DAY,
        activation_failures=4,
        next_activation_time=NOW + DAY,
        rejected_version=1,
        confirmed_version=0,
    )
    status = request_succeeded(failed, version(2), NOW + HOUR)
    assert (status.state, status.issued_version) == (CertificateState.ISSUED, 2)
    assert (status.failures, status.last_error, status.retry_time, status.next_attempt_time) == (0, "", None, None)
    assert (status.activation_failures, status.next_activation_time) == (0, None)
    assert status.confirmed_version == 0
    assert status.update_time == NOW + HOUR


def test_life_of_a_certificate_is_told() -> None:
    """From request to confirmation each state is what `status` shows."""
    rng = random.Random(1)
    status = requesting(new_status("www", NOW), RenewReason.FIRST, NOW)
    assert (status.state, status.renew_reason) == (CertificateState.REQUESTING, "there is none yet")
    status = request_succeeded(status, version(), NOW)
    status = activating(status, NOW, rng)
    assert status.state is CertificateState.INSTALLING
    status = reloading(status, version(), NOW)
    assert (status.state, status.installed_version) == (CertificateState.RELOADING, 1)
    done = activated(status, version(), NOW)
    assert (done.state, done.confirmed_version, done.renew_reason) == (CertificateState.WAITING, 1, "")
    seen = looked(verifying(status, NOW), ServiceView(LEAF), (version(),), NOW, interval=6 * HOUR)
    assert (seen.state, seen.verified_version, seen.served_serial_number) == (CertificateState.VERIFYING, 1, "1")
    assert activated(seen, version(), NOW).state is CertificateState.SERVING
    failed = activation_failed(
        status, "the reload failed", NOW, rng, step=RenewalStep.RELOAD, rejected_version=1, current=None
    )
    assert failed.failed_step is RenewalStep.RELOAD
    assert (failed.state, failed.rejected_version, failed.last_error) == (
        CertificateState.DEGRADED,
        1,
        "the reload failed",
    )
    assert failed.activation_failures == 1
    assert failed.next_activation_time is not None
    assert NOW + 20 * SECOND <= failed.next_activation_time <= NOW + MINUTE


def test_activation_waits_are_a_share_of_the_shown_certificates_life() -> None:
    """A certificate that is about to end makes the next activation come soon."""
    counted = replace(new_status("www", NOW), activation_failures=40)
    for left, longest in ((30 * DAY, 6 * HOUR), (DAY, HOUR), (-DAY, 5 * MINUTE)):
        waits = []
        for seed in range(40):
            failed = activation_failed(
                counted,
                "",
                NOW,
                random.Random(seed),
                step=RenewalStep.RELOAD,
                rejected_version=None,
                current=version(left=left),
            )
            assert failed.next_activation_time is not None
            waits.append(failed.next_activation_time - NOW)
        assert longest * 0.7 < max(waits) <= longest


@pytest.mark.parametrize(
    ("before", "step", "state", "reason"),
    [
        pytest.param({}, Wait(NOW + DAY), CertificateState.WAITING, "", id="nothing to do"),
        pytest.param(
            {}, Request(RenewReason.DUE, None), CertificateState.DUE, "its renewal time has come", id="about to ask"
        ),
        pytest.param(
            {"failures": 1, "state": CertificateState.FAILED},
            Wait(NOW + DAY, RenewReason.FIRST),
            CertificateState.FAILED,
            "there is none yet",
            id="failed and waiting",
        ),
        pytest.param(
            {}, Wait(NOW + DAY, RenewReason.DUE), CertificateState.DUE, "its renewal time has come", id="held back"
        ),
        pytest.param(
            {"activation_failures": 1, "rejected_version": 2, "state": CertificateState.DEGRADED},
            Wait(NOW + DAY),
            CertificateState.DEGRADED,
            "",
            id="not activated",
        ),
        pytest.param(
            {"state": CertificateState.INSTALLING},
            Activate(version()),
            CertificateState.INSTALLING,
            "",
            id="activating",
        ),
        pytest.param(
            {"verify_failures": 1}, Wait(NOW + DAY), CertificateState.DEGRADED, "", id="something else is served"
        ),
        pytest.param({}, Verify(version(), None), CertificateState.WAITING, "", id="about to look, after a restart"),
        pytest.param(
            {"state": CertificateState.DEGRADED},
            Verify(version(), None),
            CertificateState.DEGRADED,
            "",
            id="about to look",
        ),
    ],
)
def test_plan_is_shown(
    before: dict[str, object], step: Wait | Request | Activate, state: CertificateState, reason: str
) -> None:
    """`status` shows what is planned and why; a plan that changes nothing is not written again."""
    status = replace(new_status("www", NOW), **before)  # type: ignore[arg-type]  # a test's shorthand
    shown = planned(status, Plan(step, NOW + DAY, overdue=False), NOW + HOUR)
    assert (shown.state, shown.renew_reason, shown.renew_time) == (state, reason, NOW + DAY)
    assert planned(shown, Plan(step, NOW + DAY, overdue=False), NOW + 2 * HOUR) is shown


def test_rest_says_what_is_known() -> None:
    """At rest a lineage serves if that was seen, is issued while a window holds it, and else waits."""
    rest = Wait(NOW + DAY)
    for more, state in (
        ({}, CertificateState.WAITING),
        ({"served": True}, CertificateState.SERVING),
        ({"served": True, "activate_after": NOW + HOUR}, CertificateState.ISSUED),
    ):
        plan = Plan(rest, NOW + DAY, overdue=False, issued=2, installed=1, **more)
        shown = planned(new_status("www", NOW), plan, NOW)
        assert shown.state is state
        assert is_well(shown)
        assert (shown.issued_version, shown.installed_version) == (2, 1)
        assert shown.activate_after == plan.activate_after


@pytest.mark.parametrize("back", [2 * MINUTE, HOUR, 400 * DAY])
def test_record_from_the_future_keeps_its_waits(back: timedelta) -> None:
    """A clock that was set back moves every waiting time with it: none grows, none is lost."""
    status = LineageStatus(
        "www",
        CertificateState.FAILED,
        NOW,
        renew_time=NOW + 9 * DAY,
        next_attempt_time=NOW + HOUR,
        retry_time=NOW + 2 * HOUR,
        next_activation_time=NOW + 3 * HOUR,
    )
    moved = settle_clock(status, NOW - back)
    assert moved.update_time == NOW - back
    assert moved.next_attempt_time == NOW - back + HOUR
    assert moved.retry_time == NOW - back + 2 * HOUR
    assert moved.next_activation_time == NOW - back + 3 * HOUR
    assert moved.renew_time == status.renew_time
    assert settle_clock(moved, NOW - back) is moved


@pytest.mark.parametrize("ahead", [-MINUTE + SECOND, timedelta(), DAY, 4000 * DAY])
def test_record_from_the_past_is_left_alone(ahead: timedelta) -> None:
    """Time that went on, or a clock that NTP corrects by a little, changes no record."""
    status = replace(new_status("www", NOW), retry_time=NOW + HOUR)
    assert settle_clock(status, NOW + ahead) is status


@pytest.mark.parametrize("jump", [HOUR, -HOUR, -400 * DAY])
def test_waits_keep_their_length_when_the_clock_is_set(jump: timedelta) -> None:
    """What the agent or a CA said to wait is a span; a certificate's dates and a window's are of the world."""
    status = replace(
        new_status("www", NOW),
        renew_time=NOW + 9 * DAY,
        activate_after=NOW + 2 * DAY,
        next_attempt_time=NOW + HOUR,
        retry_time=NOW + 2 * HOUR,
        next_verify_time=NOW + 6 * HOUR,
        verify_time=NOW,
    )
    moved = settle_jump(status, jump)
    assert (moved.renew_time, moved.activate_after) == (status.renew_time, status.activate_after)
    assert moved.next_attempt_time == NOW + jump + HOUR
    assert moved.retry_time == NOW + jump + 2 * HOUR
    assert moved.next_verify_time == NOW + jump + 6 * HOUR
    assert moved.next_activation_time is None
    assert settle_clock(moved, NOW + jump) is moved


@pytest.mark.parametrize(
    ("view", "number", "serial"),
    [
        pytest.param(ServiceView(LEAF), 1, "1", id="ours"),
        pytest.param(ServiceView(STRANGER, "another"), None, "2", id="a stranger's"),
        pytest.param(ServiceView(None, "refused"), None, "", id="nothing"),
        pytest.param(
            ServiceView(replace(LEAF, public_key_sha256="e" * 64), "?"), None, "1", id="our serial, no key of ours"
        ),
    ],
)
def test_what_was_seen_is_told(view: ServiceView, number: int | None, serial: str) -> None:
    """A look says what the service presented, and which version of this host that is."""
    status = looked(new_status("www", NOW), view, (version(),), NOW, interval=6 * HOUR)
    assert (status.verified_version, status.served_serial_number) == (number, serial)
    assert (status.verify_time, status.next_verify_time) == (NOW, NOW + 6 * HOUR)
    assert (status.served_not_after is None) == (view.leaf is None)


def test_service_that_drifted_is_degraded_until_it_is_well() -> None:
    """A find is visible and looked at again soon; a look that is well ends it, and the next find has a reload again."""
    seen = replace(new_status("www", NOW), state=CertificateState.SERVING, confirmed_version=1)
    looked_at = looked(seen, ServiceView(STRANGER, "another"), (version(),), NOW, interval=6 * HOUR)
    drifted = verify_failed(looked_at, "another", NOW, random.Random(1), current=version(), reload_time=NOW)
    assert (drifted.state, drifted.verify_failures, drifted.verify_error) == (CertificateState.DEGRADED, 1, "another")
    assert not is_well(drifted)
    assert drifted.next_verify_time is not None
    assert NOW < drifted.next_verify_time <= NOW + MINUTE
    again = verified(replace(drifted, drift_reloaded=True))
    assert (again.state, again.verify_failures, again.verify_error) == (CertificateState.SERVING, 0, "")
    assert not again.drift_reloaded
    assert is_well(again)


def test_find_outside_of_a_window_is_looked_at_when_it_opens() -> None:
    """The reload that a find is worth waits for the window, no matter how patient the looks have become."""
    drifted = replace(new_status("www", NOW), verify_failures=30)
    opens = NOW + 2 * MINUTE
    for seed in range(20):
        failed = verify_failed(drifted, "", NOW, random.Random(seed), current=version(), reload_time=opens)
        assert failed.next_verify_time is not None
        assert failed.next_verify_time <= opens


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param({"failures": 2, "state": CertificateState.FAILED}, id="requests fail"),
        pytest.param({"activation_failures": 1, "state": CertificateState.DEGRADED}, id="an activation failed"),
        pytest.param({"state": CertificateState.DUE}, id="due"),
    ],
)
def test_look_that_is_well_hides_no_other_trouble(trouble: dict[str, object]) -> None:
    """What the service serves says nothing about a request or an activation that failed."""
    status = replace(new_status("www", NOW), **trouble)  # type: ignore[arg-type]  # a test's shorthand
    assert verified(status).state is status.state


def test_going_back_is_told_before_it_is_done() -> None:
    """The step and its error are on disk while the version before is put back."""
    status = going_back(new_status("www", NOW), RenewalStep.VERIFY, "it serves another", NOW)
    assert (status.state, status.failed_step, status.last_error) == (
        CertificateState.DEGRADED, RenewalStep.VERIFY, "it serves another",
    )  # fmt: skip


def test_revoked_version_is_known_until_a_newer_one_is_in_force() -> None:
    """What is known to be revoked is neither served on nor gone back to, and is forgotten with its replacement."""
    status = revoked(revoked(new_status("www", NOW), 1, NOW), 1, NOW)
    assert status.revoked_versions == (1,)
    assert activated(status, version(1), NOW).revoked_versions == (1,)
    assert activated(status, version(2), NOW).revoked_versions == ()
