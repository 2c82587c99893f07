"""Why is there no connection to the broker? gRPC says UNAVAILABLE for everything; this asks by a TLS handshake.

It is only called after a failure, blocks for a few seconds at most, and sends nothing but the handshake. A broker that
doesn't accept the caller's identity closes the connection once it has seen the certificate (TLS 1.3: after the client
believes the handshake done), so that a close at that moment is the sign of it.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from certplane.runtime.connection import ConnectionFailure, connection_failure

__all__ = ["HandshakeFailure", "handshake_failure"]

_PATIENCE_SECONDS = 3.0
_REFUSAL_SECONDS = 1.0
"""How long after the handshake a refusal of the client certificate may take to arrive."""


@dataclass(frozen=True, slots=True)
class HandshakeFailure:
    """What went wrong: one of `kind`, `files` and `refused`.

    `phrase` goes on from "the broker at URL" for a `kind`, and is the whole cause for `files`.
    """

    phrase: str = ""
    kind: ConnectionFailure | None = None
    files: bool = False
    """The files of the connection can't be used."""
    refused: bool = False
    """The other side ends the connection once it has seen the certificate."""


def handshake_failure(url: str, *, server_ca_bundle: Path, chain: Path, key: Path) -> HandshakeFailure | None:
    """Make a handshake and say what is wrong with it; None if nothing is. Blocks.

    Args:
        url: `https://host[:port]` of the broker.
        server_ca_bundle: the CAs that its certificate may come from, PEM.
        chain: what the caller presents, PEM, leaf first.
        key: its key, PEM, not encrypted.
    """
    parts = urlsplit(url)
    where = (parts.hostname or "", parts.port or 443)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(server_ca_bundle)
        context.load_cert_chain(chain, key, password="")
    except (OSError, ssl.SSLError) as error:
        return HandshakeFailure(str(error), files=True)
    try:
        with (
            socket.create_connection(where, timeout=_PATIENCE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=where[0]) as tls,
        ):
            return HandshakeFailure(refused=True) if _refuses(tls) else None
    except (OSError, UnicodeError) as error:
        kind, phrase = connection_failure(error)
        return HandshakeFailure(phrase, kind)


def _refuses(tls: ssl.SSLSocket) -> bool:
    """Whether the peer ends the connection at once instead of sending its HTTP/2 settings."""
    tls.settimeout(_REFUSAL_SECONDS)
    try:
        return not tls.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
