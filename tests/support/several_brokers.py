"""Several broker programs beside the servers of one deployment, which tests stop still and let go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from certplane.sandbox.fleet_broker import FleetBroker
from tests.support.waiting import until


class Broker(FleetBroker):
    """One of them; see `FleetBroker`."""

    @property
    def log(self) -> str:
        """What it has written since its last start."""
        return self.process.log_text()

    def _parts(self) -> Iterator[psutil.Process]:
        """The program and its issuing process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            program = psutil.Process(self.process.pid)
            yield program
            yield from program.children(recursive=True)

    def stop_still(self) -> None:
        """SIGSTOP to all of it, as a machine that is suspended."""
        for part in self._parts():
            part.suspend()

    def go_on(self) -> None:
        """SIGCONT to all of it."""
        for part in self._parts():
            part.resume()

    async def until_still(self) -> None:
        """Wait until it stands still at a failpoint."""
        program = psutil.Process(self.process.pid)

        def still() -> bool:
            assert self.process.running, self.process.log_tail()
            return bool(program.status() == psutil.STATUS_STOPPED)

        await until(still, what=f"the broker at {self.url} that stands still")

    async def until_lost(self) -> None:
        """Wait until it says that its lease is gone, which it can while it runs."""
        await until(lambda: "has lost its lease" in self.log, what="the lost lease in the log")

    async def until_leased_again(self) -> None:
        """Wait until it says that it has its lease again."""
        await until(lambda: "has its lease again" in self.log, what="the lease in the log")
