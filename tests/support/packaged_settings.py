"""broker.yml, policy.yml and agent.yml of one machine with both programs from packages, and the sandbox's servers at loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import Pebble
from certplane.sandbox.ports import DnsServer, IdentityCa

BROKER, HOST = "broker.example.net", "web1.example.net"
POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.example.com"]}},
    "hosts": {"web1": {"identity": HOST, "profiles": ["web"]}},
}


def broker_settings(pebble: Pebble, dns: DnsServer) -> dict[str, Any]:
    """broker.yml; the CA's root goes to /etc/pebble.pem."""
    end = dns.endpoint
    acme = {
        "directory_url": pebble.directory_url,
        "ca_bundle": "/etc/pebble.pem",
        "account_key": "/var/lib/certplane/account.key",
        "dns_provider": "rfc2136",
        "rfc2136": {"server": end.host_port, "tsig_name": end.key.name, "tsig_secret": "dns-api-token"},
        "propagation": {"nameservers": [end.host_port], "interval": "100ms"},
    }
    return {
        "server": {
            "address": f"{LOOPBACK}:8443",
            "tls": {"cert": "/etc/certplane/broker/server.crt", "key": "/etc/certplane/broker/server.key"},
            "mtls": {"agent_ca_bundle": "/etc/certplane/broker/agent-ca.pem"},
        },
        "policy": {"path": "/etc/certplane/policy.yml"},
        "issuer": {"provider": "acme", "acme": acme},
        "dns": {"resolvers": [end.host_port]},
        "secrets": {"provider": "file"},
        "store": {"path": "/var/lib/certplane/broker.db"},
    }


def agent_settings(ca: IdentityCa) -> dict[str, Any]:
    """agent.yml, with one certificate."""
    return {
        "identity": {
            "name": HOST,
            "bootstrap_token": "/etc/certplane/token",
            "step_ca": {"url": ca.url, "root_ca_bundle": "/etc/certplane/internal-ca.pem"},
        },
        "broker": {"url": f"https://{BROKER}:8443", "server_ca_bundle": "/etc/certplane/internal-ca.pem"},
        "state_dir": "/var/lib/certplane/agent",
        "certificates": [
            {
                "name": "web",
                "profile": "web",
                "dns_names": ["www.example.com"],
                "key": "/etc/certplane/tls/web.key",
                "fullchain": "/etc/certplane/tls/web.pem",
            }
        ],
    }


async def broker_pair(ca: IdentityCa, folder: Path) -> dict[str, str]:
    """The broker's own certificate with its chain (`crt`) and its key (`key`), PEM."""
    pair = await ca.issue(BROKER, [BROKER])
    pair.write(folder, "server")
    return {kind: (folder / f"server.{kind}").read_text() for kind in ("crt", "key")}
