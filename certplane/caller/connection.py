"""The channel to a broker with an identity whose files may change, and what a call that fails there means.

A channel keeps its certificate and its CAs for life, so that other files, and another broker, are a new channel: the
next call uses it, and the old one ends when its calls have. So is the next try of a call that no broker has taken,
since gRPC waits up to 30 s before it connects again by itself. The files are looked at before a call, at most once a
second. Of several brokers one is in use; a call that it doesn't take, or refuses for a reason of its own
(`errors.OF_ONE_BROKER`), goes to the next one, and after a round it is repeated as `patience` says, within the time
that its caller gives. Every call is safe to repeat. Only `RefusalError` (a broker's word), `OperationError` (no
connection, no Certplane broker, too late) and `ConfigurationError` (the files, at `open`) escape.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final, TypeVar

import grpc

from certplane import __version__
from certplane.caller.credentials import Credentials, Stamp, read_credentials, stamp_of
from certplane.caller.patience import next_wait
from certplane.caller.unreachable import CallerFiles, why_unreachable
from certplane.errors import (
    OF_ONE_BROKER,
    CertplaneError,
    ConfigurationError,
    OperationError,
    RefusalError,
)
from certplane.rpc.channel import open_channel
from certplane.rpc.choice import AVOID, BrokerChoice
from certplane.rpc.failures import failed_call, is_cancelled, words_of
from certplane.rpc.proxy import ProxyUse
from certplane.rpc.status import refusal_from_error
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

T = TypeVar("T")

CLIENT_VERSION: Final = f"certplane-client/{__version__}"
"""How a program is known in the broker's logs and in the fleet."""

_GRACE: Final = timedelta(minutes=1)
"""What calls under way get when other files, or another broker, take over."""
_LOOK: Final = timedelta(seconds=1)
"""How often the files are looked at, at most."""
_MOST_HOLD: Final = timedelta(hours=1)
"""How long a broker is left alone, whatever it says."""

logger = logging.getLogger(__name__)


def new_request_id() -> str:
    """A new name of a call: 32 hexadecimal digits."""
    return secrets.token_hex(16)


class Connection:
    """Calls as one identity, on one event loop.

    Args:
        urls: `https://host[:port]` of each broker.
        files: The identity's and the CAs'.
        timeout: How long a call may take with its repetitions, where nobody says otherwise.
        clock: Says what is over, and sleeps between tries.
        proxy: Whether the environment's proxy is used.
        rng: Draws the broker to use, and spreads tries.
    """

    def __init__(
        self,
        urls: Sequence[str],
        files: CallerFiles,
        *,
        timeout: timedelta,
        clock: Clock,
        proxy: ProxyUse = ProxyUse.NONE,
        rng: random.Random | None = None,
    ) -> None:
        self.clock = clock
        self.rng = rng or random.SystemRandom()
        self.timeout = timeout
        self.disk = BlockingPool("certplane-client", 2)
        self._choice = BrokerChoice(urls, self.rng)
        self._files = files
        self._proxy = proxy
        self._credentials: Credentials | None = None
        self._stamp: Stamp = ()
        self._looked = float("-inf")
        self._channel: grpc.aio.Channel | None = None
        self._url = ""
        self._closing: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()

    async def open(self) -> None:
        """Read the files; nothing is sent.

        Raises:
            ConfigurationError: a file can't be used.
        """
        self._stamp = stamp_of(self._files)
        self._credentials = await self.disk.run(read_credentials, self._files, self.clock.now())
        self._connect()

    async def close(self) -> None:
        """End all channels, calls included."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        self._credentials = None
        self.disk.close()

    @property
    def url(self) -> str:
        """The broker in use."""
        return self._url

    async def channel(self) -> grpc.aio.Channel:
        """The channel to the broker in use, a new one where the files have changed.

        Raises:
            RuntimeError: the client isn't open.
        """
        if self._credentials is None or self._channel is None:
            raise RuntimeError("the client is not open: use `async with Client(...)`")
        now = self.clock.monotonic()
        if now - self._looked >= _LOOK.total_seconds():
            self._looked = now
            await self._reread()
        return self._channel

    async def answer(
        self,
        call: Callable[[grpc.aio.Channel, float], Awaitable[T]],
        *,
        timeout: timedelta | None = None,
        wait: timedelta = timedelta(),
    ) -> T:
        """What a broker says to a call.

        Args:
            call: Makes the call on a channel, with the seconds that it has.
            timeout: For all tries together; the connection's own if None.
            wait: How long the broker is asked to wait in each: one gets no more than this and the connection's timeout.

        Raises:
            RefusalError: a broker has refused it.
            OperationError: none was reached in time, or what answered is none.
        """
        until = self.clock.monotonic() + (timeout or self.timeout).total_seconds()
        failures = here = 0
        pause = timedelta()
        while True:
            channel, url = await self.channel(), self._url
            try:
                left = until - self.clock.monotonic()
                answer = await call(channel, max(min(left, (self.timeout + wait).total_seconds()), 0.001))
            except grpc.aio.AioRpcError as error:
                here += 1
                if await self._other_files(error) or (self.leave(channel, error) and here < len(self._choice.urls)):
                    continue
                failures, here = failures + 1, 0
                told = self._wait(error, failures, timedelta(seconds=until - self.clock.monotonic()))
                if told is None:
                    raise await self.error(error, url) from error
                pause = told
                logger.info("%s doesn't take a call (%s); trying again", url, words_of(error))
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                pause = timedelta()  # the channel was closed, since another one is in use
            else:
                self._choice.answered(url)
                return answer
            await self.clock.sleep(pause)

    async def stream(self, call: Callable[[grpc.aio.Channel], Any]) -> AsyncGenerator[Any, None]:
        """The messages of a call whose answer is a stream. It isn't repeated: its caller knows where to go on.

        Raises:
            RefusalError: a broker has refused it, or ended it with a reason.
            OperationError: no broker was reached, or the connection was lost.
        """
        channel, url = await self.channel(), self._url
        running = call(channel)
        try:
            async for message in running:
                self._choice.answered(url)
                yield message
        except grpc.aio.AioRpcError as error:
            await self._other_files(error)
            self.leave(channel, error)
            raise await self.error(error, url) from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise OperationError(f"the connection to {url} was closed, since another one is in use") from None
        finally:
            running.cancel()

    def leave(self, channel: grpc.aio.Channel, error: grpc.aio.AioRpcError) -> bool:
        """Use another broker where a failure says that this one is unwell; whether to try that one at once."""
        refusal = refusal_from_error(error)
        unwell = _unreached(error) if refusal is None else refusal.reason in OF_ONE_BROKER
        if not unwell:
            return False
        if not self._choice.several:
            if error.code() is grpc.StatusCode.UNAVAILABLE and refusal is None and channel is self._channel:
                self._connect()
            return False
        return self.hold(channel, AVOID if refusal is None else refusal.retry_after or AVOID)

    def hold(self, channel: grpc.aio.Channel, span: timedelta) -> bool:
        """Leave the broker of `channel` alone for a while; whether there is another one to try at once."""
        if channel is not self._channel:
            return self._choice.several
        fresh = self._choice.leave(min(span, _MOST_HOLD), self.clock.monotonic())
        if self._choice.url != self._url:
            logger.info("leaving the broker at %s for %s", self._url, self._choice.url)
            self._connect()
        return fresh

    async def error(self, error: grpc.aio.AioRpcError, url: str) -> CertplaneError:
        """What a failed call at `url` means to the program."""
        refusal = refusal_from_error(error)
        if refusal is not None:
            return RefusalError.of(refusal)
        credentials = self._credentials
        if credentials is None or error.code() is not grpc.StatusCode.UNAVAILABLE:
            return failed_call(error, url, late="check the broker's log and its load, or give it more time")
        if self.clock.now() >= credentials.not_after:
            return OperationError(
                f"the identity in {self._files.chain} expired at {credentials.not_after:%Y-%m-%dT%H:%M:%SZ}",
                remedy="renew it, or get a new one from the internal CA; no restart is needed",
            )
        look = functools.partial(
            why_unreachable, url, self._files, credentials.server_ca_pem, said=words_of(error), proxy=self._proxy
        )
        return await self.disk.run(look)

    def _wait(self, error: grpc.aio.AioRpcError, failures: int, left: timedelta) -> timedelta | None:
        refusal = refusal_from_error(error)
        ended = self._credentials is not None and self.clock.now() >= self._credentials.not_after
        return next_wait(
            told=None if refusal is None else refusal.retry_after,
            unreached=refusal is None and _unreached(error) and not ended,
            failures=failures,
            left=left,
            rng=self.rng,
        )

    async def _other_files(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether there is a new channel since the files have changed, where a failure may come from the old ones."""
        if error.code() not in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}:
            return False
        return await self._reread()

    async def _reread(self) -> bool:
        """Take up other files; whether there is a new channel. Files that can't be used now change nothing."""
        async with self._reading:
            stamp = stamp_of(self._files)
            known = self._credentials
            if stamp == self._stamp or known is None:
                return False
            with suppress(ConfigurationError):
                found = await self.disk.run(read_credentials, self._files, self.clock.now())
                self._stamp = stamp
                if found.content == known.content:
                    return False
                logger.info("the identity, or the CAs of the broker, have changed; reconnecting with the new files")
                self._credentials = found
                self._connect()
                return True
            return False

    def _connect(self) -> None:
        assert self._credentials is not None
        old, self._url = self._channel, self._choice.url
        self._channel = open_channel(self._url, self._credentials.channel, user_agent=CLIENT_VERSION, proxy=self._proxy)
        if old is not None:
            task = asyncio.ensure_future(old.close(_GRACE.total_seconds()))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


_UNREACHED: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by the broker, which stops: one's own cancellation is another exception
}


def _unreached(error: grpc.aio.AioRpcError) -> bool:
    return error.code() in _UNREACHED
