"""agent.yml as frozen values: the public format's keys with their defaults, and Certplane's own after them.

A section is a dataclass, a field a key: this file is the reference of the format, and docs/configuration.md tells it
in words. Paths are kept as written; the files behind them are read, and judged, by those who use them (`Source.problem`
gives them the place to name).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from certplane.agent.model import InstallMode
from certplane.config.decoding import KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.config.values import (
    DnsName,
    HttpsUrl,
    IdentityName,
    LogDestination,
    LogFormat,
    LogLevel,
    PositiveSpan,
)
from certplane.pki.keys import KeyType

__all__ = [
    "AgentSettings",
    "BrokerSettings",
    "BrokerUrl",
    "CertificateSettings",
    "Fingerprint",
    "IdentityProvider",
    "IdentitySettings",
    "InstallMode",
    "KeyRotation",
    "LineageName",
    "LoggingSettings",
    "StepCaSettings",
    "load_settings",
]

_LINEAGE_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,63}", re.ASCII)
_DEFAULT_HTTPS_PORT = 443


class IdentityProvider(StrEnum):
    """Which kind of internal CA gives the host its identity."""

    STEP_CA = "step-ca"


class KeyRotation(StrEnum):
    """Whether a renewal makes a new key."""

    ALWAYS = "always"
    REUSE = "reuse"


class LineageName(str):
    """A certificate's name on this host, which is also a directory's: no separators, no leading dot."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name as it stands."""
        if _LINEAGE_NAME.fullmatch(text) is None:
            raise ValueError("must be 1 to 64 of a-z, 0-9, '.', '_', '-', not beginning with '.'")
        return cls(text)


class Fingerprint(str):
    """SHA-256 of the root certificate's DER, lower-case hexadecimal."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `step certificate fingerprint` prints it; dashes, colons and case don't matter."""
        digits = text.replace("-", "").replace(":", "").lower()
        if re.fullmatch(r"[0-9a-f]{64}", digits, re.ASCII) is None:
            raise ValueError(
                "must be a SHA-256 in hexadecimal, as `step certificate fingerprint root_ca.crt` prints it"
            )
        return cls(digits)


@dataclass(frozen=True, slots=True)
class BrokerUrl:
    """Where the broker is; `https://host:port` because that is what the public format has."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`https://host:port`, with or without a final slash; the port is 443 when it isn't written."""
        parts = urlsplit(HttpsUrl.parse(text))
        if parts.path not in {"", "/"} or parts.query:
            raise ValueError("must be https://host:port without a path")
        assert parts.hostname is not None
        return cls(parts.hostname, parts.port or _DEFAULT_HTTPS_PORT)

    @property
    def target(self) -> str:
        """The address as gRPC dials it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"https://{self.target}"


@dataclass(frozen=True, slots=True)
class StepCaSettings:
    """The internal CA. Its root is trusted by `fingerprint`, by `root_ca_bundle`, or, both given, by both."""

    url: HttpsUrl
    fingerprint: Fingerprint | None = None
    root_ca_bundle: Path | None = None
    timeout: PositiveSpan = timedelta(seconds=10)

    def problems(self) -> Iterator[KeyProblem]:
        """The root is pinned somehow."""
        if self.fingerprint is None and self.root_ca_bundle is None:
            yield KeyProblem(
                "fingerprint",
                "or `root_ca_bundle` is required, to know the CA by",
                "write the output of `step certificate fingerprint root_ca.crt`",
            )


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """The host's own certificate, with which it calls the broker.

    `bootstrap_token` is the file that holds the one-time token. `cert` and `key` are links to the identity's current
    version, for other programs; `issuer_ca_bundle` verifies the certificate that the CA hands out. `rekey` makes a new
    key at each renewal.
    """

    name: IdentityName
    step_ca: StepCaSettings
    provider: IdentityProvider = IdentityProvider.STEP_CA
    cert: Path | None = None
    key: Path | None = None
    issuer_ca_bundle: Path | None = None
    bootstrap_token: Path | None = None
    renew_before: PositiveSpan | None = None
    warn_before: PositiveSpan | None = None
    key_type: KeyType = KeyType.EC_P256
    rekey: bool = True


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """The broker; `server_ca_bundle` verifies its certificate."""

    url: BrokerUrl
    server_ca_bundle: Path
    timeout: PositiveSpan = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """A certificate that this host wants, and where services read it.

    `combined` is key, certificate and chain in one file, for readers that would open two during a switch.
    """

    name: LineageName
    profile: str
    dns_names: tuple[DnsName, ...]
    key: Path | None = None
    cert: Path | None = None
    chain: Path | None = None
    fullchain: Path | None = None
    renew_before: PositiveSpan | None = None
    reload_command: str = ""
    reload_timeout: PositiveSpan = timedelta(seconds=30)
    key_type: KeyType = KeyType.EC_P256
    key_rotation: KeyRotation = KeyRotation.ALWAYS
    combined: Path | None = None
    install: InstallMode = InstallMode.LINK

    def problems(self) -> Iterator[KeyProblem]:
        """It has names, each once, and its files are different files."""
        if not self.dns_names:
            yield KeyProblem("dns_names", "must not be empty", "write the profile's names")
        for name, count in Counter(self.dns_names).items():
            if count > 1:
                yield KeyProblem("dns_names", f"holds {name} {count} times", "keep one")

    @property
    def outputs(self) -> dict[str, Path]:
        """The configured paths by what stands there: key, cert, chain, fullchain, combined."""
        kinds = ("key", "cert", "chain", "fullchain", "combined")
        return {kind: path for kind in kinds if (path := getattr(self, kind)) is not None}


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The agent's log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT
    destination: LogDestination = LogDestination.STDERR


@dataclass(frozen=True, slots=True)
class _AgentFile:
    """The whole file."""

    identity: IdentitySettings
    broker: BrokerSettings
    state_dir: Path = Path("/var/lib/certplane/agent")
    certificates: tuple[CertificateSettings, ...] = ()
    logging: LoggingSettings = LoggingSettings()

    def problems(self) -> Iterator[KeyProblem]:
        """No two certificates share a name, no two outputs a path."""
        names: dict[str, str] = {}
        paths: dict[Path, str] = {}
        outputs = [("identity", kind, getattr(self.identity, kind)) for kind in ("key", "cert")]
        for number, certificate in enumerate(self.certificates):
            where = f"certificates[{number}]"
            first = names.setdefault(certificate.name, where)
            if first != where:
                yield KeyProblem(f"{where}.name", f"is that of {first} too", "give each certificate its own name")
            outputs.extend((where, kind, path) for kind, path in certificate.outputs.items())
        for where, kind, path in outputs:
            if path is None:
                continue
            key = f"{where}.{kind}"
            first = paths.setdefault(path, key)
            if first != key:
                yield KeyProblem(key, f"is the path of {first} too", "give each file its own path")


@dataclass(frozen=True, slots=True)
class AgentSettings(_AgentFile):
    """An agent.yml that is right. `source` says where each key stands."""

    source: Source = field(kw_only=True)

    @property
    def hash(self) -> str:
        """SHA-256 of the file, for the log."""
        return self.source.sha256


def load_settings(path: Path) -> AgentSettings:
    """Read agent.yml.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    document = Document.read(path)
    file = decode(document, _AgentFile)
    sections = {name: getattr(file, name) for name in _AgentFile.__dataclass_fields__}
    return AgentSettings(**sections, source=document.source)
