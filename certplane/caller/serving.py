"""A server's TLS context whose certificate changes while the server runs.

OpenSSL takes a context's certificate when a connection begins, and loading another one into a context that other
threads use isn't safe. So there is a context for each certificate, made when it is loaded and never changed, and one
that the server keeps: when a ClientHello has come, with a server name or without, it hands the connection over to the
newest. Connections that are open keep what they have. The certificate and key go through memory (memfd_create(2)), not
through a file.

The connection's options, protocol versions and ciphers are those of the context that the server has; but OpenSSL asks
the newest for ALPN and for the CAs of client certificates, and `getpeercert` asks it whether there was one. So what
sets these is done at both (`LiveContext`).
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import Any, Self

from typing_extensions import override

from certplane.caller.values import IssuedCertificate

_verify_mode: Any = ssl.SSLContext.verify_mode  # a property, which a subclass can't set through super()


def load(context: ssl.SSLContext, issued: IssuedCertificate) -> None:
    """Have a context present a certificate.

    Raises:
        ssl.SSLError: OpenSSL refuses it.
        OSError: no memory, or no file descriptor.
    """
    descriptor = os.memfd_create("certplane", os.MFD_CLOEXEC)
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        file.write(issued.private_key_pem.rstrip() + b"\n" + issued.fullchain_pem.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


class LiveContext(ssl.SSLContext):
    """A server's context; `present` changes the certificate for connections that begin from then on.

    `present` may be called from any thread. What sets ALPN or CAs is to be called before the server starts.
    """

    def __new__(cls, issued: IssuedCertificate) -> Self:  # noqa: ARG004 - the constructor's arguments
        """OpenSSL's defaults for a server: TLS 1.2 and later."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, issued: IssuedCertificate) -> None:
        self._settings: list[Callable[[ssl.SSLContext], None]] = []
        load(self, issued)
        self._newest = self._made(issued)
        self.sni_callback = self._hand_over

    def present(self, issued: IssuedCertificate) -> None:
        """Change the certificate.

        Raises:
            ssl.SSLError: OpenSSL refuses it; the one before stays.
            OSError: no memory, or no file descriptor; the one before stays.
        """
        self._newest = self._made(issued)

    @override
    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        self._set(lambda context: ssl.SSLContext.set_alpn_protocols(context, alpn_protocols))

    @override
    def load_verify_locations(self, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        self._set(lambda context: ssl.SSLContext.load_verify_locations(context, cafile, capath, cadata))

    @override
    def load_default_certs(self, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> None:
        self._set(lambda context: ssl.SSLContext.load_default_certs(context, purpose))

    @property
    @override
    def verify_mode(self) -> Any:
        return _verify_mode.fget(self)

    @verify_mode.setter
    def verify_mode(self, value: Any) -> None:
        self._set(lambda context: _verify_mode.fset(context, value))

    def _set(self, setting: Callable[[ssl.SSLContext], None]) -> None:
        setting(self)
        setting(self._newest)
        self._settings.append(setting)

    def _made(self, issued: IssuedCertificate) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load(context, issued)
        for setting in self._settings:
            setting(context)
        return context

    def _hand_over(self, connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._newest
