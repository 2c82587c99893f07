"""A small HTTP or HTTPS server on threads, for the sandbox's stand-ins: nothing in it knows what it serves.

It is blocking on purpose: it answers while the caller's event loop is busy, and tests of any loop can share it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import cast

from certplane.sandbox.errors import PortTakenError
from certplane.sandbox.loopback import LOOPBACK

MOST_BODY = 1 << 20
_SILENCE_SECONDS = 30


class LoopbackServer(ThreadingHTTPServer):
    """Serves on a loopback port from `run` to `stop`, each connection in a thread."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # the default of 5 makes a burst of clients wait a second for their SYN to be sent again

    def __init__(
        self, name: str, port: int, handler: type[LoopbackHandler], context: ssl.SSLContext | None = None
    ) -> None:
        """Bind the port; nothing is answered before `run`.

        Args:
            name: what messages and the thread are called.
            port: the port; 0 for a free one.
            handler: answers requests.
            context: for HTTPS; plain HTTP without one.

        Raises:
            PortTakenError: somebody else has it.
        """
        try:
            super().__init__((LOOPBACK, port), handler)
        except OSError as error:
            raise PortTakenError(name, f"can't listen: {error}") from error
        self.context = context
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name=name, daemon=True
        )

    def run(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening. Requests under way may still finish."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a client that hangs up or fails the handshake is ordinary here."""


class LoopbackHandler(BaseHTTPRequestHandler):
    """Reads one request after the other; a subclass answers them in `reply`."""

    protocol_version = "HTTP/1.1"
    server_version = "certplane-sandbox"
    sys_version = ""
    timeout = _SILENCE_SECONDS
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for an acknowledgement

    def setup(self) -> None:
        """The TLS handshake, in the connection's own thread, so that a slow client holds up nobody."""
        context = cast("LoopbackServer", self.server).context
        if context is not None:
            self.request.settimeout(_SILENCE_SECONDS)
            self.request = context.wrap_socket(cast("socket.socket", self.request), server_side=True)
        super().setup()

    def finish(self) -> None:
        """Close the TLS connection too; the server only knows the socket below it."""
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.request.close()

    def reply(self, method: str) -> None:
        """Answer the request that was read, by one call of `answer`."""
        raise NotImplementedError

    # The base class calls do_<METHOD>.
    def do_GET(self) -> None:  # noqa: D102
        self.reply("GET")

    def do_POST(self) -> None:  # noqa: D102
        self.reply("POST")

    def do_DELETE(self) -> None:  # noqa: D102
        self.reply("DELETE")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Nothing on standard error."""

    def peer_certificate(self) -> bytes | None:
        """The client's certificate in DER; None for plain HTTP and for clients without one."""
        return self.request.getpeercert(binary_form=True) if isinstance(self.request, ssl.SSLSocket) else None

    def body(self) -> bytes:
        """The request's body; empty if it is longer than `MOST_BODY`."""
        length = int(self.headers.get("Content-Length") or 0)
        if length > MOST_BODY:
            self.close_connection = True
            return b""
        return self.rfile.read(length)

    def answer(
        self, status: int, content: bytes, content_type: str | None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        """Send a whole response."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
