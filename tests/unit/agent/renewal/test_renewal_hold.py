"""What a rollout holds back: until when, what ends it, and what it gets beside."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certplane.agent.model import (
    Activation,
    ActivationHold,
    DirectedRenewal,
    LineageStatus,
    PendingRequest,
    ServiceView,
    Version,
)
from certplane.agent.renewal.directed import inherited_hold, kept_activations, kept_directive, laid_over
from certplane.agent.renewal.due import LineageSpec, hold_end, own_due_time, warn_time
from certplane.agent.renewal.facts import LineageFacts
from certplane.agent.renewal.health import lineage_health
from certplane.agent.renewal.plan import Activate, Request, Wait, next_step
from certplane.agent.renewal.status import planned, request_succeeded
from certplane.agent.renewal.window import ActivationWindow
from certplane.agent.reporting.report import certificate_report
from certplane.fleet_report.model import CertificateState, RenewalCause
from certplane.pki.csr import build_csr
from certplane.pki.keys import KeyType, generate_private_key, public_key_sha256
from certplane.runtime.health import HealthWord

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SPEC = LineageSpec("web", phase_key="web1/web", dns_names=("web.example",))
BORN = NOW - 30 * DAY
BY = NOW + 5 * DAY
HOLD = ActivationHold("r1", BY)
OLD = Version(1, Path("/v/1"), ("web.example",), "1", "aa", BORN, BORN + 90 * DAY, "c1", BORN + 60 * DAY)
NEW = Version(2, Path("/v/2"), ("web.example",), "2", "bb", NOW - HOUR, NOW + 90 * DAY, "c2", NOW + 60 * DAY, hold=HOLD)
STATUS = LineageStatus("web", CertificateState.ISSUED, NOW, confirmed_version=1, installed_version=1, issued_version=2)
HELD = LineageFacts((OLD, NEW), OLD, None, STATUS)
WANTED = DirectedRenewal(
    "c1", NOW - HOUR, RenewalCause.OPERATOR, rollout_id="r1", hold_activation=True, activate_by_time=BY
)


def told(*activations: Activation, facts: LineageFacts = HELD) -> LineageFacts:
    return laid_over(facts, None, activations)


def test_a_held_version_waits_and_says_for_whom() -> None:
    """Nothing is installed and nothing else asked for; the status and the report name the rollout, and when it ends."""
    plan = next_step(SPEC, HELD, NOW)
    assert plan.step == Wait(BY)
    assert (plan.activate_after, plan.held_by_rollout_id) == (BY, "r1")
    status = planned(replace(STATUS, state=CertificateState.REQUESTING), plan, NOW)
    assert (status.state, status.held_by_rollout_id) == (CertificateState.ISSUED, "r1")
    report = certificate_report(SPEC, "web", replace(HELD, status=status))
    assert (report.held_by_rollout_id, report.activate_time, report.state) == ("r1", BY, CertificateState.ISSUED)
    assert report.issued is not None
    assert report.issued.certificate_id == "c2"


def test_a_held_version_is_activated_by_itself_in_time() -> None:
    """Nobody said anything: a broker that is gone makes no certificate expire."""
    plan = next_step(SPEC, HELD, BY)
    assert plan.step == Activate(NEW)
    assert (plan.activate_after, plan.held_by_rollout_id) == (None, "")


def test_a_released_version_is_activated_at_once() -> None:
    """Whatever rollout the release names: it names the certificate."""
    facts = told(Activation("c2", "r2"))
    assert isinstance(next_step(SPEC, facts, NOW).step, Activate)
    assert next_step(SPEC, told(Activation("c3", "r1")), NOW).step == Wait(BY)


def test_an_abandoned_version_waits_until_the_one_in_use_is_due() -> None:
    """By the host's own rule: what the rollout wanted of that one is over. No rollout holds it any more."""
    facts = laid_over(HELD, WANTED, [Activation("c2", "r1", abandoned=True)])
    due = own_due_time(SPEC, OLD)
    assert due > BY
    plan = next_step(SPEC, facts, NOW)
    assert (plan.step, plan.activate_after, plan.held_by_rollout_id) == (Wait(due), due, "")
    assert isinstance(next_step(SPEC, facts, due).step, Activate)


@pytest.mark.parametrize(
    ("lifetime", "left"),
    [pytest.param(90 * DAY, DAY, id="a-day"), pytest.param(6 * HOUR, timedelta(minutes=36), id="a-tenth")],
)
@pytest.mark.parametrize("by", [None, NOW + 400 * DAY])
def test_no_hold_reaches_the_end_of_what_is_in_use(lifetime: timedelta, left: timedelta, by: datetime | None) -> None:
    """Whatever the broker named, or none: the host knows when its certificate ends."""
    served = replace(OLD, not_before=NOW, not_after=NOW + lifetime)
    for hold in (ActivationHold("r1", by), ActivationHold("r1", by, abandoned=True)):
        assert hold_end(SPEC, hold, served) <= served.not_after - left
    assert hold_end(SPEC, ActivationHold("r1", by), served) == served.not_after - left


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(replace(HELD, current=None), id="nothing-is-in-use"),
        pytest.param(replace(HELD, current=NEW), id="it-was-begun-and-the-agent-ended"),
        pytest.param(replace(HELD, status=replace(STATUS, revoked_versions=(1,))), id="what-is-in-use-is-revoked"),
        pytest.param(
            replace(HELD, versions=(replace(OLD, not_after=NOW + 20 * HOUR), NEW)), id="what-is-in-use-ends-soon"
        ),
    ],
)
def test_a_hold_is_not_waited_for(facts: LineageFacts) -> None:
    """Where nothing of use is served, or not for long; nor is what was begun left half done."""
    assert isinstance(next_step(SPEC, facts, NOW).step, Activate)


def test_a_window_counts_after_the_hold() -> None:
    """Released in the daytime, or let go by time, it still waits for the night; a rollout holds it then no longer."""
    spec = replace(SPEC, window=ActivationWindow.parse("02:00-04:00"))
    night = NOW + 14 * HOUR
    plan = next_step(spec, HELD, NOW)
    assert (plan.activate_after, plan.held_by_rollout_id) == (BY + 14 * HOUR, "r1")
    for facts, now in ((told(Activation("c2", "r1")), NOW), (HELD, BY)):
        plan = next_step(spec, facts, now)
        assert (plan.activate_after, plan.held_by_rollout_id) == (now + (night - NOW), "")


def test_a_person_of_the_host_uses_it_at_once() -> None:
    """Whatever holds it; `renew` doesn't: a second certificate would wait as well, and be wasted."""
    spec = replace(SPEC, window=ActivationWindow.parse("02:00-04:00"))
    assert next_step(spec, HELD, NOW, at_once=True).step == Activate(NEW)
    assert isinstance(next_step(spec, HELD, NOW, forced=True).step, Wait)


def test_a_failed_activation_is_tried_again_though_it_was_held() -> None:
    """Released once, released for good: it waits for its back-off alone."""
    status = replace(STATUS, activation_failures=1, next_activation_time=NOW + HOUR, state=CertificateState.DEGRADED)
    plan = next_step(SPEC, told(Activation("c2", "r1"), facts=replace(HELD, status=status)), NOW)
    assert plan.step == Wait(NOW + HOUR)
    assert plan.held_by_rollout_id == ""


def test_a_held_certificate_hurts_nobody() -> None:
    """Its service serves the one that is in place, and that isn't late by what a rollout wants of it."""
    facts = laid_over(replace(HELD, status=replace(STATUS, activate_after=BY, held_by_rollout_id="r1")), WANTED)
    assert facts.current is not None
    late = NOW + 50 * DAY
    assert warn_time(SPEC, facts.current) > own_due_time(SPEC, OLD) > NOW
    for now in (NOW, NOW + 20 * DAY):
        assert lineage_health(SPEC, facts, now).word is HealthWord.OK
        assert not next_step(SPEC, facts, now).overdue
    assert lineage_health(SPEC, facts, NOW, seen=ServiceView(None)).word is HealthWord.OK
    assert next_step(SPEC, facts, late).overdue, "by the host's own rule it may still be late"
    health = lineage_health(SPEC, facts, late)
    assert health.word is HealthWord.OVERDUE
    assert "waits for rollout r1" in health.text
    assert health.remedy == "`certplane-agent activate web` uses it now", "another one would wait as well"


def test_what_is_staged_is_held_before_anybody_has_planned() -> None:
    """The first report of it mustn't say that it is free."""
    status = request_succeeded(replace(STATUS, state=CertificateState.REQUESTING), NEW, NOW, directed=True)
    assert (status.held_by_rollout_id, status.activate_after) == ("r1", BY)
    for free in (None, replace(HOLD, abandoned=True)):
        assert request_succeeded(STATUS, replace(NEW, hold=free), NOW).held_by_rollout_id == ""


def test_a_hold_is_of_what_replaces_the_certificate_that_it_names() -> None:
    """Another one, asked for since, is nobody's to hold."""
    assert WANTED.hold_on("c1") == HOLD
    assert WANTED.hold_on("c2") is None
    assert replace(WANTED, hold_activation=False).hold_on("c1") is None


def test_what_replaces_a_held_version_is_named_as_that_one() -> None:
    """Released, abandoned, used by hand: each by the word that came last; what is in use holds nothing back."""
    later = replace(NEW, number=3, certificate_id="c3", hold=inherited_hold(NEW, OLD))
    assert later.hold == replace(HOLD, named_as="c2")
    assert inherited_hold(replace(later, number=4), OLD) == later.hold
    assert inherited_hold(NEW, NEW) is None
    assert inherited_hold(NEW, None) is None
    assert inherited_hold(replace(NEW, hold=None), OLD) is None
    facts = LineageFacts((OLD, NEW, later), OLD, None, STATUS)

    def newest(*activations: Activation) -> ActivationHold | None:
        return told(*kept_activations(activations, [], facts), facts=facts).versions[-1].hold

    gone, by_hand = Activation("c2", "r1", abandoned=True), Activation("c3", "r1")
    assert newest(Activation("c2", "r1")) is None
    assert newest(gone) == replace(later.hold, abandoned=True, activate_by_time=None)
    assert newest(gone, by_hand) is None
    assert newest(Activation("c9", "r1")) == later.hold


def test_a_rollout_that_ends_leaves_what_is_on_its_way_held() -> None:
    """Its certificates have their lifetimes again; whoever wants one now, the CA among them, has it used."""
    ended = replace(WANTED, cause=RenewalCause.LIFETIME, rollout_id="", hold_activation=False, activate_by_time=None)
    ended = replace(ended, renew_time=NOW + 20 * DAY)
    kept = kept_directive(ended, WANTED)
    assert kept.hold_on("c1") == ActivationHold("r1", ended.renew_time, abandoned=True)
    assert kept_directive(ended, kept) == kept
    assert kept_directive(ended, None) == ended
    assert kept_directive(ended, replace(WANTED, certificate_id="c0")) == ended
    for cause in (RenewalCause.OPERATOR, RenewalCause.REVOKED, RenewalCause.ISSUER):
        wanted_now = replace(ended, cause=cause)
        assert kept_directive(wanted_now, WANTED) == wanted_now


def test_a_new_key_is_asked_for_whatever_was_begun() -> None:
    """A request of the old key that is pending is dropped; one that has a new key goes on."""
    key = generate_private_key(KeyType.EC_P256)
    pending = PendingRequest(build_csr(key, sans=["web.example"]), public_key_sha256(key.public_key()), NOW)
    directed = replace(WANTED, new_key=True)
    facts = laid_over(LineageFacts((OLD,), OLD, pending, STATUS), directed)
    step = next_step(SPEC, facts, NOW).step
    assert isinstance(step, Request)
    assert (step.new_key, step.abandon_pending) == (True, False)
    same = replace(OLD, public_key_sha256=pending.public_key_sha256)
    step = next_step(SPEC, laid_over(LineageFacts((same,), same, pending, STATUS), directed), NOW).step
    assert isinstance(step, Request)
    assert (step.new_key, step.abandon_pending) == (True, True)
    assert not next_step(SPEC, laid_over(LineageFacts((OLD,), OLD, None, STATUS), WANTED), NOW).step.new_key  # type: ignore[union-attr]


def test_which_activations_are_kept() -> None:
    """That of the newest version, and those that a certificate on its way may be of; the rest is over."""
    here, coming, other = Activation("c2", "r0"), Activation("c3", "r1"), Activation("c4", "r9")
    replaced = laid_over(LineageFacts((OLD,), OLD, None, STATUS), WANTED)
    assert kept_activations([coming, other], [], replaced) == (coming,)
    assert kept_activations([here, coming], [], laid_over(HELD, WANTED)) == (here,)
    assert kept_activations([replace(here, abandoned=True)], [here], HELD) == (replace(here, abandoned=True),)
    assert kept_activations([coming], [here], HELD) == (here,)
    assert kept_activations([here], [], LineageFacts((), None, None, STATUS)) == ()


@given(
    by=st.none() | st.integers(-100, 200),
    abandoned=st.booleans(),
    released=st.booleans(),
    age=st.integers(0, 89),
    hours=st.integers(-48, 90 * 24),
)
def test_a_held_version_is_used_exactly_when_it_may_be(
    by: int | None, abandoned: bool, released: bool, age: int, hours: int
) -> None:
    """At any age of what is in use, at any moment, whatever was said: in time, and not before."""
    served = replace(OLD, not_before=NOW - age * DAY, not_after=NOW + (90 - age) * DAY)
    hold = ActivationHold("r1", None if by is None else NOW + by * DAY, abandoned)
    new = replace(NEW, not_after=NOW + 200 * DAY, hold=None if released else hold)
    now = NOW + hours * HOUR
    step = next_step(SPEC, LineageFacts((served, new), served, None, STATUS), now).step
    may = released or now >= hold_end(SPEC, hold, served)
    assert isinstance(step, Activate) == may
    if isinstance(step, Wait):
        assert step.until < served.not_after
