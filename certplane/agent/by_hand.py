"""What a person of this host asks for: `renew NAME` and `activate NAME`, of an agent that runs, or without one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from certplane.agent.control import Outcome
from certplane.agent.host import IDENTITY, Host
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.model import LineageStatus
from certplane.agent.outcome import activation_outcome, renewal_outcome
from certplane.errors import CertplaneError

_Act = Callable[[LineageRunner], Awaitable[LineageStatus]]

_ONCE: Final[Mapping[str, _Act]] = {
    "renew": lambda runner: runner.settle(forced=True),
    "activate": lambda runner: runner.settle(at_once=True),
}
_WHILE_RUNNING: Final[Mapping[str, _Act]] = {
    "renew": lambda runner: runner.renew_now(),
    "activate": lambda runner: runner.activate_now(),
}


class ByHand:
    """Carries these commands out.

    Args:
        host: whose certificates they are.
        runners: all of them by name, the identity's included.
    """

    def __init__(self, host: Host, runners: Mapping[str, LineageRunner]) -> None:
        self._host = host
        self._runners = runners

    async def once(self, command: str, name: str) -> Outcome:
        """Carry a command out; says whether a version came into use, and if not, why.

        Raises:
            CertplaneError: the state of the lineage can't be read or written.
        """
        return await self._carry_out(command, name, _ONCE[command])

    async def while_running(self, command: str, name: str) -> Outcome | None:
        """The same by an agent that runs; None for a command that it doesn't know. Nothing is raised."""
        if command not in _WHILE_RUNNING:
            return None
        if name not in self._runners:
            text = "the running agent has no certificate of that name; run `certplane-agent reload`, then this again"
            return Outcome(ok=False, text=text)
        try:
            return await self._carry_out(command, name, _WHILE_RUNNING[command])
        except CertplaneError as error:
            return Outcome(ok=False, text=str(error))

    async def _carry_out(self, command: str, name: str, act: _Act) -> Outcome:
        lineage = self._host.identity if name == IDENTITY else self._host.certificates[name]
        if command == "activate":
            known = await self._host.disk.run(lineage.statuses.load)
            before = 0 if known is None else known.confirmed_version or 0
            return activation_outcome(before, await act(self._runners[name]), self._host.clock.now())
        versions = await self._host.disk.run(lineage.versions.versions)
        before = versions[-1].number if versions else 0
        return renewal_outcome(name, before, await act(self._runners[name]), self._host.clock.now())
