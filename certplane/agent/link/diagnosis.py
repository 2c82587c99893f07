"""Why is there no connection to the broker? gRPC says UNAVAILABLE for everything; this asks by a TLS handshake.

It is only called after a failure, blocks for a few seconds at most, and sends nothing but the handshake. A broker that
doesn't accept this host's identity closes the connection once it has seen the certificate (TLS 1.3: after the client
believes the handshake done), so that a close at that moment is the sign of it.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from certplane.errors import OperationError
from certplane.runtime.connection import ConnectionFailure, connection_failure

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from certplane.agent.model import Version

__all__ = ["IdentityNotAcceptedError", "expired_identity", "unreachable"]

_PATIENCE_SECONDS = 3.0
_REFUSAL_SECONDS = 1.0
"""How long after the handshake a refusal of the client certificate may take to arrive."""
_CHECK_AGENT_CA = "check that the internal CA's root is in the broker's server.mtls.agent_ca_bundle"
_REMEDIES = {
    ConnectionFailure.NOT_FOUND: "check broker.url and this host's resolver",
    ConnectionFailure.UNREACHABLE: "check that the broker runs and its port is open",
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
        f"this host's identity expired at {identity.not_after:%Y-%m-%dT%H:%M:%SZ}, so the broker lets it not in",
        remedy="the agent tries to get it back from the internal CA; if that is refused, get a one-time token and run "
        "`certplane-agent enroll --force`",
    )


def unreachable(url: str, server_ca_bundle: Path, identity: Version, said: str) -> OperationError:
    """The error for a broker that no call reaches; blocks.

    Args:
        url: `https://host[:port]` of the broker.
        server_ca_bundle: the CAs that its certificate may come from.
        identity: what this host presents.
        said: gRPC's own words, for when the handshake finds nothing wrong.
    """
    parts = urlsplit(url)
    where = (parts.hostname or "", parts.port or 443)
    broker = f"the broker at {url}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(server_ca_bundle)
        context.load_cert_chain(identity.path / "fullchain.pem", identity.path / "privkey.pem", password="")
    except (OSError, ssl.SSLError) as error:
        return OperationError(
            f"the files for the connection to {broker} can't be used: {error}",
            remedy=f"check {server_ca_bundle} and {identity.path}",
        )
    try:
        with (
            socket.create_connection(where, timeout=_PATIENCE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=where[0]) as tls,
        ):
            if _refuses(tls):
                return IdentityNotAcceptedError(
                    f"{broker} doesn't accept this host's identity (serial {identity.serial_number}, until "
                    f"{identity.not_after:%Y-%m-%dT%H:%M:%SZ})",
                    remedy=f"{_CHECK_AGENT_CA}, and both clocks",
                )
    except (OSError, UnicodeError) as error:
        kind, phrase = connection_failure(error)
        return OperationError(f"{broker} {phrase}", remedy=_REMEDIES[kind])
    return OperationError(f"{broker} didn't take the call ({said})", remedy="the connection itself works; try again")


def _refuses(tls: ssl.SSLSocket) -> bool:
    """Whether the peer ends the connection at once instead of sending its HTTP/2 settings."""
    tls.settimeout(_REFUSAL_SECONDS)
    try:
        return not tls.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
