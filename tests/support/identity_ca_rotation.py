"""A new root for a deployment's internal CA, by the files that docs/rotation.md names: the real step-ca alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509

from certplane.sandbox.certificates import CertificateAuthority, Credential, write_private
from certplane.sandbox.deployment import Deployment, Finished, Host
from certplane.sandbox.operator import Operator
from certplane.sandbox.step_ca import StepCa


class Rotation:
    """The old root and the new one with its intermediate. The broker's own certificate is the internal CA's."""

    def __init__(self, deployment: Deployment) -> None:
        """Before the deployment is started; nothing changes yet."""
        assert isinstance(deployment.identity_ca, StepCa)
        self._deployment = deployment
        self._ca = deployment.identity_ca
        self._folder = deployment.folder / "identity-ca"
        self.old = self._ca.authority
        self.new = CertificateAuthority.root("Certplane Sandbox Root CA 2")
        self._intermediate = self.new.intermediate("Certplane Sandbox Intermediate CA 2")
        deployment.broker_root = self.old

    @property
    def agent_ca_bundle(self) -> Path:
        """The broker's, which this deployment's hosts share as `root_ca_bundle` and `issuer_ca_bundle`."""
        return self._ca.roots_file

    @property
    def _by_bundle(self) -> dict[str, str | None]:
        return {"fingerprint": None, "root_ca_bundle": str(self.agent_ca_bundle)}

    def host_trust(self, name: str) -> Path:
        """A host's own `server_ca_bundle`."""
        return self._deployment.folder / "hosts" / name / "broker-ca.pem"

    def add_host(self, name: str) -> Host:
        """One that knows step-ca by a bundle and the broker by a file of its own."""
        trust = self.host_trust(name)
        trust.parent.mkdir(parents=True, exist_ok=True)
        trust.write_bytes(self.old.pem)
        broker = {"server_ca_bundle": str(trust)}
        return self._deployment.add_host(name, agent={"identity": {"step_ca": self._by_bundle}, "broker": broker})

    def bundle(self, *roots: CertificateAuthority) -> bytes:
        """A bundle of these."""
        return b"".join(root.pem for root in roots)

    async def sign_by_new(self, accepted: Sequence[CertificateAuthority]) -> None:
        """Step 2: ca.json with these roots and the new intermediate; step-ca is started again."""
        configuration = self._folder / "ca.json"
        settings: dict[str, Any] = json.loads(configuration.read_text())
        chain, key = Credential(self._intermediate.key, (self._intermediate.certificate,)).write(
            self._folder, "intermediate2"
        )
        files = []
        for number, root in enumerate(accepted):
            files.append(self._folder / f"accepted-{number}.crt")
            files[-1].write_bytes(root.pem)
        settings |= {"root": [str(file) for file in files], "crt": str(chain), "key": str(key)}
        write_private(configuration, json.dumps(settings).encode())
        await self._ca.restart()

    def renew_brokers_own(self) -> None:
        """The broker's certificate, by the new intermediate, over the old files."""
        issued = self._intermediate.issue("certplane-broker", ["localhost", "127.0.0.1"])
        issued.write(self._deployment.broker_folder, "server")

    async def renew(self, operator: Operator) -> Finished:
        """An operator's identity at step-ca, over the old files; it knows that by the bundle from now on."""
        operator._host.write_config([], {"identity": {"step_ca": self._by_bundle}})
        return await operator._host.run("renew", "identity")

    def is_new(self, host: Host) -> bool:
        """Whether a host's identity is one of the new root."""
        leaf = x509.load_pem_x509_certificate(host.identity[0].read_bytes())
        return leaf.issuer == self._intermediate.certificate.subject
