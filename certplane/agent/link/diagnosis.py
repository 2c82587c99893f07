"""What a lost connection to the broker means to this host: its own identity first, then what a handshake finds."""

from __future__ import annotations

from collections.abc import Sequence
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
    error = connection_error(url, server_ca_pem, identity, proxy=proxy)
    if error is None:
        by = proxy_for(urlsplit(url).hostname or "", proxy)
        way = "" if by is None else f" through the proxy {by}"
        return OperationError(
            f"the broker at {url} didn't take the call{way} ({said}), though a TLS handshake there succeeds",
            remedy="try again; if it keeps failing, see the broker's log",
        )
    return error


def connection_error(
    url: str, server_ca_pem: bytes, identity: Version, *, proxy: ProxyUse = ProxyUse.NONE, address: str = ""
) -> OperationError | None:
    """What a TLS handshake with a broker finds wrong: the address, the name, trust, the identity; blocks.

    Args:
        url: `https://host[:port]` of the broker.
        server_ca_pem: the CAs that its certificate may come from, as gRPC has them.
        identity: what this host presents.
        proxy: whether gRPC uses the environment's proxy.
        address: which of the name's addresses; the first that answers if empty.
    """
    chain, key = identity.path / "fullchain.pem", identity.path / "privkey.pem"
    failure = handshake_failure(url, server_ca_pem=server_ca_pem, chain=chain, key=key, proxy=proxy, address=address)
    broker = f"the broker at {url}, address {address}," if address else f"the broker at {url}"
    if failure is None:
        return None
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


def none_reachable(errors: Sequence[OperationError]) -> OperationError:
    """One error for several brokers, each with its cause and remedy; an identity that any of them refuses is refused.

    Args:
        errors: `unreachable` of each.
    """
    if len(errors) == 1:
        return errors[0]
    kind = next((IdentityNotAcceptedError for each in errors if isinstance(each, IdentityNotAcceptedError)), None)
    text = "; ".join(f"({number}) {error}" for number, error in enumerate(errors, 1))
    return (kind or OperationError)(f"none of {len(errors)} brokers takes the call: {text}")
