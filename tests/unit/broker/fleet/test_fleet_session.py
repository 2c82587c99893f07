"""One stream's protocol: a machine of random events against what must always hold, and the cases by name."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from certplane.broker.fleet.knowledge import mark, unknown_activations, unknown_plans
from certplane.broker.fleet.messages import (
    Acknowledgement,
    Directive,
    DirectiveResult,
    Goodbye,
    Heartbeat,
    Hello,
    Welcome,
)
from certplane.broker.fleet.session import MOST_ACTIVATIONS, MOST_RENEWALS, HostSession, InForceHashes
from certplane.broker.renewal.model import HostActivation, InForce, RenewalPlan
from certplane.errors import Reason, Refusal
from certplane.fleet_report.model import (
    ROLLOUT_FEATURE,
    CertificateState,
    CertificateStatus,
    HeldCertificate,
    HostFacts,
    RenewalCause,
    Report,
)

T0 = datetime(2026, 11, 23, 12, tzinfo=UTC)
REFUSED = Refusal(Reason.REQUEST_INVALID, "no")


def greeted(*features: str) -> HostSession:
    made = HostSession()
    made.hello(Hello(HostFacts("0.1.0", features=features), "epoch-1", ("web",), (), T0), T0)
    return made


def welcomed(acknowledged: int = 0, *features: str) -> HostSession:
    made = greeted(*features)
    made.welcome(Welcome(T0, acknowledged, timedelta(minutes=1), "p0", "t0"))
    assert isinstance(made.next_message(0.0, InForceHashes(("p0", "t0", "")), str), Welcome)
    return made


def report(sequence: int) -> Report:
    return Report(sequence, CertificateStatus("web", CertificateState.DUE))


def plan(number: int, minutes: int = 0, reason: str = "") -> RenewalPlan:
    time = T0 + timedelta(minutes=minutes)
    return RenewalPlan(f"certificate-{number}", "web1.example", time, RenewalCause.OPERATOR, reason)


def held_plan(number: int) -> RenewalPlan:
    wanted = plan(number)
    return replace(wanted, rollout_id="r1", hold_activation=True, activate_by_time=T0 + timedelta(days=9), new_key=True)


def activation(number: int, *, abandoned: bool = False) -> HostActivation:
    return HostActivation("web1.example", f"certificate-{number}", "r1", abandoned)


class StreamMachine(RuleBasedStateMachine):
    """A host and a broker that say what they may at any moment; `model` fields are what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.session = welcomed()
        self.hashes = InForceHashes(("p0", "t0", ""))
        self.wanted: dict[str, RenewalPlan] = {}
        self.released: dict[str, HostActivation] = {}
        self.outstanding: Directive | None = None
        self.told = ("p0", "t0", "")
        self.sent: list[int] = []
        self.stored = 0
        self.misuses = 0
        self.nonces = 0
        self.old_nonces: list[str] = []

    def _nonce(self) -> str:
        self.nonces += 1
        return f"nonce-{self.nonces}"

    @rule(sequences=strategies.lists(strategies.integers(1, 60), max_size=4))
    def host_reports(self, sequences: list[int]) -> None:
        self.session.take([report(sequence) for sequence in sorted(sequences)])

    @precondition(lambda self: self.session.pending)
    @rule(share=strategies.integers(1, 100))
    def store_writes(self, share: int) -> None:
        pending = self.session.pending or []
        written = max(1, len(pending) * share // 100)
        self.stored = max(self.stored, pending[written - 1].sequence)
        self.session.made_durable(self.stored)

    @rule(number=strategies.integers(1, 5), minutes=strategies.integers(0, 9))
    def a_plan_changes(self, number: int, minutes: int) -> None:
        changed = plan(number, minutes)
        self.session.want([changed])
        self.wanted[changed.certificate_id] = changed

    @rule(number=strategies.integers(1, 5), abandoned=strategies.booleans())
    def a_certificate_is_released(self, number: int, abandoned: bool) -> None:
        changed = activation(number, abandoned=abandoned)
        self.session.activate([changed])
        self.released[changed.certificate_id] = changed

    @rule(
        policy=strategies.sampled_from(["p0", "p1"]),
        trust=strategies.sampled_from(["t0", "t1"]),
        retry_epoch=strategies.sampled_from(["", "e1"]),
    )
    def files_are_reloaded(self, policy: str, trust: str, retry_epoch: str) -> None:
        self.hashes.change((policy, trust, retry_epoch))

    @rule()
    def host_beats(self) -> None:
        self.session.heartbeat(T0, T0)

    @precondition(lambda self: self.outstanding)
    @rule(refuse=strategies.booleans())
    def host_answers(self, refuse: bool) -> None:
        assert self.outstanding is not None
        told = self.session.answer(DirectiveResult(self.outstanding.nonce, REFUSED if refuse else None))
        assert told is self.outstanding
        for each in self.outstanding.renewals:
            if self.wanted.get(each.certificate_id) == each:
                del self.wanted[each.certificate_id]
        for told_of in self.outstanding.activations:
            if self.released.get(told_of.certificate_id) == told_of:
                del self.released[told_of.certificate_id]
        self.old_nonces.append(self.outstanding.nonce)
        self.outstanding = None

    @rule(which=strategies.integers(0, 5))
    def host_answers_what_was_not_asked(self, which: int) -> None:
        nonce = self.old_nonces[which % len(self.old_nonces)] if self.old_nonces else "never-sent"
        assert self.session.answer(DirectiveResult(nonce)) is None
        self.misuses += 1

    @rule()
    def broker_speaks(self) -> None:
        message = self.session.next_message(1.0, self.hashes, self._nonce)
        match message:
            case Acknowledgement():
                assert message.sequence == self.stored
                assert not self.sent or message.sequence >= self.sent[-1]
                self.sent.append(message.sequence)
            case Directive():
                assert self.outstanding is None, "one at a time"
                assert message.nonce not in self.old_nonces
                assert {each.certificate_id: each for each in message.renewals} == self.wanted, "the latest of each"
                assert {each.certificate_id: each for each in message.activations} == self.released
                told = (message.policy_hash, message.trust_bundle_hash, message.retry_epoch)
                assert told == self.hashes.told
                assert self.wanted or self.released or self.told != told, "it says something"
                self.told = told
                self.outstanding = message
            case None:
                wishes = self.wanted or self.released or self.told != self.hashes.told
                assert self.outstanding is not None or not wishes, "what is wanted is said"
                assert not self.stored or (self.sent and self.sent[-1] == self.stored), (
                    "what is durable is acknowledged"
                )
            case _:
                assert isinstance(message, Heartbeat)

    @invariant()
    def nothing_is_acknowledged_before_it_is_durable(self) -> None:
        assert self.session.durable == self.stored <= self.session.taken
        assert self.session.misuses == self.misuses

    @invariant()
    def what_waits_is_bounded(self) -> None:
        assert len(self.session.pending_renewals()) <= 5
        sequences = [each.sequence for each in self.session.pending or ()]
        assert sequences == sorted(set(sequences))


TestStreamMachine = StreamMachine.TestCase
TestStreamMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_nothing_comes_before_the_welcome() -> None:
    """A stream whose hello isn't durable yet is told nothing, whatever is wanted of its host."""
    made = greeted()
    made.want([plan(1)])
    made.heartbeat(T0, T0)
    assert made.next_message(0.0, InForceHashes(("p1", "t1", "")), str) is None


def test_goodbye_comes_last_and_once() -> None:
    """After what is durable was acknowledged, and not while reports are not."""
    made = welcomed()
    hashes = InForceHashes(("p0", "t0", ""))
    made.take([report(1)])
    made.say_goodbye(Goodbye(timedelta(seconds=1), "stop"))
    assert made.next_message(0.0, hashes, str) is None
    made.made_durable(1)
    assert made.next_message(0.0, hashes, str) == Acknowledgement(1)
    assert isinstance(made.next_message(0.0, hashes, str), Goodbye)
    assert made.next_message(0.0, hashes, str) is None


def test_directives_stay_under_a_message_s_size() -> None:
    """A hundred renewals with the longest reasons go in parts, the soonest first."""
    made = welcomed()
    made.want([plan(number, minutes=200 - number, reason="é" * 250) for number in range(150)])
    told: list[RenewalPlan] = []
    nonces = map(str, count())
    while (message := made.next_message(0.0, InForceHashes(("p0", "t0", "")), nonces.__next__)) is not None:
        assert isinstance(message, Directive)
        assert 1 <= len(message.renewals) <= MOST_RENEWALS
        assert sum(len(each.reason.encode()) for each in message.renewals) < 60_000
        told += message.renewals
        made.answer(DirectiveResult(message.nonce))
    assert [each.renew_time for each in told] == sorted(each.renew_time for each in told)
    assert len(told) == 150


def test_an_activation_leaves_room_for_renewals_and_is_told_first() -> None:
    """A hundred of the longest, beside renewals with the longest reasons, stay under a message's size."""
    made = welcomed(0, ROLLOUT_FEATURE)
    made.want([plan(number, reason="é" * 250) for number in range(100)])
    made.activate(HostActivation("web1.example", f"{number:0>64}", "r" * 64) for number in range(150))
    nonces = map(str, count())
    told: list[int] = []
    while (message := made.next_message(0.0, InForceHashes(("p0", "t0", "")), nonces.__next__)) is not None:
        assert isinstance(message, Directive)
        texts = sum(len(each.reason.encode()) for each in message.renewals)
        assert texts + sum(len(each.certificate_id + each.rollout_id) for each in message.activations) < 60_000
        told.append(len(message.activations))
        made.answer(DirectiveResult(message.nonce))
    assert told[:2] == [MOST_ACTIVATIONS, 50]
    assert made.pending_renewals() == ()


def test_a_host_that_can_not_hold_a_certificate_hears_of_no_plan_that_asks_for_it() -> None:
    """It would use the certificate at once; what else a rollout asks for it wouldn't understand."""
    made = welcomed()
    made.want([held_plan(1), replace(held_plan(2), hold_activation=False)])
    assert made.pending_renewals() == (replace(plan(2), activate_by_time=T0 + timedelta(days=9)),)
    able = welcomed(0, ROLLOUT_FEATURE)
    able.want([held_plan(1)])
    assert able.pending_renewals() == (held_plan(1),)


def held(certificate_id: str, renew: datetime | None, rollout_id: str = "") -> CertificateStatus:
    return CertificateStatus(
        "web",
        CertificateState.SERVING,
        issued=HeldCertificate("1", certificate_id=certificate_id),
        renew_time=renew,
        held_by_rollout_id=rollout_id,
    )


@pytest.mark.parametrize(
    ("certificate", "told"),
    [
        pytest.param(held("certificate-1", T0, "r1"), True, id="holds-it"),
        pytest.param(held("certificate-1", T0, "r0"), True, id="for-an-older-rollout"),
        pytest.param(held("certificate-1", T0), False, id="knows"),
        pytest.param(held("certificate-2", T0, "r1"), True, id="has-what-took-its-place"),
        pytest.param(held("certificate-2", T0, "r0"), False, id="has-another-one"),
    ],
)
def test_which_activations_a_host_is_told(certificate: CertificateStatus, told: bool) -> None:
    """As long as it says that it holds the certificate; one that comes later is told when it says so."""
    wanted = [activation(1)]
    assert unknown_activations(wanted, [certificate]) == (wanted if told else [])


def in_force(wanted: RenewalPlan | None) -> InForce:
    times = (T0 - timedelta(days=1), T0 + timedelta(days=89), T0 + timedelta(days=60))
    return InForce("certificate-1", "web1.example", "web", "acme", ("a.example",), *times, wanted)


@pytest.mark.parametrize(
    ("wanted", "certificate", "refused", "told"),
    [
        pytest.param(plan(1), held("certificate-1", T0 + timedelta(days=1)), False, True, id="means-to-renew-later"),
        pytest.param(plan(1), held("certificate-1", None), False, True, id="does-not-say-when"),
        pytest.param(plan(1), held("certificate-1", T0), False, False, id="knows"),
        pytest.param(held_plan(1), held("certificate-1", T0), False, True, id="may-not-know-that-it-is-to-hold-it"),
        pytest.param(plan(1), held("certificate-1", T0 - timedelta(days=1)), False, False, id="sooner-by-itself"),
        pytest.param(plan(1), held("certificate-0", T0 + timedelta(days=1)), False, False, id="does-not-hold-it"),
        pytest.param(plan(1), held("certificate-1", None), True, False, id="has-refused-it"),
        pytest.param(None, held("certificate-1", None), False, False, id="no-plan"),
    ],
)
def test_what_a_host_is_told_when_it_comes(
    wanted: RenewalPlan | None, certificate: CertificateStatus, refused: bool, told: bool
) -> None:
    """From what it last reported and the durable plans alone."""
    marks = {mark(wanted)} if refused and wanted else set()
    assert unknown_plans([in_force(wanted)], [certificate], marks) == ([wanted] if told else [])
