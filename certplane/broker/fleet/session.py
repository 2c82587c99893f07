"""One host's stream: what was heard, what is durable, what is still to be said. Pure: no waiting, no clock of its own.

What is to be said is state, never a queue: the highest durable sequence, whether a heartbeat wants its answer, the
plans that the host doesn't know. `next_message` makes a message of it at the moment of sending, so that a host that
reads slowly costs what a fast one costs, and ten thousand changes of one certificate are one directive.

Directives: one at a time. The next one waits for the answer, and says what is wanted by then. What a host has refused
isn't said again until it changes.

Sequences: those that were taken before are heard again without effect. `durable` follows `taken` once the store says
so, and only `durable` is acknowledged.

Ten thousand of these are held: they have slots, and no list or dict before there is something to put into it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import Final

from certplane.broker.fleet.messages import (
    Acknowledgement,
    Directive,
    DirectiveResult,
    Goodbye,
    Heartbeat,
    Outgoing,
    Welcome,
)
from certplane.broker.fleet.model import HostStream
from certplane.broker.model import Caller
from certplane.broker.renewal.model import RenewalPlan
from certplane.errors import RefusalError
from certplane.fleet_report.model import Report

MOST_RENEWALS: Final = 100
"""Renewals of one directive (proto, Directive.renewals): with the longest reasons still under 64 KiB together."""

_ROOM: Final = 48 * 1024
"""Bytes of texts in one directive, so that the message stays under 64 KiB."""


class InForceHashes:
    """The hashes of policy and agent CA bundle in force, and the retry epoch; one for all sessions."""

    __slots__ = ("policy", "retry_epoch", "trust")

    def __init__(self, policy: str = "", trust: str = "", retry_epoch: str = "") -> None:
        self.policy = policy
        self.trust = trust
        self.retry_epoch = retry_epoch

    @property
    def told(self) -> tuple[str, str, str]:
        """What hosts are told of it."""
        return (self.policy, self.trust, self.retry_epoch)


class HostSession:
    """One stream, from its first message to its end."""

    __slots__ = (
        "_acknowledge",
        "_goodbye",
        "_heartbeat",
        "_told",
        "_welcome",
        "_welcomed",
        "agent_version",
        "asked_time",
        "caller",
        "clock_skew",
        "connect_time",
        "durable",
        "end_reason",
        "ended",
        "epoch",
        "flushing",
        "heard_time",
        "misuses",
        "names",
        "pending",
        "pumping",
        "recorded_time",
        "refusal_may_stand",
        "request_id",
        "room",
        "taken",
        "task",
        "unanswered",
        "wanted",
        "write",
        "writing_time",
    )

    def __init__(
        self,
        caller: Caller,
        request_id: str,
        write: Callable[[Outgoing], Awaitable[None]],
        *,
        task: asyncio.Task[object] | None,
        now: float,
    ) -> None:
        """A stream that has said nothing yet.

        Args:
            caller: The host.
            request_id: Of the call.
            write: Sends a message.
            task: What serves the stream: cancelled to end it.
            now: Monotonic time, as everywhere in here.

        `refusal_may_stand` says whether the store may hold a refusal of this host that it has taken back since.
        """
        self.caller = caller
        self.request_id = request_id
        self.write = write
        self.task = task
        self.heard_time = self.recorded_time = now
        self.connect_time: datetime | None = None
        self.agent_version = self.epoch = ""
        self.names: frozenset[str] = frozenset()
        self.clock_skew: timedelta | None = None
        self.taken = self.durable = 0
        self.pending: list[Report] | None = None
        self.unanswered: Directive | None = None
        self.asked_time = 0.0
        self.wanted: dict[str, RenewalPlan] | None = None
        self.misuses = 0
        self.refusal_may_stand = True
        self._told = ("", "", "")
        self._welcome: Welcome | None = None
        self._welcomed = False
        self._acknowledge = False
        self._heartbeat: datetime | None = None
        self._goodbye: Goodbye | None = None
        self.flushing: asyncio.Task[None] | None = None
        self.pumping: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self.writing_time = 0.0
        self.ended = False
        self.end_reason: RefusalError | None = None

    @property
    def host(self) -> str:
        """The host's identity name."""
        return self.caller.name

    def stream(self, now: datetime, *, end_time: datetime | None = None) -> HostStream:
        """What is recorded of it; `now` is when it was last heard."""
        return HostStream(
            self.caller.name,
            self.agent_version,
            self.caller.serial_number,
            self.caller.not_after,
            self.caller.source_ip,
            self.connect_time or now,
            now,
            end_time,
            self.clock_skew,
        )

    # What is heard.

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
        if sequence > self.durable:
            self.durable = sequence
            self.taken = max(self.taken, sequence)
            self._acknowledge = True

    def heartbeat(self, broker_time: datetime) -> None:
        """A heartbeat has come."""
        self._heartbeat = broker_time

    # What is wanted.

    def welcome(self, message: Welcome) -> None:
        """Hello was heard, and all of it is durable."""
        self._welcome, self._welcomed = message, True
        self.durable = message.acknowledged_sequence
        self.taken = max(self.taken, self.durable)
        self._told = (message.policy_hash, message.trust_bundle_hash, message.retry_epoch)
        self._acknowledge = False

    def want(self, plans: Iterable[RenewalPlan]) -> None:
        """Let the host know these plans; the latest of each certificate counts."""
        for plan in plans:
            if self.wanted is None:
                self.wanted = {}
            self.wanted[plan.certificate_id] = plan

    def say_goodbye(self, message: Goodbye) -> None:
        """End the stream when all else is said."""
        self._goodbye = message

    def answer(self, result: DirectiveResult) -> Directive | None:
        """The directive that this answers; None if it answers none, which is counted as a misuse.

        Taken or refused, it isn't said again: plans that have changed meanwhile are still wanted.
        """
        directive = self.unanswered
        if directive is None or directive.nonce != result.nonce:
            self.misuses += 1
            return None
        self.unanswered = None
        if self.wanted is not None:
            for plan in directive.renewals:
                if self.wanted.get(plan.certificate_id) == plan:
                    del self.wanted[plan.certificate_id]
            if not self.wanted:
                self.wanted = None
        return directive

    def pending_renewals(self) -> tuple[RenewalPlan, ...]:
        """What the host doesn't know yet, or hasn't answered."""
        return tuple(self.wanted.values()) if self.wanted else ()

    # What is said.

    def has_to_say(self, hashes: InForceHashes) -> bool:
        """Whether `next_message` may have something: a task less for each answer after which all is said."""
        return (
            self._welcome is not None
            or self._acknowledge
            or self._heartbeat is not None
            or self._goodbye is not None
            or (self.unanswered is None and (self.wanted is not None or self._told != hashes.told))
        )

    def next_message(self, now: float, hashes: InForceHashes, new_nonce: Callable[[], str]) -> Outgoing | None:
        """The next thing to say, as it is now; None if there is nothing."""
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
            if self.pending is None and self.flushing is None:
                message, self._goodbye = self._goodbye, None
        else:
            message = self._directive(now, hashes, new_nonce)
        return message

    def _directive(self, now: float, hashes: InForceHashes, new_nonce: Callable[[], str]) -> Directive | None:
        if self.unanswered is not None:
            return None
        if self.wanted is None and self._told == hashes.told:
            return None
        if self.wanted is not None and len(self.wanted) == 1:
            renewals = tuple(self.wanted.values())
        else:
            renewals = _first_due(self.wanted.values()) if self.wanted else ()
        self.unanswered = Directive(new_nonce(), renewals, hashes.policy, hashes.trust, hashes.retry_epoch)
        self.asked_time = now
        # Told, whatever the answer: a refusal is final until something changes.
        self._told = hashes.told
        return self.unanswered

    # The end.

    def end(self, error: RefusalError | None) -> None:
        """End the stream: with `error`, or well. The first reason stands."""
        if not self.ended:
            self.ended = True
            self.end_reason = error
            if self.task is not None:
                self.task.cancel()

    def was_ended(self) -> bool:
        """Whether a cancellation that has come is `end`'s, and nobody else's; it is taken back then."""
        return self.ended and self.task is not None and self.task.uncancel() == 0

    def make_room(self) -> None:
        """Let the reader go on."""
        if self.room is not None:
            with contextlib.suppress(asyncio.InvalidStateError):
                self.room.set_result(None)
            self.room = None


def _first_due(plans: Iterable[RenewalPlan]) -> tuple[RenewalPlan, ...]:
    """As many as fit into a directive, the soonest first."""
    chosen: list[RenewalPlan] = []
    room = _ROOM
    for plan in islice(sorted(plans, key=lambda plan: plan.renew_time), MOST_RENEWALS):
        room -= len(plan.reason.encode()) + len(plan.explanation_url) + len(plan.certificate_id) + 128
        if room < 0 and chosen:
            break
        chosen.append(plan)
    return tuple(chosen)
