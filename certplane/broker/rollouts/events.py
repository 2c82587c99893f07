"""The audit events of rollouts, built in one place so that each kind always carries the same facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from certplane.broker.events import AuditDecision, AuditEvent, AuditEventType, AuditSeverity, AuditTrail
from certplane.broker.model import Caller
from certplane.broker.rollouts.model import Happened, ItemState, RolloutItem, Step
from certplane.runtime.text import printable

_LONGEST_SELECTION: Final = 1000
"""Characters of it in an audit event."""
_LONGEST_REASON: Final = 1000

_WORDS: Final = {
    "approve": AuditEventType.ROLLOUT_APPROVED,
    "pause": AuditEventType.ROLLOUT_PAUSED,
    "resume": AuditEventType.ROLLOUT_RESUMED,
    "abort": AuditEventType.ROLLOUT_ABORTED,
    "finish": AuditEventType.ROLLOUT_FINISHED,
}


class RolloutEvents:
    """Makes them, with the id of one rollout in each."""

    def __init__(self, trail: AuditTrail, rollout_id: str) -> None:
        self._trail = trail.carrying(rollout_id=rollout_id)

    # What people say.

    def created(self, caller: Caller | None, request_id: str, what: str, selection: str, count: int) -> AuditEvent:
        """Somebody has made it; None: the incident that `what` names.

        Args:
            caller: Who.
            request_id: Of the call.
            what: What it does, and why, for people.
            selection: Which certificates were picked.
            count: How many.
        """
        return self._of(caller, request_id).event(
            AuditEventType.ROLLOUT_CREATED,
            severity=AuditSeverity.WARNING,
            decision=AuditDecision.ALLOW,
            reason=_text(what),
            selection=selection[:_LONGEST_SELECTION],
            count=count,
        )

    def said(self, word: str, caller: Caller, request_id: str, reason: str) -> AuditEvent:
        """An operator has said one of the words approve, pause, resume, abort, finish."""
        return self._of(caller, request_id).event(
            _WORDS[word], severity=AuditSeverity.WARNING, decision=AuditDecision.ALLOW, reason=_text(reason)
        )

    # What follows.

    def started(self, reason: str, count: int) -> AuditEvent:
        """Its certificates are to be replaced from now on."""
        return self._event(AuditEventType.ROLLOUT_STARTED, reason, severity=AuditSeverity.WARNING, count=count)

    def keys_blocked(self, count: int) -> AuditEvent:
        """The keys of so many certificates get none any more."""
        reason = "no certificate is issued any more for the keys that are replaced"
        return self._event(AuditEventType.ROLLOUT_KEYS_BLOCKED, reason, severity=AuditSeverity.WARNING, count=count)

    def ring_released(self, reason: str, count: int) -> AuditEvent:
        """The hosts of a ring, with so many certificates, may activate."""
        return self._event(AuditEventType.ROLLOUT_RING_RELEASED, reason, count=count)

    def ring_bakes(self, reason: str, count: int) -> AuditEvent:
        """The hosts of a ring that are there have done it; it is watched."""
        return self._event(AuditEventType.ROLLOUT_RING_BAKING, reason, count=count)

    def ring_done(self, reason: str, count: int) -> AuditEvent:
        """A ring was watched for long enough."""
        return self._event(AuditEventType.ROLLOUT_RING_DONE, reason, count=count)

    def finishing(self, reason: str) -> AuditEvent:
        """All rings are done, and something is left."""
        return self._event(AuditEventType.ROLLOUT_FINISHING, reason)

    def halted(self, reason: str) -> AuditEvent:
        """Too much has failed."""
        return self._event(AuditEventType.ROLLOUT_HALTED, reason, severity=AuditSeverity.ERROR)

    def completed(self, reason: str) -> AuditEvent:
        """Nothing is left to do."""
        return self._event(AuditEventType.ROLLOUT_COMPLETED, reason)

    def certificate_failed(self, host: str, certificate_id: str, reason: str) -> AuditEvent:
        """A host has failed with its new certificate, or has fallen silent after its release."""
        return self._event(
            AuditEventType.ROLLOUT_CERTIFICATE_FAILED,
            reason,
            severity=AuditSeverity.WARNING,
            identity=host,
            certificate_id=certificate_id,
        )

    def certificate_skipped(self, host: str, certificate_id: str, reason: str) -> AuditEvent:
        """Nothing is to be done any more with a certificate that was to be replaced."""
        return self._event(
            AuditEventType.ROLLOUT_CERTIFICATE_SKIPPED, reason, identity=host, certificate_id=certificate_id
        )

    def _of(self, caller: Caller | None, request_id: str) -> AuditTrail:
        return self._trail if caller is None else self._trail.of_caller(caller, request_id)

    def _event(self, event_type: AuditEventType, reason: str, **facts: Any) -> AuditEvent:
        return self._trail.event(event_type, reason=_text(reason), **facts)


def _text(reason: str) -> str:
    return printable(reason, _LONGEST_REASON)


def happened_events(events: RolloutEvents, done: Step) -> list[AuditEvent]:
    """Those of what a step says of the rollout and its rings."""
    counts = {ring.name: sum(each.count for each in ring.counts) for ring in done.rollout.rings}
    found = []
    for each in done.happened:
        text = ": ".join(filter(None, (f"ring {each.ring}" if each.ring else "", each.detail)))
        count = counts.get(each.ring, 0)
        match each.what:
            case Happened.RING_RELEASED:
                found.append(events.ring_released(text, count))
            case Happened.RING_BAKING:
                found.append(events.ring_bakes(text, count))
            case Happened.RING_DONE:
                found.append(events.ring_done(text, count))
            case Happened.HALTED:
                found.append(events.halted(text))
            case Happened.FINISHING:
                found.append(events.finishing(done.rollout.state_reason))
            case Happened.COMPLETED:
                found.append(events.completed(text))
    return found


def item_events(
    events: RolloutEvents, before: Mapping[str, RolloutItem], changed: Iterable[RolloutItem]
) -> list[AuditEvent]:
    """Those of certificates that have failed, or with which nothing is to be done any more."""
    found = []
    for item in changed:
        was = before[item.certificate_id]
        if item.state in (ItemState.FAILED, ItemState.SILENT) and (was.state, was.failure_mark) != (
            item.state,
            item.failure_mark,
        ):
            found.append(events.certificate_failed(item.host, item.certificate_id, item.reason))
        elif item.state is ItemState.SKIPPED and was.state is not ItemState.SKIPPED:
            found.append(events.certificate_skipped(item.host, item.certificate_id, item.reason))
    return found
