"""The plan of one certificate: what is due, what waits, what is activated."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.agent.model import LineageStatus, PendingRequest, Version
from certplane.agent.renewal.due import LineageSpec, RenewReason, due_time, override_time, warn_time
from certplane.agent.renewal.plan import (
    LONGEST_PAUSE,
    Activate,
    LineageFacts,
    Plan,
    Request,
    Verify,
    Wait,
    next_step,
    pause,
    pause_after_issue,
)
from certplane.agent.renewal.window import ActivationWindow
from certplane.fleet_report.model import CertificateState
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NAMES = ("example.org", "www.example.org")
KEY = generate_private_key(KeyType.EC_P256)
SPEC = LineageSpec(name="www", phase_key="web1/www", dns_names=NAMES, key_type="ec-p256")
NIGHT = ActivationWindow.parse("02:00-04:00")


def version(number: int = 1, *, lifetime: timedelta = 90 * DAY, begin: datetime = START, **more: object) -> Version:
    fields: dict[str, object] = {
        "number": number,
        "path": Path(f"/nowhere/versions/{number}"),
        "dns_names": NAMES,
        "serial_number": f"{number:x}",
        "public_key_sha256": f"{number:064x}",
        "not_before": begin,
        "not_after": begin + lifetime,
        "certificate_id": f"cert-{number}",
        "key_type": "ec-p256",
        **more,
    }
    return Version(**fields)  # type: ignore[arg-type]  # a test's shorthand


def status(**more: object) -> LineageStatus:
    return LineageStatus("www", CertificateState.WAITING, START, **more)  # type: ignore[arg-type]  # as above


def pending(*names: str, key_type: KeyType = KeyType.EC_P256) -> PendingRequest:
    key = KEY if key_type is KeyType.EC_P256 else generate_private_key(key_type)
    return PendingRequest(build_csr(key, sans=names or NAMES), public_key_sha256(key.public_key()), START)


def facts(
    *versions: Version,
    current: int | None = None,
    waiting: PendingRequest | None = None,
    known: LineageStatus | None = None,
) -> LineageFacts:
    """On disk: the newest is current and confirmed unless said otherwise."""
    newest = versions[-1].number if versions else None
    shown = newest if current is None else current
    return LineageFacts(
        versions=versions,
        current=next((each for each in versions if each.number == shown), None),
        pending=waiting,
        status=known if known is not None else status(confirmed_version=newest),
    )


def step_of(what: LineageFacts, now: datetime, spec: LineageSpec = SPEC, *, forced: bool = False) -> object:
    return next_step(spec, what, now, forced=forced).step


FRESH = facts(version())
DUE = due_time(SPEC, version())


@pytest.mark.parametrize(
    ("what", "now", "reason"),
    [
        pytest.param(facts(), START, RenewReason.FIRST, id="nothing is there"),
        pytest.param(facts(version(0)), START, RenewReason.FIRST, id="only what was imported"),
        pytest.param(FRESH, DUE, RenewReason.DUE, id="due"),
        pytest.param(FRESH, START + 80 * DAY, RenewReason.DUE, id="overdue"),
        pytest.param(FRESH, START + 90 * DAY, RenewReason.EXPIRED, id="expired"),
        pytest.param(
            facts(version(dns_names=("example.org",))), START, RenewReason.NAMES_CHANGED, id="names were added"
        ),
        pytest.param(
            facts(version(dns_names=(*NAMES, "x.example.org"))), START, RenewReason.NAMES_CHANGED, id="names went"
        ),
        pytest.param(facts(version(key_type="rsa-2048")), START, RenewReason.KEY_TYPE_CHANGED, id="another key type"),
        pytest.param(facts(version(), waiting=pending()), START, RenewReason.RESUMED, id="a request was under way"),
        pytest.param(
            facts(version(renew_time=START + 30 * DAY)), START + 30 * DAY, RenewReason.DUE, id="the broker's time"
        ),
    ],
)
def test_request_is_made_when_there_is_a_reason(what: LineageFacts, now: datetime, reason: RenewReason) -> None:
    """A certificate is requested at once when there is none, it isn't what is wanted, or it is due."""
    step = step_of(what, now)
    assert isinstance(step, Request)
    assert step.reason is reason
    assert step.replaces == next((each for each in reversed(what.versions) if each.number > 0), None)
    assert not step.abandon_pending


def test_nothing_is_done_before_it_is_due() -> None:
    """A certificate that is what is wanted is left alone until its renewal time, to the microsecond."""
    assert step_of(FRESH, START) == Wait(DUE)
    assert step_of(FRESH, DUE - timedelta(microseconds=1)) == Wait(DUE)
    assert isinstance(step_of(FRESH, DUE), Request)


def test_operator_may_ask_at_any_time() -> None:
    """A forced renewal is a request whatever the dates say."""
    step = step_of(FRESH, START, forced=True)
    assert isinstance(step, Request)
    assert step.reason is RenewReason.FORCED


def test_identity_takes_any_names() -> None:
    """A lineage whose configuration names neither names nor key type is compared with none."""
    spec = LineageSpec(name="identity", phase_key="web1/identity")
    what = facts(version(dns_names=(), key_type=""), waiting=None)
    assert isinstance(step_of(what, START, spec), Wait)
    resumed = step_of(replace(what, pending=PendingRequest("a CSR of another kind", "", START)), START, spec)
    assert isinstance(resumed, Request)
    assert not resumed.abandon_pending


@pytest.mark.parametrize(
    ("waiting", "abandon"),
    [
        pytest.param(pending(), False, id="what is wanted"),
        pytest.param(pending("example.org"), True, id="other names"),
        pytest.param(pending(key_type=KeyType.EC_P384), True, id="another key type"),
        pytest.param(PendingRequest("nonsense", "", START), True, id="not a CSR that this release makes"),
    ],
)
def test_pending_request_must_be_what_is_wanted(waiting: PendingRequest, abandon: bool) -> None:
    """A request of before a change of the configuration is dropped, any other is sent again."""
    step = step_of(facts(version(), waiting=waiting), DUE)
    assert isinstance(step, Request)
    assert step.abandon_pending == abandon


LATER = DUE + 2 * HOUR


@pytest.mark.parametrize(
    ("known", "forced", "until"),
    [
        pytest.param(status(confirmed_version=1, next_attempt_time=LATER), False, LATER, id="our own patience"),
        pytest.param(status(confirmed_version=1, next_attempt_time=LATER), True, None, id="not a forced one's"),
        pytest.param(status(confirmed_version=1, retry_time=LATER), False, LATER, id="the CA's word"),
        pytest.param(status(confirmed_version=1, retry_time=LATER), True, LATER, id="a forced one's too"),
        pytest.param(
            status(confirmed_version=1, retry_time=LATER, next_attempt_time=LATER + HOUR),
            False,
            LATER + HOUR,
            id="the later of both",
        ),
        pytest.param(
            status(confirmed_version=1, retry_time=LATER, next_attempt_time=LATER + HOUR),
            True,
            LATER,
            id="the CA's alone when forced",
        ),
        pytest.param(status(confirmed_version=1, retry_time=DUE, next_attempt_time=DUE), False, None, id="both past"),
    ],
)
def test_waiting_times_hold_a_request_back(known: LineageStatus, forced: bool, until: datetime | None) -> None:
    """After a failure nothing is asked before the time that was set, and a CA's word binds operators too."""
    step = step_of(facts(version(), known=known), DUE, forced=forced)
    if until is None:
        assert isinstance(step, Request)
    else:
        assert isinstance(step, Wait)
        assert (step.until, step.held_back) == (until, RenewReason.DUE)
        assert step.by_issuer == (until == known.retry_time)


def test_waiting_times_hold_every_reason_back() -> None:
    """A changed configuration or a missing certificate doesn't override what the CA said."""
    for what in (facts(), facts(version(dns_names=("old",))), facts(version(), waiting=pending())):
        held = replace(what, status=replace(what.status, retry_time=LATER))
        step = step_of(held, START)
        assert isinstance(step, Wait)
        assert step.until == LATER


SECOND = version(2, begin=START + 60 * DAY)
NOW = START + 61 * DAY
BACK = NOW + HOUR


@pytest.mark.parametrize(
    ("what", "step"),
    [
        pytest.param(
            facts(version(), SECOND, current=1, known=status(confirmed_version=1)), Activate(SECOND), id="staged"
        ),
        pytest.param(
            facts(version(), SECOND, known=status(confirmed_version=1)), Activate(SECOND), id="installed, not confirmed"
        ),
        pytest.param(
            facts(version(), SECOND, current=1, known=status(confirmed_version=2)), Activate(SECOND), id="not shown"
        ),
        pytest.param(facts(SECOND, current=9, known=status(confirmed_version=2)), Activate(SECOND), id="nothing shown"),
        pytest.param(facts(SECOND, known=status()), Activate(SECOND), id="the status was lost"),
        pytest.param(
            facts(version(), SECOND, current=1, known=status(confirmed_version=1, next_activation_time=NOW)),
            Activate(SECOND),
            id="its back-off is over",
        ),
        pytest.param(
            facts(version(), SECOND, current=1, waiting=pending(), known=status(confirmed_version=1)),
            Activate(SECOND),
            id="before a request that is under way",
        ),
        pytest.param(
            facts(version(), SECOND, current=1, known=status(confirmed_version=1, next_activation_time=BACK)),
            Wait(BACK),
            id="rolled back and waiting",
        ),
        pytest.param(facts(version(), SECOND), Wait(due_time(SPEC, SECOND)), id="confirmed"),
    ],
)
def test_version_on_disk_is_activated_before_anything_else(what: LineageFacts, step: object) -> None:
    """What was issued is activated, at once or after its back-off; meanwhile nothing is requested."""
    assert step_of(what, NOW) == step


def test_failed_activation_never_leads_to_a_request() -> None:
    """While the newest version can't be activated, the age of the one that is shown is no reason for another."""
    what = facts(version(), SECOND, current=1, known=status(confirmed_version=1, next_activation_time=BACK))
    for days in range(61, 90):
        now = START + days * DAY
        held = replace(what, status=replace(what.status, next_activation_time=now + HOUR))
        assert step_of(held, now) == Wait(now + HOUR)


def test_unactivated_version_is_renewed_when_its_own_time_comes() -> None:
    """A version that could not be activated for all its life is followed by a new one like any other."""
    known = status(confirmed_version=1, next_activation_time=SECOND.not_after)
    step = step_of(facts(version(), SECOND, current=1, known=known), due_time(SPEC, SECOND))
    assert isinstance(step, Request)
    assert step.replaces == SECOND


def test_expired_version_is_not_activated() -> None:
    """A version that expired before it could be activated is replaced, not installed."""
    step = step_of(facts(version(), SECOND, current=1, known=status(confirmed_version=1)), SECOND.not_after)
    assert isinstance(step, Request)
    assert step.reason is RenewReason.EXPIRED


def test_expired_version_that_was_never_activated_waits_like_any_other() -> None:
    """Its activation, overdue for good, doesn't cut the wait for the next request short: no busy loop."""
    known = status(confirmed_version=1, next_attempt_time=SECOND.not_after + HOUR, next_activation_time=NOW)
    step = step_of(facts(version(), SECOND, current=1, known=known), SECOND.not_after)
    assert step == Wait(SECOND.not_after + HOUR, held_back=RenewReason.EXPIRED)


def test_held_back_request_does_not_hold_an_activation_back() -> None:
    """Whichever may be tried first decides when the plan is made again."""
    known = status(confirmed_version=1, retry_time=LATER + 9 * DAY, next_activation_time=LATER + HOUR)
    what = facts(version(), SECOND, current=1, waiting=pending(), known=known)
    assert step_of(what, LATER) == Wait(LATER + HOUR, held_back=RenewReason.RESUMED)  # and not the CA's word


@pytest.mark.parametrize(
    ("told", "renew_before", "due"),
    [
        pytest.param(None, 20 * DAY, 70 * DAY, id="the host's setting"),
        pytest.param(None, 720 * HOUR, 60 * DAY, id="the usual setting"),
        pytest.param(65 * DAY, None, 65 * DAY, id="the broker's word"),
        pytest.param(65 * DAY, 20 * DAY, 65 * DAY, id="the broker's word, earlier than the setting"),
        pytest.param(75 * DAY, 20 * DAY, 70 * DAY, id="the setting, earlier than the broker's word"),
        pytest.param(90 * DAY, 20 * DAY, 70 * DAY, id="the broker's word at the end"),
        pytest.param(900 * DAY, 20 * DAY, 70 * DAY, id="the broker's word after the end"),
        pytest.param(0 * DAY, None, 9 * DAY, id="the broker's word at the beginning"),
        pytest.param(-9 * DAY, 20 * DAY, 9 * DAY, id="the broker's word before the beginning"),
    ],
)
def test_due_time_is_the_brokers_within_reason(
    told: timedelta | None, renew_before: timedelta | None, due: timedelta
) -> None:
    """The broker's renewal time counts, the host's own setting may only be earlier, and nothing makes a loop."""
    spec = replace(SPEC, renew_before=renew_before)
    given_version = version(renew_time=None if told is None else START + told)
    assert due_time(spec, given_version) == START + due


@pytest.mark.parametrize("lifetime", [timedelta(minutes=5), HOUR, DAY, 6 * DAY, 45 * DAY, 90 * DAY])
def test_fresh_certificate_is_not_due(lifetime: timedelta) -> None:
    """No lifetime and no setting makes a certificate due as soon as it comes (720h on six days)."""
    for renew_before in (None, timedelta(hours=720)):
        spec = replace(SPEC, renew_before=renew_before)
        what = facts(version(lifetime=lifetime))
        assert isinstance(step_of(what, START, spec), Wait)
        assert isinstance(step_of(what, START + lifetime * 0.4, spec), Wait)


def test_certificate_that_is_never_valid_is_due() -> None:
    """A certificate whose end is not after its beginning is replaced, not computed with."""
    assert isinstance(step_of(facts(version(lifetime=timedelta())), START), Request)


def test_host_clock_that_is_behind_changes_nothing() -> None:
    """A certificate that isn't valid yet by this host's clock is activated, and not renewed."""
    early = START - 400 * DAY
    assert step_of(facts(version(), known=status()), early) == Activate(version())
    assert step_of(FRESH, early) == Wait(DUE)


@pytest.mark.parametrize(
    ("warn_before", "warn"),
    [
        pytest.param(None, 75 * DAY, id="half-way from due to the end"),
        pytest.param(7 * DAY, 83 * DAY, id="as configured"),
        pytest.param(80 * DAY, 60 * DAY, id="never before it is due"),
    ],
)
def test_overdue_renewal_is_warned_of(warn_before: timedelta | None, warn: timedelta) -> None:
    """`overdue` begins at the warning time of what is shown, due or not by what waits on disk."""
    spec = replace(SPEC, renew_before=30 * DAY, warn_before=warn_before)
    assert warn_time(spec, version()) == START + warn
    for what in (FRESH, facts(version(), SECOND, current=1, known=status(confirmed_version=1))):
        assert not next_step(spec, what, START + warn - timedelta(seconds=1)).overdue
        assert next_step(spec, what, START + warn).overdue


def test_what_was_imported_is_not_warned_of() -> None:
    """A certificate of another tool has no renewal of ours that could be overdue."""
    assert not next_step(SPEC, facts(version(0)), START + 89 * DAY).overdue
    assert not next_step(SPEC, facts(), START).overdue


def test_plan_names_the_renewal_time() -> None:
    """What `status` shows is the newest version's renewal time."""
    assert next_step(SPEC, FRESH, START).renew_time == DUE
    assert next_step(SPEC, facts(), START).renew_time is None


@pytest.mark.parametrize(
    ("step", "span"),
    [
        pytest.param(Wait(START + timedelta(minutes=3)), timedelta(minutes=3), id="soon"),
        pytest.param(Wait(START + 60 * DAY), LONGEST_PAUSE, id="late: planned again in between"),
        pytest.param(Wait(START - HOUR), timedelta(), id="past"),
        pytest.param(Activate(SECOND), timedelta(), id="something to do"),
    ],
)
def test_pause_is_bounded(step: Wait | Activate, span: timedelta) -> None:
    """The loop never sleeps so long that a clock that was set, or a suspended machine, goes unnoticed."""
    assert pause(Plan(step, None, overdue=False), START) == span


@pytest.mark.parametrize(
    ("lifetime", "passed", "span"),
    [
        pytest.param(90 * DAY, timedelta(), timedelta(minutes=1), id="long"),
        pytest.param(timedelta(minutes=5), timedelta(seconds=2), timedelta(seconds=30), id="minutes: a tenth"),
        pytest.param(timedelta(seconds=20), timedelta(seconds=2), timedelta(seconds=5), id="seconds: the floor"),
        pytest.param(timedelta(seconds=2), timedelta(seconds=1), timedelta(minutes=1), id="due already"),
        pytest.param(timedelta(), timedelta(), timedelta(minutes=1), id="over as it begins"),
        pytest.param(-DAY, timedelta(), timedelta(minutes=1), id="ends before it begins"),
        pytest.param(90 * DAY, 91 * DAY, timedelta(minutes=1), id="over by this clock"),
    ],
)
def test_pause_after_a_new_certificate(lifetime: timedelta, passed: timedelta, span: timedelta) -> None:
    """One that lives for minutes is renewed in time, and one whose life is over at once isn't asked for in a loop."""
    assert pause_after_issue(SPEC, version(lifetime=lifetime), START + passed) == span


# What holds for every host, whatever happened to it.

moments = st.integers(0, 200 * 24).map(lambda hours: START + hours * HOUR)
maybe_moments = st.none() | moments


@st.composite
def lineages(draw: st.DrawFn) -> LineageFacts:
    numbers = sorted(draw(st.sets(st.integers(0, 4), max_size=3)))
    versions = tuple(
        version(
            number,
            begin=draw(moments),
            lifetime=draw(st.sampled_from([5 * HOUR, DAY, 6 * DAY, 45 * DAY, 90 * DAY])),
            renew_time=draw(maybe_moments),
            dns_names=draw(st.sampled_from([NAMES, ("old.example.org",)])),
        )
        for number in numbers
    )
    return LineageFacts(
        versions=versions,
        current=draw(st.none() | st.sampled_from(versions)) if versions else None,
        pending=draw(st.sampled_from([None, PENDING, OTHER])),
        status=status(
            confirmed_version=draw(st.none() | st.integers(0, 4)),
            retry_time=draw(maybe_moments),
            next_attempt_time=draw(maybe_moments),
            next_activation_time=draw(maybe_moments),
            next_verify_time=draw(maybe_moments),
            verify_failures=draw(st.sampled_from([0, 1])),
            drift_reloaded=draw(st.booleans()),
            revoked_versions=draw(st.sampled_from([(), (1,), (2,)])),
        ),
    )


HELD = facts(version(), version(2), current=1, known=status(confirmed_version=1))
"""A second version is on disk; the first one is in use, confirmed, until 90 days after START."""
NEXT_NIGHT = START + 14 * HOUR
"""START is noon."""
WINDOWED = replace(SPEC, window=NIGHT)


def test_activation_waits_for_its_window() -> None:
    """A version that came in the daytime is put in place at night; its plan says when."""
    plan = next_step(WINDOWED, HELD, START)
    assert plan.activate_after == NEXT_NIGHT
    assert isinstance(plan.step, Wait)
    assert plan.step.until == NEXT_NIGHT
    assert next_step(WINDOWED, HELD, NEXT_NIGHT).step == Activate(HELD.versions[1])
    assert next_step(WINDOWED, HELD, NEXT_NIGHT).activate_after is None
    assert isinstance(next_step(WINDOWED, HELD, NEXT_NIGHT + 2 * HOUR).step, Wait)


def test_window_holds_no_request_back() -> None:
    """A certificate is asked for when it is due, whatever the time of day."""
    assert isinstance(step_of(facts(version()), DUE, WINDOWED), Request)


@pytest.mark.parametrize(
    ("what", "now"),
    [
        pytest.param(facts(version(), known=status()), START, id="the first one, begun and not finished"),
        pytest.param(replace(facts(version(), known=status()), current=None), START, id="nothing is in use"),
        pytest.param(
            replace(HELD, status=status(confirmed_version=1, revoked_versions=(1,))), START, id="what is in use is revoked"
        ),
        pytest.param(
            replace(HELD, current=HELD.versions[1]), START, id="begun, and the agent ended in the middle"
        ),
        pytest.param(
            facts(version(begin=START - 88 * DAY), version(2), current=1, known=status(confirmed_version=1)),
            START,
            id="what is in use ends in two days",
        ),
        pytest.param(
            facts(version(0, begin=START - 100 * DAY), version(), current=0, known=status()), START, id="imported, expired"
        ),
    ],
)  # fmt: skip
def test_window_is_not_waited_for(what: LineageFacts, now: datetime) -> None:
    """Where nothing of use is served, or not for long, the window doesn't count; nor for what was begun."""
    assert isinstance(step_of(what, now, WINDOWED), Activate)


def test_window_that_opens_too_late_is_not_waited_for() -> None:
    """The activation comes when the certificate in use has little life left, though the window is closed then."""
    weekly = replace(SPEC, window=ActivationWindow.parse("sun 02:00-04:00"))  # START is a Monday
    ends = facts(version(begin=START - 86 * DAY), version(2), current=1, known=status(confirmed_version=1))
    plan = next_step(weekly, ends, START)
    assert plan.activate_after == START + 4 * DAY - 72 * HOUR
    assert isinstance(step_of(ends, START + DAY, weekly), Activate)


@pytest.mark.parametrize(
    ("configured", "lifetime", "left"),
    [
        pytest.param(None, 90 * DAY, 72 * HOUR, id="default"),
        pytest.param(None, 6 * DAY, 36 * HOUR, id="default, short lifetime"),
        pytest.param(24 * HOUR, 90 * DAY, 24 * HOUR, id="configured"),
        pytest.param(720 * HOUR, 90 * DAY, 90 * DAY / 4, id="configured, more than a quarter"),
    ],
)
def test_override_fits_the_lifetime(configured: timedelta | None, lifetime: timedelta, left: timedelta) -> None:
    """A setting for long certificates leaves short ones their windows."""
    served = version(lifetime=lifetime)
    assert override_time(replace(SPEC, expires_override=configured), served) == served.not_after - left


def test_failed_activation_is_tried_again_in_a_window() -> None:
    """After its back-off, in the night; one whose back-off ends in the day waits for the next night."""
    failed = replace(
        HELD, status=status(confirmed_version=1, activation_failures=1, next_activation_time=NEXT_NIGHT + 3 * HOUR)
    )
    plan = next_step(WINDOWED, failed, NEXT_NIGHT + HOUR)
    assert isinstance(plan.step, Wait)
    assert plan.step.until == NEXT_NIGHT + DAY
    assert isinstance(step_of(failed, NEXT_NIGHT + DAY, WINDOWED), Activate)


VERIFIED = replace(SPEC, verify_interval=6 * HOUR)


@pytest.mark.parametrize(
    ("known", "step"),
    [
        pytest.param({}, Verify(version(), START), id="never looked"),
        pytest.param({"next_verify_time": START}, Verify(version(), START), id="its time has come"),
        pytest.param({"next_verify_time": START, "drift_reloaded": True}, Verify(version(), None), id="reloaded already"),
        pytest.param({"next_verify_time": START + HOUR}, Wait(START + HOUR), id="seen lately"),
        pytest.param(
            {"next_activation_time": START + 2 * HOUR, "confirmed_version": None},
            Wait(START + 2 * HOUR),
            id="not confirmed",
        ),
    ],
)  # fmt: skip
def test_service_is_looked_at_from_time_to_time(known: dict[str, object], step: object) -> None:
    """What is in place and confirmed is looked at, with one reload in hand."""
    assert step_of(facts(version(), known=status(**{"confirmed_version": 1, **known})), START, VERIFIED) == step


def test_reload_of_a_look_waits_for_the_window() -> None:
    """A look is made at any time; a reload that it finds necessary is for the night."""
    assert step_of(FRESH, START, replace(VERIFIED, window=NIGHT)) == Verify(version(), NEXT_NIGHT)


def test_version_before_is_looked_at_after_a_rollback() -> None:
    """What a failed activation went back to is what the service should serve."""
    failed = replace(HELD, status=status(confirmed_version=1, activation_failures=1, next_activation_time=START + HOUR))
    assert step_of(failed, START, VERIFIED) == Verify(HELD.versions[0], START)


def test_request_comes_before_a_look() -> None:
    """A due certificate is asked for first."""
    assert isinstance(step_of(FRESH, DUE, VERIFIED), Request)


def test_revoked_certificate_is_replaced_at_once() -> None:
    """And never activated, if it hasn't been yet."""
    revoked = replace(FRESH, status=status(confirmed_version=1, revoked_versions=(1,)))
    step = step_of(revoked, START)
    assert isinstance(step, Request)
    assert step.reason is RenewReason.REVOKED
    fresh = replace(HELD, status=status(confirmed_version=1, revoked_versions=(2,)))
    assert isinstance(step_of(fresh, START), Request)


PENDING, OTHER = pending(), pending("other.example.org")
specs = st.builds(
    LineageSpec,
    name=st.just("www"),
    phase_key=st.text(max_size=5),
    dns_names=st.sampled_from([(), NAMES]),
    key_type=st.sampled_from(["", "ec-p256", "rsa-2048"]),
    renew_before=st.sampled_from([None, HOUR, 720 * HOUR]),
    warn_before=st.sampled_from([None, HOUR, 720 * HOUR]),
    window=st.sampled_from([None, NIGHT, ActivationWindow.parse("sat 23:00-01:00 UTC")]),
    expires_override=st.sampled_from([None, HOUR, 72 * HOUR]),
    verify_interval=st.sampled_from([None, 6 * HOUR]),
)


@given(spec=specs, what=lineages(), now=moments, forced=st.booleans())
def test_no_request_before_the_ca_said_so(spec: LineageSpec, what: LineageFacts, now: datetime, forced: bool) -> None:
    """Never sooner than the CA, a limit or a lock said, forced or not."""
    if isinstance(step_of(what, now, spec, forced=forced), Request):
        assert what.status.retry_time is None or what.status.retry_time <= now


@given(spec=specs, what=lineages(), now=moments)
def test_waits_end(spec: LineageSpec, what: LineageFacts, now: datetime) -> None:
    """A wait ends in the future, and at its end there is something to do or a later wait with another reason."""
    step = step_of(what, now, spec)
    if isinstance(step, Wait):
        assert step.until > now
        then = step_of(what, step.until, spec)
        assert not isinstance(then, Wait) or then.until > step.until


@given(spec=specs, what=lineages())
def test_certificate_is_asked_for_before_it_ends(spec: LineageSpec, what: LineageFacts) -> None:
    """Followed from wait to wait, an allowed request is made before the newest version expires, or it is activated."""
    free = replace(what, status=replace(what.status, retry_time=None, next_attempt_time=None))
    spec = replace(spec, verify_interval=None)  # a look ends the following, but holds nothing up
    newest = max((each for each in what.versions if each.number > 0), key=lambda each: each.number, default=None)
    now = START
    for _ in range(5):
        step = step_of(free, now, spec)
        if not isinstance(step, Wait):
            break
        now = step.until
    assert not isinstance(step, Wait)
    if newest is not None and isinstance(step, Request) and now > START:
        assert now < newest.not_after


@given(spec=specs, what=lineages(), now=moments, forced=st.booleans())
def test_activation_is_of_the_newest_valid_version(
    spec: LineageSpec, what: LineageFacts, now: datetime, forced: bool
) -> None:
    """Only the newest version is ever activated by itself, only while it is valid, only after its back-off."""
    step = step_of(what, now, spec, forced=forced)
    if isinstance(step, Activate):
        assert step.version.number == max(each.number for each in what.versions) > 0
        assert step.version.not_after > now
        assert what.status.next_activation_time is None or what.status.next_activation_time <= now
