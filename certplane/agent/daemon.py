"""`certplane-agent run`: the agent at work, begun anew when another agent.yml is taken.

A reload is a restart that is tried out first. The file is read and checked as a start does it, and one that can't be
used changes nothing. One that can ends the agent as a stop does (an installation that has begun is finished, an order
under way is followed on), and begins it again in the same process, under the same lock. Where that fails all the same,
the agent.yml before is in force again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from typing_extensions import override

from certplane.agent.app import Agent
from certplane.agent.control import FanOut, Outcome
from certplane.agent.host import Host
from certplane.agent.settings import AgentSettings, CertificateSettings
from certplane.agent.wiring import Shows
from certplane.errors import CertplaneError, ConfigurationError

_AT_THE_START: Final = ("state_dir", "tracing")
"""What belongs to the process: the lock is held there, and spans go there."""
_REMEDY: Final = "restart the agent (`systemctl restart certplane-agent`), or write there what was there"

logger = logging.getLogger(__name__)


class Daemon:
    """The agent of a host for as long as the process lives. The caller holds the state lock.

    Args:
        host: what agent.yml said at the start.
        read: reads agent.yml again. Blocks.
        taken: told of each settings that come into force, the first included.
        agent: makes the agent of a host.
    """

    def __init__(
        self,
        host: Host,
        read: Callable[[], Host],
        *,
        taken: Callable[[AgentSettings], None] = lambda _: None,
        agent: Callable[[Host, FanOut], Agent] = Agent,
    ) -> None:
        self._host = host
        self._read = read
        self._taken = taken
        self._agent = agent
        self._events = FanOut()
        self._end = asyncio.Event()
        self._stopped = False
        self._one_reload = asyncio.Lock()
        self._change: _Change | None = None

    def stop(self) -> None:
        """End `run`."""
        self._stopped = True
        self._end.set()

    async def run(self, show: Shows) -> None:
        """Keep everything renewed until `stop`, with the agent.yml that was taken last.

        Raises:
            OperationError: see `Agent.run`.
            ConfigurationError: see `Agent.run`.
        """
        self._taken(self._host.settings)
        try:
            while True:
                await self._run(show)
                if self._stopped:
                    return
                if (change := self._change) is not None and change.before is None:
                    change.before, self._host = self._host, change.host
                    self._taken(self._host.settings)
                    self._end.clear()
        finally:
            if self._change is not None:
                self._change.answer(Outcome(ok=False, text="the agent stops"))
                self._change.host.close()
                if self._change.before is not None:
                    self._change.before.close()
            self._host.close()

    async def _run(self, show: Shows) -> None:
        """One agent, until the next agent.yml or the end; where a new one doesn't begin, return to the one before."""
        agent = self._agent(self._host, self._events)
        try:
            await agent.run(self._end, self._events, show=_Begun(show, self._begun), reload=self.reload)
        except CertplaneError as error:
            change = self._change
            if change is None or change.before is None:
                raise
            self._change, self._host = None, change.before
            change.host.close()
            self._taken(self._host.settings)
            change.answer(_refused(error))
        finally:
            await agent.close()

    def _begun(self) -> None:
        """The agent keeps everything renewed with what `_host` says."""
        change = self._change
        if change is None or change.before is None:
            return
        self._change = None
        what = changes(change.before.settings, change.host.settings)
        logger.info(
            "another agent.yml is in force: %s",
            what,
            extra={"fields": {"configuration_hash": self._host.settings.hash}},
        )
        change.before.close()
        change.answer(Outcome(ok=True, text=f"in force: {what}"))

    async def reload(self) -> Outcome:
        """Take agent.yml as it is now; says what has changed, or why the one before stays in force."""
        async with self._one_reload:
            try:
                host = await self._host.disk.run(self._checked)
            except CertplaneError as error:
                return _refused(error)
            if self._stopped:
                host.close()
                return Outcome(ok=False, text="the agent stops")
            if not changes(self._host.settings, host.settings):
                host.close()
                logger.info("agent.yml was read again: nothing has changed")
                return Outcome(ok=True, text="nothing has changed")
            self._change = change = _Change(host)
            self._end.set()
            return await change.answered

    def _checked(self) -> Host:
        host = self._read()
        try:
            self._check(host)
        except BaseException:
            host.close()
            raise
        return host

    def _check(self, host: Host) -> None:
        """As a start does, and what can't change while the process lives."""
        host.check_files()
        after, before = host.settings, self._host.settings
        fixed = [key for key in _AT_THE_START if getattr(after, key) != getattr(before, key)]
        if fixed:
            problem = after.source.problem
            raise ConfigurationError([problem(key, "is taken at the start alone", _REMEDY) for key in fixed])


class _Change:
    """A reload under way: the host of the new agent.yml, of the one before once that has ended, and the answer."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.before: Host | None = None
        self.answered: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def answer(self, outcome: Outcome) -> None:
        if not self.answered.done():
            self.answered.set_result(outcome)


class _Begun(Shows):
    """Passes on what is shown, and tells that the agent is under way."""

    def __init__(self, show: Shows, begun: Callable[[], None]) -> None:
        self._show = show
        self._tell = begun

    @override
    def ready(self, status: str) -> None:
        self._tell()
        self._show.ready(status)

    @override
    def status(self, status: str) -> None:
        self._show.status(status)


def _refused(error: CertplaneError) -> Outcome:
    text = "; ".join(str(error).splitlines())
    logger.error("agent.yml is refused, and the one before stays in force: %s", text)
    return Outcome(ok=False, text=f"refused, and the agent.yml before stays in force: {text}")


def changes(before: AgentSettings, after: AgentSettings) -> str:
    """What differs, for people: certificates by name, other sections as such; empty where both say the same."""
    if replace(after, source=before.source) == before:
        return ""
    was: dict[str, CertificateSettings] = {certificate.name: certificate for certificate in before.certificates}
    now: dict[str, CertificateSettings] = {certificate.name: certificate for certificate in after.certificates}
    found = {
        "certificates added": {*now} - {*was},
        "certificates removed": {*was} - {*now},
        "certificates changed": {name for name in now if name in was and now[name] != was[name]},
        "sections changed": {
            key for key in ("identity", "broker", "logging", "metrics") if getattr(before, key) != getattr(after, key)
        },
    }
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in found.items() if names) or "their order"
