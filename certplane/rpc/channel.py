"""How an agent or a tool opens its channel to a broker.

One persistent channel per program and identity. A channel keeps its certificate for life, also over reconnects: a new
identity is a new channel. Nothing is sent before the first call. No proxy of the environment is used unless the
configuration asks for it (`certplane.rpc.proxy`).
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import urlsplit

import grpc

from certplane.rpc.proxy import ProxyUse
from certplane.rpc.tracing import client_interceptors

MAX_MESSAGE_BYTES: Final = 64 * 1024
"""Largest message of the protocol, either way (design, fixed decision 1)."""

_PICK: Final = json.dumps({"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": True}}]})
"""One connection, to an address of the name by chance (gRFC A62), so that a fleet spreads over all of them.

Names are asked for anew before each new connection: what changes in DNS is followed. TLS is checked against the name.
"""

CHANNEL_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    ("grpc.service_config", _PICK),
    # A new channel is a new connection, also to a broker to which an older channel has one: else nobody who is sent
    # away would get to another address.
    ("grpc.use_local_subchannel_pool", 1),
    # A dead peer or a NAT that forgot us is noticed in time for the next call. The broker accepts pings every 30 s.
    ("grpc.keepalive_time_ms", 90_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # Without it the core stops pinging after two pings on a silent stream.
    ("grpc.http2.max_pings_without_data", 0),
    # grpc's own ceiling is 120 s; a fleet should be back soon after its broker.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 30_000),
    # In spite of its name: how long one attempt may take, handshake included. A broker that a whole fleet comes back to
    # works off some 500 handshakes a second; giving up early would make it start over with each.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
)

_DEFAULT_PORT: Final = 443


def target_from_url(url: str) -> str:
    """The gRPC target of `https://host[:port]`, such as `dns:///broker.example:8443`.

    Raises:
        ValueError: not such a URL; the text says what is wrong with it.
    """
    parts = urlsplit(url)
    if parts.scheme != "https":
        raise ValueError("must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user name or password")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("must be https://host[:port] and nothing after it")
    try:
        port = parts.port
    except ValueError as error:
        raise ValueError("has a port that is not a number from 1 to 65535") from error
    host = parts.hostname
    if not host or port == 0:
        raise ValueError("must name a host, and a port from 1 to 65535 if any")
    return f"dns:///{f'[{host}]' if ':' in host else host}:{port or _DEFAULT_PORT}"


def channel_options(
    *, server_name: str = "", user_agent: str = "", proxy: ProxyUse = ProxyUse.NONE
) -> list[tuple[str, int | str]]:
    """The options of a channel.

    Args:
        server_name: The name that the server's certificate must have, where it isn't the URL's host.
        user_agent: Put before grpc's own, such as `certplane-agent/0.1.0`.
        proxy: Whether the environment's proxy is used; grpc would, whenever there is one.
    """
    options = list(CHANNEL_OPTIONS)
    options.append(("grpc.enable_http_proxy", int(proxy is ProxyUse.ENVIRONMENT)))
    if server_name:
        options += [("grpc.ssl_target_name_override", server_name), ("grpc.default_authority", server_name)]
    if user_agent:
        options.append(("grpc.primary_user_agent", user_agent))
    return options


def open_channel(
    url: str,
    credentials: grpc.ChannelCredentials,
    *,
    server_name: str = "",
    user_agent: str = "",
    proxy: ProxyUse = ProxyUse.NONE,
) -> grpc.aio.Channel:
    """A channel to the broker at `url`; close it with a grace when a newer one has taken over.

    Raises:
        ValueError: `url` isn't `https://host[:port]`.
    """
    options = channel_options(server_name=server_name, user_agent=user_agent, proxy=proxy)
    target = target_from_url(url)
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=client_interceptors())
