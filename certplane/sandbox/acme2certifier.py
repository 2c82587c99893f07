"""acme2certifier with its openssl CA handler: an ACME server in Python that nobody here wrote.

It serves plain HTTP on loopback, as behind a load balancer; a `FaultProxy` in front of it speaks HTTPS. It validates
dns-01 itself, through the DNS server that it is given, and signs with a CA that is made here.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from certplane.sandbox import acme2certifier_server, parts
from certplane.sandbox.certificates import CertificateAuthority, Credential
from certplane.sandbox.dns_endpoint import DnsEndpoint
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.process import ServerProcess, accepts_tcp, start_on_free_port


class Acme2certifier:
    """A running acme2certifier. Use it as an async context manager.

    Attributes:
        issuing: the CA that signs.
    """

    def __init__(self, folder: Path, dns: DnsEndpoint, *, part: parts.Part | None = None) -> None:
        """Nothing runs yet.

        Args:
            folder: configuration, the CA's key, database and log.
            dns: the server that challenges are validated through.
            part: the acme2certifier to run; default: the one on this machine.

        Raises:
            PartMissingError: there is none.
        """
        self._part = part or parts.require("acme2certifier")
        self._folder = folder
        self._dns = dns
        self._root = CertificateAuthority.root("acme2certifier Root")
        self.issuing = self._root.intermediate("acme2certifier Issuing CA")
        self._port = 0
        self._process: ServerProcess | None = None

    @property
    def directory_url(self) -> str:
        """The ACME directory; http, so that clients need a proxy."""
        return f"http://{LOOPBACK}:{self._port}/directory"

    async def __aenter__(self) -> Self:
        """Start it and wait until it listens.

        Raises:
            ServerStartError: it doesn't come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = await start_on_free_port(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            await self._process.stop()

    async def _start(self, port: int) -> ServerProcess:
        self._port = port
        configuration = self._folder / "acme_srv.cfg"
        configuration.write_text(self._configuration(), encoding="utf-8")
        process = ServerProcess(
            "acme2certifier",
            # -P: the script's folder is this package, whose modules aren't acme2certifier's.
            [self._part.path.with_name("python"), "-P", acme2certifier_server.__file__, str(port), str(self._dns.port)],
            log=self._folder / "acme2certifier.log",
            environment={"ACME_SRV_CONFIGFILE": str(configuration), "HOME": str(self._folder)},
        )
        await process.start(lambda: accepts_tcp(LOOPBACK, port))
        return process

    def _configuration(self) -> str:
        cert, key = Credential(self.issuing.key, (self.issuing.certificate,)).write(self._folder, "issuing")
        root = self._folder / "root.crt"
        root.write_bytes(self._root.pem)
        issued = self._folder / "issued"
        issued.mkdir(exist_ok=True)
        sections = {
            "DEFAULT": {"debug": "False", "dns_server_list": json.dumps(list(self._dns.addresses))},
            "CAhandler": {
                "handler_module": "acme2certifier.cahandlers.openssl_ca_handler",
                "issuing_ca_key": str(key),
                "issuing_ca_cert": str(cert),
                "ca_cert_chain_list": json.dumps([str(root)]),
                "issuing_ca_crl": str(self._folder / "issuing.crl"),  # written with the first revocation
                "cert_save_path": str(issued),
                "cert_validity_days": "30",
            },
            "DBhandler": {"handler": "wsgi", "dbfile": str(self._folder / "acme_srv.db")},
            "Directory": {"supress_product_information": "True"},
        }
        lines = []
        for name, entries in sections.items():
            lines += [f"[{name}]", *(f"{key}: {value}" for key, value in entries.items()), ""]
        return "\n".join(lines)
