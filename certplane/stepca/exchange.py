"""One HTTPS request to the internal CA, and one answer.

Rules: a new connection each time, so that a renewed certificate is used at once; no redirect is followed and no proxy
is used; the answer's size and the time for it are bounded. What fails before the first byte of HTTP leaves this host is
an `UnreachableError`; whatever fails later is another `EnrollmentError`, since the CA may have acted on it.

All of it blocks: it runs in a pool.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from certplane import __version__
from certplane.runtime.connection import ConnectionFailure, connection_failure, ssl_reason
from certplane.runtime.text import printable
from certplane.stepca.errors import EnrollmentError, UnreachableError

_MOST_BYTES = 256 * 1024
"""Room for a long chain; a normal answer has under 10 KiB."""
_MOST_WORDS = 400
"""Octets of the CA's message that are passed on."""
_REMEDIES = {
    ConnectionFailure.NOT_FOUND: "check identity.step_ca.url and this host's resolver",
    ConnectionFailure.UNREACHABLE: "check that the CA runs and its port is open",
    ConnectionFailure.TIMEOUT: "check the network between this host and the CA",
    ConnectionFailure.NO_TLS: "check that identity.step_ca.url is step-ca's own port",
    ConnectionFailure.UNTRUSTED: (
        "check identity.step_ca.fingerprint and root_ca_bundle against the CA's root; if they are right, something "
        "else answers at this address"
    ),
    ConnectionFailure.WRONG_NAME: "use a name of the CA in identity.step_ca.url, or add this one to the CA's dnsNames",
    ConnectionFailure.WRONG_TIME: "check this host's clock first, then the CA's own certificate",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the CA answers: `https://host:port` and a path before every route."""

    host: str
    port: int
    path: str = ""

    @classmethod
    def from_url(cls, url: str) -> Endpoint:
        """Parse the value of `identity.step_ca.url`.

        Raises:
            ValueError: it isn't an https URL with a host.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError(f"{url!r} is not an https URL")
        return cls(parts.hostname, parts.port or 443, parts.path.rstrip("/"))

    @property
    def origin(self) -> str:
        """`https://host[:port]` with the path, without a final slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}{'' if self.port == 443 else f':{self.port}'}{self.path}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: status and body, whatever it is."""

    status: int
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; empty when it isn't one."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    @property
    def said(self) -> str:
        """The CA's own words in an error (`message`), printable and cut; empty if it said nothing."""
        message = self.json().get("message", "")
        if not isinstance(message, str):
            return ""
        return printable(message, _MOST_WORDS).strip()


def exchange(
    endpoint: Endpoint,
    method: str,
    route: str,
    *,
    context: ssl.SSLContext,
    timeout: timedelta,
    body: dict[str, Any] | None = None,
    bearer: str = "",
) -> Reply:
    """Send one request and read its answer.

    Args:
        endpoint: the CA.
        method: GET or POST.
        route: the path after the endpoint's own, with its slash.
        context: decides who is believed and which client certificate is offered.
        timeout: for connecting (each address, with TLS), and once more for the exchange as a whole.
        body: sent as JSON; None sends an empty body.
        bearer: a token for the Authorization header; empty for none.

    Raises:
        UnreachableError: nothing was sent.
        EnrollmentError: the answer was lost, cut off or too large.
    """
    seconds = timeout.total_seconds()
    connection = http.client.HTTPSConnection(endpoint.host, endpoint.port, timeout=seconds, context=context)
    try:
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            raise _not_connected(endpoint, error) from error
        headers = {"User-Agent": f"certplane/{__version__}", "Accept": "application/json"}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        content = b""
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        with _Watchdog(connection.sock, seconds) as watchdog:
            try:
                connection.request(method, endpoint.path + route, body=content, headers=headers)
                with connection.getresponse() as response:
                    answer = response.read(_MOST_BYTES + 1)
                if response.length and len(answer) <= _MOST_BYTES:  # a read with a limit says nothing of a cut
                    raise http.client.IncompleteRead(answer, response.length)
            except (OSError, http.client.HTTPException) as error:
                raise _lost(endpoint, method, route, error, seconds if watchdog.fired else None) from error
        if watchdog.fired:
            raise _lost(endpoint, method, route, TimeoutError(), seconds)
        if len(answer) > _MOST_BYTES:
            raise EnrollmentError(f"{endpoint.origin}{route} answered with more than {_MOST_BYTES} bytes")
        return Reply(response.status, answer)
    finally:
        connection.close()


class _Watchdog:
    """Shuts the socket when the time for the whole exchange is over; a socket's own time limit is per read."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._sock = sock
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.name = "step-ca-timeout"
        self._timer.daemon = True
        self.fired = False

    def _shut(self) -> None:
        self.fired = True
        try:
            # the plain socket's method: the TLS one drops state that the reading thread still uses
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


def _not_connected(endpoint: Endpoint, error: OSError | UnicodeError) -> UnreachableError:
    kind, phrase = connection_failure(error)
    return UnreachableError(f"the internal CA at {endpoint.origin} {phrase}", remedy=_REMEDIES[kind])


def _lost(endpoint: Endpoint, method: str, route: str, error: Exception, seconds: float | None) -> EnrollmentError:
    call = f"{method} {endpoint.origin}{route}"
    if seconds is not None or isinstance(error, TimeoutError):
        return EnrollmentError(
            f"{call}: the CA didn't answer in time",
            remedy="check the CA's log; identity.step_ca.timeout is the limit",
        )
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        # TLS 1.3 refuses a client certificate only after the handshake, on the first read
        return EnrollmentError(
            f"{call}: the CA refused this host's certificate: {ssl_reason(error)}",
            remedy="the identity has expired, or comes from another CA: `certplane-agent check` says which",
        )
    return EnrollmentError(f"{call}: the answer was lost ({_text(error)})", remedy="check the CA's log")


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
