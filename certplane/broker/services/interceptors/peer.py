"""The other side of a connection, as gRPC's core describes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from certplane.broker.identity.authentication import Peer
from certplane.runtime.sharing import SharedTexts

_user_agents: Final = SharedTexts()


def peer_of(auth_context: Mapping[str, Iterable[bytes]], address: str, user_agent: str = "") -> Peer:
    """The peer of a call.

    Args:
        auth_context: The call's, with the keys of grpc's core; a missing one is empty, and refused later.
        address: `context.peer()`, such as `ipv4:192.0.2.1:5000` or `ipv6:%5B2001:db8::1%5D:5000`.
        user_agent: The call's header, as sent.
    """
    leaf_pem = _first(auth_context, "x509_pem_cert")
    return Peer(
        leaf_pem=leaf_pem,
        # An open stream keeps its peer. The core's chain begins with the leaf; the rest is the same for most hosts.
        chain_pem=_shared(_first(auth_context, "x509_pem_cert_chain").removeprefix(leaf_pem)),
        tls_version=_first(auth_context, "ssl_tls_version").decode("ascii", "replace"),
        # Anything but a clear "false" counts as resumed.
        session_reused=_first(auth_context, "ssl_session_reused") != b"false",
        source_ip=_ip_of(address),
        user_agent=_user_agents.share(user_agent[:256]),
    )


@lru_cache(maxsize=64)
def _shared(pem: bytes) -> bytes:
    """One object for equal chains."""
    return pem


def _first(auth_context: Mapping[str, Iterable[bytes]], key: str) -> bytes:
    for value in auth_context.get(key, ()):
        return value
    return b""


def _ip_of(address: str) -> str:
    family, _, rest = address.partition(":")
    if family == "ipv4":
        return rest.rpartition(":")[0]
    if family == "ipv6":
        return unquote(rest).rpartition(":")[0].strip("[]")
    return ""
