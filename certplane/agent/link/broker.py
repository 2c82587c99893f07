"""`Broker` over gRPC: one persistent channel with this host's identity, a deadline on every call.

A channel keeps its certificate and its CAs for life, so a renewed identity is a new channel, and so are another bundle
and another broker: the next call uses it, and the old one ends when its calls have. Of several brokers one is in use,
for calls and stream alike. A call that it doesn't take, or refuses for a reason of its own (`errors.OF_ONE_BROKER`), is
made at the next one, once at each, which is safe since the same request joins the same order. Nothing else is repeated
here: a call that failed is the caller's to repeat.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import grpc
from typing_extensions import override

from certplane import __version__
from certplane.agent.link.convert import identity_view, moment, order_view
from certplane.agent.link.diagnosis import expired_identity, none_reachable, unreachable
from certplane.agent.link.host_facts import host_facts
from certplane.agent.link.server_cas import ServerCas
from certplane.agent.model import IdentityView, OrderView, Version
from certplane.agent.ports import Broker, CertificateLookup, OrderFollower
from certplane.errors import OF_ONE_BROKER, CertplaneError, OperationError, RefusalError
from certplane.pki.bundle import presentable
from certplane.rpc.channel import open_channel
from certplane.rpc.choice import AVOID, BrokerChoice
from certplane.rpc.credentials import PairError, channel_credentials, client_pair
from certplane.rpc.failures import failed_call, is_cancelled, words_of
from certplane.rpc.proxy import ProxyUse
from certplane.rpc.status import refusal_from_error
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool
from certplane.v1 import certificate_pb2, certificate_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc

T = TypeVar("T")

logger = logging.getLogger(__name__)

_GRACE = timedelta(minutes=1)
"""What calls under way get when a new identity takes over; longer than any call but a long wait for an order."""
_MOST_HOLD = timedelta(days=1)
"""Whatever a broker says."""


class GrpcBroker(Broker, OrderFollower, CertificateLookup):
    """`Broker` and `OrderFollower`. On one event loop; nothing works before the first `use_identity`.

    Args:
        urls: `https://host[:port]` of each broker.
        server_ca_bundle: PEM file with the CAs that the broker's certificate may come from; read at `use_identity`, at
            `refresh` and when no connection comes about.
        timeout: of a call, beyond what it is asked to wait.
        clock: says what is over: the own identity, a CA.
        disk: the pool for reading files and for looking into a failed connection.
        proxy: whether the environment's proxy is used.
        rng: draws the broker to use; the same on all hosts would be no choice.
        moved: called when a call has gone on at another broker: the stream is to follow.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        server_ca_bundle: Path,
        timeout: timedelta,
        clock: Clock,
        disk: BlockingPool,
        proxy: ProxyUse = ProxyUse.NONE,
        rng: random.Random | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._choice = BrokerChoice(urls, rng or random.SystemRandom())
        self._url = self._choice.url
        self._moved = moved
        self._server_cas = ServerCas(server_ca_bundle)
        self._server_ca_pem = b""
        self._proxy = proxy
        self._timeout = timeout
        self._clock = clock
        self._disk = disk
        self._identity: Version | None = None
        self._channel: grpc.aio.Channel | None = None
        self._replacing = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    @override
    async def use_identity(self, identity: Version) -> None:
        """As the port describes, with these errors.

        Raises:
            OperationError: the identity's or the bundle's files can't be read.
        """
        async with self._replacing:
            await self._replace(identity)

    async def refresh(self) -> bool:
        """Take up another content of the bundle, or the end of a CA in it; whether there is a new channel for it.

        A file that can't be read, as in the middle of a replacement, changes nothing.
        """
        async with self._replacing:
            identity = self._identity
            if identity is None:
                return False
            try:
                server_ca_pem = await self._disk.run(self._server_cas.read, self._clock.now())
            except OperationError:
                return False
            if server_ca_pem == self._server_ca_pem:
                return False
            logger.info("the CAs for the broker's certificate have changed; reconnecting with the new ones")
            await self._replace(identity)
            return True

    @override
    async def issue(self, *, profile: str, csr_pem: str, replaces_certificate_id: str, wait: timedelta) -> OrderView:
        timeout = self._seconds(wait)
        if replaces_certificate_id:
            renewal = certificate_pb2.RenewCertificateRequest(
                request_id=_request_id(),
                certificate_id=replaces_certificate_id,
                profile=profile,
                csr_pem=csr_pem,
            )
            renewal.wait_duration.FromTimedelta(wait)
            renewed = await self._answer(
                lambda channel: _certificates(channel).RenewCertificate(renewal, timeout=timeout)
            )
            return order_view(renewed.order, renewed.certificate if renewed.HasField("certificate") else None)
        request = certificate_pb2.IssueCertificateRequest(request_id=_request_id(), profile=profile, csr_pem=csr_pem)
        request.wait_duration.FromTimedelta(wait)
        issued = await self._answer(lambda channel: _certificates(channel).IssueCertificate(request, timeout=timeout))
        return order_view(issued.order, issued.certificate if issued.HasField("certificate") else None)

    @override
    async def watch_order(self, order_id: str, wait: timedelta) -> AsyncGenerator[OrderView, None]:
        request = certificate_pb2.WatchOrderRequest(request_id=_request_id(), order_id=order_id)
        channel, url = self._open(), self.url
        call = _certificates(channel).WatchOrder(request, timeout=wait.total_seconds())
        try:
            async for response in call:
                yield order_view(response.order, response.certificate if response.HasField("certificate") else None)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                await self._go_elsewhere(channel, error)  # where the caller follows the order on
                raise await self._error(channel, url, error) from error
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            raise _closed(url) from None
        finally:
            call.cancel()

    @override
    async def get_identity(self) -> IdentityView:
        request = enrollment_pb2.GetIdentityRequest(request_id=_request_id())
        return identity_view(
            await self._answer(lambda channel: _enrollment(channel).GetIdentity(request, timeout=self._seconds()))
        )

    @override
    async def revoke_time(self, certificate_id: str) -> datetime | None:
        request = certificate_pb2.GetCertificateRequest(request_id=_request_id(), certificate_id=certificate_id)
        response = await self._answer(
            lambda channel: _certificates(channel).GetCertificate(request, timeout=self._seconds())
        )
        return moment(response.certificate, "revoke_time")

    @override
    async def report_enrollment(self, identity_serial_number: str) -> None:
        request = enrollment_pb2.ReportEnrollmentRequest(
            request_id=_request_id(),
            agent_version=__version__,
            host_facts=host_facts(),
            identity_serial_number=identity_serial_number,
        )
        await self._answer(lambda channel: _enrollment(channel).ReportEnrollment(request, timeout=self._seconds()))

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel of the identity in use.

        Raises:
            RuntimeError: no identity is in use yet.
        """
        return self._open()

    @property
    def url(self) -> str:
        """The broker that `channel` goes to."""
        return self._url

    @property
    def several(self) -> bool:
        """Whether there is more than one broker."""
        return self._choice.several

    async def leave(
        self, channel: grpc.aio.Channel, hold: timedelta, *, reconnect: bool = False, tell: bool = False
    ) -> bool:
        """Use another broker than that of `channel`, and leave that one alone for `hold`.

        Args:
            channel: The one that failed; where another one is in use by now, nothing is left to do.
            hold: How long.
            reconnect: Make a new connection in any case: a name may have other addresses.
            tell: Call `moved` if another channel is in use now.

        Returns:
            Whether the one that is in use now is to be tried at once. If not, it is the only one, or has failed too:
            a round is over.
        """
        async with self._replacing:
            if channel is not self._channel or self._identity is None:
                return self.several
            fresh = self._choice.leave(hold, self._clock.monotonic())
            if self._choice.url != self._url or reconnect:
                try:
                    await self._replace(self._identity, connect=False)
                except OperationError as error:
                    self._choice.url = self._url
                    logger.warning("no new connection to a broker: %s", error)
                    return False
                if tell:
                    self._moved()
            return fresh

    def answered(self, url: str) -> None:
        """The broker at `url` is well."""
        self._choice.answered(url)

    async def why_unreachable(self, said: str) -> CertplaneError:
        """Why no connection comes about, by handshakes of its own; `said` is for when those find nothing wrong."""
        identity = self._identity
        if identity is None:
            raise RuntimeError("use_identity comes before any call")
        expired = expired_identity(identity, self._clock.now())
        if expired is not None:
            return expired
        try:
            present = await self._disk.run(self._server_cas.read, self._clock.now())
        except OperationError as error:
            return error
        if problem := self._server_cas.problem(self._clock.now()):
            return OperationError(
                problem,
                remedy="put the present certificate of the broker's CA there, or set this host's clock; no restart is "
                "needed",
            )
        if present != self._server_ca_pem:
            return OperationError(
                f"the broker at {self.url} wasn't reached by the CAs that {self._server_cas.path} had before",
                remedy="the file has changed since; its present content is taken up within a minute",
            )
        look = functools.partial(unreachable, proxy=self._proxy)
        return none_reachable(
            [await self._disk.run(look, url, self._server_ca_pem, identity, said) for url in self._choice.urls]
        )

    async def close(self) -> None:
        """End the channel and those that are still ending, calls included."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    async def _replace(self, identity: Version, *, connect: bool = True) -> None:
        credentials, server_ca_pem = await self._disk.run(self._credentials, identity)
        old = self._channel
        self._server_ca_pem = server_ca_pem
        self._url = self._choice.url
        self._channel = open_channel(
            self._url, credentials, user_agent=f"certplane-agent/{__version__}", proxy=self._proxy
        )
        self._channel.get_state(try_to_connect=connect)
        self._identity = identity
        if old is not None:
            self._end(old, _GRACE)

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            raise RuntimeError("use_identity comes before any call")
        return self._channel

    def _seconds(self, wait: timedelta = timedelta()) -> float:
        return (self._timeout + wait).total_seconds()

    async def _answer(self, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        """What the broker in use says; or the next one, where that one can't answer."""
        left = len(self._choice.urls)
        while True:
            channel, url = self._open(), self.url
            try:
                answer = await call(channel)
            except grpc.aio.AioRpcError as error:
                left -= 1
                if await self._go_elsewhere(channel, error) and left:
                    continue
                raise await self._error(channel, url, error) from error
            except asyncio.CancelledError:
                if is_cancelled():
                    raise
                raise _closed(url) from None
            self._choice.answered(url)
            return answer

    async def _go_elsewhere(self, channel: grpc.aio.Channel, error: grpc.aio.AioRpcError) -> bool:
        """Use another broker where a call's failure says that this one is unwell; whether to repeat the call there."""
        refusal = refusal_from_error(error)
        identity = self._identity
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if refusal is not None:
            unwell = refusal.reason in OF_ONE_BROKER
        else:
            unwell = late or self._is_no_connection(channel, error)
        if not unwell or not self.several or identity is None or expired_identity(identity, self._clock.now()):
            return False
        told = None if refusal is None else refusal.retry_after
        left = self.url
        fresh = await self.leave(channel, max(AVOID, min(told or AVOID, _MOST_HOLD)), tell=True)
        if fresh:
            said = words_of(error) if refusal is None else f"{refusal.reason}: {refusal.message}"
            logger.info("%s doesn't take a call (%s); going on at %s", left, said, self.url)
        return fresh and not late  # a second wait would be longer than the caller asked for

    async def _error(self, channel: grpc.aio.Channel, url: str, error: grpc.aio.AioRpcError) -> CertplaneError:
        """What a failed call at `url` means to the agent."""
        refusal = refusal_from_error(error)
        if refusal is not None:
            return RefusalError.of(refusal)
        if self._identity is not None and self._is_no_connection(channel, error):
            return await self.why_unreachable(words_of(error))
        return failed_call(error, url, late="check the broker's log and its load")

    def _is_no_connection(self, channel: grpc.aio.Channel, error: grpc.aio.AioRpcError) -> bool:
        """Whether the call never reached the broker, as far as the channel knows."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return True
        late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return late and channel.get_state() is not grpc.ChannelConnectivity.READY

    def _credentials(self, identity: Version) -> tuple[grpc.ChannelCredentials, bytes]:
        now = self._clock.now()
        server_ca_pem = self._server_cas.read(now)
        try:
            pair = client_pair(
                private_key_pem=(identity.path / "privkey.pem").read_bytes(),
                chain_pem=presentable((identity.path / "fullchain.pem").read_bytes(), now),
            )
            return channel_credentials(server_ca_pem, pair), server_ca_pem
        except PairError as error:
            raise OperationError(
                f"the identity in {identity.path} can't be used: {error}",
                remedy="restart the agent, which restores lost files from others with the same content; else run "
                "`certplane-agent enroll --force` with a new token",
            ) from error
        except OSError as error:
            raise OperationError(
                f"{error.filename} can't be read: {error.strerror}",
                remedy="check that the file is there and readable for the agent's user",
            ) from error

    def _end(self, channel: grpc.aio.Channel, grace: timedelta) -> None:
        task = asyncio.ensure_future(channel.close(grace.total_seconds()))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _certificates(channel: grpc.aio.Channel) -> certificate_pb2_grpc.CertificateServiceStub:
    return certificate_pb2_grpc.CertificateServiceStub(channel)


def _enrollment(channel: grpc.aio.Channel) -> enrollment_pb2_grpc.EnrollmentServiceStub:
    return enrollment_pb2_grpc.EnrollmentServiceStub(channel)


def _closed(url: str) -> OperationError:
    """The error of a call that outlived its channel by the grace that it had."""
    return OperationError(
        f"the connection was closed on which {url} was asked, since another one is in use",
        remedy="nothing has to be done: it is asked again on that",
    )


def _request_id() -> str:
    return secrets.token_hex(16)
