"""A host of an identity CA: its agent.yml, its token, and the agent's commands as processes. No broker runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from certplane.pki.keys import public_key_sha256
from certplane.sandbox.certificates import CertificateAuthority, write_private
from certplane.sandbox.deployment import Finished, run_program
from certplane.sandbox.loopback import free_port
from certplane.sandbox.ports import IdentityCa


@dataclass
class AgentHost:
    """One host's files below `folder`."""

    folder: Path
    ca: IdentityCa
    name: str

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "broker-root.crt").write_bytes(CertificateAuthority.root("Nobody").pem)
        self.configure()

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def cert(self) -> Path:
        return self.folder / "tls" / "identity.crt"

    @property
    def key(self) -> Path:
        return self.folder / "tls" / "identity.key"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def configure(self, *, identity: Mapping[str, Any] | None = None, step_ca: Mapping[str, Any] | None = None) -> None:
        """Write agent.yml: the identity, no certificates, and a broker that isn't there."""
        settings = {
            "state_dir": str(self.state),
            "identity": {
                "name": self.name,
                "cert": str(self.cert),
                "key": str(self.key),
                "bootstrap_token": str(self.token),
                **(identity or {}),
                "step_ca": {"url": self.ca.url, "fingerprint": self.ca.authority.fingerprint, **(step_ca or {})},
            },
            "broker": {
                "url": f"https://localhost:{free_port()}",
                "server_ca_bundle": str(self.folder / "broker-root.crt"),
                "timeout": "2s",
            },
        }
        (self.folder / "agent.yml").write_text(yaml.safe_dump(settings))

    def give_token(self, token: str | None = None) -> str:
        """Put a token into its file, 0600; a fresh one for this host when none is given."""
        token = token or self.ca.mint_token(self.name)
        self.token.unlink(missing_ok=True)
        write_private(self.token, token.encode() + b"\n")
        return token

    async def run(self, *arguments: str, kill_at: str = "") -> Finished:
        """Run a command of the agent to its end."""
        environment = {"CERTPLANE_FAILPOINTS": f"{kill_at}=kill"} if kill_at else {}
        command = ["-m", "certplane.agent", "-c", str(self.folder / "agent.yml"), *arguments]
        return await run_program(command, environment)

    def identity(self) -> x509.Certificate | None:
        """The identity that other programs see; None if there is none.

        Raises:
            AssertionError: what they see is no pair: one of the files alone, or a key of another certificate.
        """
        assert self.cert.exists() == self.key.exists(), "one file of the pair without the other"
        if not self.cert.exists():
            return None
        leaf = x509.load_pem_x509_certificates(self.cert.read_bytes())[0]
        key = load_pem_private_key(self.key.read_bytes(), None)
        assert public_key_sha256(key.public_key()) == public_key_sha256(leaf.public_key()), "a mixed pair"
        return leaf

    def pending_csr(self) -> x509.CertificateSigningRequest | None:
        """The request that waits for a certificate, if any."""
        for path in self.state.glob("identity/pending/request.json"):
            return x509.load_pem_x509_csr(yaml.safe_load(path.read_text())["csr_pem"].encode())
        return None
