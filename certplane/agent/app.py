"""The agent at work: the one place that connects this host's lineages with the broker and the internal CA.

`run` lives until it is told to stop; `run_once` does what is due and returns; `renew` renews one certificate. All of
them hold the state lock. Each lineage lives by itself: an error of one is its own status, log line and waiting time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from certplane.agent.acting import Activates, Requester
from certplane.agent.by_hand import ByHand
from certplane.agent.control import ControlServer, FanOut, Outcome
from certplane.agent.host import IDENTITY, Host
from certplane.agent.install.activation import Activator, Reload, command_reload
from certplane.agent.install.hook import ShellHookRunner
from certplane.agent.lineage import Lineage
from certplane.agent.lineage_runner import LineageRunner
from certplane.agent.link.diagnosis import IdentityNotAcceptedError
from certplane.agent.link.facts import note_run
from certplane.agent.link.stream import ChannelSource, StatusStream
from certplane.agent.model import HookResult, LineageStatus, Version
from certplane.agent.renewal.plan import Request
from certplane.agent.renewal.skew import ClockSkew
from certplane.agent.request import BrokerRequest, orders_followed
from certplane.agent.settings import CertificateSettings, KeyRotation
from certplane.agent.streaming import status_stream
from certplane.agent.wiring import IdentityActivator, Link, Shows, link, not_enrolled, probe_of, textfile_of
from certplane.errors import CertplaneError, OperationError, Reason, RefusalError
from certplane.fleet_report.model import AgentMode
from certplane.runtime.backoff import Backoff
from certplane.runtime.processes import reap_as_init
from certplane.runtime.progress import Progress
from certplane.runtime.text import counted

if TYPE_CHECKING:  # a host that has no service looked at needs no probe
    from certplane.agent.install.probe import TlsProbe

_REPORT = Backoff(first=timedelta(seconds=10), most=timedelta(minutes=30), floor=timedelta(seconds=1))
_REFRESH = timedelta(seconds=30)
"""Between looks at the file with the broker's CAs: one read of some kilobytes."""
_IDENTITY_REASONS = frozenset(
    {
        Reason.IDENTITY_EXPIRED,
        Reason.IDENTITY_REVOKED,
        Reason.IDENTITY_RETIRED,
        Reason.IDENTITY_CONTESTED,
        Reason.IDENTITY_UNKNOWN,
    }
)
"""Refusals that are about the identity itself: a new one that gets them gives way to the one before."""

logger = logging.getLogger(__name__)


class Agent:
    """The lineages of a host, alive. The caller holds the state lock.

    Args:
        host: the lineages.
        progress: told each step; a daemon's is a `FanOut`.
        broker: the link; made from the settings when not given.
        channels: where status streams go; the made broker's channel. Without either there are no streams.
    """

    def __init__(
        self, host: Host, progress: Progress, *, broker: Link | None = None, channels: ChannelSource | None = None
    ) -> None:
        settings = host.settings
        self._host = host
        self._progress = progress
        if broker is None:
            broker = channels = link(settings, host, moved=self._channel_changed)
        self._broker: Link = broker
        self._channels = channels
        self._stream: StatusStream | None = None
        self.skew = ClockSkew()
        self._hooks = ShellHookRunner(clock=host.clock)
        self._in_use: Version | None = None
        self._to_report = asyncio.Event()
        self._following = orders_followed()
        self._textfile = textfile_of(host)
        self._identity = self._runner(
            host.identity,
            requester=self._renew_identity,
            activator=IdentityActivator(self._activator(host.identity, self._take_identity), self.use_current_identity),
        )
        self._certificates: dict[str, LineageRunner] = {
            certificate.name: self._certificate(certificate, host.certificates[certificate.name])
            for certificate in settings.certificates
        }
        self._by_hand = ByHand(host, {IDENTITY: self._identity, **self._certificates})

    async def run(
        self,
        stop: asyncio.Event,
        events: FanOut,
        show: Shows | None = None,
        reload: Callable[[], Awaitable[Outcome]] | None = None,
    ) -> None:
        """Keep everything renewed until `stop`; what has begun and can be done only once is finished first.

        Args:
            stop: ends it.
            events: where the steps are told.
            show: told once all is under way, and how the link to the broker is.
            reload: carries out `certplane-agent reload`.

        Raises:
            OperationError: this host isn't enrolled, or its files can't be used.
            ConfigurationError: the broker's CA bundle can't be used.
        """
        await self._start(AgentMode.DAEMON)
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(
                    ControlServer(self._host.state_dir, self._by_hand.while_running, events, reload)
                )
            except OperationError as error:  # what is in the way of a command is none of renewing
                logger.error("`renew` and `status` can't reach this agent: %s", error)  # noqa: TRY400 - it says all
            group = await stack.enter_async_context(asyncio.TaskGroup())
            tasks = [
                group.create_task(runner.run(), name=runner.name)
                for runner in (self._identity, *self._certificates.values())
            ]
            tasks.append(group.create_task(self._report_identities(), name="report"))
            tasks.append(group.create_task(reap_as_init(self._host.clock), name="reaper"))
            tasks.append(group.create_task(self._refresh_link(), name="refresh link"))
            if self._stream is not None:
                tasks.append(group.create_task(self._stream.run(), name="status stream"))
            if self._textfile is not None:
                tasks.append(group.create_task(self._textfile.keep(), name="textfile"))
            logger.info("the agent runs: %s", counted(len(self._certificates), "certificate"))
            if show is not None:
                show.ready(f"certificates: {len(self._certificates)}")
                if self._stream is not None:
                    self._stream.watch(lambda state: show.status(f"certificates: {len(self._certificates)}; {state}"))
            await stop.wait()
            logger.info("the agent stops")
            for task in tasks:
                task.cancel()

    async def run_once(self) -> Mapping[str, LineageStatus]:
        """Do all that is due: the identity first, then the certificates together. Returns each one's status.

        Raises:
            CertplaneError: this host isn't enrolled, or the state of a lineage can't be read or written: told when all
                that could be done for the others is done.
        """
        await self._start(AgentMode.TIMER)
        statuses: dict[str, LineageStatus] = {}
        errors = await self._settle_all([self._identity], statuses)
        try:
            await self._report()
        except CertplaneError as error:
            logger.warning("could not tell the broker of this host's identity: %s", error)
        errors |= await self._settle_all(self._certificates.values(), statuses)
        if self._stream is not None:
            # In timer mode this is when the host hears of a revocation, of an operator, of another policy or epoch.
            await self._stream.deliver(listen=True)
            told = True
            # The identity first, as at the start: whatever is asked for next is asked by it.
            for runners in ([self._identity], [*self._certificates.values()]):
                again = [runner for runner in runners if runner.wants_again]
                if again:
                    errors |= await self._settle_all(again, statuses)
                    told = False
            if not told:
                await self._stream.deliver()
        if self._textfile is not None:
            await self._textfile.write()
        if errors:
            raise next(iter(errors.values()))
        return statuses

    async def _settle_all(
        self, runners: Iterable[LineageRunner], statuses: dict[str, LineageStatus]
    ) -> dict[str, CertplaneError]:
        """Settle some together; one that fails keeps no other from it. Returns what failed."""
        errors: dict[str, CertplaneError] = {}

        async def settle(runner: LineageRunner) -> None:
            try:
                statuses[runner.name] = await runner.settle()
            except CertplaneError as error:
                errors[runner.name] = error
                logger.error("%s: %s", runner.name, error)  # noqa: TRY400 - a traceback says nothing more
                self._progress.failed(runner.name, str(error))

        await asyncio.gather(*(settle(runner) for runner in runners))
        return errors

    async def by_hand(self, command: str, name: str) -> Outcome:
        """Carry out `renew` or `activate` of a certificate, or of the identity; says what came of it.

        Raises:
            CertplaneError: this host isn't enrolled, or its state can't be read or written.
        """
        await self._start()
        await self._settle_all([self._identity], {})  # one that was just enrolled is taken into use first
        outcome = await self._by_hand.once(command, name)
        if self._stream is not None:
            await self._stream.deliver()
        return outcome

    async def close(self) -> None:
        """End the channel."""
        await self._broker.close()

    async def _start(self, mode: AgentMode | None = None) -> None:
        """Open the channel first: it connects while the certificates' files are looked at.

        `mode` is how the agent runs, as the broker is told; None for a command, which says nothing of it.
        """
        await self._host.disk.run(self._host.check_files)
        await self._host.prepare(self._host.identity)
        identity = await self._host.current_identity() or await self._host.take_over_identity()
        if identity is None:
            raise not_enrolled(self._host.settings)
        await self._use(identity)
        await self._host.prepare(*self._host.certificates.values())
        await self._host.report_all()
        if self._channels is not None:
            self._stream = await status_stream(
                self._host, self._certificates, self._identity, self._channels, self.skew
            )
            self._stream.note(note_run(self._stream.state, mode, self._host.clock.now()))

    async def _use(self, identity: Version) -> None:
        if self._in_use is not None and identity.serial_number == self._in_use.serial_number:
            return
        await self._broker.use_identity(identity)
        self._in_use = identity
        self._to_report.set()
        self._channel_changed()

    def _channel_changed(self) -> None:
        """Another channel is in use: the stream is to follow."""
        if self._stream is not None:
            self._stream.channel_changed()

    async def use_current_identity(self) -> None:
        """Make the channel's identity the one in force, whatever an activation tried meanwhile."""
        current = await self._host.current_identity()
        if current is not None:
            await self._use(current)

    async def _renew_identity(self, request: Request) -> Version:
        """`Requester` for the identity: from the internal CA, by the identity in force."""
        current = await self._host.current_identity() or request.replaces
        if current is None:
            raise not_enrolled(self._host.settings)
        authority = self._host.authority()
        try:
            return await self._host.host_identity(authority).renew(current)
        finally:
            authority.close()

    async def _take_identity(self, identity: Version) -> HookResult:
        """`Reload` of the identity: a new channel, and whether the broker lets it in.

        A broker that doesn't answer is no reason to go back; one that refuses this identity is.
        """
        await self._use(identity)
        try:
            await self._broker.get_identity()
        except IdentityNotAcceptedError as error:
            return HookResult(1, str(error))
        except RefusalError as error:
            if error.refusal.reason in _IDENTITY_REASONS:
                return HookResult(1, str(error))
            logger.warning("the broker's answer to the new identity: %s", error)
        except OperationError as error:
            logger.warning("the new identity is in use, but the broker has not seen it: %s", error)
        for runner in self._certificates.values():
            if not runner.is_requesting:  # what it fails with is told after this, and no reason to ask again at once
                runner.try_again()
        return HookResult(0, "")

    async def _report_identities(self) -> None:
        """Tell the broker of each identity that is taken into use, until it has heard."""
        failures = 0
        while True:
            await self._to_report.wait()
            try:
                await self._report()
                failures = 0
            except CertplaneError as error:
                self._to_report.set()
                failures += 1
                wait = _REPORT.wait(failures, self._host.rng)
                logger.warning("could not tell the broker of this host's identity: %s; next try in %s", error, wait)
                await self._host.clock.sleep(wait)
            except Exception:  # a bug must not end the certificates' renewals
                logger.exception("the identity can't be reported")

    async def _report(self) -> None:
        self._to_report.clear()
        if self._in_use is not None:
            await self._broker.report_enrollment(self._in_use.serial_number)

    async def _refresh_link(self) -> None:
        """Look after the file with the broker's CAs, for as long as the agent runs."""
        while True:
            await self._host.clock.sleep(_REFRESH)
            try:
                if await self._broker.refresh():
                    self._channel_changed()
            except CertplaneError as error:
                logger.warning("the link to the broker can't be renewed: %s", error)
            except Exception:  # a bug must not end the certificates' renewals
                logger.exception("the link to the broker can't be renewed")

    def _certificate(self, settings: CertificateSettings, lineage: Lineage) -> LineageRunner:
        reload = None
        if settings.reload_command:
            reload = command_reload(
                self._hooks,
                settings.reload_command,
                settings.reload_timeout,
                name=settings.name,
                outputs=self._host.outputs[settings.name],
            )
        requester = BrokerRequest(
            lineage,
            profile=settings.profile,
            reuse_key=settings.key_rotation is KeyRotation.REUSE,
            broker=self._broker,
            orders=self._broker,
            clock=self._host.clock,
            rng=self._host.rng,
            progress=self._progress,
            following=self._following,
        )
        return self._runner(
            lineage,
            requester=requester,
            activator=self._activator(lineage, reload, probe_of(settings, self._host.clock)),
        )

    def _activator(self, lineage: Lineage, reload: Reload | None, probe: TlsProbe | None = None) -> Activator:
        return Activator(
            store=lineage.versions,
            statuses=lineage.statuses,
            reload=reload,
            pool=self._host.disk,
            clock=self._host.clock,
            rng=self._host.rng,
            probe=probe,
            verify_interval=lineage.spec.verify_interval,
        )

    def _runner(self, lineage: Lineage, *, requester: Requester, activator: Activates) -> LineageRunner:
        return LineageRunner(
            lineage,
            requester=requester,
            activator=activator,
            clock=self._host.clock,
            rng=self._host.rng,
            progress=self._progress,
        )
