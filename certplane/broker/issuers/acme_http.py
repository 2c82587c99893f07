"""What goes over the wire to one CA: HTTPS without signatures, for the ACME client, renewal information and CAA alike.

A CA is not trusted further than its answers are checked:

- only https, only allowed hosts (`outgoing`), HTTP/1.1; httpx's engine alone (`httpcore`), so that there are no
  redirects, cookies or rules of the environment to be switched off;
- bodies of at most 1 MiB, not compressed;
- the roots of `ca_bundle` alone where one is configured, else the public ones; of the environment, only the proxy is
  read, nothing about trust;
- every failure is an `AcmeError`, which says whether the request can have had an effect.

Nothing is repeated here, and nothing has a deadline but each wait on the socket: callers bound a whole exchange with
`asyncio.timeout`, which closes its connection.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import Final

import httpcore
import httpx

from certplane.broker.issuers.acme_errors import AcmeAnswer, AcmeError
from certplane.broker.issuers.acme_sockets import Sockets, Stream
from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.outgoing import AllowedHosts, ForbiddenUrlError, authority, environment_proxy
from certplane.errors import Reason
from certplane.runtime.clock import Clock

LARGEST_BODY: Final = 1024 * 1024
"""Chains, orders and directories of real CAs stay below 64 KiB."""

_MOST_PIECES: Final = 10_000
"""Of a body; each takes the event loop 30 us, however small."""

_WAIT: Final = {"connect": 30, "read": 30, "write": 30, "pool": None}
"""Seconds for connecting and for each wait on the socket."""

_IDLE: Final = 10
"""Idle connections that are kept: more than are in use at once, four for orders (`acme_signing`), four for renewal
information, one for the directory. Those bounds are the callers': the engine's own would count connections whose
request was cancelled before they were opened, for ever, until none is left."""
_KEPT: Final = 60
"""Seconds for which an idle connection is kept."""

_WRAPPING: Final = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
_OTHERS: Final = (httpcore.ProxyError, httpcore.UnsupportedProtocol, OSError, ValueError)


class AcmeHttp:
    """The connections to one CA. One event loop's, and safe for concurrent use there."""

    def __init__(self, hosts: AllowedHosts, roots: ssl.SSLContext, clock: Clock, *, user_agent: str) -> None:
        """Nothing is sent yet.

        Args:
            hosts: which may be called.
            roots: verifies the CA's server.
            clock: for dates in `Retry-After`.
            user_agent: as RFC 8555 6.1 demands.
        """
        self.hosts = hosts
        self._roots, self._clock = roots, clock
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}
        """By the proxy's URL, empty for none: one, unless NO_PROXY has only some of the hosts."""
        self._routes: dict[tuple[str, int], str] = {}

    async def close(self) -> None:
        """Close the connections."""
        for pool in self._pools.values():
            await pool.aclose()

    async def send(self, method: str, url: str, content: bytes | None = None, content_type: str = "") -> AcmeAnswer:
        """One exchange, whatever status the answer has. Raises `AcmeError` unless a whole answer came."""
        try:
            self.hosts.check(url)
        except ForbiddenUrlError as error:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"its answer held {error}", unsent=True) from error
        headers = {**self._headers, "Content-Type": content_type} if content_type else self._headers
        try:
            async with self._pool(url).stream(
                method, url, headers=list(headers.items()), content=content, extensions={"timeout": _WAIT}
            ) as response:
                answered = httpx.Headers(response.headers)
                body = await _read(answered, response)
        except AcmeError:
            raise
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, *_OTHERS) as error:
            raise _failure(error) from error
        retry_after = parse_retry_after(answered.get("Retry-After"), self._clock.now())
        return AcmeAnswer(method, response.status, answered, body, retry_after)

    def _pool(self, url: str) -> httpcore.AsyncConnectionPool:
        host = authority(url)
        if (proxy := self._routes.get(host)) is None:
            proxy = self._routes[host] = environment_proxy(*host)
        if (pool := self._pools.get(proxy)) is None:
            try:
                pool = self._pools[proxy] = httpcore.AsyncConnectionPool(
                    self._roots,
                    proxy=_proxy(proxy) if proxy else None,
                    max_connections=None,
                    max_keepalive_connections=_IDLE,
                    keepalive_expiry=_KEPT,
                    network_backend=Sockets(),
                )
            except (httpx.InvalidURL, ImportError, RuntimeError, ValueError) as error:
                # Not its text, which may hold the proxy's password.
                message = f"no answer: the environment names a proxy that can't be used ({type(error).__name__})"
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, message, unsent=True) from error
        return pool


def _proxy(url: str) -> httpcore.Proxy:
    """An `http` or `https` proxy, with the user and password of its URL."""
    proxy = httpx.Proxy(url)
    if proxy.url.scheme not in {"http", "https"}:
        raise ValueError(proxy.url.scheme)
    where = httpcore.URL(scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=b"/")
    return httpcore.Proxy(where, auth=proxy.raw_auth)


async def _read(headers: httpx.Headers, response: httpcore.Response) -> bytes:
    if headers.get("Content-Encoding", "identity") != "identity":
        raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it sent a compressed body that was not asked for")
    body, pieces = bytearray(), 0
    async for chunk in response.aiter_stream():
        body += chunk
        pieces += 1
        if len(body) > LARGEST_BODY:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent a body of more than {LARGEST_BODY} bytes")
        if pieces > _MOST_PIECES:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"it sent a body in more than {_MOST_PIECES} pieces")
    stream = response.extensions["network_stream"]
    if isinstance(stream, Stream):
        stream.expect_end(bytes(body) if body and "Transfer-Encoding" not in headers else b"\r\n\r\n")
    return bytes(body)


def _failure(error: Exception) -> AcmeError:
    cause = _first_cause(error)
    shown = one_line(_shown(cause), 200)
    if isinstance(error, httpcore.TimeoutException):
        shown = "it took too long"
    elif isinstance(cause, ssl.SSLError):
        shown = f"TLS failed ({shown})"
    unconnected = isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout | httpcore.ProxyError)
    failure = AcmeError(Reason.ISSUER_UNAVAILABLE, f"no answer: {shown}", unsent=unconnected)
    # A timeout may pass by itself; a name without an address, a refused connection and a wrong certificate rarely do.
    failure.unreachable = isinstance(error, httpcore.ConnectError) or isinstance(cause, ssl.SSLError)
    return failure


def _first_cause(error: BaseException) -> BaseException:
    """What `httpcore` wraps: as the cause, or, where its pool has cut that off, as it was caught."""
    while (cause := error.__cause__ or (error.__context__ if isinstance(error, _WRAPPING) else None)) is not None:
        error = cause
    return error


def _shown(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        text = f"[Errno {error.errno}] {os.strerror(error.errno)}"  # event loops say it in their own words
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
