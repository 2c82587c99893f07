"""Whether a link to the broker goes through a proxy: by gRPC's own rules, so that a diagnosis goes the same way.

An internal link uses no proxy: variables such as `https_proxy` are set for the way to the Internet, often for a shell
and not for a service, so that one link would work and the other would not. Who needs a proxy says so by `broker.proxy:
environment`; then gRPC takes the first of `grpc_proxy`, `https_proxy` and `http_proxy` (lower case only), unless
`no_grpc_proxy`, or else `no_proxy`, has the host, a suffix of it, or a network that it lies in.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import unquote, urlsplit

_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_EXCEPTIONS = ("no_grpc_proxy", "no_proxy")
_DEFAULT_PORT = 443
_MAX_ANSWER = 16 * 1024


class ProxyUse(StrEnum):
    """`broker.proxy`: whether the link to the broker uses the environment's proxy (docs/configuration.md)."""

    NONE = "none"
    ENVIRONMENT = "environment"


class ProxyError(OSError):
    """The proxy opened no way to the broker; the text goes on from "the broker at URL"."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that opens tunnels (CONNECT); `variable` is where it is from."""

    variable: str
    host: str
    port: int
    credentials: str = ""

    @classmethod
    def of_environment(cls, host: str, environment: Mapping[str, str] | None = None) -> Self | None:
        """The proxy that gRPC takes for `host`; None if it takes none."""
        environment = os.environ if environment is None else environment
        variable = next((name for name in _VARIABLES if environment.get(name)), None)
        if variable is None or _is_excepted(host, environment):
            return None
        try:
            parts = urlsplit(environment[variable])
            port = parts.port
        except ValueError:
            return None
        if parts.scheme != "http" or not parts.hostname:  # gRPC passes over any other
            return None
        user = parts.netloc.rpartition("@")[0]
        return cls(variable, parts.hostname, port or _DEFAULT_PORT, unquote(user))

    def __str__(self) -> str:
        """Without the credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port} ({self.variable})"

    def __repr__(self) -> str:
        return f"Proxy({self})"

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """A connection to `host` through the proxy. Blocks.

        Args:
            host: where to.
            port: where to.
            timeout: of each wait, seconds.

        Raises:
            ProxyError: the proxy can't be reached, or refuses.
            TimeoutError: it doesn't answer.
        """
        try:
            connection = socket.create_connection((self.host, self.port), timeout=timeout)
        except TimeoutError:
            raise
        except OSError as error:
            raise ProxyError(f"can't be reached: the proxy {self}: {error.strerror or error}") from error
        try:
            self._open_tunnel(connection, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_tunnel(self, connection: socket.socket, target: str) -> None:
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if self.credentials:
            request += f"Proxy-Authorization: Basic {base64.b64encode(self.credentials.encode()).decode()}\r\n"
        connection.sendall(f"{request}\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            part = connection.recv(1)  # what follows the answer belongs to TLS
            if not part or len(answer) >= _MAX_ANSWER:
                raise ProxyError(f"can't be reached: the proxy {self} doesn't answer like an HTTP proxy")
            answer += part
        status = answer.split(b" ", 2)[1:2]
        if not answer.startswith(b"HTTP/1.") or status != [b"200"]:
            said = status[0][:3].decode("ascii", errors="replace") if status else "nothing"
            raise ProxyError(f"can't be reached: the proxy {self} refuses to connect to {target} (HTTP {said})")


def proxy_for(host: str, use: ProxyUse) -> Proxy | None:
    """The proxy on the way to the broker at `host`; None without one."""
    return Proxy.of_environment(host) if use is ProxyUse.ENVIRONMENT else None


def _is_excepted(host: str, environment: Mapping[str, str]) -> bool:
    variable = next((name for name in _EXCEPTIONS if environment.get(name)), None)
    if variable is None:
        return False
    entries = [entry.strip() for entry in environment[variable].split(",")]
    return any(entry and (host.lower().endswith(entry.lower()) or _is_in(host, entry)) for entry in entries)


def _is_in(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
