"""What is known of a certificate of a rollout: from the index, the orders and the policy."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from certplane.broker.fleet.index import IndexedCertificate, IndexedHost
from certplane.broker.model import Grant, IdentityKind, Profile
from certplane.broker.renewal.model import Selection
from certplane.broker.rollouts.facts import ItemView, Successor, facts_of, uses
from certplane.broker.rollouts.model import ItemFacts, ItemState, RolloutAction, RolloutItem, RolloutSpec
from certplane.fleet_report.model import AgentMode, CertificateState
from tests.fakes.policy import FakePolicy

NOW = datetime(2026, 11, 29, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
HOST = "web1.test"
SPEC = RolloutSpec(Selection(all=True), "drill")
ITEM = RolloutItem("r-1", "old", HOST, "shop", "acme", ("shop.test",), NOW + 24 * HOUR, 0, certificate_name="shop")
NEW = Successor("old", "new", "0b", "acme", same_key=False)
HELD = IndexedCertificate(
    "shop", "shop", CertificateState.SERVING, ("shop.test",), "old", "0a", "0a", "0a", served_own=True
)
CONNECTED = IndexedHost(HOST, connected=True, connect_time=NOW - HOUR, can_hold=True, certificates=(HELD,))


def policy(**changes: Any) -> FakePolicy:
    profile = Profile("shop", "multi_san", ("shop.test",), "hash", issuers=changes.pop("issuers", ()))
    grant = Grant(HOST, IdentityKind.HOST, "web1", changes.pop("profiles", ("shop",)))
    return FakePolicy.of([grant] if changes.pop("known", True) else [], [profile])


def facts(
    certificate: IndexedCertificate | None = HELD, host: IndexedHost | None = CONNECTED, **view: Any
) -> ItemFacts:
    """Of a host with this certificate."""
    of = view.pop("policy", policy())
    if host is not None:
        host = replace(host, certificates=() if certificate is None else (certificate,))
    values = {"item": ITEM, "spec": SPEC, **view}
    return facts_of(ItemView(host=host, **values), of, NOW)


def held(**changes: Any) -> IndexedCertificate:
    values = {name: getattr(HELD, name) for name in HELD.__struct_fields__}
    return IndexedCertificate(**{**values, **changes})


def installed(**changes: Any) -> IndexedCertificate:
    """The new one is in place."""
    return held(**{"certificate_id": "new", "serial_number": "0b", "issued_serial_number": "0b", **changes})


def test_a_host_that_knows_nothing_of_it_yet() -> None:
    """It is there, and nothing was issued."""
    assert facts() == ItemFacts(is_there=True, heard_time=NOW)


@pytest.mark.parametrize(
    ("certificate", "expected"),
    [
        pytest.param(held(issued_serial_number="0b", state=CertificateState.ISSUED), (False, None), id="held"),
        pytest.param(installed(state=CertificateState.INSTALLING), (False, None), id="being installed"),
        pytest.param(installed(state=CertificateState.RELOADING), (False, None), id="being reloaded"),
        pytest.param(installed(state=CertificateState.VERIFYING), (True, False), id="being verified"),
        pytest.param(installed(served_serial_number="0b"), (True, True), id="served"),
        pytest.param(installed(served_serial_number="0a"), (True, False), id="another is served"),
        pytest.param(installed(state=CertificateState.WAITING, served_serial_number=""), (True, None), id="no verify"),
        pytest.param(
            installed(state=CertificateState.FAILED, served_serial_number="0b"), (True, True), id="next fails"
        ),
        pytest.param(installed(state=CertificateState.DEGRADED, served_serial_number=""), (False, None), id="degraded"),
    ],
)
def test_whether_the_new_one_is_in_use(certificate: IndexedCertificate, expected: tuple[bool, bool | None]) -> None:
    """Only once its reload has ended; and as seen where the host looks."""
    found = facts(certificate, successor=NEW)
    assert found.new_certificate_id == "new"
    assert (found.installed, None if not found.installed else found.served) == expected


@pytest.mark.parametrize("state", [CertificateState.INSTALLING, CertificateState.RELOADING, CertificateState.VERIFYING])
def test_the_renewal_after_it_says_nothing_against_one_that_was_done(state: CertificateState) -> None:
    """Nor does a host that is no more: halting for either would be wrong."""
    item = replace(ITEM, state=ItemState.DONE, new_certificate_id="new")
    assert facts(installed(state=state), item=item, successor=NEW).in_use
    assert facts(None, replace(CONNECTED, connected=False), item=item, successor=NEW).in_use
    assert not facts(held(), item=item, successor=NEW).in_use  # it was rolled back by hand


def test_a_failed_activation_is_told_in_the_hosts_words() -> None:
    """Two failures, however alike, are two: each has a next try of its own."""
    first = held(issued_serial_number="0b", state=CertificateState.DEGRADED, next_attempt_time=NOW + HOUR)
    second = held(issued_serial_number="0b", state=CertificateState.DEGRADED, next_attempt_time=NOW + 2 * HOUR)
    words = {"shop": "reload: exit status 1"}
    found = facts(first, successor=NEW, errors=words)
    assert (found.failure, found.installed) == ("reload: exit status 1", False)
    assert found.failure_mark != facts(second, successor=NEW, errors=words).failure_mark
    assert facts(first, successor=NEW).failure == "its host gave no details"


def test_what_failed_before_is_no_failure_of_the_rollout() -> None:
    """A service that serves something else already: nothing was issued yet."""
    assert facts(held(state=CertificateState.DEGRADED)).failure == ""


@pytest.mark.parametrize("for_a_person", [True, False])
def test_a_request_fails_for_good_if_a_person_has_to_act(for_a_person: bool) -> None:
    """What is tried again by itself is no failure."""
    certificate = held(state=CertificateState.FAILED, failing=True, for_a_person=for_a_person, error_cause="KEY_WEAK")
    assert facts(certificate).failure == ("KEY_WEAK" if for_a_person else "")


@pytest.mark.parametrize(
    ("spec", "successor", "words"),
    [
        pytest.param(
            replace(SPEC, action=RolloutAction.REKEY), replace(NEW, same_key=True), "for the same key", id="same key"
        ),
        pytest.param(
            replace(SPEC, action=RolloutAction.MOVE, issuer="other"), NEW, "by acme: its host asked", id="not moved"
        ),
    ],
)
def test_what_was_issued_must_be_what_was_asked_for(spec: RolloutSpec, successor: Successor, words: str) -> None:
    """Else nothing counts as replaced, and nothing is revoked."""
    found = facts(installed(served_serial_number="0b"), spec=spec, successor=successor)
    assert words in found.failure
    assert (found.new_certificate_id, found.in_use) == ("", False)


@pytest.mark.parametrize(
    ("view", "why"),
    [
        pytest.param({"policy": policy(known=False)}, "the policy no longer has its host", id="host gone"),
        pytest.param(
            {"policy": policy(profiles=("other",))},
            "the policy no longer gives its host the profile shop",
            id="profile",
        ),
        pytest.param(
            {"policy": policy(issuers=("acme",)), "spec": replace(SPEC, action=RolloutAction.MOVE, issuer="other")},
            "the policy no longer lets other issue for the profile shop",
            id="issuer",
        ),
        pytest.param({"taken_by": "r-2"}, "the newer rollout r-2 has it", id="newer rollout"),
        pytest.param(
            {"host": replace(CONNECTED, blocked="an operator has denied it")},
            "its host gets no certificates: an operator has denied it",
            id="denied",
        ),
        pytest.param(
            {"item": replace(ITEM, not_after=NOW)}, "it has expired, and nothing was issued in its place", id="expired"
        ),
        pytest.param(
            {"certificate": held(name="mail", profile="mail", dns_names=(), certificate_id="m")},
            "its host no longer has it",
            id="not there",
        ),
    ],
)
def test_nothing_to_do_any_more(view: dict[str, Any], why: str) -> None:
    """And why, for people."""
    assert facts(**view).gone == why


def test_a_host_that_has_not_come_back_may_have_it_still() -> None:
    """Nothing is known of it; its last report names nothing."""
    assert facts(None).gone == ""
    assert facts(None, replace(CONNECTED, connected=False)).gone == ""


def test_a_timers_host_is_there_between_its_runs() -> None:
    """As long as it comes as often as it should; it may miss some before it is silent."""
    timer = replace(
        CONNECTED,
        connected=False,
        mode=AgentMode.TIMER,
        run_interval=HOUR,
        last_seen_time=NOW - HOUR,
        end_time=NOW - HOUR,
    )
    found = facts(HELD, timer)
    assert (found.is_there, found.interval, found.heard_time) == (True, HOUR, NOW - HOUR)
    assert not facts(HELD, replace(timer, unheard_since=NOW)).is_there
    assert not facts(HELD, replace(timer, mode=AgentMode.DAEMON)).is_there


def test_a_service_is_told_nothing_and_says_nothing() -> None:
    """What was issued to it counts as installed, not as seen."""
    service = replace(CONNECTED, kind=IdentityKind.SERVICE, connected=False)
    assert facts(HELD, service) == ItemFacts(is_there=True, can_be_told=False, can_hold=False, heard_time=NOW)
    found = facts(HELD, service, successor=NEW)
    assert (found.new_certificate_id, found.installed, found.served) == ("new", True, None)


def test_what_a_host_uses_is_not_revoked() -> None:
    """At its paths or seen served, by its id or its serial number; under whatever name."""
    other = held(name="mail", certificate_id="", serial_number="0c", served_serial_number="0a")
    assert uses(CONNECTED, "old", "0a")
    assert uses(replace(CONNECTED, certificates=(other,)), "old", "0a")
    assert not uses(replace(CONNECTED, certificates=(installed(served_serial_number="0b"),)), "old", "0a")
