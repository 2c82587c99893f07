"""Repeated denials, counted together before they fill the audit log (design, fixed decision 12).

Equal denials are those of one event type, identity (of an unknown one: address), reason and profile (of those that
policy has; all others are one, or a caller that invents names would fill the log after all). The first is
audited at once. For a minute from then on further ones are only counted, and at its end, if there were any, one
`denials_coalesced` event says how many. So an agent that asks in vain every second costs two events a minute instead of
sixty, and the log still says all of it.

Addresses cost nothing (one IPv6 network has more than a disk has room), so strangers share a budget of windows: beyond
it all their denials of a reason are counted together, whatever the address.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.audit.coalescing import Coalescing
from certplane.broker.audit.windows import Window, WindowBudget, Windows
from certplane.broker.events import AuditEvent, AuditEventType, EventKind
from certplane.broker.ports import AuditLog, DenialRecorder
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_WINDOW: Final = timedelta(seconds=60)
_BURST: Final = 1_000
"""Addresses of strangers at once: a whole fleet of a CA that the broker doesn't know yet."""
_REFILL: Final = timedelta(seconds=5)
"""Then 17,280 windows a day, with their summaries some 40 MB."""


class DenialCoalescer(Coalescing, DenialRecorder):
    """`DenialRecorder` in front of an audit log."""

    def __init__(
        self, audit: AuditLog, clock: Clock, new_id: Callable[[], str], windows: Windows | None = None
    ) -> None:
        super().__init__(clock, new_id, windows or Windows(_WINDOW, budget=WindowBudget(_BURST, _REFILL)))
        self._audit = audit

    @override
    async def record(self, event: AuditEvent) -> None:
        now = self._clock.monotonic()
        kind = denial_kind(event)
        if self._windows.admit(kind, event, now) is not None:
            return
        self._opened()
        ended = [self._named(window) for window in self._windows.take_ended(now)]
        try:
            await self._audit.append([*ended, event])
        except RefusalError:
            self._windows.forget(kind, event)
            self._log_lost(ended)
            raise

    async def _write(self, windows: Sequence[Window]) -> None:
        if not windows:
            return
        summaries = [self._named(window) for window in windows]
        try:
            await self._audit.append(summaries)
        except RefusalError:
            self._log_lost(summaries)

    def _summary(self, window: Window) -> AuditEvent:
        """What was equal in all of them, and how many there were."""
        first = window.first
        return AuditEvent(
            event_id=window.summary_id,
            timestamp=window.last.timestamp,
            event_type=AuditEventType.DENIALS_COALESCED,
            severity=first.severity,
            decision=first.decision,
            identity=first.identity,
            profile_name=_known_profile(first),
            reason_code=first.reason_code,
            reason=f"{first.event_type} was repeated; the first has event_id {first.event_id}",
            source_ip=first.source_ip if window.key[1] else "",
            count=window.repeats,
        )


def denial_kind(event: AuditEvent) -> EventKind:
    """Which denials are counted together."""
    profile = _known_profile(event)
    key = (event.event_type, event.identity or event.source_ip, event.reason_code, profile)
    return EventKind(event.identity, key, key if event.identity else (event.event_type, "", event.reason_code, profile))


def _known_profile(event: AuditEvent) -> str:
    """The profile, if policy has it: a caller that invents another name each time must not be first each time."""
    return event.profile_name if event.profile_hash else ""
