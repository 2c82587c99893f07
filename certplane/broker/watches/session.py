"""One call of WatchMyCertificates as a protocol: what is known, what was told, what is still to be said. Pure.

What is to be said is state, never a queue: whatever differs from what was told, at the moment of sending. So a watcher
that reads slowly gets the latest of each certificate, and costs what a fast one costs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from certplane.broker.watches.model import CertificateNews, Goodbye, Heartbeat, InForce, Listening, Told


@dataclass(slots=True, eq=False)
class WatchSession:
    """One call, from its first message to its last.

    Attributes:
        listening: Whether all that there was has been said.
        said_goodbye: Whether the last message was given out.
    """

    listening: bool = False
    said_goodbye: bool = False
    _known: tuple[CertificateNews, ...] | None = None
    _told: dict[str, CertificateNews] = field(default_factory=dict)
    _told_in_force: InForce | None = None
    _heartbeat: bool = False
    _goodbye: Goodbye | None = None

    def know(self, news: tuple[CertificateNews, ...]) -> None:
        """All of the caller's certificates that it is told of, as they are now."""
        self._known = news
        there = {one.certificate_id for one in news}
        for certificate_id in self._told.keys() - there:
            del self._told[certificate_id]

    def heartbeat(self) -> None:
        """Say that the broker is there."""
        self._heartbeat = True

    def say_goodbye(self, message: Goodbye) -> None:
        """End the call when all else is said; the first one stands."""
        self._goodbye = self._goodbye or message

    def next_message(self, now: datetime, heartbeat_interval: timedelta, in_force: InForce) -> Told | None:
        """The next thing to say, as it is `now`; None if there is nothing."""
        message: Told | None = None
        if self.said_goodbye:
            pass
        elif (news := self._next_news()) is not None:
            self._told[news.certificate_id] = message = news
        elif not self.listening and self._known is not None:
            self.listening, self._told_in_force = True, in_force
            message = Listening(now, heartbeat_interval, in_force)
        elif self.listening and in_force != self._told_in_force:
            self._told_in_force = message = in_force
        elif self._goodbye is not None:
            self.said_goodbye = True
            message = self._goodbye
        elif self._heartbeat:
            self._heartbeat = False
            message = Heartbeat(now)
        return message

    def _next_news(self) -> CertificateNews | None:
        """The first that isn't as it was told."""
        known = self._known or ()
        return next((one for one in known if self._told.get(one.certificate_id) != one), None)
