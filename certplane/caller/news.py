"""The stream that says what becomes of this caller's certificates (WatchMyCertificates), for all who listen.

One stream for a connection, open while somebody listens: so the service is connected in the fleet. It comes back after
any end: at another broker at once where there is one, else with backoff, or when the broker's goodbye says. What a
listener missed is in the first messages of the next stream. A broker of an older release has no such call, and hosts
have another one: then `live` stays False, and who listens polls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import grpc

from certplane.caller.connection import CLIENT_VERSION, Connection, new_request_id
from certplane.caller.convert import news_of
from certplane.caller.values import CertificateNews
from certplane.errors import OF_ONE_BROKER, OperationError, Refusal
from certplane.rpc.failures import is_cancelled, words_of
from certplane.rpc.status import refusal_from_error
from certplane.rpc.times import span_of
from certplane.runtime.backoff import Backoff
from certplane.runtime.text import printable
from certplane.v1 import renewal_pb2 as pb
from certplane.v1 import renewal_pb2_grpc

_SOON: Final = Backoff(first=timedelta(seconds=1), most=timedelta(minutes=1), floor=timedelta(milliseconds=500))
"""After an end that says nothing of the next stream."""
_LATER: Final = Backoff(first=timedelta(minutes=1), most=timedelta(minutes=30), floor=timedelta(seconds=10))
"""After a refusal that a person must change something for."""
_HOURLY: Final = timedelta(minutes=45)
"""After an answer that there is no such call for this caller; up to two thirds more by chance."""
_MOST_WAIT: Final = timedelta(hours=1)
"""Whatever a broker says."""
_STABLE: Final = timedelta(minutes=1)
"""A stream that lasted so long was well: what failed before no longer counts."""
_LOOK: Final = timedelta(seconds=30)
"""How often silence, and the identity's files, are looked at."""
_HEARTBEAT: Final = timedelta(minutes=1)
_LEAST_HEARTBEAT, _MOST_HEARTBEAT = timedelta(seconds=1), timedelta(hours=1)
_SILENCE: Final = 3
"""Heartbeats without a message, after which a stream is dead (renewal.proto, Listening)."""
_MOST_KNOWN: Final = 10_000
"""Certificates that are remembered for who listens later."""
_MOST_TEXT: Final = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AskAgain:
    """What was refused or failed may succeed now: another policy, another retry epoch, a broker that is back."""


Listener = Callable[[CertificateNews | AskAgain], None]


@dataclass(frozen=True, slots=True)
class _End:
    """How a stream ended: `delay` is the broker's word on when to come back."""

    text: str
    delay: timedelta | None = None
    at_once: bool = False
    hopeless: bool = False
    none_here: bool = False


class NewsFeed:
    """News over one connection, on its event loop.

    Listeners are called on the event loop, must not block, and hear what is known when they begin.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._listeners: list[Listener] = []
        self._known: dict[str, CertificateNews] = {}
        self._in_force: tuple[str, str] | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost = False
        self.live = False
        """Whether a stream is open, and has told the certificates as they are."""

    @property
    def known(self) -> Mapping[str, CertificateNews]:
        """The latest of each certificate, by its id."""
        return self._known

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` hear all news from now on; what is returned ends that."""
        self._listeners.append(listener)
        for news in list(self._known.values()):
            listener(news)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

        def end() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

        return end

    async def close(self) -> None:
        """End the stream."""
        task, self._task = self._task, None
        self._listeners.clear()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _tell(self, news: CertificateNews | AskAgain) -> None:
        for listener in list(self._listeners):
            listener(news)

    async def _run(self) -> None:
        connection, failures = self._connection, 0
        while True:
            begun = connection.clock.monotonic()
            try:
                end = await self._listen()
            finally:
                self.live = False
            self._lost = True
            if connection.clock.monotonic() - begun >= _STABLE.total_seconds():
                failures = 0
            failures += 1
            wait = self._wait(end, failures)
            logger.info("the stream of certificate news ended (%s); back in %s", end.text, wait)
            await self._pause(wait)

    async def _pause(self, wait: timedelta) -> None:
        """Wait, unless there is another connection meanwhile: another identity is refused less."""
        connection = self._connection
        until = connection.clock.monotonic() + wait.total_seconds()
        channel = await connection.channel()
        while (left := timedelta(seconds=until - connection.clock.monotonic())) > timedelta():
            await connection.clock.sleep(min(left, _LOOK))
            if await connection.channel() is not channel:
                return

    def _wait(self, end: _End, failures: int) -> timedelta:
        rng = self._connection.rng
        if end.none_here:
            return _HOURLY * (1 + 2 / 3 * rng.random())
        if end.hopeless:
            return _LATER.wait(failures, rng)
        if end.at_once and failures == 1:
            return timedelta()
        return max(min(end.delay or timedelta(), _MOST_WAIT), timedelta() if end.delay else _SOON.wait(failures, rng))

    async def _listen(self) -> _End:
        """One stream, until it ends."""
        connection = self._connection
        channel = await connection.channel()
        request = pb.WatchMyCertificatesRequest(request_id=new_request_id(), client_version=CLIENT_VERSION)
        stub: Any = renewal_pb2_grpc.RenewalServiceStub(channel)
        call = stub.WatchMyCertificates(request)
        try:
            return await _Stream(self, connection, channel, call).run()
        finally:
            call.cancel()

    # What a stream hears.

    def heard(self, news: CertificateNews) -> None:
        """A certificate as it is."""
        if self._known.get(news.certificate_id) == news:
            return
        self._known[news.certificate_id] = news
        while len(self._known) > _MOST_KNOWN:
            self._known.pop(next(iter(self._known)))
        self._tell(news)

    def listening(self, told: set[str], in_force: tuple[str, str]) -> None:
        """The certificates as they are have been told: `told` are all there are."""
        for gone in self._known.keys() - told:
            self._known.pop(gone)
        self.live = True
        again, self._lost = self._lost, False
        if not self.in_force(in_force) and again:
            self._tell(AskAgain())

    def in_force(self, in_force: tuple[str, str]) -> bool:
        """What the broker refuses and fails by; whether that is something else than before."""
        before, self._in_force = self._in_force, in_force
        if before is None or before == in_force:
            return False
        self._tell(AskAgain())
        return True


class _Stream:
    """One call of WatchMyCertificates; `run` once."""

    def __init__(self, feed: NewsFeed, connection: Connection, channel: grpc.aio.Channel, call: Any) -> None:
        self._feed = feed
        self._connection = connection
        self._channel = channel
        self._call = call
        self._told: set[str] = set()
        self._interval = _HEARTBEAT
        self._heard_at = connection.clock.monotonic()

    async def run(self) -> _End:
        reading: asyncio.Future[Any] = asyncio.ensure_future(self._call.read())
        try:
            while True:
                if (message := await self._next(reading)) is None:
                    if (end := await self._look()) is not None:
                        return end
                    continue
                self._heard_at = self._connection.clock.monotonic()
                if not isinstance(message, pb.WatchMyCertificatesResponse):
                    return _End("the broker ended it")
                if (end := self._hear(message)) is not None:
                    return end
                reading = asyncio.ensure_future(self._call.read())
        except grpc.aio.AioRpcError as error:
            return self._failed(error)
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            return _End("another connection is in use", at_once=True)  # gRPC cancels those who wait for it then
        except OperationError as error:
            return _End(str(error), hopeless=True)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _next(self, reading: asyncio.Future[Any]) -> Any:
        """The next message; None when it is time to look."""
        ticking = asyncio.ensure_future(self._connection.clock.sleep(min(_LOOK, self._interval)))
        try:
            await asyncio.wait({reading, ticking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ticking.cancel()
        return reading.result() if reading.done() else None

    async def _look(self) -> _End | None:
        silence = self._connection.clock.monotonic() - self._heard_at
        if silence > _SILENCE * self._interval.total_seconds():
            self._connection.hold(self._channel, timedelta(minutes=1))
            return _End(f"the broker was silent for {silence:.0f} s")
        if await self._connection.channel() is not self._channel:
            return _End("another connection is in use", at_once=True)
        return None

    def _hear(self, message: pb.WatchMyCertificatesResponse) -> _End | None:
        match message.WhichOneof("event"):
            case "news":
                news = news_of(message.news)
                self._told.add(news.certificate_id)
                self._feed.heard(news)
            case "listening":
                interval = span_of(message.listening.heartbeat_interval) or _HEARTBEAT
                self._interval = min(max(interval, _LEAST_HEARTBEAT), _MOST_HEARTBEAT)
                self._feed.listening(self._told, _in_force(message.listening.in_force))
            case "in_force":
                self._feed.in_force(_in_force(message.in_force))
            case "goodbye":
                return self._goodbye(message.goodbye)
            case _:  # a heartbeat, or a newer broker's: nothing that must be understood
                pass
        return None

    def _goodbye(self, goodbye: pb.WatchMyCertificatesResponse.Goodbye) -> _End:
        delay = span_of(goodbye.reconnect_delay) or timedelta()
        text = f"the broker said goodbye: {printable(goodbye.reason, _MOST_TEXT) or 'no reason given'}"
        if self._connection.hold(self._channel, delay):
            return _End(text, delay=min(delay, timedelta(seconds=10)))
        return _End(text, delay=delay)

    def _failed(self, error: grpc.aio.AioRpcError) -> _End:
        refusal, text = refusal_from_error(error), words_of(error)
        fresh = self._connection.leave(self._channel, error)
        if error.code() is grpc.StatusCode.UNIMPLEMENTED or (
            refusal is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED
        ):
            return _End(text, none_here=True)
        return _End(text, delay=_delay(refusal), at_once=fresh, hopeless=_is_hopeless(refusal))


def _delay(refusal: Refusal | None) -> timedelta | None:
    return None if refusal is None else refusal.retry_after


def _is_hopeless(refusal: Refusal | None) -> bool:
    return refusal is not None and refusal.retry_after is None and refusal.reason not in OF_ONE_BROKER


def _in_force(message: pb.WatchMyCertificatesResponse.InForce) -> tuple[str, str]:
    return printable(message.policy_hash, 64), printable(message.retry_epoch, 64)
