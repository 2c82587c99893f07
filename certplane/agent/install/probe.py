"""What a local service serves, seen as its clients see it: a TLS handshake, and the leaf that it presents.

Trust isn't verified: what matters is whether it is this host's own certificate, told by serial number and key, and a
service that serves the wrong one must be seen too. Names and dates don't matter either; the agent knows those. The
handshake is complete with TLS 1.3 before a service that wants client certificates can object; one that insists on
TLS 1.2 and client certificates can't be looked at.

A service that begins in plain text (`verify.starttls`) is asked for TLS first. Each attempt has a deadline, from the
first packet to the end of the handshake: a service that accepts and then says nothing costs that and no more. A reload
is asynchronous, so that a wrong answer is asked again for a while.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from datetime import timedelta

from cryptography import x509
from typing_extensions import override

from certplane.agent.install.starttls import TALKS, StartTlsError
from certplane.agent.model import ServedLeaf, ServiceView, Version
from certplane.agent.ports import ServiceProbe
from certplane.pki.keys import public_key_sha256
from certplane.pki.reading import READ_ERRORS
from certplane.runtime.clock import Clock


class TlsProbe(ServiceProbe):
    """`ServiceProbe` for one address."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        server_name: str,
        timeout: timedelta,
        attempts: int,
        interval: timedelta,
        clock: Clock,
        starttls: str = "",
    ) -> None:
        """Nothing is connected yet.

        Args:
            host: Name or address of the service.
            port: Its port.
            server_name: What the handshake asks for (SNI, RFC 6066 3).
            timeout: For one handshake, the connection included.
            attempts: How many.
            interval: Between them.
            clock: For the interval.
            starttls: A key of `starttls.TALKS`, for a service that begins in plain text; empty where TLS comes first.
        """
        self._host = host
        self._port = port
        self._server_name = server_name
        self._timeout = timeout
        self._attempts = attempts
        self._interval = interval
        self._clock = clock
        self._starttls = starttls
        self._context = _context()

    @override
    async def look(self, version: Version) -> ServiceView:
        view = await self._look_once(version)
        for _ in range(self._attempts - 1):
            if view.well:
                break
            await self._clock.sleep(self._interval)
            view = await self._look_once(version)
        return view

    async def _look_once(self, version: Version) -> ServiceView:
        where = f"{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"
        try:
            async with asyncio.timeout(self._timeout.total_seconds()):
                der = await self._handshake()
        except TimeoutError:
            return ServiceView(None, f"{where} completes no TLS handshake in {self._timeout.total_seconds():g} s")
        except (StartTlsError, OSError, UnicodeError) as error:
            return ServiceView(None, f"{where} {_failure(error)}")
        try:
            leaf = _leaf(der)
        except READ_ERRORS:
            return ServiceView(None, f"{where} serves something that is no certificate")
        if (leaf.serial_number, leaf.public_key_sha256) == (version.serial_number, version.public_key_sha256):
            return ServiceView(leaf)
        other = f"serial {leaf.serial_number}, until {leaf.not_after:%Y-%m-%d %H:%M} UTC"
        return ServiceView(leaf, f"{where} serves another certificate for {self._server_name}: {other}")

    async def _handshake(self) -> bytes:
        """The leaf that is presented, DER."""
        seconds = self._timeout.total_seconds()
        if not self._starttls:
            _, writer = await asyncio.open_connection(
                self._host,
                self._port,
                ssl=self._context,
                server_hostname=self._server_name,
                ssl_handshake_timeout=seconds,
            )
        else:
            reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            if self._starttls:
                await TALKS[self._starttls](reader, writer)
                await writer.start_tls(self._context, server_hostname=self._server_name, ssl_handshake_timeout=seconds)
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            der = connection.getpeercert(binary_form=True)
        finally:
            writer.transport.abort()  # a polite close would wait for the service's
        return der or b""


def server_name_of(dns_names: Sequence[str]) -> str:
    """What to ask a service for that serves a certificate of these names: the first one, or one below a wildcard."""
    plain = [name for name in dns_names if not name.startswith("*.")]
    return plain[0] if plain else f"certplane{dns_names[0].removeprefix('*')}"


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _failure(error: StartTlsError | OSError | UnicodeError) -> str:
    if isinstance(error, StartTlsError):
        return str(error)
    if isinstance(error, ssl.SSLError):
        return f"refuses the TLS handshake: {(error.reason or 'no reason given').replace('_', ' ').lower()}"
    return f"can't be reached: {_why(error)}"


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):  # what a name is encoded with refuses an empty label, and one that is too long
        return "its name is no host name"
    # asyncio says "Connect call failed" whatever the cause; a failed look-up has a negative number of its own
    number = error.errno or 0
    return os.strerror(number) if number > 0 else error.strerror or str(error)


def _leaf(der: bytes) -> ServedLeaf:
    certificate = x509.load_der_x509_certificate(der)
    return ServedLeaf(
        serial_number=format(certificate.serial_number, "x"),
        public_key_sha256=public_key_sha256(certificate.public_key()),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )
