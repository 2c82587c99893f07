"""The figures of the whole fleet as metrics, counted every minute over the index.

Of brokers that share a database one tells them (`lead`), or sums would count the fleet several times.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from certplane.broker.fleet.figures import FleetFigures, Link
from certplane.broker.fleet.index import FleetIndex, IndexedHost
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.model import IdentityKind
from certplane.broker.ports import Meter, PolicySource
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_logger = logging.getLogger("certplane.broker.fleet")

_SHARE: Final = 20
"""A round takes at most this part of the time: a fleet that takes longer to count is counted less often."""


class HealthWatch:
    """Counts the health of the fleet, while `lead` runs. For the event loop's thread."""

    def __init__(
        self,
        *,
        index: FleetIndex,
        policy: PolicySource,
        clock: Clock,
        meter: Meter,
        settings: StreamSettings,
        most_hosts: int = 1000,
        label_keys: Sequence[str] = (),
    ) -> None:
        """Nothing is shown yet.

        Args:
            index: What is counted.
            policy: Whose profiles are measured: what a host calls one is its own word.
            clock: The time.
            meter: Measures.
            settings: How often.
            most_hosts: Up to how large a fleet each certificate is shown.
            label_keys: Labels that certificates are counted by.
        """
        self._index = index
        self._policy = policy
        self._clock = clock
        self._meter = meter
        self._settings = settings
        self._most_hosts = most_hosts
        self._label_keys = label_keys
        self._profiles: frozenset[str] = frozenset()

    async def lead(self) -> None:
        """Tell the figures, until cancelled."""
        said = ""
        while True:
            begun = self._clock.monotonic()
            try:
                await self._count()
            except RefusalError as error:
                if str(error) != said:
                    _logger.warning("could not count the health of the fleet; will retry: %s", error)
                said = str(error)
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("counting the health of the fleet failed; will retry")
                said = repr(error)
            else:
                said = ""
            spent = timedelta(seconds=self._clock.monotonic() - begun)
            await self._clock.sleep(max(self._settings.figures_interval, spent * _SHARE))

    async def _count(self) -> None:
        await self._index.settled()
        policy = self._policy.current
        figures = FleetFigures(
            self._clock.now(),
            self._most_hosts,
            lambda profile: policy.find_profile(profile) is not None,
            self._label_keys,
        )
        async for host in self._index.walk():
            is_service = host.kind is IdentityKind.SERVICE
            if not is_service:
                figures.add_host(_link(host))
            if self._label_keys and host.labels:
                figures.add_labels(host.labels, [each.health for each in host.certificates])
            for each in host.certificates:
                figures.add_certificate(
                    host.name,
                    each.name,
                    profile=each.profile,
                    issuer=each.issuer,
                    state=None if is_service else each.state,
                    health=each.health,
                    not_after=each.end,
                )
        self._profiles = figures.show(self._meter, self._profiles)


def _link(host: IndexedHost) -> Link:
    if host.connected:
        return Link.UP
    return Link.NEVER if host.connect_time is None else Link.DOWN
