"""What the agent is made of, part by part, as its configuration says: for `app`, and for those who only look."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from typing_extensions import override

from certplane.agent.acting import Activates
from certplane.agent.host import Host
from certplane.agent.install.activation import ActivationResult, Activator
from certplane.agent.link.broker import GrpcBroker
from certplane.agent.model import LineageStatus, Version
from certplane.agent.ports import Broker, OrderFollower
from certplane.agent.renewal.plan import Verify
from certplane.agent.settings import AgentSettings, CertificateSettings
from certplane.config.broker_urls import BrokerUrl
from certplane.errors import OperationError
from certplane.runtime.clock import Clock

if TYPE_CHECKING:  # a host that has no service looked at needs no probe
    from certplane.agent.install.probe import TlsProbe
    from certplane.agent.textfile import Textfile


class Link(Broker, OrderFollower, Protocol):
    """The connection to the broker."""

    async def refresh(self) -> bool:
        """Take up what has changed of the CAs that the broker is known by; whether calls go another way now."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class Shows(Protocol):
    """Shows how the agent is: `certplane.runtime.notify.ServiceNotifier`."""

    def ready(self, status: str) -> None:
        """It runs."""
        ...

    def status(self, status: str) -> None:
        """One line."""
        ...


class IdentityActivator(Activates):
    """Activates identities; whatever the outcome, the channel ends up with the one in force."""

    def __init__(self, activator: Activator, use_current: Callable[[], Awaitable[None]]) -> None:
        """`use_current` makes the channel's identity the one in force."""
        self._activator = activator
        self._use_current = use_current

    @override
    async def activate(self, version: Version, status: LineageStatus) -> ActivationResult:
        try:
            return await self._activator.activate(version, status)
        finally:
            await self._use_current()

    @override
    async def verify(self, step: Verify, status: LineageStatus) -> LineageStatus:
        return await self._activator.verify(step, status)  # nobody serves an identity


def link(
    settings: AgentSettings, host: Host, urls: Sequence[BrokerUrl] = (), *, moved: Callable[[], None] = lambda: None
) -> GrpcBroker:
    """The brokers of `settings`, or of `urls` alone, without a channel yet; `moved` is `GrpcBroker`'s."""
    return GrpcBroker(
        [str(url) for url in urls or settings.broker.all_urls],
        server_ca_bundle=settings.broker.server_ca_bundle,
        timeout=settings.broker.timeout,
        clock=host.clock,
        disk=host.disk,
        proxy=settings.broker.proxy,
        rng=host.rng,
        moved=moved,
    )


def textfile_of(host: Host) -> Textfile | None:
    """What writes this host's metrics; None where that isn't configured."""
    if (path := host.settings.metrics.textfile) is None:
        return None
    from certplane.agent.textfile import Textfile  # noqa: PLC0415 - most hosts have none

    return Textfile(host, path)


def probe_of(settings: CertificateSettings, clock: Clock) -> TlsProbe | None:
    """What looks at the service that serves a certificate; None where it isn't configured."""
    verify = settings.verify
    if verify is None:
        return None
    from certplane.agent.install.probe import TlsProbe, server_name_of  # noqa: PLC0415 - where a service is looked at

    return TlsProbe(
        verify.connect.host,
        verify.connect.port,
        server_name=verify.server_name or server_name_of(settings.dns_names),
        timeout=verify.timeout,
        attempts=verify.attempts,
        interval=verify.interval,
        clock=clock,
        starttls="" if verify.starttls is None else verify.starttls.value,
    )


def not_enrolled(settings: AgentSettings) -> OperationError:
    """The error for a host without an identity."""
    return OperationError(
        f"this host isn't enrolled: there is no identity {settings.identity.name} in {settings.state_dir}",
        remedy="get a one-time token and run `certplane-agent enroll`",
    )
