"""What `certplane-agent init` was told, as values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from certplane.agent.init.presets import Service


@dataclass(frozen=True, slots=True)
class ProfileChoice:
    """A profile that this host is to have a certificate of, and the service that serves it, if any."""

    profile: str
    service: Service | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """Certificates of another client: which one, and where its files are; None for where it keeps them."""

    client: str
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A host as it is to be.

    Attributes:
        name: its identity.
        ca_url: the internal CA.
        broker: the broker's URLs, one or more.
        config: agent.yml, absolute.
        state_dir: absolute.
        profiles: in their order; empty for all that policy gives.
        take: what another client has here.
    """

    name: str
    ca_url: str
    broker: Sequence[str]
    config: Path
    state_dir: Path
    profiles: tuple[ProfileChoice, ...] = ()
    take: Take | None = None
    own_broker_ca: bool = False

    @property
    def folder(self) -> Path:
        """Where agent.yml is, and what it names."""
        return self.config.parent

    @property
    def tls(self) -> Path:
        """Where services read their certificates."""
        return self.folder / "tls"

    @property
    def internal_ca(self) -> Path:
        """The internal CA's certificates."""
        return self.folder / "internal-ca.pem"

    @property
    def broker_ca(self) -> Path:
        """The certificates that the broker's own must lead to."""
        return self.folder / "broker-ca.pem" if self.own_broker_ca else self.internal_ca

    @property
    def token(self) -> Path:
        """Where a later `enroll --force` reads its token."""
        return self.folder / "token"


@dataclass(frozen=True, slots=True)
class Certificate:
    """One entry of the section `certificates`.

    Attributes:
        name: what the host calls it.
        profile: of policy.
        dns_names: as policy has them; None where that isn't known yet.
        outputs: the path of each output by its key in agent.yml.
        reload_command: empty for none.
        verify: `host:port` of the service; empty for none.
        starttls: which protocol asks for TLS there; empty where it begins with it.
        more: further lines of the entry, as YAML, without their indentation.
    """

    name: str
    profile: str
    dns_names: tuple[str, ...] | None
    outputs: tuple[tuple[str, Path], ...]
    reload_command: str = ""
    verify: str = ""
    starttls: str = ""
    more: tuple[str, ...] = ()


def lineage_name(profile: str) -> str:
    """What a host calls its certificate of a profile, unless somebody says otherwise: a directory's name."""
    name = re.sub(r"[^a-z0-9._-]", "-", profile.lower(), flags=re.ASCII).lstrip(".")[:64] or "certificate"
    return "identity-certificate" if name == "identity" else name
