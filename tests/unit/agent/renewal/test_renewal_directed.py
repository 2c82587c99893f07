"""What the broker's directives mean for the plan."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certplane.agent.model import DirectedRenewal, LineageStatus, Version
from certplane.agent.renewal.directed import explanation, laid_over
from certplane.agent.renewal.due import LineageSpec, due_time
from certplane.agent.renewal.plan import LineageFacts, Request, Wait, next_step
from certplane.fleet_report.model import CertificateState, RenewalCause

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SPEC = LineageSpec("web", phase_key="web1/web", dns_names=("web.example",))
BORN = NOW - timedelta(hours=1)
FIRST = Version(
    1, Path("/v/1"), ("web.example",), "1", "aa", BORN, BORN + 90 * DAY, certificate_id="c1", renew_time=BORN + 60 * DAY
)
STATUS = LineageStatus("web", CertificateState.WAITING, NOW, confirmed_version=1)
FACTS = LineageFacts((FIRST,), FIRST, None, STATUS)


def directive(
    when: datetime, cause: RenewalCause = RenewalCause.OPERATOR, certificate_id: str = "c1"
) -> DirectedRenewal:
    return DirectedRenewal(certificate_id, when, cause)


@pytest.mark.parametrize("cause", [RenewalCause.OPERATOR, RenewalCause.ISSUER, RenewalCause.REVOKED])
def test_now_is_obeyed_by_a_new_certificate_too(cause: RenewalCause) -> None:
    """Whoever names one certificate means it: the first tenth of its life doesn't shield it."""
    plan = next_step(SPEC, laid_over(FACTS, directive(NOW - DAY, cause)), NOW)
    assert isinstance(plan.step, Request)
    assert plan.step.replaces is not None
    assert plan.step.replaces.certificate_id == "c1"


def test_what_replaced_it_is_not_meant() -> None:
    """The same directive says nothing of the next certificate, so it can't loop."""
    second = replace(FIRST, number=2, certificate_id="c2", serial_number="2")
    facts = replace(FACTS, versions=(FIRST, second), current=second, status=replace(STATUS, confirmed_version=2))
    plan = next_step(SPEC, laid_over(facts, directive(NOW)), NOW)
    assert plan.step == Wait(BORN + 60 * DAY)


@pytest.mark.parametrize(
    ("when", "due"),
    [
        pytest.param(BORN + 20 * DAY, BORN + 20 * DAY, id="earlier"),
        pytest.param(BORN + 70 * DAY, BORN + 70 * DAY, id="later"),
        pytest.param(BORN - DAY, BORN - DAY, id="at once"),
    ],
)
def test_a_directive_takes_the_place_of_what_was_said_before(when: datetime, due: datetime) -> None:
    """Earlier or later than the time that came with the certificate."""
    facts = laid_over(FACTS, directive(when, RenewalCause.ISSUER))
    assert due_time(SPEC, facts.versions[0]) == due
    assert facts.current == facts.versions[0]


def test_later_than_the_end_counts_for_nothing() -> None:
    """No directive lets a certificate expire: the host's own rule stands in."""
    facts = laid_over(FACTS, directive(FIRST.not_after + DAY))
    own = due_time(SPEC, replace(FIRST, renew_time=None))
    assert due_time(SPEC, facts.versions[0]) == own < FIRST.not_after


def test_the_brokers_own_rule_does_not_reach_into_the_first_tenth() -> None:
    """A broker that computes nonsense can't make hosts renew in a loop."""
    facts = laid_over(FACTS, directive(NOW, RenewalCause.LIFETIME))
    assert due_time(SPEC, facts.versions[0]) == BORN + 9 * DAY


def test_the_configurations_own_time_still_counts_if_it_is_earlier() -> None:
    """`renew_before` is an operator's word about this host."""
    spec = replace(SPEC, renew_before=40 * DAY)
    facts = laid_over(FACTS, directive(BORN + 80 * DAY, RenewalCause.ISSUER))
    assert due_time(spec, facts.versions[0]) < BORN + 60 * DAY


def test_a_waiting_time_of_the_ca_holds_also_here() -> None:
    """A directive is no reason to ask before `retry_time`."""
    status = replace(STATUS, retry_time=NOW + DAY)
    plan = next_step(SPEC, laid_over(replace(FACTS, status=status), directive(NOW)), NOW)
    assert isinstance(plan.step, Wait)
    assert plan.step.until == NOW + DAY


def test_a_revoked_version_is_noted() -> None:
    """It is nothing to go back to, whatever becomes of the next one."""
    assert laid_over(FACTS, directive(NOW, RenewalCause.REVOKED)).status.revoked_versions == (1,)
    assert laid_over(FACTS, directive(NOW)).status.revoked_versions == ()


@pytest.mark.parametrize(
    "unmeant",
    [pytest.param(None, id="none"), pytest.param(directive(NOW, certificate_id="c9"), id="another's")],
)
def test_other_facts_stay_as_they_are(unmeant: DirectedRenewal | None) -> None:
    """No directive, or one about a certificate that isn't there, changes nothing."""
    assert laid_over(FACTS, unmeant) is FACTS


def test_an_imported_version_has_no_name_to_be_meant_by() -> None:
    """An empty certificate_id matches nothing."""
    imported = replace(FIRST, number=0, certificate_id="")
    facts = replace(FACTS, versions=(imported,), current=imported)
    assert laid_over(facts, directive(NOW, certificate_id="")) is facts


@pytest.mark.parametrize(
    ("directed", "text"),
    [
        pytest.param(None, "", id="nobody said anything"),
        pytest.param(directive(NOW), "an operator asked", id="without a reason"),
        pytest.param(replace(directive(NOW), reason="keys leaked"), "an operator asked: keys leaked", id="operator"),
        pytest.param(
            DirectedRenewal("c1", NOW, RenewalCause.ISSUER, explanation_url="https://ca.example/incident"),
            "the CA's window (ARI): https://ca.example/incident",
            id="issuer",
        ),
        pytest.param(
            DirectedRenewal("c1", NOW, RenewalCause.ISSUER, "the CA asks for it now", "https://ca.example/incident"),
            "the CA asks for it now: https://ca.example/incident",
            id="issuer, in the broker's words",
        ),
        pytest.param(
            replace(directive(NOW), reason="keys leaked", explanation_url="https://ca.example/incident"),
            "an operator asked: keys leaked https://ca.example/incident",
            id="operator, in an incident",
        ),
        pytest.param(
            DirectedRenewal("c1", NOW, RenewalCause.REVOKED, "it was revoked: keyCompromise"),
            "it was revoked: keyCompromise",
            id="revoked",
        ),
    ],
)
def test_the_explanation_says_who_and_why(directed: DirectedRenewal | None, text: str) -> None:
    """One line for `status` and for the broker."""
    assert explanation(directed) == text


IDENTITY = LineageSpec("identity", phase_key="web1/identity")
OWN = replace(FIRST, certificate_id="", renew_time=None, dns_names=("web1.example",))


def of_identity(when: datetime, serial_number: str = "1") -> DirectedRenewal:
    return DirectedRenewal("", when, RenewalCause.OPERATOR, serial_number=serial_number)


def test_an_identity_is_meant_by_its_serial_number() -> None:
    """Once it is replaced the directive is over; one without a number means none."""
    facts = LineageFacts((OWN,), OWN, None, STATUS)
    assert isinstance(next_step(IDENTITY, laid_over(facts, of_identity(NOW)), NOW).step, Request)
    second = replace(OWN, number=2, serial_number="2")
    replaced = replace(facts, versions=(OWN, second), current=second, status=replace(STATUS, confirmed_version=2))
    assert isinstance(next_step(IDENTITY, laid_over(replaced, of_identity(NOW)), NOW).step, Wait)
    for other in ("2", ""):
        assert laid_over(facts, of_identity(NOW, other)) is facts


@pytest.mark.parametrize("renew_before", [None, 20 * DAY])
def test_no_identity_is_put_off(renew_before: timedelta | None) -> None:
    """The broker doesn't know when a host renews its identity by itself: a place late in a spread comes too late."""
    spec = replace(IDENTITY, renew_before=renew_before)
    own = due_time(spec, OWN)
    facts = laid_over(LineageFacts((OWN,), OWN, None, STATUS), of_identity(own + DAY))
    assert due_time(spec, facts.versions[0]) == own
    facts = laid_over(LineageFacts((OWN,), OWN, None, STATUS), of_identity(own - DAY))
    assert due_time(spec, facts.versions[0]) == own - DAY
