"""The files of a broker on loopback: broker.yml, policy.yml, its pair, the agents' CA bundle.

The public CA is one that nobody answers for: a broker sends nothing to it before the first order.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from certplane.broker import adapters
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.settings import BrokerSettings
from certplane.runtime.pool import BlockingPool
from tests.fakes.accounts import FakeAccounts
from tests.fakes.secrets import FakeSecretSource
from tests.support.ca import Leaf, PrivateCa

POLICY = """\
version: 1
profiles:
  web:
    type: multi_san
    dns_names: [a.certplane.test, b.certplane.test]
    acme: {challenge: dns-01, credentials: cloudflare/api-token}
hosts:
  web1: {identity: web1.certplane.test, profiles: [web]}
operators:
  admin: {identity: admin.certplane.test, roles: [guest]}
"""


@dataclass
class BrokerFiles:
    """One broker's directory; change `settings` and write again to configure something else."""

    directory: Path
    ca: PrivateCa = field(default_factory=lambda: PrivateCa("internal"))
    host: str = "web1.certplane.test"

    def __post_init__(self) -> None:
        self.pair = self.ca.issue_server(["localhost", "127.0.0.1"])
        self.settings: dict[str, Any] = {
            "server": {
                "address": "127.0.0.1:0",
                "tls": {"cert": str(self.directory / "server.crt"), "key": str(self.directory / "server.key")},
                "mtls": {"agent_ca_bundle": str(self.directory / "agent-ca.pem")},
                "drain_timeout": "2s",
                # In a test's process a call may meet a collection of all that other tests have left: 200 ms and more.
                "calls_per_identity_per_second": 1000,
                "calls_burst": 1000,
            },
            "policy": {"path": str(self.directory / "policy.yml")},
            "issuer": {
                "acme": {
                    "directory_url": "https://127.0.0.1:9/directory",
                    "account_key": str(self.directory / "account.key"),
                    "dns_provider": "rfc2136",
                    "rfc2136": {"server": "127.0.0.1:9", "tsig_name": "k", "tsig_secret": "dns/tsig"},
                    "propagation": {"nameservers": ["127.0.0.1:9"]},
                }
            },
            "store": {"path": str(self.directory / "broker.db")},
            "logging": {"format": "json", "destination": "stderr"},
        }
        self.write()

    @property
    def config(self) -> Path:
        return self.directory / "broker.yml"

    @property
    def policy(self) -> Path:
        return self.directory / "policy.yml"

    def write(self) -> None:
        """Write all files."""
        self.config.write_text(yaml.safe_dump(self.settings, sort_keys=False))
        self.policy.write_text(POLICY)
        self.write_pair(self.pair)
        self.write_bundle(self.ca)

    def write_pair(self, pair: Leaf) -> None:
        self.pair = pair
        pair.write(self.directory, "server")

    def write_bundle(self, *cas: PrivateCa) -> None:
        (self.directory / "agent-ca.pem").write_bytes(b"".join(ca.root_pem for ca in cas))

    def identity(self) -> Leaf:
        """A host's identity that the policy knows."""
        return self.ca.issue([self.host])


async def account_keys(
    settings: BrokerSettings, *, secrets: FakeSecretSource | None = None, rows: FakeAccounts | None = None
) -> dict[str, AccountKey]:
    """The accounts' keys as a start of the issuing process finds or makes them."""
    with closing(BlockingPool("files", 1)) as pool:
        places = {"secrets": secrets or FakeSecretSource({}), "files": pool, "rows": rows or FakeAccounts()}
        keepers = {name: adapters.account_keeper(settings, name, **places) for name in settings.cas}
        return await adapters.account_keys(settings, keepers)
