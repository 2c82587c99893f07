"""BIND's `named` as an authoritative server for the sandbox's zones, with RFC 2136 updates.

It runs in the foreground as the user who starts it, on a high port, with no control channel, no recursion and no zone
transfer. It has one name server: BIND listens only on addresses that an interface has, so not on 127.0.0.2. The
queues for TCP are long, since Pebble asks over TCP, each question on a connection of its own, hundreds at once. The
program is copied into the server's folder first: Debian's AppArmor profile is attached to /usr/sbin/named and would
keep it from reading a configuration anywhere but in /etc/bind, also for root.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.flags
import dns.rcode

from certplane.sandbox import parts
from certplane.sandbox.certificates import write_private
from certplane.sandbox.dns_endpoint import DnsEndpoint, TsigKey, zone_file
from certplane.sandbox.errors import ServerStartError
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.process import ServerProcess, start_on_free_port


class BindServer:
    """A `DnsServer` played by BIND.

    Use it as an async context manager; `endpoint` is there once it has been entered.
    """

    def __init__(self, folder: Path, zones: Sequence[str], *, part: parts.Part | None = None) -> None:
        """Nothing runs yet.

        Args:
            folder: holds configuration, zones and log; made if it isn't there.
            zones: absolute names; one below another is delegated by it.
            part: the BIND to run; default: the one on this machine.

        Raises:
            PartMissingError: there is no BIND.
        """
        self._part = part or parts.require("bind")
        self._folder = folder
        self._zones = tuple(zone.rstrip(".").lower() for zone in zones)
        self._key = TsigKey.generate("certplane-sandbox")
        self._endpoint: DnsEndpoint | None = None
        self._process: ServerProcess | None = None

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
        """Start it and wait until it answers for every zone.

        Raises:
            ServerStartError: it doesn't come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        program = self._folder / "named"
        shutil.copy2(self._part.path, program)

        async def start(port: int) -> tuple[DnsEndpoint, ServerProcess]:
            endpoint = DnsEndpoint((LOOPBACK,), port, self._zones, self._key)
            for zone in self._zones:
                (self._folder / f"{zone}.zone").write_text(zone_file(zone, endpoint))
            write_private(self._folder / "named.conf", _configuration(self._folder, endpoint).encode())
            process = ServerProcess(
                "BIND",
                [program, "-g", "-4", "-n", "1", "-c", self._folder / "named.conf"],
                log=self._folder / "named.log",
            )
            await process.start(lambda: _answers_for_all(endpoint))
            # A second named that can't bind its port says so and goes on without it.
            if "address in use" in process.log_text():
                await process.stop()
                raise ServerStartError("BIND", "lost its port to another program", process.log_tail())
            return endpoint, process

        self._endpoint, self._process = await start_on_free_port(start, udp=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            await self._process.stop()


async def _answers_for_all(endpoint: DnsEndpoint) -> bool:
    for zone in endpoint.zones:
        for address in endpoint.addresses:
            try:
                answer = await endpoint.query(zone, "SOA", address=address, tcp=True)
            except dns.exception.DNSException:
                return False
            if answer.rcode() != dns.rcode.NOERROR or not answer.flags & dns.flags.AA:
                return False
    return True


def _configuration(folder: Path, endpoint: DnsEndpoint) -> str:
    addresses = " ".join(f"{address};" for address in endpoint.addresses)
    update = f'allow-update {{ key "{endpoint.key.name}"; }};'
    zones = "\n".join(
        f'zone "{zone}" {{ type primary; file "{folder}/{zone}.zone"; {update} }};' for zone in endpoint.zones
    )
    return f"""\
key "{endpoint.key.name}" {{ algorithm {endpoint.key.algorithm}; secret "{endpoint.key.secret}"; }};
controls {{ }};
options {{
    directory "{folder}";
    listen-on port {endpoint.port} {{ {addresses} }};
    listen-on-v6 {{ none; }};
    pid-file none;
    lock-file none;
    session-keyfile none;
    recursion yes;
    allow-recursion {{ 127.0.0.0/8; }};
    forward only;
    forwarders {{ 127.0.0.1 port 9; }};
    notify no;
    allow-query {{ 127.0.0.0/8; }};
    allow-transfer {{ none; }};
    tcp-clients 1000;
    tcp-listen-queue 1000;
    dnssec-validation no;
    empty-zones-enable no;
}};
{zones}
"""
