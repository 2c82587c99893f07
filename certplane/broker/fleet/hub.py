"""The streams of all hosts of one broker: what the servicer hands over goes in here.

    attach -> hello -> report, answer, heartbeat ... -> detach

`session` decides what one stream says and is told, `stream` sends and records it, `registry` knows who is connected,
`supervision` has the time pass, `plan_teller` reads what a host doesn't know, `displacement` ends the streams of hosts
that have come to another broker; here they are put together.

Rules they keep:

- Nothing is acknowledged before the store has it. While the store fails, reports wait in bounded number and are tried
  again; a host that has more to say is then sent away with the store's refusal, and keeps what wasn't acknowledged.
- One stream a host: the one that said hello last, at whichever broker. The other one ends with STREAM_DISPLACED.
- What is wanted of a host is computed from durable state: plans when they change, or when the host comes.
- Hosts say who they are by their certificate alone; nothing in a message names another host.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol

from certplane.broker import metrics
from certplane.broker.events import AuditTrail
from certplane.broker.fleet.displacement import CountDisplacement, Displacement
from certplane.broker.fleet.knowledge import revoked_plan
from certplane.broker.fleet.messages import DirectiveResult, Goodbye, Hello, Outgoing, Welcome
from certplane.broker.fleet.model import RevokedCertificate
from certplane.broker.fleet.plan_teller import NoActivations, PlanTeller, ToldPlans
from certplane.broker.fleet.ports import Activations, FleetStore, StreamPlaces
from certplane.broker.fleet.recording import Recorder
from certplane.broker.fleet.refusals import draining, invalid
from certplane.broker.fleet.registry import StreamRegistry
from certplane.broker.fleet.session import InForceHashes
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.stream import LAST_WORDS, ServedStream, StreamContext
from certplane.broker.fleet.supervision import StreamSupervision
from certplane.broker.fleet.watching import Watchers
from certplane.broker.model import Caller, CertificateRecord
from certplane.broker.ports import EventRecorder, Meter
from certplane.broker.renewal.model import HostActivation, RenewalPlan
from certplane.fleet_report.model import Report
from certplane.runtime.clock import Clock
from certplane.runtime.rarely import Rarely

_POLL: Final = timedelta(milliseconds=20)
"""While streams end."""


class _Store(FleetStore, StreamPlaces, Protocol):
    pass


class OtherStreams(Protocol):
    """Long calls of this broker that come and go with the hosts' streams."""

    def send_away(self, why: str) -> None:
        """Say goodbye to all, and take none until `stay`."""
        ...

    def stay(self) -> None:
        """Take some again."""
        ...

    async def drain(self) -> None:
        """Say goodbye to all, and wait until they have ended; some seconds at most."""
        ...


class FleetHub:
    """All streams of one broker."""

    def __init__(
        self,
        *,
        store: _Store,
        plans: ToldPlans,
        find_certificate: Callable[[str], Awaitable[CertificateRecord | None]],
        hashes: Callable[[], tuple[str, str, str]],
        count_displacement: CountDisplacement,
        repeats: EventRecorder,
        clock: Clock,
        meter: Meter,
        rng: random.Random,
        trail: AuditTrail,
        settings: StreamSettings | None = None,
        activations: Activations | None = None,
    ) -> None:
        """No stream yet.

        Args:
            store: Where reports are kept.
            plans: Where the plans are read when a host comes.
            find_certificate: Reads a certificate by its id: a host may hold a revoked one.
            hashes: Of the policy and the agent CA bundle in force, and the retry epoch.
            count_displacement: Notes that a stream has displaced another one of the same certificate.
            repeats: Audits what hosts report again and again.
            clock: The time.
            meter: Counts.
            rng: For nonces and waiting times.
            trail: Makes audit events.
            settings: The limits.
            activations: Where it is read which of the certificates that hosts hold were released; None: none ever was.
        """
        settings = settings or StreamSettings()
        self.watchers = Watchers(settings.watchers, meter)
        self.registry = StreamRegistry(meter)
        self._teller = PlanTeller(
            store=store,
            plans=plans,
            activations=activations or NoActivations(),
            find_certificate=find_certificate,
            tell=self._tell,
            clock=clock,
            rng=rng,
        )
        self._recorder = Recorder(
            store=store,
            repeats=repeats,
            watchers=self.watchers,
            clock=clock,
            meter=meter,
            trail=trail,
            held=self._teller.tell_activations_soon,
        )
        self.context = StreamContext(
            self._recorder, InForceHashes(hashes()), settings, clock, meter, rng, Rarely(clock)
        )
        self.supervision = StreamSupervision(
            registry=self.registry, teller=self._teller, hashes=hashes, context=self.context
        )
        self.displacement = Displacement(store, self.registry, self.context, count_displacement)
        self._clock = clock
        self._meter = meter
        self._draining = False
        self._beside: list[OtherStreams] = []
        self._away = ""
        """Why hosts are sent to other brokers; empty if they aren't."""

    def now(self) -> datetime:
        """The broker's time."""
        return self._clock.now()

    def plans_changed(self, plans: Iterable[RenewalPlan]) -> None:
        """Tell the hosts of durable plans, those that have a stream; the others are told when they come."""
        for plan in plans:
            stream = self.registry.place_of(plan.host)
            if stream is not None and not self._teller.refuses(plan):
                stream.session.want((plan,))
                stream.wake()

    def plans_unknown(self) -> None:
        """Plans may have changed unheard: tell each host what it doesn't know of them."""
        for stream in self.registry:
            if stream.session.connect_time is not None:
                self._teller.tell_soon(stream.host)

    def identities_wanted(self, hosts: Iterable[str]) -> None:
        """An operator wants the identities of these hosts renewed: tell those that have a stream."""
        for host in hosts:
            if host in self.registry:
                self._teller.tell_soon(host)

    def activations_wanted(self, hosts: Iterable[str]) -> None:
        """What these hosts hold was released or abandoned, and that is durable: tell those that have a stream."""
        for host in hosts:
            if host in self.registry:
                self._teller.tell_activations_soon(host)

    def was_elsewhere(self, host: str) -> None:
        """A host has come to another broker, has left it, or has answered it: nobody here knows what it refuses now."""
        self._teller.forget(host)
        self.watchers.host_elsewhere(host, self._clock.now())

    def may_have_been_elsewhere(self) -> None:
        """Any host may have come to another broker unheard."""
        self._teller.forget_all()

    def certificate_revoked(self, certificate: CertificateRecord) -> None:
        """Tell its holder to renew now, and watchers that it is in use, as long as it is."""
        plan = revoked_plan(certificate)
        if plan is not None:
            self.plans_changed([plan])
            reason = certificate.revocation_reason or ""
            revoked = RevokedCertificate(certificate.identity, certificate.serial_number, plan.renew_time, reason)
            self.watchers.certificate_revoked(revoked, self._clock.now())

    def accompany(self, streams: OtherStreams) -> None:
        """Have `streams` sent away, taken again and ended whenever the hosts' are."""
        self._beside.append(streams)

    # What streams do.

    def attach(self, caller: Caller, request_id: str, write: Callable[[Outgoing], Awaitable[None]]) -> ServedStream:
        """A stream begins; the calling task is what serves it, `write` sends a message.

        Raises:
            RefusalError: DRAINING.
        """
        if self._draining or self._away:
            raise draining()
        stream = ServedStream(caller, request_id, write, self.context)
        self.registry.add(stream)
        return stream

    async def hello(self, stream: ServedStream, hello: Hello) -> None:
        """Hear the first message, and answer it when all that it says is durable.

        Raises:
            RefusalError: REQUEST_INVALID, it isn't the first; STORE_UNAVAILABLE or AUDIT_UNAVAILABLE.
        """
        stream.hear()
        now = self._clock.now()
        stream.session.hello(hello, now)
        recorded = await stream.record_hello(hello)
        old = self.registry.take_place(stream)
        if old is not None:
            self.displacement.displace(old, stream.caller.serial_number, stream.caller.source_ip)
        interval, hashes = self.context.settings.heartbeat_interval, self.context.hashes
        stream.session.welcome(Welcome(self._clock.now(), recorded, interval, *hashes.told))
        if self._draining or self._away:
            stream.session.say_goodbye(self._goodbye())
        stream.wake()
        self._teller.tell_soon(stream.host)
        self.watchers.host_came(stream.host, now)

    async def report(self, stream: ServedStream, report: Report) -> None:
        """Take a report; waits while too many are not durable yet.

        Raises:
            RefusalError: REQUEST_INVALID; the store's, when it fails and no more can be kept.
        """
        stream.hear()
        if not stream.session.report(report):
            self._meter.count(metrics.REPORTS, result="repeated")
            stream.wake()
        await stream.record_pending()

    def answer(self, stream: ServedStream, result: DirectiveResult) -> None:
        """Take the answer to a directive.

        Raises:
            RefusalError: REQUEST_INVALID, before hello, or too many answered nothing.
        """
        stream.hear()
        session, host = stream.session, stream.host
        directive = session.answer(result)
        if directive is None:
            self._meter.count(metrics.STREAM_MISUSES)
            if session.misuses > self.context.settings.misuses:
                problem = "repeatedly answers directives that this stream has not sent"
                raise invalid("directive_result.nonce", problem)
            return
        waited = timedelta(seconds=self._clock.monotonic() - session.asked_time)
        self._meter.observe(metrics.DIRECTIVE_SECONDS, waited)
        self._meter.count(metrics.DIRECTIVES, result="taken" if result.error is None else "refused")
        if result.error is not None:
            self._teller.note_refused(host, directive, result.error.reason)
            fields = {"host": host, "reason": result.error.reason, "text": result.error.message}
            self.context.log(logging.WARNING, "a host has refused a directive", fields)
            session.note_refusal(stands=True)
            self._recorder.note_directive_error(host, result.error, stream.stream_epoch)
        elif self._teller.take_back(host):
            session.note_refusal(stands=False)
            self._recorder.note_directive_error(host, None, stream.stream_epoch)
        elif directive.renewals and session.refusal_may_stand:
            # One of an earlier stream may stand. Not now: a fleet that answers at once is heard first.
            session.note_refusal(stands=False)
            self._teller.take_back_earlier(host, stream.stream_epoch)
        if directive.renewals or result.error is not None:
            self.watchers.host_changed(host, self._clock.now())
        stream.wake()

    def heartbeat(self, stream: ServedStream, host_time: datetime) -> None:
        """Hear that the host is there.

        Raises:
            RefusalError: REQUEST_INVALID, before hello.
        """
        stream.hear()
        stream.session.heartbeat(host_time, self._clock.now())
        stream.wake()

    def detach(self, stream: ServedStream) -> None:
        """The stream has ended, however it did."""
        stream.close()
        if self.registry.remove(stream):
            stream.record_end()
            self.watchers.host_left(stream.host, self._clock.now())

    def send_away(self, why: str) -> None:
        """Say goodbye to every host, each with another time to come back, and take no stream until `stay`."""
        self._away = why
        for streams in self._beside:
            streams.send_away(why)
        for stream in self.registry:
            if stream.session.connect_time is None:
                stream.end(draining())
            else:
                stream.session.say_goodbye(self._goodbye())
                stream.wake()

    def stay(self) -> None:
        """Take streams again."""
        self._away = ""
        for streams in self._beside:
            streams.stay()

    # The end.

    @property
    def stopping(self) -> bool:
        """Whether the broker is about to end: whoever follows something goes elsewhere."""
        return self._draining

    async def drain(self) -> None:
        """Say goodbye to every host, each with another time to come back, and wait until the streams have ended.

        Who doesn't hang up and doesn't read within some seconds is cut off by the server's stop.
        """
        self._draining = True
        self.supervision.record_taken_back()
        self.watchers.close()
        self.send_away("the broker is shutting down")
        async with asyncio.TaskGroup() as group:
            for streams in self._beside:
                group.create_task(streams.drain(), name="drain-beside")
            deadline = self._clock.monotonic() + LAST_WORDS.total_seconds()
            while any(self.registry) and self._clock.monotonic() < deadline:
                await self._clock.sleep(_POLL)
            await self._recorder.finish(deadline)

    def _goodbye(self) -> Goodbye:
        return self.context.goodbye(len(self.registry), self._away)

    def _tell(self, host: str, plans: list[RenewalPlan], activations: list[HostActivation]) -> None:
        """Tell a host what was read some moments ago: plans that have changed since are newer."""
        stream = self.registry.place_of(host)
        if stream is not None:
            stream.session.want(plans, older=True)
            stream.session.activate(activations)
            stream.wake()
