"""How near the broker's own certificate and the CAs of its bundle are to their end, said in the log as it comes nearer.

The certificate's end is announced a quarter and an eighth of its life ahead, and then as an error; that of the CAs 30
days ahead.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from enum import IntEnum

from certplane.broker.services.trust import TrustFiles, TrustInForce
from certplane.runtime.clock import Clock

_logger = logging.getLogger(__name__)


class ExpiryLevel(IntEnum):
    """How near the end of a certificate is."""

    FINE = 0
    QUARTER = 1
    EIGHTH = 2
    EXPIRED = 3


def expiry_level(not_before: datetime, not_after: datetime, now: datetime) -> ExpiryLevel:
    """How near the end is: fractions of the life, so that they mean the same for a day as for a year. Pure."""
    left = not_after - now
    life = not_after - not_before
    if left <= timedelta():
        return ExpiryLevel.EXPIRED
    if left * 8 <= life:
        return ExpiryLevel.EIGHTH
    return ExpiryLevel.QUARTER if left * 4 <= life else ExpiryLevel.FINE


class ExpiryAnnouncer:
    """Logs each step towards an end once."""

    def __init__(self, trust: TrustInForce, files: TrustFiles, clock: Clock) -> None:
        self._trust = trust
        self._files = files
        self._clock = clock
        self._announced = ("", ExpiryLevel.FINE)
        self._announced_cas: frozenset[str] = frozenset()

    def _announce_cas(self) -> None:
        """Log once what has ended of the bundle, and what soon will."""
        trust, now = self._trust.current, self._clock.now()
        problem = trust.ca_problem(now)
        lines = frozenset([problem] if problem else trust.ca_warnings(now))
        for line in sorted(lines - self._announced_cas):
            level = logging.ERROR if problem else logging.WARNING
            text = f"{line}: no agent can connect" if problem else line
            _logger.log(level, "%s: %s", self._files.agent_ca_bundle, text)
        self._announced_cas = lines

    def announce(self) -> None:
        """Log each step towards the end of the broker's certificate once, and of the CAs."""
        self._announce_cas()
        server = self._trust.current.server
        level = expiry_level(server.not_before, server.not_after, self._clock.now())
        serial, announced = self._announced
        if server.serial_number == serial and level <= announced:
            return
        self._announced = (server.serial_number, level)
        text = f"the broker's own certificate {server.serial_number}"
        end = f"{server.not_after:%Y-%m-%dT%H:%M:%SZ}"
        if level is ExpiryLevel.EXPIRED:
            _logger.error("%s expired at %s: agents can't connect; renew %s", text, end, self._files.cert)
        elif level is not ExpiryLevel.FINE:
            _logger.warning("%s ends at %s; renew %s", text, end, self._files.cert)
