"""What `certplane-broker init` was told, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DIRECTORIES: Final = {
    "letsencrypt": "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging": "https://acme-staging-v02.api.letsencrypt.org/directory",
}
"""ACME directories that have a word."""

BOOTSTRAP_KEY: Final = "bootstrap-key"
"""What the secret with a provisioner's key is called."""

DROP_IN: Final = Path("/etc/systemd/system/certplane-broker.service.d/init.conf")
"""Where the unit is told of the secrets that it doesn't hand on by itself."""

CREDENTIAL: Final = "dns-api-token"
"""What the unit's LoadCredential= calls the secret of the DNS provider."""

SECRET_KEYS: Final = {
    "rfc2136": "tsig_secret",
    "cloudflare": "credentials",
    "acme-dns": "accounts",
    "httpreq": "password_secret",
    "exec": "credentials",
    "lexicon": "credentials",
}
"""Which key of a DNS provider's section names its secret."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A broker as it is to be.

    Attributes:
        name: its DNS name, which hosts call.
        address: where it listens, as `server.address`.
        ca_url: the internal CA.
        config: broker.yml, absolute.
        state_dir: where the database and the account's key are, absolute.
        directory_url: of the public CA.
        email: of its account; empty for none.
        acme_ca: the CA bundle of a private ACME server's own HTTPS; None for the system's.
        provider: the DNS provider.
        provider_keys: of its section, as they are written.
        store: a PostgreSQL URL; empty for SQLite in `state_dir`.
        operators: identities that get the role admin in policy.yml; one or more, since an empty policy is refused.
        provisioner: of the internal CA, whose key makes tokens for new hosts; empty where the broker makes none.
        by_unit: whether the systemd unit hands the secret to the broker; otherwise it reads the secrets' folder itself.
    """

    name: str
    address: str
    ca_url: str
    config: Path
    state_dir: Path
    directory_url: str
    email: str
    provider: str
    acme_ca: Path | None = None
    provider_keys: Mapping[str, str] = field(default_factory=dict)
    store: str = ""
    operators: tuple[str, ...] = ()
    provisioner: str = ""
    by_unit: bool = True

    @property
    def folder(self) -> Path:
        """Where broker.yml is, and what it names."""
        return self.config.parent

    @property
    def own(self) -> Path:
        """The broker's own folder: its certificate is renewed there."""
        return self.folder / "broker"

    @property
    def certificate(self) -> Path:
        """The broker's own certificate with its chain."""
        return self.own / "server.crt"

    @property
    def key(self) -> Path:
        """Its key."""
        return self.own / "server.key"

    @property
    def internal_ca(self) -> Path:
        """The internal CA's certificates."""
        return self.folder / "agent-ca.pem"

    @property
    def policy(self) -> Path:
        """Who gets what."""
        return self.folder / "policy.yml"

    @property
    def secrets(self) -> Path:
        """The folder with the secrets."""
        return self.folder / "secrets"

    @property
    def bootstrap_key(self) -> Path:
        """The key of the provisioner."""
        return self.secrets / BOOTSTRAP_KEY

    @property
    def dns_secret(self) -> Path:
        """The secret of the DNS provider."""
        return self.secrets / CREDENTIAL
