"""Pebble, Let's Encrypt's test CA: the public CA of the sandbox. Versions 2.4 (Debian) and 2.10 (built with Go).

One configuration serves both, since Pebble ignores members that it doesn't know: 2.4 takes the certificate lifetime
from `certificateValidityPeriod`, later ones from a profile. Pebble keeps everything in memory: a restart makes a new
CA.

Pebble's log is the only place that counts what it did, in lines that are the same in both versions. `PebbleLog` reads
them; certificates come from the management port.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from certplane.sandbox import parts
from certplane.sandbox.certificates import CertificateAuthority
from certplane.sandbox.errors import ServerRefusedError
from certplane.sandbox.https_client import HttpAnswer, request, trusting
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.process import ServerProcess, start_on_free_port

DEFAULT_PROFILE = "default"
SHORT_PROFILE = "shortlived"


@dataclass(frozen=True, slots=True)
class PebbleOptions:
    """How Pebble behaves. The defaults are quick and predictable; Pebble's own are not.

    Attributes:
        certificate_lifetime: of certificates of the default profile.
        short_lifetime: adds the profile `shortlived` with this lifetime (not in 2.4). With two profiles Pebble picks
            one at random for an order that names none.
        nonce_rejects: percentage of good nonces that are refused as bad.
        authorization_reuse: percentage of orders that may reuse a valid authorization.
        validation_sleep: longest random wait before a validation; zero switches it off.
        always_valid: no challenge is looked at.
        alternate_roots: number of further chains.
        chain_length: intermediates between leaf and root, at least 1.
        strict: refuse what will be refused in future.
        blocked_domains: names that orders are refused for.
        external_account_keys: key id -> base64url HMAC key; when not empty, accounts must be bound to one.
        order_retry_after: value of Retry-After on orders and authorizations (not in 2.4); none by default.
    """

    certificate_lifetime: timedelta = timedelta(days=90)
    short_lifetime: timedelta | None = None
    nonce_rejects: int = 0
    authorization_reuse: int = 0
    validation_sleep: timedelta = timedelta()
    always_valid: bool = False
    alternate_roots: int = 0
    chain_length: int = 1
    strict: bool = False
    blocked_domains: Sequence[str] = ()
    external_account_keys: Mapping[str, str] = field(default_factory=dict)
    order_retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class PebbleLog:
    """What Pebble did since it was started, by the ids that it gives orders and certificates.

    Attributes:
        orders: orders that were created, oldest first.
        finalizations: order ids whose finalisation was accepted, oldest first; an id twice is a second finalisation.
        finalize_requests: how often a finalisation was asked for, refused ones included.
        issued: (order id, serial) of each certificate, oldest first.
    """

    orders: tuple[str, ...]
    finalizations: tuple[str, ...]
    finalize_requests: int
    issued: tuple[tuple[str, int], ...]

    @classmethod
    def parse(cls, text: str) -> PebbleLog:
        """Read Pebble's log."""
        return cls(
            orders=tuple(re.findall(r'Added order "([^"]+)" to the db', text)),
            finalizations=tuple(re.findall(r"Order (\S+) is fully authorized\. Processing finalization", text)),
            finalize_requests=len(re.findall(r"POST /finalize-order/ -> calling handler\(\)", text)),
            issued=tuple(
                (order, int(serial, 16))
                for serial, order in re.findall(r"Issued certificate serial ([0-9a-f]+) for order (\S+)", text)
            ),
        )


class Pebble:
    """A running Pebble. Use it as an async context manager.

    Attributes:
        part: the program; its capabilities tell what this version serves.
    """

    def __init__(
        self, folder: Path, dns: str, options: PebbleOptions | None = None, *, part: parts.Part | None = None
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: configuration, HTTPS certificate and log.
            dns: `address:port` of the DNS server that challenges are validated through.
            options: how it behaves.
            part: the Pebble to run; default: the one on this machine.

        Raises:
            PartMissingError: there is no Pebble.
        """
        self.part = part or parts.require("pebble")
        self._folder = folder
        self._dns = dns
        self._options = options or PebbleOptions()
        self._ports: tuple[int, int] | None = None
        self._process: ServerProcess | None = None
        self._certificates: dict[int, x509.Certificate] = {}

    @property
    def directory_url(self) -> str:
        """The ACME directory."""
        return f"https://{LOOPBACK}:{self._listening[0]}/dir"

    @property
    def management_url(self) -> str:
        """The management interface."""
        return f"https://{LOOPBACK}:{self._listening[1]}"

    @property
    def https_roots_file(self) -> Path:
        """PEM file with the root of Pebble's own HTTPS certificate: what an ACME client must trust to talk to it."""
        return self._folder / "https-root.crt"

    @property
    def log(self) -> PebbleLog:
        """What it did since its last start."""
        if self._process is None:
            raise RuntimeError("Pebble was not started")
        return PebbleLog.parse(self._process.log_text())

    async def __aenter__(self) -> Self:
        """Start it and wait until it serves its directory.

        Raises:
            ServerStartError: it doesn't come up.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        https = CertificateAuthority.root("Pebble's HTTPS root")
        self.https_roots_file.write_bytes(https.pem)
        https.issue("Pebble", [LOOPBACK, "localhost"]).write(self._folder, "https")
        self._process = await start_on_free_port(self._start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            await self._process.stop()

    async def restart(self) -> None:
        """Stop it and start it again on the same ports. Accounts, orders and the CA's keys are new then."""
        if self._process is None:
            raise RuntimeError("Pebble was not started")
        await self._process.stop()
        await self._process.start(self._serves)

    async def root(self, alternate: int = 0) -> x509.Certificate:
        """The root that issued certificates chain up to; `alternate` counts the further chains from 1."""
        return x509.load_pem_x509_certificate((await self.manage("GET", f"/roots/{alternate}")).body)

    async def intermediate(self, alternate: int = 0) -> x509.Certificate:
        """The intermediate below `root`."""
        return x509.load_pem_x509_certificate((await self.manage("GET", f"/intermediates/{alternate}")).body)

    async def issued_certificates(self) -> list[x509.Certificate]:
        """Every certificate that was issued, oldest first, revoked ones included."""
        serials = [serial for _, serial in self.log.issued]
        for serial in serials:
            if serial not in self._certificates:
                answer = await self.manage("GET", f"/cert-status-by-serial/{serial:x}")
                self._certificates[serial] = x509.load_pem_x509_certificate(answer.json()["Certificate"].encode())
        return [self._certificates[serial] for serial in serials]

    async def certificates_of_key(self, key: CertificatePublicKeyTypes) -> list[x509.Certificate]:
        """Those of `issued_certificates` that are for this public key: more than one is a second certificate."""
        return [certificate for certificate in await self.issued_certificates() if certificate.public_key() == key]

    async def is_revoked(self, serial: int) -> bool:
        """Whether a certificate was revoked."""
        return bool((await self.manage("GET", f"/cert-status-by-serial/{serial:x}")).json()["Status"] == "Revoked")

    async def set_renewal_info(self, certificate_pem: str, response: str) -> None:
        """Answer renewalInfo requests for a certificate with this text, which needn't be valid JSON.

        Raises:
            ServerRefusedError: this Pebble can't (`parts.PEBBLE_SET_RENEWAL_INFO`).
        """
        body = json.dumps({"Certificate": certificate_pem, "ARIResponse": response}).encode()
        await self.manage("POST", "/set-renewal-info/", body)

    async def manage(self, method: str, path: str, body: bytes | None = None) -> HttpAnswer:
        """A request to the management interface.

        Raises:
            ServerRefusedError: the status isn't 200.
        """
        answer = await request(method, self.management_url + path, trusting(self.https_roots_file), body=body)
        if answer.status != 200:
            raise ServerRefusedError("Pebble", answer.status, answer.body[:200].decode(errors="replace"))
        return answer

    @property
    def _listening(self) -> tuple[int, int]:
        if self._ports is None:
            raise RuntimeError("Pebble was not started")
        return self._ports

    async def _start(self, port: int) -> ServerProcess:
        self._ports = (port, free_port())
        configuration = self._folder / "pebble.json"
        configuration.write_text(json.dumps(self._configuration(), indent=2))
        strict = ["-strict"] if self._options.strict else []
        process = ServerProcess(
            "Pebble",
            [self.part.path, "-config", configuration, "-dnsserver", self._dns, *strict],
            log=self._folder / "pebble.log",
            environment=self._environment(),
        )
        await process.start(self._serves)
        return process

    async def _serves(self) -> bool:
        context = trusting(self.https_roots_file)
        directory = await request("GET", self.directory_url, context)
        roots = await request("GET", f"{self.management_url}/roots/0", context)
        return directory.status == 200 and roots.status == 200

    def _configuration(self) -> dict[str, object]:
        options, (port, management) = self._options, self._listening
        lifetimes = {DEFAULT_PROFILE: options.certificate_lifetime}
        if options.short_lifetime is not None:
            lifetimes[SHORT_PROFILE] = options.short_lifetime
        retry = int((options.order_retry_after or timedelta()).total_seconds())
        members: dict[str, object] = {
            "listenAddress": f"{LOOPBACK}:{port}",
            "managementListenAddress": f"{LOOPBACK}:{management}",
            "certificate": str(self._folder / "https.crt"),
            "privateKey": str(self._folder / "https.key"),
            # Only dns-01 is used; these ports are where the other challenges would be looked for.
            "httpPort": 9,
            "tlsPort": 9,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": bool(options.external_account_keys),
            "externalAccountMACKeys": dict(options.external_account_keys),
            "domainBlocklist": list(options.blocked_domains),
            "keyAlgorithm": "ecdsa",
            "certificateValidityPeriod": int(options.certificate_lifetime.total_seconds()),
            "profiles": {
                name: {"description": f"The sandbox's {name} profile", "validityPeriod": int(lifetime.total_seconds())}
                for name, lifetime in lifetimes.items()
            },
            "retryAfter": {"authz": retry, "order": retry},
        }
        return {"pebble": members}

    def _environment(self) -> dict[str, str]:
        options = self._options
        sleep = options.validation_sleep.total_seconds()
        return {
            "PEBBLE_WFE_NONCEREJECT": str(options.nonce_rejects),
            "PEBBLE_AUTHZREUSE": str(options.authorization_reuse),
            "PEBBLE_ALTERNATE_ROOTS": str(options.alternate_roots),
            "PEBBLE_CHAIN_LENGTH": str(options.chain_length),
            "PEBBLE_VA_ALWAYS_VALID": "1" if options.always_valid else "0",
            **({"PEBBLE_VA_SLEEPTIME": str(int(sleep))} if sleep else {"PEBBLE_VA_NOSLEEP": "1"}),
        }
