"""An HTTPS server on loopback that answers as a test tells it, down to the byte and the moment it hangs up."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from certplane.sandbox.certificates import CertificateAuthority

Script = Callable[[ssl.SSLSocket, bytes], None]


class ScriptedHttps:
    """Accepts connections one after the other; for each, reads one request and runs the script with it."""

    def __init__(self, folder: Path, script: Script) -> None:
        self.ca = CertificateAuthority.root("Scripted Root CA")
        self.requests: list[bytes] = []
        self._script = script
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*self.ca.issue("127.0.0.1", ["127.0.0.1"]).write(folder, "server"))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="scripted-https", daemon=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def client_context(self) -> ssl.SSLContext:
        """Trusts the server."""
        return ssl.create_default_context(cadata=self.ca.pem.decode())

    @contextlib.contextmanager
    def running(self) -> Iterator[ScriptedHttps]:
        self._thread.start()
        try:
            yield self
        finally:
            # a shutdown wakes the thread in accept; closing alone would not
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            with plain, contextlib.suppress(OSError, ssl.SSLError):
                plain.settimeout(5)
                with self._context.wrap_socket(plain, server_side=True) as tls:
                    request = _read_request(tls)
                    self.requests.append(request)
                    self._script(tls, request)


def answer(status: str, body: bytes, *headers: str) -> Script:
    """A script that answers properly."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""])
    return lambda tls, _: tls.sendall(head.encode() + body)


def _read_request(tls: ssl.SSLSocket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = tls.recv(65536)
        if not part:
            return data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(body) < length:
        body += tls.recv(65536)
    return head + b"\r\n\r\n" + body
