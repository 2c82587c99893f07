"""The broker's operator calls over one channel, with errors that say what to do.

Messages go out as they came: `view` shows them. Only `RefusalError` (the broker's word) and `OperationError` (no
connection, no Certplane broker, too late) escape.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import grpc

from certplane import __version__
from certplane.config.bundles import read_ca_bundle, require_in_force
from certplane.config.files import read_file, read_private_file
from certplane.ctl.settings import CtlSettings
from certplane.errors import CertplaneError, ConfigurationError, OperationError, Reason, RefusalError
from certplane.pki.bundle import presentable
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import PairError, channel_credentials, client_pair
from certplane.rpc.failures import failed_call, words_of
from certplane.rpc.handshake import handshake_failure
from certplane.rpc.proxy import ProxyUse, proxy_for
from certplane.rpc.status import refusal_from_error
from certplane.runtime.clock import SystemClock
from certplane.runtime.connection import ConnectionFailure
from certplane.runtime.pool import BlockingPool
from certplane.v1 import fleet_pb2, fleet_pb2_grpc, policy_pb2, policy_pb2_grpc, renewal_pb2, renewal_pb2_grpc

T = TypeVar("T")

_PAGE: Final = 200
_PIECE: Final = 12_000
"""Characters of a policy's text in a message, which has room for as many of four octets each."""
_PLAN_SECONDS: Final = 180.0
"""A large policy takes some seconds to be read, and others may be planning theirs."""
_REMEDIES: Final = {
    ConnectionFailure.NOT_FOUND: "check broker.url and this machine's resolver",
    ConnectionFailure.UNREACHABLE: "check that the broker runs and its port is open",
    ConnectionFailure.PROXY: "correct the proxy variables, put the broker into no_proxy, or drop broker.proxy",
    ConnectionFailure.TIMEOUT: "check the network between here and the broker",
    ConnectionFailure.NO_TLS: "check that broker.url is the broker's own port",
    ConnectionFailure.UNTRUSTED: "check broker.server_ca_bundle against the CA of the broker's certificate",
    ConnectionFailure.WRONG_NAME: "use a name of the broker's certificate in broker.url",
    ConnectionFailure.WRONG_TIME: "check this machine's clock first, then the broker's own certificate",
}
_OPERATORS_REMEDIES: Final = {
    Reason.ROLE_REQUIRED: "use another identity in ctl.yml, or give this one the role in policy.yml",
    Reason.IDENTITY_UNKNOWN: "add it to the operators in policy.yml, with a role",
    Reason.IDENTITY_EXPIRED: "get a new one from the internal CA in the same way as the first one",
}
"""What an operator can do about a refusal whose message is for any caller."""


@dataclass(frozen=True, slots=True)
class HostFilter:
    """Which hosts to list; all by default."""

    states: tuple[renewal_pb2.CertificateStatus.State.ValueType, ...] = ()
    disconnected_only: bool = False
    healths: tuple[renewal_pb2.Health.ValueType, ...] = ()


class FleetClient:
    """FleetService, PolicyService and WatchRenewals for one caller. An async context manager; on one event loop."""

    def __init__(self, settings: CtlSettings) -> None:
        """Read the files and open the channel; nothing is sent.

        Raises:
            ConfigurationError: a file that the settings name can't be used.
        """
        source = settings.source
        self._settings = settings
        self._key = settings.path(settings.identity.key)
        self._chain = settings.path(settings.identity.cert)
        self._bundle = settings.path(settings.broker.server_ca_bundle)
        now = SystemClock().now()
        key_pem = read_private_file(self._key, at=source.problem("identity.key", ""))
        chain_pem = presentable(read_file(self._chain, at=source.problem("identity.cert", "")), now)
        try:
            pair = client_pair(key_pem, chain_pem)
        except PairError as error:
            key, path, why = (
                ("identity.key", self._key, error.key) if error.key else ("identity.cert", self._chain, error.chain)
            )
            remedy = "put the identity's certificate with its chain and its private key, in PEM, into the two files"
            raise ConfigurationError([source.problem(key, f"{path} {why}", remedy)]) from error
        at = source.problem("broker.server_ca_bundle", "")
        bundle = read_ca_bundle(self._bundle, at=at, only_cas=False)
        require_in_force(bundle, now, self._bundle, at=at)
        self._server_ca_pem = bundle.pem(now)
        credentials = channel_credentials(self._server_ca_pem, pair)
        self._files = BlockingPool("ctl-files", 1)
        self._channel = open_channel(
            settings.broker.url,
            credentials,
            user_agent=f"certplanectl/{__version__}",
            proxy=settings.broker.proxy,
        )
        self._fleet = fleet_pb2_grpc.FleetServiceStub(self._channel)
        self._policies: Any = policy_pb2_grpc.PolicyServiceStub(self._channel)
        self._renewals = renewal_pb2_grpc.RenewalServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        """The client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the channel."""
        await self._channel.close()
        self._files.close()

    async def hosts(self, wanted: HostFilter) -> AsyncGenerator[renewal_pb2.Host, None]:
        """All hosts that match, by name, page by page."""
        token = ""
        while True:
            request = fleet_pb2.ListHostsRequest(
                request_id=_request_id(),
                page_size=_PAGE,
                page_token=token,
                states=wanted.states,
                disconnected_only=wanted.disconnected_only,
                healths=wanted.healths,
            )
            page = await self._answer(self._fleet.ListHosts(request, timeout=self._seconds))
            for host in page.hosts:
                yield host
            token = page.next_page_token
            if not token:
                return

    async def host(self, name: str) -> renewal_pb2.Host:
        """One host by its identity's name, or its label in the policy."""
        request = fleet_pb2.GetHostRequest(request_id=_request_id(), host=name)
        return (await self._answer(self._fleet.GetHost(request, timeout=self._seconds))).host

    async def brokers(self) -> fleet_pb2.ListBrokersResponse:
        """All brokers, by their start, and in what they differ."""
        before = fleet_pb2.ListBrokersResponse()
        while True:
            request = fleet_pb2.ListBrokersRequest(
                request_id=_request_id(), page_size=_PAGE, page_token=before.next_page_token
            )
            answer = await self._answer(self._fleet.ListBrokers(request, timeout=self._seconds))
            before.brokers.extend(answer.brokers)
            if not answer.next_page_token:
                del answer.brokers[:]
                answer.brokers.extend(before.brokers)
                return answer
            before.next_page_token = answer.next_page_token

    async def request_renewal(
        self, selection: fleet_pb2.Selection, *, reason: str, spread: timedelta, request_id: str, dry_run: bool
    ) -> fleet_pb2.RequestRenewalResponse:
        """Ask for renewals. Safe to repeat with the same `request_id`."""
        request = fleet_pb2.RequestRenewalRequest(
            request_id=request_id, selection=selection, reason=reason, dry_run=dry_run
        )
        request.spread_duration.FromTimedelta(spread)
        return await self._answer(self._fleet.RequestRenewal(request, timeout=self._seconds))

    async def policy(self, *, with_text: bool) -> tuple[policy_pb2.LoadedPolicy, str]:
        """What is known of the policy in force, and its text if it is wanted."""
        request = policy_pb2.GetPolicyRequest(request_id=_request_id(), without_text=not with_text)
        loaded, pieces = policy_pb2.LoadedPolicy(), []
        try:
            async for message in self._policies.GetPolicy(request, timeout=self._seconds):
                loaded.MergeFrom(message.policy)
                pieces.append(message.policy_text)
        except grpc.aio.AioRpcError as error:
            raise await self._error(error) from error
        return loaded, "".join(pieces)

    async def plan_policy(self, content: bytes) -> policy_pb2.PlanPolicyResponse:
        """What would come of a text, the answer's messages put together."""
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            problem = policy_pb2.PolicyProblem(message=f"is not UTF-8: {error.reason}", remedy="save it as UTF-8")
            return policy_pb2.PlanPolicyResponse(problems=[problem])
        whole = policy_pb2.PlanPolicyResponse()
        call = self._policies.PlanPolicy(timeout=_PLAN_SECONDS)
        hello = policy_pb2.PlanPolicyRequest.Hello(request_id=_request_id())
        try:
            await call.write(policy_pb2.PlanPolicyRequest(hello=hello))
            await call.initial_metadata()  # sent when it is this call's turn, or when it is refused
            for start in range(0, len(text), _PIECE):
                if call.done():  # refused: to write on would hide why
                    break
                await call.write(policy_pb2.PlanPolicyRequest(policy_text=text[start : start + _PIECE]))
            if not call.done():
                await call.done_writing()
            async for message in call:
                whole.MergeFrom(message)
        except grpc.aio.AioRpcError as error:
            raise await self._error(error) from error
        return whole

    async def reload_policy(self, *, confirm: bool) -> policy_pb2.ReloadPolicyResponse:
        """Have the policy file read again. Safe to repeat."""
        request = policy_pb2.ReloadPolicyRequest(request_id=_request_id(), confirm=confirm)
        return await self._answer(self._policies.ReloadPolicy(request, timeout=_PLAN_SECONDS))

    async def watch(self, hosts: Sequence[str]) -> AsyncGenerator[renewal_pb2.WatchRenewalsResponse, None]:
        """The fleet as it is, and each change, until the broker ends it: the first failure is raised."""
        request = renewal_pb2.WatchRenewalsRequest(request_id=_request_id(), hosts=hosts)
        call = self._renewals.WatchRenewals(request)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise await self._error(error) from error
        finally:
            call.cancel()

    @property
    def _seconds(self) -> float:
        return self._settings.timeout.total_seconds()

    async def _answer(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise await self._error(error) from error

    async def _error(self, error: grpc.aio.AioRpcError) -> CertplaneError:
        refusal = refusal_from_error(error)
        if refusal is not None:
            remedy = _OPERATORS_REMEDIES.get(refusal.reason)
            return RefusalError.of(replace(refusal, message=f"{refusal.message}; {remedy}") if remedy else refusal)
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return await self._files.run(self._why_unreachable, words_of(error))
        late = "check the broker's log and its load, or raise timeout in ctl.yml"
        return failed_call(error, self._settings.broker.url, late=late)

    def _why_unreachable(self, said: str) -> CertplaneError:
        broker = f"the broker at {self._settings.broker.url}"
        proxy = self._settings.broker.proxy
        failure = handshake_failure(
            str(self._settings.broker.url),
            server_ca_pem=self._server_ca_pem,
            chain=self._chain,
            key=self._key,
            proxy=proxy,
        )
        if failure is None:
            remedy = "try again; if it keeps failing, see the broker's log"
            return OperationError(
                f"the connection to {broker} has ended{_way(str(self._settings.broker.url), proxy)} "
                f"({said}), though a TLS handshake there succeeds",
                remedy=remedy,
            )
        if failure.refused:
            remedy = f"check that {self._chain} hasn't expired and comes from the CA in the broker's agent_ca_bundle"
            return OperationError(f"{broker} doesn't accept this identity", remedy=remedy)
        if failure.kind is None:
            remedy = f"check {self._bundle}, {self._chain} and {self._key}"
            return OperationError(f"the files for the connection can't be used: {failure.phrase}", remedy=remedy)
        return OperationError(f"{broker} {failure.phrase}", remedy=_REMEDIES[failure.kind])


def _way(url: str, use: ProxyUse) -> str:
    proxy = proxy_for(urlsplit(url).hostname or "", use)
    return "" if proxy is None else f" through the proxy {proxy}"


def _request_id() -> str:
    return secrets.token_hex(16)
