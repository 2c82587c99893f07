"""The status stream of this host, kept open: one at a time, on the channel of the identity in use.

Where there are several brokers, one that is unwell or says goodbye is left for another within seconds (a goodbye's time
to come back holds for who said it), and the waits that follow come once each of them has failed.

A stream that ends is opened again after a wait of its own, apart from the channel's (which has half a second to half a
minute between its tries to connect, and is waited for here without end): full jitter from a second to a minute, longer
where the broker says no, and what the broker says (`RetryInfo`, goodbye) where it says more. The count of failures is
forgotten once a stream has lasted a minute. A broker of an older release has no such call: it is asked once an hour,
quietly, and everything else goes on.

A new identity is a new channel: the next stream says hello on it while the one before goes on, and that one ends when
its successor is welcome. Reports are kept until they are acknowledged, so it doesn't matter which of the two takes
them.

It owns no certificate's life: with the broker away, all of them go on by their own plans.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final, Protocol

import grpc

from certplane.agent.link.ending import StreamEnd
from certplane.agent.link.open_stream import OpenStream, StreamParts
from certplane.agent.link.state import LinkPhase, LinkState
from certplane.agent.renewal.failures import FailureKind, kind_of
from certplane.errors import CertplaneError, Reason
from certplane.rpc.failures import is_cancelled
from certplane.runtime.backoff import Backoff
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2_grpc

_STABLE: Final = timedelta(minutes=1)
_SOON: Final = Backoff(first=timedelta(seconds=1), most=timedelta(minutes=1))
_LATER: Final = Backoff(first=timedelta(minutes=1), most=timedelta(minutes=30), floor=timedelta(seconds=10))
"""Where somebody has to change something first: the identity, the policy, a limit."""
_SPREAD: Final = timedelta(seconds=1), timedelta(seconds=10)
"""Within which the hosts of one broker go to others: drawn up to what its goodbye said, between these."""
_HOURLY: Final = Backoff(first=timedelta(minutes=75), most=timedelta(minutes=75), floor=timedelta(minutes=45))
_MOST_WAIT: Final = timedelta(days=1)
"""Whatever the broker says."""
_CAUTION: Final = timedelta(seconds=2)
"""More than the way to the broker and back: its refusal is here by then."""
_MOST_VERSION: Final = 64
_DELIVERY: Final = timedelta(seconds=10)
"""For a program that ends, to be rid of its reports."""
_LISTENING: Final = timedelta(seconds=1)
"""For a broker to say to a host that came what it wants of it: it reads some rows for that."""

logger = logging.getLogger(__name__)


class ChannelSource(Protocol):
    """Where the channel comes from: `GrpcBroker`."""

    @property
    def channel(self) -> grpc.aio.Channel:
        """The one of the identity and the broker in use."""
        ...

    @property
    def url(self) -> str:
        """The broker that `channel` goes to."""
        ...

    @property
    def several(self) -> bool:
        """Whether there are others."""
        ...

    async def leave(self, channel: grpc.aio.Channel, hold: timedelta, *, reconnect: bool = False) -> bool:
        """Use another broker than that of `channel` for as long as `hold`; whether that is to be tried at once.

        Args:
            channel: The one that failed.
            hold: How long.
            reconnect: Make a new connection even if there is no other broker.
        """
        ...

    def answered(self, url: str) -> None:
        """The broker at `url` is well."""
        ...

    async def why_unreachable(self, said: str) -> CertplaneError:
        """Why no connection comes about; takes a few seconds."""
        ...


@dataclass
class _Attempt:
    """One stream: `stream` from when the channel is connected."""

    task: asyncio.Task[StreamEnd] = field(init=False)
    channel: grpc.aio.Channel
    url: str
    stream: OpenStream | None = None
    welcome: bool = False
    began: float = 0.0


def reopening_wait(end: StreamEnd, failures: int, draw: Callable[[Backoff, int], timedelta]) -> timedelta:
    """How long after a stream's end the next is opened.

    Args:
        end: how it ended.
        failures: streams in a row that didn't last, this one included.
        draw: a wait of a back-off after so many failures.
    """
    told = min(end.retry_after, _MOST_WAIT) if end.retry_after is not None else timedelta()
    if end.goodbye:
        return told if end.retry_after is not None else draw(_SOON, failures)
    if end.refusal is None:
        return draw(_HOURLY if end.code is grpc.StatusCode.UNIMPLEMENTED else _SOON, failures)
    soon = kind_of(end.refusal.reason) is FailureKind.UNREACHABLE
    return max(told, draw(_SOON if soon else _LATER, failures))


class StatusStream:
    """Keeps the stream. On the event loop; `run` or `deliver`, once.

    Args:
        channels: the channel in use.
        parts: what streams work with.
        patience: for a connection, and then for the answer to hello.
        state: what was known of the link at the end of the last program.
        save: keeps what is known of it now.
    """

    def __init__(
        self,
        channels: ChannelSource,
        parts: StreamParts,
        *,
        patience: timedelta,
        state: LinkState | None = None,
        save: Callable[[LinkState], Awaitable[None]],
    ) -> None:
        self._channels = channels
        self._parts = parts
        self._patience = patience
        self._state = replace(state or LinkState(), phase=LinkPhase.IDLE)
        self._save = save
        self._saving: asyncio.Task[None] | None = None
        self._failures = 0
        self._rotated = asyncio.Event()
        self._delivered, self._directed = asyncio.Event(), asyncio.Event()
        self._explained = ""
        self._lost = False
        self._attempts: list[_Attempt] = []
        self._watcher: Callable[[LinkState], None] | None = None

    @property
    def state(self) -> LinkState:
        """How the link is."""
        return self._state

    def note(self, state: LinkState) -> None:
        """Show another state; it is saved soon."""
        if state != self._state:
            self._state = state
            if self._watcher is not None:
                self._watcher(state)
            if self._saving is None or self._saving.done():
                self._saving = asyncio.create_task(self._save_on())

    def watch(self, watcher: Callable[[LinkState], None]) -> None:
        """Tell `watcher` how the link is, now and after each change."""
        self._watcher = watcher
        watcher(self._state)

    def report(self) -> None:
        """There are new reports."""
        for attempt in self._attempts:
            if attempt.stream is not None:
                attempt.stream.report()

    def channel_changed(self) -> None:
        """Another channel is in use: speak there."""
        self._rotated.set()

    async def run(self) -> None:
        """Keep a stream open until cancelled. Nothing is raised but that."""
        try:
            while True:
                self._rotated.clear()
                attempt = self._begin()
                if await self._first(attempt.task, self._rotated.wait()):
                    waiting = asyncio.ensure_future(self._wait(attempt, await _outcome(attempt)))
                    if await self._first(waiting, self._rotated.wait()) and (fault := waiting.exception()) is not None:
                        logger.error(
                            "handling the end of the status stream failed; reconnecting in a minute", exc_info=fault
                        )
                        waiting = asyncio.ensure_future(self._parts.clock.sleep(_STABLE))
                        await self._first(waiting, self._rotated.wait())
                    waiting.cancel()
                elif not attempt.welcome:
                    attempt.task.cancel()
        finally:
            await self._end_all()

    async def deliver(self, *, listen: bool = False) -> None:
        """Speak until all reports are acknowledged, or for ten seconds; not at all where no call came through.

        Args:
            listen: speak also where no report waits, and give the broker a second to say what it wants of this host.
        """
        if not self._parts.spool.unacknowledged and not listen:
            return
        if self._channels.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return  # the calls before have shown it
        self._delivered.clear()
        attempt = self._begin()
        try:
            limit = asyncio.ensure_future(self._parts.clock.sleep(_DELIVERY))
            ended = await self._first(attempt.task, self._delivered.wait(), limit)
            if listen and not ended and self._delivered.is_set():
                ended = await self._first(attempt.task, self._directed.wait(), self._parts.clock.sleep(_LISTENING))
            if ended:
                end = await _outcome(attempt)
                logger.info("not all reports reached the broker: %s", end.text)
                self.note(replace(self._state, last_error=end.text))
        finally:
            self.note(replace(self._state, phase=LinkPhase.IDLE, since=self._parts.clock.now()))
            await self._end_all()

    def _begin(self) -> _Attempt:
        attempt = _Attempt(self._channels.channel, self._channels.url)
        self._attempts.append(attempt)
        attempt.task = asyncio.create_task(self._attempt(attempt), name="status stream")
        attempt.task.add_done_callback(lambda _: self._attempts.remove(attempt))
        return attempt

    async def _end_all(self) -> None:
        tasks: list[asyncio.Task[Any]] = [attempt.task for attempt in self._attempts]
        for task in tasks:
            task.cancel()
        if self._saving is not None:
            tasks.append(self._saving)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, attempt: _Attempt) -> StreamEnd:
        """One stream, from the connection on."""
        if self._state.phase is not LinkPhase.CONNECTED:
            now = self._parts.clock.now()
            self.note(replace(self._state, phase=LinkPhase.CONNECTING, since=now, next_attempt_time=None))
        channel = attempt.channel
        no_connection = StreamEnd(f"no connection to {attempt.url}", unwell=True)
        ready: asyncio.Future[Any] = asyncio.ensure_future(
            _connected(channel) if self._channels.several else channel.channel_ready()
        )
        while not await self._first(ready, self._parts.clock.sleep(self._patience)):
            if self._channels.several:
                ready.cancel()
                return no_connection
            await self._explain()  # and go on: the channel has waits of its own between its tries
        if ready.result() is False:
            return no_connection
        attempt.began = self._parts.clock.monotonic()

        def welcome(version: str) -> None:
            attempt.welcome = True
            self._welcomed(attempt, version)

        call = renewal_pb2_grpc.RenewalServiceStub(channel).StreamRenewalStatus()
        attempt.stream = OpenStream(
            call,
            self._parts,
            patience=self._patience,
            caution=_CAUTION if self._lost else timedelta(),
            on_welcome=welcome,
            on_taken_over=self._taken_over,
        )
        return await attempt.stream.run()

    def _welcomed(self, attempt: _Attempt, version: str) -> None:
        now = self._parts.clock.now()
        self._explained = ""
        self._channels.answered(attempt.url)
        logger.info("the broker %s (version %s) is connected", attempt.url, printable(version, _MOST_VERSION))
        self.note(
            replace(
                self._state,
                phase=LinkPhase.CONNECTED,
                since=now,
                last_connected_time=now,
                last_error="",
                next_attempt_time=None,
                broker_version=printable(version, _MOST_VERSION),
                broker_url=attempt.url,
            )
        )
        for older in self._attempts:
            if older is not attempt:
                older.task.cancel()

    def _taken_over(self) -> None:
        if not self._parts.spool.unacknowledged:
            self._delivered.set()
        if any(attempt.stream is not None and attempt.stream.directed for attempt in self._attempts):
            self._directed.set()

    async def _wait(self, attempt: _Attempt, end: StreamEnd) -> None:
        """Until the next stream may be opened."""
        clock = self._parts.clock
        if attempt.welcome and clock.monotonic() - attempt.began >= _STABLE.total_seconds():
            self._failures = 0
        self._lost = end.is_lost and not attempt.welcome
        hold = None if end.hold is None else min(end.hold, _MOST_WAIT)
        moves = hold is not None and await self._channels.leave(attempt.channel, hold, reconnect=end.goodbye)
        if moves:
            least, most = _SPREAD
            spread = least if end.retry_after is None else min(max(end.retry_after, least), most)
            wait = self._parts.rng.random() * spread
        else:
            self._failures += 1
            wait = reopening_wait(end, self._failures, lambda backoff, count: backoff.wait(count, self._parts.rng))
            if self._channels.several and end.unwell:  # a round is over
                end = replace(end, text=await self._explain())
        unsupported = end.code is grpc.StatusCode.UNIMPLEMENTED and end.refusal is None
        if unsupported:
            level = logging.INFO if self._state.phase is LinkPhase.UNSUPPORTED else logging.WARNING
            logger.log(level, "the broker has no status streams (an older release); certificates are still renewed")
        elif end.refusal is not None and end.refusal.reason is Reason.STREAM_DISPLACED:
            logger.warning("another agent uses this host's identity; is it a copy? %s", end.text)
        elif end.text != self._state.last_error and not self._lost:  # the next one will know better
            then = f"going on at {self._channels.url}" if moves else "reconnecting"
            level = logging.INFO if end.goodbye else logging.WARNING
            logger.log(level, "the status stream ended: %s; %s in %.0f s", end.text, then, wait.total_seconds())
        now = clock.now()
        self.note(
            replace(
                self._state,
                phase=LinkPhase.UNSUPPORTED if unsupported else LinkPhase.WAITING,
                since=now,
                last_error="" if unsupported else end.text,
                next_attempt_time=now + wait,
            )
        )
        await clock.sleep(wait)

    async def _explain(self) -> str:
        """Why there is no connection: looked into once in an outage, since that costs each broker a handshake."""
        if not self._explained:
            self._explained = str(await self._channels.why_unreachable("no connection in time"))
            logger.warning("no status stream: %s", self._explained)
            self.note(replace(self._state, last_error=self._explained))
        return self._explained

    async def _first(self, task: asyncio.Future[Any], *others: Awaitable[object]) -> bool:
        """Wait until one of them is done; whether `task` is. It alone goes on, unless the caller is cancelled."""
        waiting = [asyncio.ensure_future(other) for other in others]
        try:
            await asyncio.wait([task, *waiting], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            for other in waiting:
                other.cancel()
        return task.done()

    async def _save_on(self) -> None:
        saved = None
        while saved != self._state:
            saved = self._state
            await self._save(saved)


async def _connected(channel: grpc.aio.Channel) -> bool:
    """Whether the channel connects: False after its first try, or that of each address, where it would go on."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return True


async def _outcome(attempt: _Attempt) -> StreamEnd:
    """How it ended; a bug is a bad end, not the end of everything."""
    try:
        return await attempt.task
    except asyncio.CancelledError:
        if is_cancelled():
            raise
        return StreamEnd("the connection was closed")
    except Exception:
        logger.exception("the status stream failed")
        return StreamEnd("a bug of this agent; its log says more")
