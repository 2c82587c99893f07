"""First use activates: what a use of an identity certificate means, what follows from it, what an operator decides."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certplane.agent.link.broker import _GRACE as AGENT_GRACE
from certplane.broker.identity.first_use import GRACE, Verdict, activated, contested, judge, settle
from certplane.broker.model import DenyEntry, IdentityUse, KnownIdentity

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = "web1.example"
CA = "CN=Example Intermediate CA"
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)


def use(serial: str, *, made: timedelta = timedelta(), at: timedelta = timedelta(), issuer: str = CA) -> IdentityUse:
    """A use at NOW + `at` of a certificate that is valid from NOW + `made`."""
    return IdentityUse(issuer, serial, NOW + made, NOW + at)


def rotated(*, after: timedelta = HOUR) -> KnownIdentity:
    """An identity that went from `a1` to `b2`, which was made and first used at NOW + `after`."""
    first = activated(None, NAME, use("a1"))
    return activated(first, NAME, use("b2", made=after, at=after))


CONTESTED = contested(rotated(), use("a1", at=DAY))


def test_an_agents_old_channel_ends_within_the_grace() -> None:
    """An ordinary rotation needs a fraction of the five minutes, whatever its calls wait for."""
    assert timedelta() < AGENT_GRACE <= GRACE / 5


@pytest.mark.parametrize(
    ("known", "presented", "verdict"),
    [
        pytest.param(None, use("a1"), Verdict.ACTIVATE, id="the first call of all"),
        pytest.param(rotated(), use("b2", made=HOUR, at=DAY), Verdict.ACTIVE, id="the active one"),
        pytest.param(rotated(), use("c3", made=2 * HOUR, at=2 * HOUR), Verdict.ACTIVATE, id="unseen and newer"),
        pytest.param(rotated(), use("c3", made=HOUR, at=DAY), Verdict.ACTIVATE, id="unseen, made in the same second"),
        pytest.param(rotated(), use("c3", made=HOUR - SECOND, at=DAY), Verdict.CONTEST, id="unseen and older"),
        pytest.param(
            rotated(), use("b2", made=HOUR, at=DAY, issuer="CN=Next CA"), Verdict.ACTIVATE, id="same serial, other CA"
        ),
        pytest.param(rotated(), use("a1", at=HOUR), Verdict.GRACE, id="retired this moment"),
        pytest.param(rotated(), use("a1", at=HOUR + GRACE - SECOND), Verdict.GRACE, id="a second before the end"),
        pytest.param(rotated(), use("a1", at=HOUR + GRACE), Verdict.CONTEST, id="five minutes are over"),
        pytest.param(rotated(), use("a1", at=-DAY), Verdict.GRACE, id="the broker's clock was set back"),
        pytest.param(CONTESTED, use("a1", at=2 * DAY), Verdict.RETIRED, id="retired, and contested already"),
        pytest.param(CONTESTED, use("z9", made=-DAY, at=2 * DAY), Verdict.RETIRED, id="older, and contested already"),
        pytest.param(CONTESTED, use("b2", made=HOUR, at=2 * DAY), Verdict.ACTIVE, id="active, though contested"),
        pytest.param(CONTESTED, use("c3", made=DAY, at=DAY), Verdict.ACTIVATE, id="unseen and newer, though contested"),
    ],
)
def test_verdict(known: KnownIdentity | None, presented: IdentityUse, verdict: Verdict) -> None:
    """Each use means one thing, and the two that are refused say so."""
    assert judge(known, presented) is verdict
    assert verdict.refused == (verdict in (Verdict.CONTEST, Verdict.RETIRED))


def test_rotations_within_the_grace_are_all_remembered() -> None:
    """Three certificates in a minute: the two before the active one may both end what they have begun."""
    known = activated(rotated(), NAME, use("c3", made=HOUR, at=HOUR + timedelta(minutes=1)))
    assert [other.serial_number for other in known.retired] == ["b2", "a1"]
    in_a_moment = HOUR + timedelta(minutes=2)
    assert judge(known, use("a1", at=in_a_moment)) is Verdict.GRACE
    assert judge(known, use("b2", made=HOUR, at=in_a_moment)) is Verdict.GRACE
    assert judge(known, use("a1", at=HOUR + GRACE)) is Verdict.CONTEST  # each has its own five minutes
    assert judge(known, use("b2", made=HOUR, at=HOUR + GRACE)) is Verdict.GRACE


def test_what_age_alone_tells_is_forgotten() -> None:
    """Daily renewals leave one retired certificate in memory, and the forgotten ones are refused all the same."""
    known = None
    for day in range(100):
        known = activated(known, NAME, use(f"{day:x}", made=day * DAY, at=day * DAY))
    assert known is not None
    assert [other.serial_number for other in known.retired] == [f"{98:x}"]
    assert judge(known, use("5", made=5 * DAY, at=100 * DAY)) is Verdict.CONTEST


def test_what_age_alone_would_not_tell_is_remembered() -> None:
    """A certificate of the same second as the active one never comes back as a new one, however late."""
    known = activated(activated(None, NAME, use("a1")), NAME, use("b2"))
    known = activated(known, NAME, use("c3"))
    assert judge(known, use("a1", at=DAY)) is Verdict.CONTEST
    assert judge(known, use("b2", at=DAY)) is Verdict.CONTEST


def test_a_contest_outlives_a_rotation() -> None:
    """Renewing at the internal CA doesn't settle who the identity is."""
    assert activated(CONTESTED, NAME, use("c3", made=DAY, at=DAY)).contest == CONTESTED.contest


def test_settling_by_name_leaves_the_active_one() -> None:
    """Nothing is shut out; the retired one contests again when it comes again."""
    settlement = settle(CONTESTED, None, NOW + 2 * DAY)
    assert settlement is not None
    assert (settlement.known, settlement.denied) == (replace(CONTESTED, contest=None), ())
    assert judge(settlement.known, use("a1", at=2 * DAY)) is Verdict.CONTEST


@pytest.mark.parametrize(("kept", "other"), [("b2", "a1"), ("a1", "b2")])
def test_settling_by_certificate_shuts_the_other_out(kept: str, other: str) -> None:
    """The operator's choice is the active one, older or not; the other gets an entry of the deny-list."""
    settlement = settle(CONTESTED, (CA, kept), NOW + 2 * DAY)
    assert settlement is not None
    known = settlement.known
    assert (known.active.serial_number, known.contest) == (kept, None)
    assert [(entry.name, entry.issuer, entry.serial_number) for entry in settlement.denied] == [("", CA, other)]
    assert NAME in settlement.denied[0].reason
    made = {"a1": timedelta(), "b2": HOUR}
    assert judge(known, use(kept, made=made[kept], at=3 * DAY)) is Verdict.ACTIVE
    # A broker that hasn't seen the entry yet makes no new contest of the other's next call.
    assert judge(known, use(other, made=made[other], at=2 * DAY + SECOND)) is Verdict.GRACE
    # Were the entry taken back, its certificate would still not come into use by itself.
    assert judge(known, use(other, made=made[other], at=3 * DAY)) is Verdict.CONTEST
    # The chosen one's next renewal is an ordinary one.
    assert judge(known, use("c3", made=3 * DAY, at=3 * DAY)) is Verdict.ACTIVATE


def test_settling_for_a_copy_of_an_earlier_time() -> None:
    """A restored host whose certificate this broker had never seen can be the one that an operator wants."""
    known = contested(rotated(), use("z9", made=-DAY, at=DAY))
    settlement = settle(known, (CA, "z9"), NOW + 2 * DAY)
    assert settlement is not None
    assert (settlement.known.active.serial_number, settlement.known.active.time) == ("z9", NOW + 2 * DAY)
    assert {entry.serial_number for entry in settlement.denied} == {"a1", "b2"}


@pytest.mark.parametrize(
    ("known", "keep"),
    [
        pytest.param(rotated(), None, id="not contested"),
        pytest.param(rotated(), (CA, "b2"), id="not contested, by certificate"),
        pytest.param(CONTESTED, (CA, "d4"), id="no certificate of it"),
        pytest.param(CONTESTED, ("CN=Other CA", "b2"), id="another CA's"),
    ],
)
def test_there_may_be_nothing_to_settle(known: KnownIdentity, keep: tuple[str, str] | None) -> None:
    """None: the operator is told so."""
    assert settle(known, keep, NOW) is None


def test_entries_of_a_settlement_are_dated() -> None:
    """They go into the deny-list as they are."""
    settlement = settle(CONTESTED, (CA, "b2"), NOW + DAY)
    assert settlement is not None
    assert all(isinstance(entry, DenyEntry) and entry.create_time == NOW + DAY for entry in settlement.denied)


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 7),  # which certificate
        st.sampled_from([0, 1, 30, 299, 300, 301, 4000]),  # seconds that pass before it is used
        st.sampled_from(["", "", "", "", "name", "certificate"]),  # an operator who settles, now and then
    ),
    max_size=60,
)
_AGES = st.lists(st.sampled_from([0, 1, 2, 300, 86_400]), min_size=8, max_size=8)


class Story:
    """The same rule with a memory that keeps everything: what the short list must never decide otherwise than."""

    def __init__(self) -> None:
        self.known: KnownIdentity | None = None
        self.active: IdentityUse | None = None
        self.newest = datetime.min.replace(tzinfo=UTC)
        self.retired: dict[str, datetime] = {}
        self.contested_at: datetime | None = None

    def expected(self, presented: IdentityUse) -> Verdict:
        serial = presented.serial_number
        if self.active is not None and serial == self.active.serial_number:
            return Verdict.ACTIVE
        if serial not in self.retired and presented.not_before >= self.newest:
            return Verdict.ACTIVATE
        if serial in self.retired and presented.time < self.retired[serial] + GRACE:
            return Verdict.GRACE
        return Verdict.CONTEST if self.contested_at is None else Verdict.RETIRED

    def use(self, presented: IdentityUse) -> None:
        verdict = judge(self.known, presented)
        assert verdict is self.expected(presented)
        if verdict is Verdict.ACTIVATE:
            if self.active is not None:
                self.retired[self.active.serial_number] = presented.time
            self.active, self.newest = presented, presented.not_before
            self.known = activated(self.known, NAME, presented)
        elif verdict is Verdict.CONTEST:
            assert self.known is not None
            self.known, self.contested_at = contested(self.known, presented), presented.time

    def settle(self, now: datetime, *, for_the_other: bool) -> None:
        if self.known is None or self.known.contest is None or self.active is None:
            return
        other = self.known.contest
        settlement = settle(self.known, other.certificate if for_the_other else None, now)
        assert settlement is not None
        self.known, self.contested_at = settlement.known, None
        if for_the_other:
            self.retired[self.active.serial_number], self.active = now, other
            self.retired.pop(other.serial_number, None)
            for entry in settlement.denied:
                self.retired[entry.serial_number] = now

    def check(self) -> None:
        assert self.known is not None
        assert self.active is not None
        assert self.known.active.serial_number == self.active.serial_number
        assert (None if self.known.contest is None else self.known.contest.time) == self.contested_at
        certificates = [use.certificate for use in (self.known.active, *self.known.retired)]
        assert len(set(certificates)) == len(certificates)


@given(ages=_AGES, steps=_STEPS)
@example(  # a copy that was retired and forgotten, after an operator has decided for an older one
    ages=[86_400] * 8,
    steps=[(1, 0, ""), (2, 4000, ""), (3, 4000, ""), (4, 4000, ""), (0, 4000, "certificate"), (1, 4000, "")],
)
def test_any_story(ages: list[int], steps: list[tuple[int, int, str]]) -> None:
    """Whatever is used in whatever order, and whatever operators decide, the short list forgets nothing that matters."""
    made = [sum(ages[: index + 1]) for index in range(len(ages))]
    story, now = Story(), timedelta()
    for number, pause, operator in steps:
        now += timedelta(seconds=pause)
        story.use(use(f"{number:x}", made=timedelta(seconds=made[number]), at=now))
        if operator:
            story.settle(NOW + now, for_the_other=operator == "certificate")
        story.check()
