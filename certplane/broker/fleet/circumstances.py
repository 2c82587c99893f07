"""What the broker knows of a host apart from its reports: whether it is there, what shuts it out, what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from certplane.broker.fleet.health import HostKnowledge
from certplane.broker.fleet.model import Block, HostStream, RevokedCertificate
from certplane.broker.model import IdentityKind
from certplane.broker.policy.decision import decide_again
from certplane.broker.ports import DenyList, IdentityLedger, Policy, PolicySource
from certplane.errors import Reason, Refusal, RefusalError
from certplane.fleet_report.model import AgentMode
from certplane.runtime.clock import Clock

DAEMON_SILENCE: Final = timedelta(minutes=5)
"""A daemon comes back within seconds when its network does, and within some minutes when its machine starts again."""
TIMER_RUNS: Final = 2
"""Runs of a timer that may be missed: one is, when its machine is being started again."""
UNKNOWN_INTERVAL: Final = timedelta(days=1)
"""Between runs of a timer that doesn't say: longer than any that is sensible."""
SHORT_STREAM: Final = timedelta(minutes=2)
"""Of an agent that doesn't say how it runs: what a timer starts is done by then, and a daemon keeps its stream."""


@dataclass(frozen=True, slots=True)
class Presence:
    """When a host was heard, and how often it is to be.

    Attributes:
        connect_time: When its last stream began.
        last_seen_time: When it was last heard.
        end_time: When its last stream ended; None if that isn't recorded.
        mode: How its agent runs.
        run_interval: How often that is, of a timer; None where it isn't known.
    """

    connect_time: datetime
    last_seen_time: datetime
    end_time: datetime | None = None
    mode: AgentMode | None = None
    run_interval: timedelta | None = None

    @classmethod
    def of(cls, stream: HostStream) -> Presence:
        """By the host's last stream."""
        facts = stream.facts
        return cls(stream.connect_time, stream.last_seen_time, stream.end_time, facts.agent_mode, facts.run_interval)

    @property
    def heard_until(self) -> datetime:
        """From when on it has been silent."""
        return self.end_time or self.last_seen_time

    @property
    def by_timer(self) -> bool:
        """Whether its agent runs by a timer, as far as can be told."""
        if self.mode is None:
            return self.end_time is not None and self.end_time - self.connect_time < SHORT_STREAM
        return self.mode is AgentMode.TIMER


Revoked = Mapping[str, RevokedCertificate]
"""A host's, by serial number."""


class HostCircumstances:
    """Reads what is in force: policy, deny-list, identity ledger. From memory alone."""

    def __init__(self, policy: PolicySource, identities: IdentityLedger, deny_list: DenyList, clock: Clock) -> None:
        """The broker has just begun to hear hosts."""
        self._policy = policy
        self._identities = identities
        self._deny_list = deny_list
        self._clock = clock
        self._begin_time = clock.now()
        self._outage_time = self._begin_time

    def note_heard(self, last_heard: datetime) -> None:
        """Before this broker began, the last host was heard then, whichever: from then on none could be."""
        self._outage_time = min(last_heard, self._begin_time)

    def of(self, name: str, presence: Presence | None, revoked: Revoked, *, connected: bool) -> HostKnowledge:
        """What is known of the host of this name.

        Args:
            name: The identity's name.
            presence: When it was heard; None if it never came.
            revoked: Its revoked certificates.
            connected: Whether it has a stream, at any broker.
        """
        unheard_time = None if connected or presence is None else self._unheard_time(presence)
        comes_again = presence is not None and presence.by_timer
        return HostKnowledge(
            heard=connected or (comes_again and unheard_time is not None and unheard_time > self._clock.now()),
            last_heard=None if presence is None else presence.last_seen_time,
            unheard_time=unheard_time,
            block=self.block(name),
            revoked=revoked,
            refusal=partial(refusal_of, self._policy.current, name),
        )

    def of_service(self, name: str, revoked: Revoked) -> HostKnowledge:
        """What is known of the service of this name: it is as good as there, since nothing is to be heard of it."""
        return HostKnowledge(heard=True, block=self.block(name), revoked=revoked, is_service=True)

    def block(self, name: str) -> Block | None:
        """Why the host gets no new certificates whatever it is told; None if it does."""
        if self._policy.current.find_grant(name) is None:
            remedy = f"add it to policy.yml again; or, once it is gone for good, `certplanectl forget {name}`"
            return Block("the policy no longer has it", Reason.IDENTITY_UNKNOWN, remedy)
        denied = self._deny_list.denied(name, "", "")
        if denied is not None:
            text = "an operator has denied its identity (`certplane-broker identity list`)"
            remedy = f"`certplane-broker identity allow --name {name}`, once it may have certificates again"
            return Block(text, Reason.IDENTITY_REVOKED, remedy, denied.create_time)
        known = None
        with contextlib.suppress(RefusalError):  # its row can't be read: the ledger says so to whoever it concerns
            known = self._identities.known(name)
        if known is not None and known.contest is not None:
            text = "two holders use its identity; decide with `certplane-broker identity allow`"
            remedy = (
                "find out which machine is the right one; `certplane-broker identity list` has the command for each"
            )
            return Block(text, Reason.IDENTITY_CONTESTED, remedy, known.contest.time)
        return None

    def why_none(self, name: str, *, watches: bool = False) -> str:
        """Why the identity can't be told to get a new certificate, or gets none; empty if it can and does.

        Args:
            name: The identity's.
            watches: Whether it is a service that watches its certificates.
        """
        block = self.block(name)
        if block is not None:
            return block.text
        grant = self._policy.current.find_grant(name)
        if grant is not None and grant.kind is not IdentityKind.HOST and not watches:
            return "it is a service that isn't listening now (WatchMyCertificates): it renews when it asks"
        return ""

    def _unheard_time(self, presence: Presence) -> datetime:
        """From when on a host without a stream has been silent for too long.

        While no broker ran it could not be heard: that time doesn't count.
        """
        heard, allowed = presence.heard_until, DAEMON_SILENCE
        if presence.by_timer:
            allowed = max(TIMER_RUNS * (presence.run_interval or UNKNOWN_INTERVAL), DAEMON_SILENCE)
        silent = heard + allowed
        return silent if silent <= self._outage_time else max(heard, self._begin_time) + allowed


def refusal_of(policy: Policy, host: str, profile: str, dns_names: tuple[str, ...]) -> Refusal | None:
    """Why `policy` refuses the host a certificate of this profile with these names; None if it doesn't."""
    known = policy.granted(host, profile)
    if known is not None and known.dns_names == dns_names:
        return None  # as `decide_again`, at a tenth of the time: it is asked of a whole fleet after a reload
    try:
        decide_again(policy, host, profile, dns_names)
    except RefusalError as error:
        return error.refusal
    return None
