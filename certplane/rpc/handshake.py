"""Why is there no connection to the broker? gRPC says UNAVAILABLE for everything; this asks by a TLS handshake.

It is only called after a failure, blocks for a few seconds at most, and sends nothing but the handshake. A broker that
doesn't accept the caller's identity closes the connection once it has seen the certificate (TLS 1.3: after the client
believes the handshake done), so that a close at that moment is the sign of it. It goes the way that gRPC goes: by the
same CAs, and through the same proxy or none.
"""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from certplane.rpc.proxy import ProxyError, ProxyUse, proxy_for
from certplane.runtime.connection import ConnectionFailure, connection_failure

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


def handshake_failure(
    url: str,
    *,
    server_ca_pem: bytes,
    chain: Path,
    key: Path,
    proxy: ProxyUse = ProxyUse.NONE,
    address: str = "",
) -> HandshakeFailure | None:
    """Make a handshake and say what is wrong with it; None if nothing is. Blocks.

    Args:
        url: `https://host[:port]` of the broker.
        server_ca_pem: the CAs that its certificate may come from, as gRPC has them.
        chain: what the caller presents, PEM, leaf first.
        key: its key, PEM, not encrypted.
        proxy: whether gRPC uses the environment's proxy.
        address: the one of the name's addresses to go to; the first that answers if empty. The name is checked still.
    """
    parts = urlsplit(url)
    name = parts.hostname or ""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=server_ca_pem.decode("ascii"))
        context.load_cert_chain(chain, key, password="")
    except (OSError, ssl.SSLError) as error:
        return HandshakeFailure(str(error), files=True)
    try:
        with (
            _connected(address or name, parts.port or 443, proxy) as plain,
            context.wrap_socket(plain, server_hostname=name) as tls,
        ):
            return HandshakeFailure(refused=True) if _refuses(tls) else None
    except ProxyError as error:
        return HandshakeFailure(str(error), ConnectionFailure.PROXY)
    except (OSError, UnicodeError) as error:
        kind, phrase = connection_failure(error)
        return HandshakeFailure(phrase, kind)


def _connected(host: str, port: int, use: ProxyUse) -> socket.socket:
    proxy = proxy_for(host, use)
    if proxy is not None:
        return proxy.connect(host, port, _PATIENCE_SECONDS)
    return socket.create_connection((host, port), timeout=_PATIENCE_SECONDS)


def _refuses(tls: ssl.SSLSocket) -> bool:
    """Whether the peer ends the connection at once instead of sending its HTTP/2 settings."""
    tls.settimeout(_REFUSAL_SECONDS)
    try:
        return not tls.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
