"""Who is shut out by an admin's word: by the name, or by the certificates that are known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from certplane.broker.enrolling.denying import Denial, DenyRequest, DenyScope, NotDeniedError, decide
from certplane.broker.identity.first_use import Verdict, activated, contested, judge
from certplane.broker.model import DenyEntry, IdentityUse, KnownIdentity

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME, CA = "web1.example", "CN=Example Intermediate CA"
BY_NAME = DenyRequest(NAME, DenyScope.NAME, "retired")
REPLACED = DenyRequest(NAME, DenyScope.CERTIFICATES, "replaced")


def use(serial: str, hours: int) -> IdentityUse:
    time = NOW + timedelta(hours=hours)
    return IdentityUse(CA, serial, time, time)


OLD = activated(None, NAME, use("a1", 0))
RENEWED = activated(OLD, NAME, use("b2", 1))
CONTESTED = contested(RENEWED, use("a1", 2))


def deny_list(*entries: DenyEntry) -> Callable[[str, str, str], DenyEntry | None]:
    """As `DenyList.denied` answers."""

    def denied(name: str, issuer: str, serial_number: str) -> DenyEntry | None:
        return next(
            (
                each
                for each in entries
                if (each.name and each.name == name)
                or (each.serial_number and (each.issuer, each.serial_number) == (issuer, serial_number))
            ),
            None,
        )

    return denied


def serials(denial: Denial) -> list[str]:
    return [entry.serial_number for entry in denial.made]


def test_by_name() -> None:
    """The name is shut out, whatever is known of it."""
    for known in (None, OLD, CONTESTED):
        denial = decide(known, deny_list(), BY_NAME)
        assert denial.made == (DenyEntry(name=NAME, reason="retired"),)


def test_by_name_again() -> None:
    """What is denied stays as it is."""
    standing = DenyEntry(name=NAME, reason="stolen", create_time=NOW)
    assert decide(OLD, deny_list(standing), BY_NAME) == Denial(standing=(standing,), active_serial="a1")


@pytest.mark.parametrize(
    ("known", "made", "ends_contest"),
    [
        pytest.param(None, [], False, id="nobody-ever-came"),
        pytest.param(OLD, ["a1"], False, id="one"),
        pytest.param(RENEWED, ["b2", "a1"], False, id="renewed-a-moment-ago"),
        pytest.param(CONTESTED, ["b2", "a1"], True, id="contested"),
    ],
)
def test_by_certificates(known: KnownIdentity | None, made: list[str], ends_contest: bool) -> None:
    """All that are known are shut out; of a contested identity both holders', which ends the contest."""
    denial = decide(known, deny_list(), REPLACED)
    assert (serials(denial), denial.ends_contest) == (made, ends_contest)
    assert not any(entry.name for entry in denial.made)


def test_a_new_machine_takes_the_place_of_one_that_was_shut_out() -> None:
    """Its certificate becomes the active one by its first use, and nobody contests it."""
    assert judge(OLD, use("c3", 3)) is Verdict.ACTIVATE


def test_by_certificates_again_before_the_new_machine_has_come() -> None:
    """Nothing is made, and what stands is told."""
    standing = DenyEntry(issuer=CA, serial_number="a1", create_time=NOW)
    denial = decide(OLD, deny_list(standing), REPLACED)
    assert (denial.made, denial.standing, denial.replaces_denied) == ((), (standing,), False)


def test_by_certificates_again_after_the_new_machine_has_come() -> None:
    """The new machine is not shut out by the words that shut out the old one."""
    new = activated(OLD, NAME, use("c3", 3))
    standing = DenyEntry(issuer=CA, serial_number="a1", create_time=NOW)
    denial = decide(new, deny_list(standing), REPLACED)
    assert denial == Denial(standing=(standing,), active_serial="c3", replaces_denied=True)
    named = decide(new, deny_list(standing), replace(REPLACED, active_serial="c3"))
    assert (serials(named), named.standing) == (["c3"], (standing,))


def test_the_next_replacement_needs_no_more_words_than_the_first() -> None:
    """Once the new machine has renewed its identity, a certificate of its own is the one that it retired."""
    new = activated(OLD, NAME, use("c3", 3))
    later = activated(new, NAME, use("d4", 30))
    denial = decide(later, deny_list(DenyEntry(issuer=CA, serial_number="a1", create_time=NOW)), REPLACED)
    assert (serials(denial), denial.replaces_denied) == (["d4", "c3"], False)


@pytest.mark.parametrize("known", [pytest.param(None, id="none"), pytest.param(OLD, id="another")])
def test_a_serial_that_is_not_in_use(known: KnownIdentity | None) -> None:
    """A call that names another certificate than the one in use is refused and shuts out nothing."""
    with pytest.raises(NotDeniedError) as caught:
        decide(known, deny_list(), replace(REPLACED, active_serial="ff"))
    assert caught.value.field == "active_serial_number"
