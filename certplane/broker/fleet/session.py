"""One host's stream as a protocol: what was heard, what is durable, what is still to be said.

Pure: messages and events go in, messages come out; times are given, nothing is waited for, nobody is called. `stream`
sends, `hub` and `recording` have reports made durable.

What is to be said is state, never a queue: the highest durable sequence, whether a heartbeat wants its answer, the
plans and activations that the host doesn't know. `next_message` makes a message of it at the moment of sending, so that
a host that reads slowly costs what a fast one costs, and ten thousand changes of one certificate are one directive.

Directives: one at a time. The next one waits for the answer, and says what is wanted by then. What a host has refused
isn't said again until it changes.

Sequences: those that were taken before are heard again without effect. `durable` follows `taken` once the store says
so, and only `durable` is acknowledged.

Ten thousand of these are held: they have slots, and no list or dict before there is something to put into it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from certplane.broker.fleet.messages import (
    Acknowledgement,
    Directive,
    DirectiveResult,
    Goodbye,
    Heartbeat,
    Hello,
    Outgoing,
    Welcome,
)
from certplane.broker.fleet.refusals import invalid
from certplane.broker.renewal.model import HostActivation, RenewalPlan
from certplane.fleet_report.model import ROLLOUT_FEATURE, HostFacts, Report

MOST_RENEWALS: Final = 100
"""Renewals of one directive (proto, Directive.renewals): with the longest reasons still under 64 KiB together."""
MOST_ACTIVATIONS: Final = 100
"""Activations of one directive (proto, Directive.activations)."""

_ROOM: Final = 48 * 1024
"""Bytes of texts in one directive, so that the message stays under 64 KiB."""


@dataclass(slots=True)
class InForceHashes:
    """What is in force and hosts are told of: the hashes of policy and agent CA bundle, the retry epoch.

    One for all sessions.
    """

    told: tuple[str, str, str] = ("", "", "")

    def change(self, hashes: tuple[str, str, str]) -> bool:
        """Take what is in force now; whether it differs from what was."""
        changed = hashes != self.told
        self.told = hashes
        return changed


_NO_FACTS: Final = HostFacts(agent_version="")


@dataclass(slots=True, eq=False)
class HostSession:
    """One stream, from its first message to its last.

    Attributes:
        facts: What hello said of the host.
        connect_time: When that was.
        clock_skew: The host's clock less the broker's.
        taken: The highest sequence that was heard.
        durable: The highest sequence that the store has.
        pending: Reports that were taken and are not durable yet.
        unanswered: The directive that waits for its answer.
        asked_time: When that was said; monotonic.
        misuses: Answers to directives that were never sent, or were answered.
        refusal_may_stand: Whether the store may hold a refusal of the host that it has taken back since.
    """

    request_id: str = ""
    facts: HostFacts = _NO_FACTS
    epoch: str = ""
    connect_time: datetime | None = None
    clock_skew: timedelta | None = None
    taken: int = 0
    durable: int = 0
    pending: list[Report] | None = None
    unanswered: Directive | None = None
    asked_time: float = 0.0
    misuses: int = 0
    refusal_may_stand: bool = True
    _names: frozenset[str] = frozenset()
    _wanted: dict[str, RenewalPlan] | None = None
    _activations: dict[str, HostActivation] | None = None
    _told: tuple[str, str, str] = ("", "", "")
    _welcome: Welcome | None = None
    _welcomed: bool = False
    _acknowledge: bool = False
    _heartbeat: datetime | None = None
    _goodbye: Goodbye | None = None
    _asks: bool = False

    # What is heard.

    def hello(self, message: Hello, now: datetime) -> None:
        """Hear the first message; its reports are the caller's to make durable.

        Raises:
            RefusalError: REQUEST_INVALID, it isn't the first.
        """
        if self.connect_time is not None:
            raise invalid("hello", "was already sent; only the first message of a stream may be hello")
        self.request_id, self.facts, self.epoch = message.request_id, message.facts, message.epoch
        self._names = frozenset(message.certificate_names)
        self.clock_skew = message.host_time - now
        self.connect_time = now

    def report(self, report: Report) -> bool:
        """Hear a report; whether it is new, and so pending until it is durable.

        Raises:
            RefusalError: REQUEST_INVALID.
        """
        self._check_begun()
        if report.certificate.name not in self._names:
            problem = "isn't one of hello's certificate_names; say hello again when the host has another certificate"
            raise invalid("report.certificate.name", problem)
        return not self.take([report])

    def take(self, reports: Iterable[Report]) -> int:
        """Keep those that are new until they are durable; how many were not."""
        repeated = 0
        for report in reports:
            if report.sequence <= self.taken:
                repeated += 1
                continue
            if self.pending is None:
                self.pending = []
            self.taken = report.sequence
            self.pending.append(report)
        if repeated and self.durable:
            self._acknowledge = True
        return repeated

    def made_durable(self, sequence: int) -> None:
        """The store has all up to `sequence`."""
        if self.pending is not None:
            self.pending = [report for report in self.pending if report.sequence > sequence] or None
        if sequence > self.durable:
            self.durable = sequence
            self.taken = max(self.taken, sequence)
            self._acknowledge = True

    def heartbeat(self, host_time: datetime, now: datetime) -> None:
        """Hear a heartbeat.

        Raises:
            RefusalError: REQUEST_INVALID, before hello.
        """
        self._check_begun()
        self.clock_skew = host_time - now
        self._heartbeat = now

    def answer(self, result: DirectiveResult) -> Directive | None:
        """The directive that this answers; None if it answers none, which is counted as a misuse.

        Taken or refused, it isn't said again: plans that have changed meanwhile are still wanted.

        Raises:
            RefusalError: REQUEST_INVALID, before hello.
        """
        self._check_begun()
        directive = self.unanswered
        if directive is None or directive.nonce != result.nonce:
            self.misuses += 1
            return None
        self.unanswered = None
        if self._wanted is not None:
            for plan in directive.renewals:
                if self._wanted.get(plan.certificate_id) == plan:
                    del self._wanted[plan.certificate_id]
            self._wanted = self._wanted or None
        if self._activations is not None:
            for activation in directive.activations:
                if self._activations.get(activation.certificate_id) == activation:
                    del self._activations[activation.certificate_id]
            self._activations = self._activations or None
        return directive

    def note_refusal(self, *, stands: bool) -> None:
        """The store holds a refusal of the host, or will hold none."""
        self.refusal_may_stand = stands

    # What is wanted.

    def welcome(self, message: Welcome) -> None:
        """Hello was heard, and all of it is durable."""
        self._welcome, self._welcomed = message, True
        self.durable = message.acknowledged_sequence
        self.taken = max(self.taken, self.durable)
        self._told = (message.policy_hash, message.trust_bundle_hash, message.retry_epoch)
        self._acknowledge = False

    def want(self, plans: Iterable[RenewalPlan], *, older: bool = False) -> None:
        """Let the host know these plans; the latest of each certificate counts: `older` ones replace none.

        A host whose agent can't hold a certificate back hears of none that it should: it would use it at once.
        """
        holds = ROLLOUT_FEATURE in self.facts.features
        for plan in plans:
            if plan.hold_activation and not holds:
                continue
            if self._wanted is None:
                self._wanted = {}
            if not older or plan.certificate_id not in self._wanted:
                self._wanted[plan.certificate_id] = plan if holds else replace(plan, rollout_id="", new_key=False)

    def activate(self, activations: Iterable[HostActivation]) -> None:
        """Let the host know that it may use certificates that it holds; of each what was said last."""
        for activation in activations:
            if self._activations is None:
                self._activations = {}
            self._activations[activation.certificate_id] = activation

    def say_goodbye(self, message: Goodbye) -> None:
        """End the stream when all else is said."""
        self._goodbye = message

    def ask(self) -> None:
        """Have the host answer a directive, whether there is something to tell it or not."""
        self._asks = True

    @property
    def has_answered(self) -> bool:
        """Whether the host has answered all directives, the one of `ask` included."""
        return self.unanswered is None and not self._asks

    def pending_renewals(self) -> tuple[RenewalPlan, ...]:
        """What the host doesn't know yet, or hasn't answered."""
        return tuple(self._wanted.values()) if self._wanted else ()

    # What is said.

    def has_to_say(self, hashes: InForceHashes) -> bool:
        """Whether `next_message` may have something: a task less for each answer after which all is said."""
        return (
            self._welcome is not None
            or self._acknowledge
            or self._heartbeat is not None
            or self._goodbye is not None
            or (self.unanswered is None and self._has_wishes(hashes))
        )

    def next_message(self, now: float, hashes: InForceHashes, new_nonce: Callable[[], str]) -> Outgoing | None:
        """The next thing to say, as it is at `now` (monotonic); None if there is nothing."""
        message: Outgoing | None
        if self._welcome is not None:
            message, self._welcome = self._welcome, None
        elif not self._welcomed:
            return None  # nothing comes before the welcome
        elif self._acknowledge:
            self._acknowledge = False
            message = Acknowledgement(self.durable)
        elif self._heartbeat is not None:
            message, self._heartbeat = Heartbeat(self._heartbeat), None
        elif self._goodbye is not None:
            message = None
            if self.pending is None:
                message, self._goodbye = self._goodbye, None
        else:
            message = self._directive(now, hashes, new_nonce)
        return message

    def _directive(self, now: float, hashes: InForceHashes, new_nonce: Callable[[], str]) -> Directive | None:
        if self.unanswered is not None or not self._has_wishes(hashes):
            return None
        self._asks = False
        activations = tuple(islice(self._activations.values(), MOST_ACTIVATIONS)) if self._activations else ()
        room = _ROOM - sum(len(each.certificate_id) + len(each.rollout_id) + 16 for each in activations)
        renewals = _first_due(self._wanted.values(), room) if self._wanted else ()
        self.unanswered = Directive(new_nonce(), renewals, *hashes.told, activations)
        self.asked_time = now
        # Told, whatever the answer: a refusal is final until something changes.
        self._told = hashes.told
        return self.unanswered

    def _has_wishes(self, hashes: InForceHashes) -> bool:
        has_news = self._wanted is not None or self._activations is not None or self._told != hashes.told
        return has_news or self._asks

    def _check_begun(self) -> None:
        if self.connect_time is None:
            raise invalid("hello", "is required as the first message of a stream")


def _first_due(plans: Iterable[RenewalPlan], room: int) -> tuple[RenewalPlan, ...]:
    """As many as fit into so many bytes of a directive, the soonest first."""
    chosen: list[RenewalPlan] = []
    for plan in islice(sorted(plans, key=lambda plan: plan.renew_time), MOST_RENEWALS):
        room -= len(plan.reason.encode()) + len(plan.explanation_url) + len(plan.certificate_id) + 128
        if room < 0 and chosen:
            break
        chosen.append(plan)
    return tuple(chosen)
