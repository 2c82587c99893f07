"""The streams of all hosts: who is connected, what they report, what they are told, and when a stream ends.

    attach -> hello -> report, answer, heartbeat ... -> detach

What one stream says and is told is `session`'s; here it is made durable and sent. A quiet stream costs a `HostSession`
and no task of ours: tasks write reports (`_flush`) and messages (`_pump`) while there are some, and one task looks at
all streams every second (`run`): who is silent, who doesn't answer, who doesn't read, whether policy or trust changed.

Rules it keeps:

- Nothing is acknowledged before the store has it. While the store fails, reports wait in bounded number and are tried
  again; a host that has more to say is then sent away with the store's refusal, and keeps what wasn't acknowledged.
- One stream a host: the one that said hello last. The other one ends with STREAM_DISPLACED.
- What is wanted of a host is computed from durable state: plans when they change, or when the host comes.
- Hosts say who they are by their certificate alone; nothing in a message names another host.
- A fault of ours that one host brings out ends the stream of that host, and is logged: all others are looked after.

For the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from certplane.broker import metrics
from certplane.broker.fleet.events import report_events
from certplane.broker.fleet.greeting import Greeter
from certplane.broker.fleet.knowledge import revoked_plan
from certplane.broker.fleet.messages import DirectiveResult, Goodbye, Hello, Outgoing, Welcome
from certplane.broker.fleet.model import HostStream
from certplane.broker.fleet.ports import FleetFigures, FleetStore
from certplane.broker.fleet.session import HostSession, InForceHashes
from certplane.broker.fleet.settings import StreamSettings
from certplane.broker.fleet.watching import Watcher, Watchers
from certplane.broker.model import Caller, CertificateRecord
from certplane.broker.ports import EventRecorder, Meter
from certplane.broker.renewal.model import RenewalPlan
from certplane.broker.renewal.ports import RenewalPlanStore
from certplane.errors import Reason, RefusalError, Violation
from certplane.fleet_report.model import CertificateState, Report
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.rarely import Rarely

_logger = logging.getLogger("certplane.broker.fleet")

_RETRY: Final = Backoff(timedelta(seconds=1), timedelta(seconds=30))
"""Between tries at what the store refuses, or a fault of ours has ended."""
_SLICE: Final = 512
"""Streams that are looked at before others get their turn: about a millisecond."""
_AT_ONCE: Final = 64
"""Reports of a hello that are made durable together: all others that wait for the store wait for them."""
_COME_BACK: Final = timedelta(seconds=10)
_LAST_WORDS: Final = timedelta(seconds=5)
"""What streams get to make durable and say what is left, when the broker stops or the host hangs up."""


class _Store(FleetStore, FleetFigures, Protocol):
    pass


class FleetHub:
    """All streams of one broker."""

    def __init__(
        self,
        *,
        store: _Store,
        plans: RenewalPlanStore,
        find_certificate: Callable[[str], Awaitable[CertificateRecord | None]],
        hashes: Callable[[], tuple[str, str, str]],
        count_displacement: Callable[[str, datetime], Awaitable[None]],
        repeats: EventRecorder,
        clock: Clock,
        meter: Meter,
        rng: random.Random,
        new_event_id: Callable[[], str],
        settings: StreamSettings | None = None,
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
            new_event_id: For audit events.
            settings: The limits.
        """
        self._store = store
        self._repeats = repeats
        self._greeter = Greeter(
            store=store, plans=plans, find_certificate=find_certificate, tell=self._tell, clock=clock, rng=rng
        )
        self._read_hashes = hashes
        self._hashes = InForceHashes(*hashes())
        self._count_displacement = count_displacement
        self._clock = clock
        self._meter = meter
        self._rng = rng
        self._new_event_id = new_event_id
        self.settings = settings or StreamSettings()
        self._lines = Rarely(clock)
        self.watchers = Watchers()
        self._sessions: dict[str, HostSession] = {}
        self._attached: set[HostSession] = set()
        self._taken_back: list[str] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._draining = False
        self._recording = True
        """Whether what was last recorded of a stream could be."""
        meter.level(metrics.STREAMS, 0)

    # What others ask and tell.

    def session(self, host: str) -> HostSession | None:
        """The stream of a host; None if it has none here."""
        return self._sessions.get(host)

    def connected(self, hosts: Iterable[str]) -> int:
        """How many of the hosts have a stream here."""
        return sum(host in self._sessions for host in hosts)

    @property
    def streams(self) -> int:
        """How many hosts have a stream here."""
        return len(self._sessions)

    def plans_changed(self, plans: Iterable[RenewalPlan]) -> None:
        """Tell the hosts of durable plans, those that have a stream; the others are told when they come."""
        for plan in plans:
            session = self._sessions.get(plan.host)
            if session is not None and not self._greeter.refuses(plan):
                session.want((plan,))
                self._wake(session)

    def certificate_revoked(self, certificate: CertificateRecord) -> None:
        """Tell its holder to renew now, and those who watch that it is in use, as long as it is."""
        plan = revoked_plan(certificate)
        if plan is not None:
            self.plans_changed([plan])
            self.watchers.host_changed(certificate.identity, self._clock.now())

    def now(self) -> datetime:
        """The broker's time."""
        return self._clock.now()

    @contextmanager
    def watching(self, wanted: Callable[[str], bool]) -> Iterator[Watcher]:
        """A watcher of the hosts that `wanted` says yes to, for the length of the block.

        Raises:
            RefusalError: RATE_LIMITED, there are many already; DRAINING.
        """
        if self._draining:
            raise _drained()
        if len(self.watchers) >= self.settings.watchers:
            violation = Violation("renewal_watchers", f"{self.settings.watchers} at once")
            message = "too many watch the fleet; end another one's watch first"
            raise RefusalError(Reason.RATE_LIMITED, message, violations=[violation])
        watcher = self.watchers.add(wanted)
        self._meter.level(metrics.WATCHERS, len(self.watchers))
        try:
            yield watcher
        finally:
            self.watchers.remove(watcher)
            self._meter.level(metrics.WATCHERS, len(self.watchers))

    # What streams do.

    def attach(self, caller: Caller, request_id: str, write: Callable[[Outgoing], Awaitable[None]]) -> HostSession:
        """A stream begins; the calling task is what serves it.

        Raises:
            RefusalError: DRAINING.
        """
        if self._draining:
            raise RefusalError(
                Reason.DRAINING, "the broker is shutting down; come back shortly", retry_after=_COME_BACK
            )
        now = self._clock.monotonic()
        session = HostSession(caller, request_id, write, task=asyncio.current_task(), now=now)
        self._attached.add(session)
        return session

    async def hello(self, session: HostSession, hello: Hello) -> None:
        """Hear the first message, and answer it when all that it says is durable.

        Raises:
            RefusalError: REQUEST_INVALID, it isn't the first; STORE_UNAVAILABLE or AUDIT_UNAVAILABLE.
        """
        self._hear(session)
        if session.connect_time is not None:
            raise _invalid("hello", "was said already: it is the first message of a stream, and only the first")
        now = self._clock.now()
        session.agent_version, session.epoch = hello.agent_version, hello.epoch
        session.names = frozenset(hello.certificate_names)
        session.clock_skew = hello.host_time - now
        session.connect_time = now
        reports = sorted(hello.reports, key=lambda report: report.sequence)
        first, stream = reports[:_AT_ONCE], session.stream(now)
        recorded = await self._record(session, first, names=hello.certificate_names, stream=stream)
        for start in range(_AT_ONCE, len(reports), _AT_ONCE):
            recorded = await self._record(session, reports[start : start + _AT_ONCE])
        self._displace(session)
        self._sessions[session.host] = session
        self._meter.level(metrics.STREAMS, len(self._sessions))
        session.welcome(
            Welcome(
                self._clock.now(),
                recorded,
                self.settings.heartbeat_interval,
                self._hashes.policy,
                self._hashes.trust,
                self._hashes.retry_epoch,
            )
        )
        if self._draining:
            session.say_goodbye(Goodbye(self._reconnect_delay(), "the broker stops"))
        self._wake(session)
        self._greeter.greet(session.host)
        self.watchers.host_changed(session.host, now)

    async def report(self, session: HostSession, report: Report) -> None:
        """Take a report; waits while too many are not durable yet.

        Raises:
            RefusalError: REQUEST_INVALID; the store's, when it fails and no more can be kept.
        """
        self._hear(session)
        _check_welcomed(session)
        if report.certificate.name not in session.names:
            problem = "isn't one of hello's certificate_names; say hello again when the host has another certificate"
            raise _invalid("report.certificate.name", problem)
        if session.take([report]):
            self._meter.count(metrics.REPORTS, result="repeated")
            self._wake(session)
        if session.pending and session.flushing is None:
            session.flushing = self._start(self._flush(session), "fleet-reports")
        if session.pending and len(session.pending) >= self.settings.backlog:
            session.room = asyncio.get_running_loop().create_future()
            await session.room

    def answer(self, session: HostSession, result: DirectiveResult) -> None:
        """Take the answer to a directive.

        Raises:
            RefusalError: REQUEST_INVALID, too many answered nothing.
        """
        self._hear(session)
        _check_welcomed(session)
        directive = session.answer(result)
        if directive is None:
            self._meter.count(metrics.STREAM_MISUSES)
            if session.misuses > self.settings.misuses:
                problem = "answers no directive of this stream, again and again"
                raise _invalid("directive_result.nonce", problem)
            return
        now = self._clock.monotonic()
        self._meter.observe(metrics.DIRECTIVE_SECONDS, timedelta(seconds=now - session.asked_time))
        self._meter.count(metrics.DIRECTIVES, result="taken" if result.error is None else "refused")
        if result.error is not None:
            self._greeter.note_refused(session.host, directive, result.error.reason)
            fields = {"host": session.host, "reason": result.error.reason, "text": result.error.message}
            self._log(logging.WARNING, "a host has refused a directive", fields)
            session.refusal_may_stand = True
            self._do(self._store.record_directive_error(session.host, result.error))
        elif self._greeter.take_back(session.host):
            session.refusal_may_stand = False
            self._do(self._store.record_directive_error(session.host, None))
        elif directive.renewals and session.refusal_may_stand:
            # One of another stream may stand. Not now: a fleet that answers at once is heard first.
            session.refusal_may_stand = False
            self._taken_back.append(session.host)
        if directive.renewals or result.error is not None:
            self.watchers.host_changed(session.host, self._clock.now())
        self._wake(session)

    def heartbeat(self, session: HostSession, host_time: datetime) -> None:
        """Hear that the host is there.

        Raises:
            RefusalError: REQUEST_INVALID, before hello.
        """
        self._hear(session)
        _check_welcomed(session)
        now = self._clock.now()
        session.clock_skew = host_time - now
        session.heartbeat(now)
        self._wake(session)

    async def settle(self, session: HostSession) -> None:
        """The host has hung up: what it said is made durable, and what is left is said, as far as that goes quickly."""
        deadline = self._clock.monotonic() + _LAST_WORDS.total_seconds()
        while (
            busy := {task for task in (session.flushing, session.pumping) if task is not None}
        ) and not session.ended:
            left = deadline - self._clock.monotonic()
            if left <= 0:
                return
            await asyncio.wait(busy, timeout=left)

    def detach(self, session: HostSession) -> None:
        """The stream has ended, however it did. What was taken of it is still made durable."""
        self._attached.discard(session)
        session.ended = True
        session.task = None
        session.make_room()  # a message that is going out goes on: a call whose message is cut off can't be refused
        if self._sessions.get(session.host) is session:
            del self._sessions[session.host]
            self._meter.level(metrics.STREAMS, len(self._sessions))
            now = self._clock.now()
            silent = timedelta(seconds=self._clock.monotonic() - session.heard_time)
            self._do(self._store.record_stream(session.stream(now - silent, end_time=now)))
            self.watchers.host_changed(session.host, now)

    # The broker's own rhythm.

    async def run(self) -> None:
        """Look after the streams until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._look_at_all, self._greeter.run, self._count_states):
                group.create_task(self._keep_up(work), name=f"fleet-{work.__name__.strip('_')}")

    async def _keep_up(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what never ends, and begin it again after a fault of ours."""
        failures, said = 0, ""
        while True:
            try:
                await work()
            except Exception as error:
                if repr(error) != said:
                    _logger.exception("the hosts' streams can't be looked after, and soon are again")
                said = repr(error)
            failures += 1
            await self._clock.sleep(_RETRY.wait(failures, self._rng))

    async def drain(self, reason: str = "the broker stops") -> None:
        """Say goodbye to every host, each with another time to come back, and wait until the streams have ended.

        Who doesn't hang up and doesn't read within some seconds is cut off by the server's stop.
        """
        self._draining = True
        self._record_taken_back()
        self.watchers.close()
        for session in list(self._attached):
            if session.connect_time is None:
                session.end(_drained())
            else:
                session.say_goodbye(Goodbye(self._reconnect_delay(), reason))
                self._wake(session)
        deadline = self._clock.monotonic() + _LAST_WORDS.total_seconds()
        while self._attached and self._clock.monotonic() < deadline:
            await self._clock.sleep(timedelta(milliseconds=20))
        while self._chores and self._clock.monotonic() < deadline:
            await asyncio.wait(self._chores, timeout=max(0.0, deadline - self._clock.monotonic()))

    async def _look_at_all(self) -> None:
        while True:
            await self._clock.sleep(self.settings.tick)
            self._record_taken_back()
            self._greeter.greet_postponed(self._sessions)
            changed = self._take_hashes()
            for index, session in enumerate(list(self._attached)):
                if index % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                try:
                    self._look_at(session)
                except Exception:
                    _logger.exception("a host's stream can't be looked at", extra={"fields": {"host": session.host}})
                    self._end(session, _fault())
                if changed:
                    self._wake(session)

    async def _count_states(self) -> None:
        counted = True
        while True:
            try:
                counts = await self._store.count_states()
            except RefusalError as error:
                if counted:
                    _logger.warning("the states of certificates could not be counted: %s", error)
                counted = False
            else:
                counted = True
                for state in CertificateState:
                    self._meter.level(metrics.CERTIFICATES, counts.get(state, 0), state=state.value)
            await self._clock.sleep(self.settings.figures_interval)

    def _take_hashes(self) -> bool:
        """Whether policy, trust or the retry epoch is another now."""
        hashes = self._read_hashes()
        changed = hashes != self._hashes.told
        self._hashes.policy, self._hashes.trust, self._hashes.retry_epoch = hashes
        return changed

    def _look_at(self, session: HostSession) -> None:
        """End a stream that is past one of its limits; record now and then that the host is there."""
        settings, now = self.settings, self._clock.monotonic()
        silent = now - session.heard_time
        if session.connect_time is None:
            if silent > settings.hello_timeout.total_seconds():
                self._end(session, _invalid("hello", f"did not come within {settings.hello_timeout.seconds} s"))
        elif session.writing_time and now - session.writing_time > settings.write_timeout.total_seconds():
            self._end(session, _timed_out("the host doesn't read its stream"))
        elif silent > settings.silence.total_seconds():
            self._end(session, _timed_out("the host has said nothing for three heartbeats"))
        elif session.unanswered is not None and now - session.asked_time > settings.silence.total_seconds():
            self._end(session, _timed_out("the host doesn't answer a directive"))
        elif now - session.recorded_time > settings.seen_interval.total_seconds():
            session.recorded_time = now
            seen = self._clock.now() - timedelta(seconds=silent)
            self._do(self._store.record_stream(session.stream(seen)))

    def _tell(self, host: str, plans: list[RenewalPlan]) -> None:
        """Tell a host plans that were read some moments ago: what has changed since is newer."""
        session = self._sessions.get(host)
        if session is not None:
            session.want([plan for plan in plans if not session.wanted or plan.certificate_id not in session.wanted])
            self._wake(session)

    def _record_taken_back(self) -> None:
        hosts, self._taken_back = self._taken_back, []
        for host in hosts:
            if not self._greeter.has_refused(host):  # it may have refused another one meanwhile
                self._do(self._store.record_directive_error(host, None))

    # Writing and sending.

    async def _record(
        self,
        session: HostSession,
        reports: list[Report],
        *,
        names: tuple[str, ...] | None = None,
        stream: HostStream | None = None,
    ) -> int:
        """Make reports durable, and tell watchers; the last durable sequence."""
        now = self._clock.now()
        told = report_events(session.caller, session.request_id, reports, now, self._new_event_id)
        first = {number: one.event for number, one in told.items() if self._repeats.begin(one.kind, one.event)}
        telling: Collection[int] = ()
        try:
            recorded = await self._store.record_reports(
                session.host, session.epoch, reports, first, names=names, stream=stream
            )
            telling = recorded.telling
        finally:
            for number in first.keys() - set(telling):
                self._repeats.withdraw(told[number].kind, told[number].event)
        repeated = [told[sequence] for sequence in recorded.telling if sequence not in first]
        await asyncio.gather(*(self._repeats.record(one.kind, [one.event]) for one in repeated))
        for report in recorded.new:
            self._meter.count(metrics.REPORTS, result="durable")
            self.watchers.certificate_changed(session.host, report.certificate, now)
        for name in recorded.forgotten:
            self.watchers.certificate_removed(session.host, name, now)
        return recorded.acknowledged_sequence

    async def _flush(self, session: HostSession) -> None:
        """Make what was taken durable, and acknowledge it; ends when nothing is left."""
        failures = 0
        try:
            while reports := session.pending:
                try:
                    sequence = await self._record(session, list(reports))
                except RefusalError as error:
                    self._meter.count(metrics.REPORTS, result="failed")
                    failures += 1
                    if session.ended or len(reports) >= self.settings.backlog:
                        self._end(session, error)
                        return
                    await self._clock.sleep(_RETRY.wait(failures, self._rng))
                    continue
                except Exception:
                    # Taken, never durable: the host keeps it, and says it again on its next stream.
                    _logger.exception("reports can't be recorded", extra={"fields": {"host": session.host}})
                    self._meter.count(metrics.REPORTS, result="failed")
                    self._end(session, _fault())
                    return
                failures = 0
                left = [report for report in reports if report.sequence > sequence]
                session.pending = left or None
                session.made_durable(sequence)
                session.make_room()
                self._wake(session)
        finally:
            session.flushing = None
            session.make_room()
            self._wake(session)

    def _wake(self, session: HostSession) -> None:
        """See that what is to be said is said."""
        if session.pumping is None and not session.ended and session.has_to_say(self._hashes):
            session.pumping = asyncio.create_task(self._pump(session), name="fleet-send")

    async def _pump(self, session: HostSession) -> None:
        try:
            while (message := session.next_message(self._clock.monotonic(), self._hashes, self._nonce)) is not None:
                session.writing_time = self._clock.monotonic()
                await session.write(message)
                session.writing_time = 0.0
                if session.ended:
                    return
                if message is session.unanswered:
                    self._meter.count(metrics.DIRECTIVES, result="sent")
                if isinstance(message, Goodbye):
                    session.end(None)
                    return
        except RefusalError as error:
            self._end(session, error)
        except Exception:  # noqa: BLE001 - logged with its traceback, below
            # Mostly the connection has gone: what serves the stream learns of it too.
            if not session.ended:
                fields = {"host": session.host}
                self._log(logging.INFO, "a message could not be sent to a host", fields, exc_info=True)
            session.end(None)
        finally:
            session.pumping = None

    def _displace(self, session: HostSession) -> None:
        old = self._sessions.get(session.host)
        if old is None or old is session:
            return
        message = "another stream of this identity has taken the place of this one; each identity has one host"
        self._end(old, RefusalError(Reason.STREAM_DISPLACED, message))
        if old.caller.serial_number == session.caller.serial_number:
            self._do(self._count_displacement(session.host, self._clock.now()))
        fields = {
            "host": session.host,
            "serial_number": session.caller.serial_number,
            "source_ip": session.caller.source_ip,
            "displaced_serial_number": old.caller.serial_number,
            "displaced_source_ip": old.caller.source_ip,
        }
        self._log(logging.INFO, "a host's stream has displaced another one", fields)

    # Small things.

    def _log(self, level: int, what: str, fields: dict[str, Any], *, exc_info: bool = False) -> None:
        """A line about `fields`' host, unless it has brought out many of them: then one a minute, with their number."""
        passed_over = self._lines.take((fields["host"], what))
        if passed_over is None:
            return
        if passed_over:
            fields["passed_over"] = passed_over
        _logger.log(level, what, exc_info=exc_info, extra={"fields": fields})

    def _hear(self, session: HostSession) -> None:
        session.heard_time = self._clock.monotonic()

    def _end(self, session: HostSession, error: RefusalError) -> None:
        if not session.ended:
            self._meter.count(metrics.STREAMS_ENDED, reason=error.refusal.reason.value)
            session.end(error)
            session.make_room()

    def _nonce(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"

    def _reconnect_delay(self) -> timedelta:
        """A time to come back, so that no more come at once than the broker can take."""
        spread = max(1.0, len(self._sessions) / self.settings.reconnects)
        return timedelta(seconds=1 + spread * self._rng.random())

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._chores.add(task)
        task.add_done_callback(self._done)
        return task

    def _do(self, work: Awaitable[None]) -> None:
        """Have something recorded that nobody waits for."""

        async def run() -> None:
            try:
                await work
            except RefusalError as error:
                if self._recording:  # a store that is down is said once, not for each of ten thousand hosts
                    _logger.warning("what a host's stream was could not be recorded: %s", error)
                self._recording = False
            else:
                self._recording = True

        self._start(run(), "fleet-record")

    def _done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            _logger.error("a host's stream could not be served", exc_info=error)


def _check_welcomed(session: HostSession) -> None:
    if session.connect_time is None:
        raise _invalid("hello", "is required: it is the first message of a stream")


def _invalid(field: str, problem: str) -> RefusalError:
    return RefusalError(Reason.REQUEST_INVALID, f"{field} {problem}", violations=[Violation(field, problem)])


def _fault() -> RefusalError:
    return RefusalError(Reason.INTERNAL, "the broker failed at this stream; its log says more")


def _timed_out(message: str) -> RefusalError:
    return RefusalError(Reason.STREAM_TIMED_OUT, message)


def _drained() -> RefusalError:
    return RefusalError(Reason.DRAINING, "the broker is shutting down; come back shortly", retry_after=_COME_BACK)
