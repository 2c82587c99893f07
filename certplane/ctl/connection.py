"""The channel to a broker of the context, and what a call that fails there means to an operator.

Where ctl.yml names several brokers one is drawn, and a call that it doesn't take, or refuses for a reason of its own
(`errors.OF_ONE_BROKER`), goes to the next: every call is safe to repeat, by its request id. The first that answers is
kept for the rest of the command. Only `RefusalError` (a broker's word) and `OperationError` (no connection, no
Certplane broker, too late) escape.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Self, TypeVar

import grpc

from certplane import __version__
from certplane.caller.unreachable import CallerFiles, why_unreachable
from certplane.config.bundles import read_ca_bundle, require_in_force
from certplane.config.files import read_file, read_private_file
from certplane.ctl.settings import Context
from certplane.errors import (
    OF_ONE_BROKER,
    CertplaneError,
    ConfigurationError,
    OperationError,
    Reason,
    RefusalError,
)
from certplane.pki.bundle import presentable
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import PairError, channel_credentials, client_pair
from certplane.rpc.failures import failed_call, words_of
from certplane.rpc.status import refusal_from_error
from certplane.runtime.clock import SystemClock
from certplane.runtime.pool import BlockingPool

T = TypeVar("T")

_OPERATORS_REMEDIES: Final = {
    Reason.ROLE_REQUIRED: "use another identity in ctl.yml, or give this one the role in policy.yml",
    Reason.IDENTITY_UNKNOWN: "add it to the operators in policy.yml, with a role",
    Reason.IDENTITY_EXPIRED: "get a new one from the internal CA in the same way as the first one",
}
"""What an operator can do about a refusal whose message is for any caller."""


class Connection:
    """Calls as one identity. An async context manager; on one event loop.

    Args:
        context: The fleet.
        urls: Only these of its brokers; all without it.
    """

    def __init__(self, context: Context, urls: Sequence[str] = ()) -> None:
        """Read the files and open a channel; nothing is sent.

        Raises:
            ConfigurationError: a file that the settings name can't be used.
        """
        settings = context.settings
        self._context = context
        self._paths = paths = CallerFiles(
            chain=context.path(settings.identity.cert),
            key=context.path(settings.identity.key),
            server_cas=context.path(settings.broker.server_ca_bundle),
        )
        self._proxy = settings.broker.proxy
        now = SystemClock().now()
        key_pem = read_private_file(paths.key, at=context.problem("identity.key", ""))
        chain_pem = presentable(read_file(paths.chain, at=context.problem("identity.cert", "")), now)
        try:
            pair = client_pair(key_pem, chain_pem)
        except PairError as error:
            key, path, why = (
                ("identity.key", paths.key, error.key) if error.key else ("identity.cert", paths.chain, error.chain)
            )
            remedy = "put the identity's certificate with its chain and its private key, in PEM, into the two files"
            raise ConfigurationError([context.problem(key, f"{path} {why}", remedy)]) from error
        at = context.problem("broker.server_ca_bundle", "")
        bundle = read_ca_bundle(paths.server_cas, at=at, only_cas=False)
        require_in_force(bundle, now, paths.server_cas, at=at)
        self._server_ca_pem = bundle.pem(now)
        self._credentials = channel_credentials(self._server_ca_pem, pair)
        self._files = BlockingPool("ctl-files", 1)
        all_urls = list(urls or map(str, settings.broker.all_urls))
        self._urls = random.SystemRandom().sample(all_urls, len(all_urls))
        """In the order in which they are tried; the first is in use."""
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def __aenter__(self) -> Self:
        """The connection itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End its channels."""
        for channel in self._channels.values():
            await channel.close()
        self._files.close()

    @property
    def url(self) -> str:
        """The broker in use."""
        return self._urls[0]

    @property
    def seconds(self) -> float:
        """How long a call may take."""
        return self._context.settings.timeout.total_seconds()

    async def answer(self, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        """What a broker says to a call, which is made anew at each that is tried.

        Raises:
            RefusalError: a broker has refused it.
            OperationError: none was reached, or what answered is none.
        """
        failed: list[CertplaneError] = []
        while True:
            try:
                return await call(self._channel())
            except grpc.aio.AioRpcError as error:
                failed.append(await self._error(error))
                if not self._to_next(error, len(failed)):
                    raise _one_of(failed) from error

    async def stream(self, call: Callable[[grpc.aio.Channel], Any]) -> AsyncGenerator[Any, None]:
        """The messages of a call whose answer is a stream; before the first one another broker may be tried.

        Raises:
            RefusalError: as `answer`.
            OperationError: as `answer`, and where the stream ends before its end.
        """
        failed: list[CertplaneError] = []
        begun = False
        while True:
            running = call(self._channel())
            try:
                async for message in running:
                    begun = True
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                failed.append(await self._error(error))
                if begun or not self._to_next(error, len(failed)):
                    raise _one_of(failed) from error
            finally:
                running.cancel()

    async def error(self, error: grpc.aio.AioRpcError) -> CertplaneError:
        """What a failed call at the broker in use means, for calls that are made by hand."""
        return await self._error(error)

    def channel(self) -> grpc.aio.Channel:
        """The channel to the broker in use, for calls that are made by hand."""
        return self._channel()

    def _channel(self) -> grpc.aio.Channel:
        url = self.url
        if url not in self._channels:
            self._channels[url] = open_channel(
                url, self._credentials, user_agent=f"certplanectl/{__version__}", proxy=self._proxy
            )
        return self._channels[url]

    def _to_next(self, error: grpc.aio.AioRpcError, tries: int) -> bool:
        """Take the next broker where this one is unwell and there is one that wasn't tried."""
        refusal = refusal_from_error(error)
        unwell = error.code() is grpc.StatusCode.UNAVAILABLE if refusal is None else refusal.reason in OF_ONE_BROKER
        if not unwell or tries >= len(self._urls):
            return False
        self._urls.append(self._urls.pop(0))
        return True

    async def _error(self, error: grpc.aio.AioRpcError) -> CertplaneError:
        refusal = refusal_from_error(error)
        if refusal is not None:
            remedy = _OPERATORS_REMEDIES.get(refusal.reason)
            if refusal.reason is Reason.IDENTITY_UNKNOWN and "; " in refusal.message:
                remedy = None  # it is the certificate or the connection, and what to do about it is said there
            return RefusalError.of(replace(refusal, message=f"{refusal.message}; {remedy}") if remedy else refusal)
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            look = functools.partial(
                why_unreachable, self.url, self._paths, self._server_ca_pem, said=words_of(error), proxy=self._proxy
            )
            return await self._files.run(look)
        late = "check the broker's log and its load, or raise timeout in ctl.yml"
        return failed_call(error, self.url, late=late)


def _one_of(failed: Sequence[CertplaneError]) -> CertplaneError:
    """One error for several brokers, each with its cause and remedy.

    A refusal that any broker would give is the answer; one of a broker alone is, where it is the best that was heard.
    """
    refusals = [each for each in failed if isinstance(each, RefusalError)]
    refusals.sort(key=lambda each: each.refusal.reason in OF_ONE_BROKER)
    if refusals or len(failed) == 1:
        return (refusals or failed)[0]
    text = "; ".join(f"({number}) {error}" for number, error in enumerate(failed, 1))
    return OperationError(f"none of {len(failed)} brokers takes the call: {text}")
