"""What a lost connection to the broker means to this host: its own identity first, then what a handshake finds."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import urlsplit

from certplane.agent.model import Version
from certplane.errors import OperationError
from certplane.rpc.handshake import handshake_failure
from certplane.rpc.proxy import ProxyUse, proxy_for
from certplane.runtime.connection import ConnectionFailure

_CHECK_AGENT_CA = "check that the internal CA's root is in the broker's server.mtls.agent_ca_bundle"
_REMEDIES = {
    ConnectionFailure.NOT_FOUND: "check broker.url and this host's resolver",
    ConnectionFailure.UNREACHABLE: "check that the broker runs and its port is open",
    ConnectionFailure.PROXY: "correct the proxy variables of the agent's environment, put the broker into no_proxy, or "
    "drop broker.proxy",
    ConnectionFailure.TIMEOUT: "check the network between this host and the broker",
    ConnectionFailure.NO_TLS: f"check that broker.url is the broker's own port; {_CHECK_AGENT_CA}",
    ConnectionFailure.UNTRUSTED: "check broker.server_ca_bundle against the CA of the broker's certificate",
    ConnectionFailure.WRONG_NAME: "use a name of the broker's certificate in broker.url",
    ConnectionFailure.WRONG_TIME: "check this host's clock first, then the broker's own certificate",
}


class IdentityNotAcceptedError(OperationError):
    """The broker ends the connection once it has seen this host's certificate."""


def expired_identity(identity: Version, now: datetime) -> OperationError | None:
    """The error when this host's own identity is over, which the broker's side would only show as a lost connection."""
    if now < identity.not_after:
        return None
    return OperationError(
        f"this host's identity expired at {identity.not_after:%Y-%m-%dT%H:%M:%SZ}, so the broker refuses it",
        remedy="the agent tries to get it back from the internal CA; if that is refused, get a one-time token and run "
        "`certplane-agent enroll --force`",
    )


def unreachable(
    url: str, server_ca_pem: bytes, identity: Version, said: str, *, proxy: ProxyUse = ProxyUse.NONE
) -> OperationError:
    """The error for a broker that no call reaches; blocks.

    Args:
        url: `https://host[:port]` of the broker.
        server_ca_pem: the CAs that its certificate may come from, as gRPC has them.
        identity: what this host presents.
        said: gRPC's own words, for when the handshake finds nothing wrong.
        proxy: whether gRPC uses the environment's proxy.
    """
    chain, key = identity.path / "fullchain.pem", identity.path / "privkey.pem"
    failure = handshake_failure(url, server_ca_pem=server_ca_pem, chain=chain, key=key, proxy=proxy)
    broker = f"the broker at {url}"
    if failure is None:
        by = proxy_for(urlsplit(url).hostname or "", proxy)
        way = "" if by is None else f" through the proxy {by}"
        return OperationError(
            f"{broker} didn't take the call{way} ({said}), though a TLS handshake there succeeds",
            remedy="try again; if it keeps failing, see the broker's log",
        )
    if failure.refused:
        return IdentityNotAcceptedError(
            f"{broker} doesn't accept this host's identity (serial {identity.serial_number}, until "
            f"{identity.not_after:%Y-%m-%dT%H:%M:%SZ})",
            remedy=f"{_CHECK_AGENT_CA}, and both clocks",
        )
    if failure.kind is None:
        return OperationError(
            f"the files for the connection to {broker} can't be used: {failure.phrase}",
            remedy=f"check broker.server_ca_bundle and {identity.path}",
        )
    return OperationError(f"{broker} {failure.phrase}", remedy=_REMEDIES[failure.kind])
