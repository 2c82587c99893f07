"""What goes over the wire to one CA: HTTPS without signatures, for the ACME client, renewal information and CAA alike.

A CA is not trusted further than its answers are checked:

- only https, only allowed hosts (`outgoing`), HTTP/1.1 (`acme_connection`); there are no redirects, cookies or rules of
  the environment to be switched off;
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
from base64 import b64encode
from typing import Final
from urllib.parse import urlsplit

import h11
import httpcore
import httpx

from certplane.broker.issuers.acme_connection import Connection, ProxyRefusedError, RawAnswer
from certplane.broker.issuers.acme_errors import AcmeAnswer, AcmeError
from certplane.broker.issuers.acme_sockets import Proxy, bracketed, connect
from certplane.broker.issuers.answers import one_line, parse_retry_after
from certplane.broker.issuers.outgoing import HTTPS_PORT, AllowedHosts, ForbiddenUrlError, environment_proxy
from certplane.broker.issuers.spans import http_span, note_status
from certplane.errors import Reason
from certplane.runtime.clock import Clock

_IDLE: Final = 10
"""Idle connections that are kept: more than are in use at once, four for orders (`acme_signing`), four for renewal
information, one for the directory."""
_KEPT: Final = 60
"""Seconds for which an idle connection is kept."""

_FAILURES: Final = (OSError, h11.ProtocolError, ProxyRefusedError)


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
        self._roots.set_alpn_protocols(["http/1.1"])
        self._headers = [(b"User-Agent", user_agent.encode()), (b"Accept-Encoding", b"identity")]
        self._idle: list[Connection] = []
        """Those that wait for another request, the longest first."""
        self._routes: dict[tuple[str, int], Proxy | None] = {}
        self._closed = False

    async def close(self) -> None:
        """Close the connections; one that is under way ends with its exchange."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def send(self, method: str, url: str, content: bytes | None = None, content_type: str = "") -> AcmeAnswer:
        """One exchange, whatever status the answer has. Raises `AcmeError` unless a whole answer came."""
        try:
            where = self.hosts.place(url)
        except ForbiddenUrlError as error:
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, f"its answer held {error}", unsent=True) from error
        target, headers = self._request(url, where, content, content_type)
        with http_span(method, *where) as span:
            connection = await self._connection(where)
            try:
                answer = await connection.exchange(method, target, headers, content)
            except _FAILURES as error:
                raise _failure(error, sent=True) from error
            finally:
                self._keep(connection)
            note_status(span, answer.status)
        return self._checked(method, answer)

    def _request(
        self, url: str, where: tuple[str, int], content: bytes | None, content_type: str
    ) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        """Target and headers."""
        host, port = where
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = bracketed(host) if port == HTTPS_PORT else f"{bracketed(host)}:{port}"
        headers = [(b"Host", host.encode("ascii")), *self._headers]
        if content is not None:
            headers.append((b"Content-Length", str(len(content)).encode("ascii")))
        if content_type:
            headers.append((b"Content-Type", content_type.encode("ascii")))
        return target.encode("ascii"), headers

    async def _connection(self, where: tuple[str, int]) -> Connection:
        """The newest that is idle, or a new one."""
        too_old = self._clock.monotonic() - _KEPT
        while self._idle and self._idle[0].idle_since < too_old:
            self._idle.pop(0).abort()
        for connection in self._idle[::-1]:
            if connection.where == where:
                self._idle.remove(connection)
                if connection.usable:
                    return connection
                connection.abort()
        try:
            return await connect(*where, self._roots, self._proxy(where))
        except _FAILURES as error:
            raise _failure(error, sent=False) from error

    def _keep(self, connection: Connection) -> None:
        """For the next request, if this one has ended as it should."""
        if self._closed or not connection.usable:
            connection.abort()
            return
        connection.idle_since = self._clock.monotonic()
        self._idle.append(connection)
        while len(self._idle) > _IDLE:
            self._idle.pop(0).abort()

    def _checked(self, method: str, answer: RawAnswer) -> AcmeAnswer:
        headers: dict[str, str] = {}
        for name, value in answer.headers:
            key, text = name.decode("ascii"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        if headers.get("content-encoding", "identity") != "identity":
            raise AcmeError(Reason.ISSUER_UNAVAILABLE, "it sent a compressed body that was not asked for")
        retry_after = parse_retry_after(headers.get("retry-after"), self._clock.now())
        return AcmeAnswer(method, answer.status, headers, answer.body, retry_after)

    def _proxy(self, where: tuple[str, int]) -> Proxy | None:
        if where not in self._routes:
            try:
                url = environment_proxy(*where)
                self._routes[where] = _proxy(url) if url else None
            except (httpx.InvalidURL, ValueError) as error:
                # Not its text, which may hold the proxy's password.
                message = f"no answer: the environment names a proxy that can't be used ({type(error).__name__})"
                raise AcmeError(Reason.ISSUER_UNAVAILABLE, message, unsent=True) from error
        return self._routes[where]


def _proxy(url: str) -> Proxy:
    """An `http` or `https` proxy, with the user and password of its URL."""
    proxy = httpx.Proxy(url)
    if proxy.url.scheme not in {"http", "https"}:
        raise ValueError(proxy.url.scheme)
    headers = []
    if proxy.raw_auth is not None:
        headers.append((b"Proxy-Authorization", b"Basic " + b64encode(b":".join(proxy.raw_auth))))
    roots = httpcore.default_ssl_context() if proxy.url.scheme == "https" else None
    return Proxy(proxy.url.host, proxy.url.port or (80 if roots is None else HTTPS_PORT), roots, headers)


def _failure(error: Exception, *, sent: bool) -> AcmeError:
    """`sent` says whether the request may have arrived."""
    shown = one_line(_shown(error), 200)
    if isinstance(error, TimeoutError):
        shown = "it took too long"
    elif isinstance(error, ssl.SSLError):
        shown = f"TLS failed ({shown})"
    failure = AcmeError(Reason.ISSUER_UNAVAILABLE, f"no answer: {shown}", unsent=not sent)
    # A timeout may pass by itself; a name without an address, a refused connection and a wrong certificate rarely do.
    unconnected = not sent and isinstance(error, OSError) and not isinstance(error, TimeoutError)
    failure.unreachable = unconnected or isinstance(error, ssl.SSLError)
    return failure


def _shown(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError | socket.gaierror):
        text = f"[Errno {error.errno}] {os.strerror(error.errno)}"  # event loops say it in their own words
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
