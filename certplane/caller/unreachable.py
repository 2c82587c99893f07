"""Why no call reaches a broker, by a TLS handshake with it: certplanectl's words and a program's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from certplane.errors import OperationError
from certplane.rpc.handshake import handshake_failure
from certplane.rpc.proxy import ProxyUse, proxy_for
from certplane.runtime.connection import ConnectionFailure

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


@dataclass(frozen=True, slots=True)
class CallerFiles:
    """Where the files of a connection are: the identity's chain and key, and the CAs of the broker's certificate."""

    chain: Path
    key: Path
    server_cas: Path


def why_unreachable(
    url: str, files: CallerFiles, server_ca_pem: bytes, *, said: str, proxy: ProxyUse = ProxyUse.NONE
) -> OperationError:
    """The error for a broker that no call reaches. Blocks, for some seconds at most.

    Args:
        url: `https://host[:port]` of the broker.
        files: What the caller presents.
        server_ca_pem: The CAs that the broker's certificate may come from, as gRPC has them.
        said: gRPC's own words, for when the handshake finds nothing wrong.
        proxy: Whether gRPC uses the environment's proxy.
    """
    broker = f"the broker at {url}"
    failure = handshake_failure(url, server_ca_pem=server_ca_pem, chain=files.chain, key=files.key, proxy=proxy)
    if failure is None:
        remedy = "try again; if it keeps failing, see the broker's log"
        return OperationError(
            f"the connection to {broker} has ended{_way(url, proxy)} ({said}), though a TLS handshake there succeeds",
            remedy=remedy,
        )
    if failure.refused:
        remedy = f"check that {files.chain} hasn't expired and comes from the CA in the broker's agent_ca_bundle"
        return OperationError(f"{broker} doesn't accept this identity", remedy=remedy)
    if failure.kind is None:
        remedy = f"check {files.server_cas}, {files.chain} and {files.key}"
        return OperationError(f"the files for the connection can't be used: {failure.phrase}", remedy=remedy)
    return OperationError(f"{broker} {failure.phrase}", remedy=_REMEDIES[failure.kind])


def _way(url: str, use: ProxyUse) -> str:
    proxy = proxy_for(urlsplit(url).hostname or "", use)
    return "" if proxy is None else f" through the proxy {proxy}"
