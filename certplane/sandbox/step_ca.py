"""A real step-ca with keys that we made, on a free loopback port.

Its configuration has the two JWK provisioners, the X5C one and an ACME one. The ACME provisioner validates through
`resolver` when one is given. Tokens, certificates and revocations live in a bbolt file, so a restart keeps them. Its
log holds the tokens that it was sent: the log stays in the sandbox's folder.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import TracebackType
from typing import Self

from typing_extensions import override

from certplane.runtime.clock import Clock
from certplane.sandbox import parts
from certplane.sandbox.certificates import Credential, write_private
from certplane.sandbox.identity_pki import IdentityCaClient, IdentityPki, IdentityRules, go_duration
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.ports import ACME_PROVISIONER, X5C_PROVISIONER
from certplane.sandbox.process import ServerProcess, start_on_free_port


class StepCa(IdentityCaClient):
    """An `IdentityCa` played by step-ca."""

    def __init__(
        self,
        folder: Path,
        rules: IdentityRules | None = None,
        *,
        pki: IdentityPki | None = None,
        resolver: str | None = None,
        part: parts.Part | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            folder: configuration, keys, database and log.
            rules: how long identities live and what may be renewed.
            pki: keys; new ones by default.
            resolver: `address:port` of the DNS server that ACME challenges are validated through.
            part: the step-ca to run; default: the one on this machine.
            clock: dates the tokens; step-ca itself has the machine's.

        Raises:
            PartMissingError: there is no step-ca.
        """
        super().__init__(pki or IdentityPki(), rules or IdentityRules(), folder, clock)
        self._part = part or parts.require("step-ca")
        self._resolver = resolver
        self._process: ServerProcess | None = None

    @property
    def acme_directory(self) -> str:
        """The ACME provisioner's directory URL."""
        return f"{self.url}/acme/{ACME_PROVISIONER}/directory"

    @property
    def log(self) -> Path:
        """Where step-ca writes its log, as JSON lines."""
        return self._folder / "step-ca.log"

    async def __aenter__(self) -> Self:
        """Start it and wait until it is healthy.

        Raises:
            ServerStartError: it doesn't come up.
        """
        intermediate = Credential(self._pki.intermediate.key, (self._pki.intermediate.certificate,))
        intermediate.write(self._folder, "intermediate")

        async def start(port: int) -> ServerProcess:
            self._url = f"https://{LOOPBACK}:{port}"
            configuration = self._folder / "ca.json"
            write_private(configuration, json.dumps(self._configuration(port), indent=2).encode())
            resolve = ["--resolver", self._resolver] if self._resolver else []
            process = ServerProcess(
                "step-ca",
                [self._part.path, configuration, *resolve],
                log=self.log,
                # Its own home: it looks for contexts in ~/.step.
                environment={"HOME": str(self._folder), "STEPPATH": str(self._folder / "step")},
            )
            await process.start(self._healthy)
            return process

        self._process = await start_on_free_port(start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            await self._process.stop()

    @override
    async def restart(self) -> None:
        if self._process is None:
            raise RuntimeError("the identity CA was not started")
        await self._process.stop()
        await self._process.start(self._healthy)

    def _configuration(self, port: int) -> dict[str, object]:
        """ca.json (step-ca's authority/config)."""
        rules = self._rules
        return {
            "root": str(self.roots_file),
            "crt": str(self._folder / "intermediate.crt"),
            "key": str(self._folder / "intermediate.key"),
            "address": f"{LOOPBACK}:{port}",
            "dnsNames": [LOOPBACK, "localhost"],
            "logger": {"format": "json"},
            "db": {"type": "bbolt", "dataSource": str(self._folder / "step-ca.db")},
            "authority": {
                "backdate": go_duration(rules.backdate),
                "claims": {
                    "minTLSCertDuration": go_duration(rules.shortest),
                    "maxTLSCertDuration": go_duration(rules.longest),
                    "defaultTLSCertDuration": go_duration(rules.lifetime),
                    "allowRenewalAfterExpiry": rules.renewal_after_expiry,
                    "disableRenewal": not rules.renewal,
                },
                "provisioners": self._provisioners(),
            },
            "tls": {"minVersion": 1.2, "maxVersion": 1.3},
        }

    def _provisioners(self) -> list[dict[str, object]]:
        jwk: list[dict[str, object]] = [
            {"type": "JWK", "name": name, "key": key.public_jwk} for name, key in self._pki.jwk_keys.items()
        ]
        return [
            *jwk,
            {
                "type": "X5C",
                "name": X5C_PROVISIONER,
                "roots": base64.b64encode(self._pki.x5c_authority.pem).decode(),
            },
            {"type": "ACME", "name": ACME_PROVISIONER},
        ]
