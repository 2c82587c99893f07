"""What of broker.yml a running broker takes when it is read again, and what waits for a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from certplane.broker.changes import TAKEN, changed_keys, take_logging, waiting_keys
from certplane.broker.ports import DurableLimits
from certplane.broker.settings import BrokerSettings
from certplane.broker.settings.common import common_hash

_logger = logging.getLogger(__name__)


class SettingsInForce:
    """The settings as they are in force."""

    def __init__(
        self,
        settings: BrokerSettings,
        *,
        take_limits: Callable[[DurableLimits], None],
        take_level: Callable[[str], None],
    ) -> None:
        """`take_limits` puts limits in force, `take_level` the log's level where this process isn't all that logs."""
        self.current = settings
        self.common_hash = common_hash(settings)
        """As brokers compare it."""
        self._take_limits = take_limits
        self._take_level = take_level

    def take(self, after: BrokerSettings) -> list[str]:
        """Put in force what can be of settings that were read; lines that say what was, and what of it waits."""
        before = self.current
        if taken := [key for key in changed_keys(before, after) if key in TAKEN]:
            take_logging(after)
            self._take_level(after.logging.level)
            self._take_limits(after.rate_limits.durable_limits)
            self.current = before = replace(before, logging=after.logging, rate_limits=after.rate_limits)
            self.common_hash = common_hash(before)
        waiting = waiting_keys(before, after)
        lines = [f"{before.source.file}: applied: {', '.join(taken)}"] if taken else []
        if waiting:
            lines.append(f"{before.source.file}: takes effect after a restart: {', '.join(waiting)}")
        for line in lines:
            _logger.log(logging.WARNING if waiting else logging.INFO, "%s", line)
        return lines
