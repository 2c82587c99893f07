"""What one status stream has heard and has still to say. Pure: no call, no task, no waiting, no clock of its own.

There is one slot of what is latest of each kind, so that a broker that talks too much fills no memory. `open_stream`
reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from certplane.agent.link.messages import epoch_of, report_message
from certplane.fleet_report.model import Report
from certplane.rpc.times import span_of, timestamp
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb

MOST_HASH: Final = 64
_HEARTBEAT: Final = timedelta(seconds=60)
_LEAST_HEARTBEAT, _MOST_HEARTBEAT = timedelta(seconds=1), timedelta(hours=1)
"""Whatever the broker says: no busy loop, and a dead connection is noticed the same day."""
_SILENCE: Final = 3
"""Heartbeats without any answer, after which a stream is over (renewal.proto, Welcome)."""


@dataclass(slots=True)
class StreamSession:
    """One stream, from hello to its end.

    Attributes:
        epoch: Of the reports' counting.
        asked_time: When the broker was last asked for its time, by the host's clock.
        sent: The last sequence that was sent, or that the broker has already.
        interval: Between heartbeats.
    """

    epoch: str
    asked_time: datetime
    sent: int = 0
    interval: timedelta = _HEARTBEAT
    _acknowledged: int = 0
    _taken: int = 0
    _policy_hash: str = ""
    _retry_epoch: str = ""
    _directive: pb.StreamRenewalStatusResponse.Directive | None = None
    _answer: pb.StreamRenewalStatusRequest.DirectiveResult | None = None
    _beat: bool = False

    # What is heard.

    def welcome(self, welcome: pb.StreamRenewalStatusResponse.Welcome) -> None:
        """The broker has answered hello."""
        interval = span_of(welcome.heartbeat_interval) or _HEARTBEAT
        self.interval = min(max(interval, _LEAST_HEARTBEAT), _MOST_HEARTBEAT)
        self._acknowledged = welcome.acknowledged_sequence
        self._policy_hash = printable(welcome.policy_hash, MOST_HASH)
        self._retry_epoch = epoch_of(welcome.retry_epoch)
        self.sent = max(self.sent, welcome.acknowledged_sequence)

    def acknowledge(self, sequence: int) -> None:
        """The broker has the reports up to this one."""
        self._acknowledged = max(self._acknowledged, sequence)

    def direct(self, directive: pb.StreamRenewalStatusResponse.Directive) -> None:
        """The broker wants something: this takes the place of what it wanted before."""
        self._directive = directive

    def is_silent(self, silence: timedelta) -> bool:
        """Whether a broker that said nothing for so long is gone."""
        return silence > _SILENCE * self.interval

    # What is to be done for it; each is given out once.

    def take_policy_hash(self) -> str:
        """The policy that welcome named; empty if it was taken, or none was named."""
        policy_hash, self._policy_hash = self._policy_hash, ""
        return policy_hash

    def take_retry_epoch(self) -> str:
        """The same of its retry epoch."""
        retry_epoch, self._retry_epoch = self._retry_epoch, ""
        return retry_epoch

    def take_acknowledged(self) -> int:
        """Up to where reports are newly acknowledged; 0 for no news."""
        if self._acknowledged <= self._taken:
            return 0
        self._taken = self._acknowledged
        return self._taken

    def take_directive(self) -> pb.StreamRenewalStatusResponse.Directive | None:
        """What the broker wants."""
        directive, self._directive = self._directive, None
        return directive

    # What is to be said.

    def answer(self, result: pb.StreamRenewalStatusRequest.DirectiveResult) -> None:
        """A directive was taken over, or refused."""
        self._answer = result

    def beat(self) -> None:
        """A heartbeat is due."""
        self._beat = True

    def messages(
        self,
        reports: Callable[[int], Sequence[Report]],
        now: Callable[[], datetime],
        trace_of: Callable[[str], str] = lambda _: "",
    ) -> Iterator[pb.StreamRenewalStatusRequest]:
        """What is to be said now; a report counts as sent once the next message is asked for.

        Args:
            reports: Those after a sequence.
            now: The host's clock.
            trace_of: The context of the span that a certificate's report belongs below.
        """
        answer, self._answer = self._answer, None
        if answer is not None:
            yield pb.StreamRenewalStatusRequest(directive_result=answer)
        if self._beat:
            self._beat, self.asked_time = False, now()
            beat = pb.StreamRenewalStatusRequest.Heartbeat(host_time=timestamp(self.asked_time))
            yield pb.StreamRenewalStatusRequest(heartbeat=beat)
        for report in reports(self.sent):
            yield pb.StreamRenewalStatusRequest(report=report_message(report, trace_of(report.certificate.name)))
            self.sent = report.sequence
