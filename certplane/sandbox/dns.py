"""The sandbox's own authoritative DNS server, for machines without BIND and for tests that need a server to misbehave.

It answers over UDP and TCP and takes RFC 2136 updates signed with its key. It has a thread and an event loop of its
own, so that it answers while the caller's loop is busy, and so that tests of any loop can share it.

Unlike BIND it can have several name servers (127.0.0.1, 127.0.0.2, ...), each with faults of its own: the others
serve the same zones, as secondaries that are never late unless a fault makes them.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Self, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.tsig
import dns.update

from certplane.runtime.clock import Clock, SystemClock
from certplane.sandbox.dns_endpoint import DnsEndpoint, TsigKey, zone_file
from certplane.sandbox.dns_zones import ZoneStore
from certplane.sandbox.errors import PortTakenError
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.process import start_on_free_port

_REMEMBERED_QUESTIONS = 10_000
_TSIG_ERRORS: dict[type[Exception], dns.rcode.Rcode] = {
    dns.message.UnknownTSIGKey: dns.rcode.BADKEY,
    dns.tsig.BadSignature: dns.rcode.BADSIG,
    dns.tsig.BadTime: dns.rcode.BADTIME,
}
_PLAIN_UDP_BYTES = 512  # RFC 1035, 4.2.1


@dataclass(slots=True)
class DnsFaults:
    """What one address does wrong. Read at every message, so a test may change it at any time.

    Attributes:
        drop: answer nothing.
        servfail: answer questions with SERVFAIL.
        refuse_updates: answer updates with REFUSED.
        truncate: answer over UDP with the TC bit and nothing else.
        visible_after: a new record isn't served before this time has passed since its update.
        below: limits `drop`, `servfail` and `truncate` to questions at or below this name.
    """

    drop: bool = False
    servfail: bool = False
    refuse_updates: bool = False
    truncate: bool = False
    visible_after: timedelta = timedelta()
    below: str = ""

    def concern(self, message: dns.message.Message) -> bool:
        """Whether the faults that `below` limits apply to this message."""
        asked = message.question[0].name if message.question else dns.name.root
        return asked.is_subdomain(dns.name.from_text(self.below))


@dataclass(frozen=True, slots=True)
class Question:
    """A question that arrived: where, what for, and how."""

    address: str
    name: str
    record_type: str
    tcp: bool


class SandboxDnsServer:
    """A `DnsServer` played by the sandbox itself.

    Attributes:
        faults: address -> what it does wrong; an entry for every address.
        questions: what was asked, oldest first; updates aren't questions.
    """

    def __init__(
        self, zones: Sequence[str], *, addresses: Sequence[str] = (LOOPBACK,), clock: Clock | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            zones: absolute names; one below another is delegated by it.
            addresses: loopback addresses, one name server each.
            clock: decides what `visible_after` hides.
        """
        self.faults = {address: DnsFaults() for address in addresses}
        self.questions: deque[Question] = deque(maxlen=_REMEMBERED_QUESTIONS)
        self._zones = tuple(zone.rstrip(".").lower() for zone in zones)
        self._clock = clock or SystemClock()
        self._key = TsigKey.generate("certplane-sandbox")
        self._endpoint: DnsEndpoint | None = None
        self._service: _Service | None = None

    @property
    def endpoint(self) -> DnsEndpoint:
        """Where it answers.

        Raises:
            RuntimeError: it was not started.
        """
        if self._endpoint is None:
            raise RuntimeError("the DNS server was not started")
        return self._endpoint

    async def __aenter__(self) -> Self:
        """Start it; it answers when this returns."""

        async def start(port: int) -> tuple[DnsEndpoint, _Service]:
            endpoint = DnsEndpoint(tuple(self.faults), port, self._zones, self._key)
            service = _Service(endpoint, self.faults, self.questions, self._clock)
            service.start()
            return endpoint, service

        self._endpoint, self._service = await start_on_free_port(start, addresses=tuple(self.faults), udp=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._service is not None:
            self._service.stop()


@dataclass(slots=True)
class _Service:
    """The running server: its sockets, its thread, its zones."""

    endpoint: DnsEndpoint
    faults: dict[str, DnsFaults]
    questions: deque[Question]
    clock: Clock
    _added_at: dict[tuple[dns.name.Name, dns.rdata.Rdata], float] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _zones: ZoneStore = field(init=False)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        """Bind all sockets in the caller's thread, so that its errors are the caller's, then serve."""
        self._zones = ZoneStore({zone: zone_file(zone, self.endpoint) for zone in self.endpoint.zones})
        opened: list[socket.socket] = []
        try:
            for address in self.endpoint.addresses:
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    opened.append(sock := socket.socket(socket.AF_INET, kind))
                    sock.setblocking(False)
                    sock.bind((address, self.endpoint.port))
                    if kind == socket.SOCK_STREAM:
                        sock.listen()
        except OSError as error:
            for sock in opened:
                sock.close()
            self._loop.close()
            raise PortTakenError("the sandbox's DNS server", str(error)) from error
        self._thread = threading.Thread(target=self._run, args=(opened,), name="sandbox-dns", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def _run(self, sockets: list[socket.socket]) -> None:
        try:
            self._loop.run_until_complete(self._serve(sockets))
        finally:
            self._loop.close()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        servers: list[asyncio.Server] = []
        transports: list[asyncio.BaseTransport] = []
        for sock in sockets:
            address = sock.getsockname()[0]
            if sock.type == socket.SOCK_DGRAM:
                made = await self._loop.create_datagram_endpoint(partial(_Datagrams, self, address), sock=sock)
                transports.append(made[0])
            else:
                servers.append(await asyncio.start_server(partial(self._stream, address), sock=sock))
        await self._stopping.wait()
        for transport in transports:
            transport.close()
        for server in servers:
            server.close()
        me = asyncio.current_task()
        streams = [task for task in asyncio.all_tasks() if task is not me]
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    def respond(self, address: str, wire: bytes, *, tcp: bool) -> bytes | None:
        """The answer to one message, or None for no answer."""
        faults = self.faults[address]
        try:
            message = dns.message.from_wire(wire, keyring=self.endpoint.key.keyring)
        except tuple(_TSIG_ERRORS) as error:
            return _tsig_refusal(wire, _TSIG_ERRORS[type(error)])
        except dns.exception.DNSException:
            return _refusal(wire, dns.rcode.FORMERR)
        if faults.drop and faults.concern(message):
            return None
        response = dns.message.make_response(message, recursion_available=True, our_payload=1232)
        if isinstance(message, dns.update.UpdateMessage):
            self._update(message, response, faults)
        elif message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
            response.set_rcode(dns.rcode.NOTIMP)
        else:
            self._question(address, message, response, tcp=tcp)
        if tcp:
            return response.to_wire(max_size=65535)
        if faults.truncate and faults.concern(message):
            response.answer.clear()
            response.flags |= dns.flags.TC
        return response.to_wire(max_size=max(message.payload, _PLAIN_UDP_BYTES), prefer_truncation=True)

    def _question(
        self, address: str, message: dns.message.Message, response: dns.message.Message, *, tcp: bool
    ) -> None:
        asked, faults = message.question[0], self.faults[address]
        name = asked.name.to_text(omit_final_dot=True).lower()
        self.questions.append(Question(address, name, dns.rdatatype.to_text(asked.rdtype), tcp))
        if faults.servfail and faults.concern(message):
            response.set_rcode(dns.rcode.SERVFAIL)
            return
        visible_from = self.clock.monotonic() - faults.visible_after.total_seconds()
        self._zones.answer(message, response, lambda *record: self._added_at.get(record, -math.inf) > visible_from)

    def _update(self, message: dns.update.UpdateMessage, response: dns.message.Message, faults: DnsFaults) -> None:
        if faults.refuse_updates or not message.had_tsig:
            response.set_rcode(dns.rcode.REFUSED)
            return
        rcode, added = self._zones.update(message)
        self._added_at.update(dict.fromkeys(added, self.clock.monotonic()))
        response.set_rcode(rcode)

    async def _stream(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Messages with a two-byte length each (RFC 1035, 4.2.2), several on one connection."""
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.respond(address, await reader.readexactly(length), tcp=True)
                if answer is None:
                    break
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client is done
        finally:
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, service: _Service, address: str) -> None:
        self._service = service
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # in 3.11 not a subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str | int, ...]) -> None:
        answer = self._service.respond(self._address, data, tcp=False)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


def _refusal(wire: bytes, rcode: dns.rcode.Rcode, tsig: bytes = b"") -> bytes | None:
    """A bare header with the question's id, and a TSIG record if given; None if there isn't even a header."""
    if len(wire) < 12:
        return None
    (flags,) = struct.unpack_from("!H", wire, 2)
    kept = flags & 0x7900  # opcode and RD
    return wire[:2] + struct.pack("!HHHHH", 0x8000 | kept | int(rcode), 0, 0, 0, 1 if tsig else 0) + tsig


def _tsig_refusal(wire: bytes, error: dns.rcode.Rcode) -> bytes | None:
    """NOTAUTH with an unsigned TSIG that says what is wrong with the question's (RFC 8945, 5.2 and 5.3.2)."""
    asked = dns.message.from_wire(wire, keyring=False)
    if asked.tsig is None:
        return _refusal(wire, dns.rcode.NOTAUTH)
    theirs = asked.tsig[0]
    ours = theirs.replace(mac=b"", error=error, other=b"").to_wire() or b""
    fixed = struct.pack("!HHIH", dns.rdatatype.TSIG, dns.rdataclass.ANY, 0, len(ours))
    return _refusal(wire, dns.rcode.NOTAUTH, (asked.tsig.name.to_wire() or b"") + fixed + ours)
