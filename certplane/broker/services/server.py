"""The broker's gRPC server: its options, and all services behind one edge.

One port, mTLS only. The options are the ones of which we have seen that they work (grpcio 1.85): some strings that look
right are ignored without a word, so change them with a test.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Protocol

import grpc
from grpc_health.v1 import health_pb2

from certplane.broker.services.interceptors.edge import Edge
from certplane.broker.services.operations import add_operations
from certplane.errors import OperationError
from certplane.rpc.channel import MAX_MESSAGE_BYTES
from certplane.rpc.credentials import ServerTls

_MINUTE_MS: Final = 60_000

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A dead peer is noticed after 60 s + 20 s. keepalive_timeout_ms alone has no effect on a server: the wait for the
    # answer is http2.ping_timeout_ms.
    ("grpc.keepalive_time_ms", _MINUTE_MS),
    ("grpc.http2.ping_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping every 90 s (certplane.rpc.channel); grpc's default calls more than one in five minutes abuse.
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
    # A socket that doesn't finish its handshake is closed; grpc's default is 120 s.
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Who wants nothing for so long needs no connection, and comes back by itself. An agent has its stream, a call.
    ("grpc.max_connection_idle_ms", 5 * _MINUTE_MS),
    # Connections are made anew every four hours (+-10 %), with a full handshake. Calls under way get longer than the
    # longest wait for an order.
    ("grpc.max_connection_age_ms", 4 * 60 * _MINUTE_MS),
    ("grpc.max_connection_age_grace_ms", 11 * _MINUTE_MS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # What a stream may send ahead of its reader: one message of the largest size. By itself grpc widens this to
    # megabytes for whoever sends fast, so that a flood would be received in full before it is slowed down.
    ("grpc.http2.lookahead_bytes", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),
    # Per connection; what is above it queues at the client.
    ("grpc.max_concurrent_streams", 128),
    # Above 8 KiB a request may be, above 16 KiB it is refused with RESOURCE_EXHAUSTED.
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    ("grpc.enable_channelz", 1),
)

ISSUING: Final = "certplane.issuance"
"""Not a service but a condition, asked for by health checks as one."""

_OTHER_ADDRESS: Final = "stop the other program, or change server.address"
_SHARE: Final = "brokers of one user share a port if each has `server.reuse_port: true`"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class PortError(OperationError):
    """The address can't be listened on."""


class Servicer(Protocol):
    """One of our services."""

    @property
    def service(self) -> str:
        """Its full name, as health and reflection show it."""
        ...

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve it there."""
        ...


def server_options(*, reuse_port: bool) -> tuple[tuple[str, int], ...]:
    """The options of a server; without `reuse_port` a second broker on its port fails instead of sharing it."""
    return (*SERVER_OPTIONS, ("grpc.so_reuseport", int(reuse_port)))


class BrokerServer:
    """One server: bound when made, or, where it shares its port, at `start`; serving from `start` to `stop`."""

    def __init__(
        self,
        *,
        address: str,
        reuse_port: bool = False,
        connections: int | None,
        tls: ServerTls,
        edge: Edge,
        servicers: Sequence[Servicer],
    ) -> None:
        """Build the server and bind the port.

        Each method of `servicers` needs its row in the access table. With `reuse_port` other brokers of this user may
        listen on the same port, if they have it too: the kernel gives each connection to one of them. `connections` is
        how many may be open, those included that are still shaking hands; one more is closed at once, and its client
        tries again. None: as many as come.

        Raises:
            PortError: the port is taken, or the address isn't this machine's.
        """
        self._edge = edge
        options = server_options(reuse_port=reuse_port)
        if connections is not None:
            options = (*options, ("grpc.max_allowed_incoming_connections", connections))
        self._server = grpc.aio.server(interceptors=(edge,), options=options)
        for servicer in servicers:
            servicer.add_to(self._server)
        self._services = [servicer.service for servicer in servicers]
        self._health = add_operations(self._server, self._services)
        self._address, self._tls, self._reuse_port = address, tls, reuse_port
        self._ready = self._resting = False
        self.port = 0
        """What is listened on; 0 before that."""
        _check_free(address, reuse_port=reuse_port)
        if not reuse_port:
            self._bind()

    async def start(self) -> None:
        """Serve; health says SERVING.

        Raises:
            PortError: as when made, where the port is shared.
        """
        if self._reuse_port:
            self._bind()  # from here on the kernel gives it connections, which nobody would answer before
        await self._server.start()
        await self.set_ready(ready=True)
        await self.set_issuing(well=True)

    async def set_ready(self, *, ready: bool) -> None:
        """Tell by health whether our services can do their work; without effect once it drains."""
        self._ready = ready
        for service in self._services:
            await self._health.set(service, _SERVING if ready and not self._resting else _NOT_SERVING)

    async def set_issuing(self, *, well: bool) -> None:
        """Tell by the health of `ISSUING` whether every profile can have certificates; services serve either way."""
        await self._health.set(ISSUING, _SERVING if well else _NOT_SERVING)

    async def rest(self, retry_after: timedelta) -> None:
        """Say NOT_SERVING, and refuse calls that may start an order, until `resume`; all others are served."""
        self._resting = True
        self._edge.drain(retry_after)
        await self.set_ready(ready=self._ready)

    async def resume(self) -> None:
        """Serve all again."""
        self._resting = False
        self._edge.resume()
        await self.set_ready(ready=self._ready)

    async def drain(self, retry_after: timedelta) -> None:
        """Say NOT_SERVING, and refuse calls that may start an order with DRAINING; the others are still served."""
        self._edge.drain(retry_after)
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: timedelta) -> None:
        """Close the port at once; calls get `grace` to end, then they are cancelled."""
        await self._server.stop(grace.total_seconds())
        self._edge.close()

    def _bind(self) -> None:
        try:
            self.port = self._server.add_secure_port(self._address, self._tls.credentials())
        except RuntimeError as error:
            raise PortError(f"can't listen on {self._address}", remedy=_OTHER_ADDRESS) from error


def _check_free(address: str, *, reuse_port: bool) -> None:
    """Find out why an address can't be listened on: grpc's core knows, but writes it to standard error alone.

    With `reuse_port` without listening, or the kernel would give connections to this socket, and close them with it.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    try:
        (family, kind, protocol, _, where), *_ = socket.getaddrinfo(
            host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(where)
            if not reuse_port:
                probe.listen(1)
    except OSError as error:
        if host == "::" and error.errno == errno.EAFNOSUPPORT:
            return  # a machine without IPv6: grpc takes every IPv4 address instead
        remedy = f"{_OTHER_ADDRESS}; {_SHARE}" if error.errno == errno.EADDRINUSE else _OTHER_ADDRESS
        raise PortError(f"can't listen on {address}: {error.strerror or error}", remedy=remedy) from error
