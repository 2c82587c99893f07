"""The program `certplane-broker serve`: a broker, the signals that reload and end it, and what systemd is told."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Final

from certplane.broker.app import Broker, open_broker
from certplane.broker.control import ControlServer, ReloadRequest, ReloadResult, control_socket
from certplane.broker.descriptors import raise_file_limit, too_few
from certplane.broker.model import IdentityKind
from certplane.broker.prepared import Prepared, prepare
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store.soundness import corrupt
from certplane.errors import RefusalError
from certplane.runtime import garbage
from certplane.runtime.clock import SystemClock
from certplane.runtime.notify import ServiceNotifier

_logger = logging.getLogger("certplane.broker")

_LONGEST_START: Final = timedelta(hours=1)
"""A migration of a large database, the recovery of a large write-ahead log, a cold disk: systemd waits so long."""
_STOP_REST: Final = timedelta(seconds=30)
"""After the orders have ended: calls end, hosts hear goodbye, what waits is written and copied into the database."""


async def serve(settings: BrokerSettings) -> None:
    """Run the broker until SIGTERM or SIGINT; SIGHUP reads policy, pair and bundle again.

    Raises:
        ConfigurationError: see `prepare` and `open_broker`.
        OperationError: see `open_broker`.
        RefusalError: see `open_broker`.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # before there is anything to reload: not the end of it
    for notice in settings.notices:
        _logger.warning("%s", notice)
    clock = SystemClock()
    notifier = ServiceNotifier(clock, stop_time=settings.server.drain_timeout + _STOP_REST)
    async with AsyncExitStack() as stack:
        with notifier.extending(_LONGEST_START):
            prepared = _prepared(settings)
            try:
                broker = await stack.enter_async_context(open_broker(prepared, clock=clock))
            except RefusalError as error:  # of what a start reads, which is not the whole database
                place = str(settings.store.path) if settings.store.driver is StoreDriver.SQLITE else "store.url"
                raise corrupt(place, error) or error from error.__cause__
        garbage.settled()
        await stack.enter_async_context(notifier)
        reloading = _Reloading(broker, notifier)
        loop.add_signal_handler(signal.SIGHUP, reloading.signalled)
        path = control_socket(settings.spill_path.parent, Path(settings.source.file))
        async with ControlServer(path, reloading.reload):
            notifier.ready(reloading.status)
            await stop.wait()
        _logger.info("stopping", extra={"fields": {"drain_timeout": str(settings.server.drain_timeout)}})


def _prepared(settings: BrokerSettings) -> Prepared:
    """The files of the settings, with what they say about the number of hosts."""
    prepared = prepare(settings)
    hosts = sum(grant.kind is IdentityKind.HOST for grant in prepared.policy.current.grants)
    if problem := too_few(raise_file_limit(), hosts):
        _logger.warning("%s", problem)
    if not hosts:
        _logger.warning("the policy has no hosts: no agent can connect until one is added and the policy is reloaded")
    return prepared


class _Reloading:
    """Reloads, and what the service manager is told of them: `systemctl status` has it while anything is refused."""

    def __init__(self, broker: Broker, notifier: ServiceNotifier) -> None:
        self._broker = broker
        self._notifier = notifier
        self._tasks: set[asyncio.Task[ReloadResult]] = set()
        broker.reloader.on_refused = lambda _: notifier.status(self.status)

    @property
    def status(self) -> str:
        """One line for `systemctl status`."""
        return "; ".join((f"serving on port {self._broker.port}", *self._broker.reloader.refused))

    def signalled(self) -> None:
        """Reload; nobody waits for the result but the log."""
        task = asyncio.create_task(self.reload(ReloadRequest("SIGHUP")), name="reload on SIGHUP")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reload(self, asked: ReloadRequest) -> ReloadResult:
        """Reload, and wait for the result."""
        self._notifier.reloading()
        result = await self._broker.reloader.request(asked)
        self._notifier.ready(self.status)
        return result
