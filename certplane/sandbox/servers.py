"""Which server plays a role on this machine: the real part if it is here, else the sandbox's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from certplane.sandbox import parts
from certplane.sandbox.bind import BindServer
from certplane.sandbox.dns import SandboxDnsServer
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.ports import DnsServer, IdentityCa
from certplane.sandbox.step_ca import StepCa


def identity_ca(folder: Path, rules: IdentityRules | None = None) -> IdentityCa:
    """step-ca, or else the sandbox's identity CA; to be entered."""
    part = parts.find("step-ca")
    return StepCa(folder, rules, part=part) if isinstance(part, parts.Part) else SandboxIdentityCa(folder, rules)


def dns_server(folder: Path, zones: Sequence[str]) -> DnsServer:
    """BIND, or else the sandbox's DNS server; to be entered."""
    part = parts.find("bind")
    return BindServer(folder, zones, part=part) if isinstance(part, parts.Part) else SandboxDnsServer(zones)
