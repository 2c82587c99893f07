"""agent.yml as frozen values: the public format's keys with their defaults, and Certplane's own after them.

A section is a dataclass, a field a key: this file is the reference of the format, and docs/configuration.md tells it
in words. Paths are kept as written; the files behind them are read, and judged, by those who use them (`Source.problem`
gives them the place to name).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Self

from certplane.agent.broker_settings import BrokerLinkSettings
from certplane.agent.install.material import KEY_PARTS, Part
from certplane.agent.model import InstallMode
from certplane.agent.renewal.window import ActivationWindow
from certplane.config.decoding import InputPath, KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.config.tracing import TracingSettings
from certplane.config.values import (
    DnsName,
    Fingerprint,
    HostPort,
    HttpsUrl,
    IdentityName,
    LogDestination,
    LogFormat,
    LogLevel,
    OwnPath,
    PositiveNumber,
    PositiveSpan,
)
from certplane.pki.keys import KeyType

_LINEAGE_NAME = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,63}", re.ASCII)
_MOST_ACCOUNT_NAME = 256
_FILE_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)

_KEY_KINDS = frozenset(part.setting for part in KEY_PARTS)
_KEY_BITS, _PUBLIC_BITS = 0o640, 0o644
"""What a key, and what anything else, may be for anybody: nobody but its owner writes it, nobody runs it."""


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


class AccountName(str):
    """A user or group of this host, by name or number; looked up when it is needed."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        r"""The name as it stands: `www-data`, and what a directory calls them: `DOMAIN\user`, `domain users`, `a@b`.

        Whether there is such a one the system says (NSS) when it is needed. No name has what passwd(5) parts its
        fields by, nor a control character; a space at an end is a mistake.
        """
        is_name = text.isprintable() and ":" not in text and "," not in text and text == text.strip()
        if not is_name or not 0 < len(text) <= _MOST_ACCOUNT_NAME or text.startswith("-"):
            raise ValueError("must be the name or number of a user or group, as `id` or `getent` shows it")
        return cls(text)


class FileMode(int):
    """Permission bits of a file."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Three octal digits, with or without a zero before them."""
        if _FILE_MODE.fullmatch(text) is None:
            raise ValueError("must be like 0640: three octal digits")
        return cls(int(text, 8))


@dataclass(frozen=True, slots=True)
class StepCaSettings:
    """The internal CA. Its root is trusted by `fingerprint`, by `root_ca_bundle`, or, both given, by both."""

    url: HttpsUrl
    fingerprint: Fingerprint | None = None
    root_ca_bundle: InputPath | None = None
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
    cert: OwnPath | None = None
    key: OwnPath | None = None
    issuer_ca_bundle: InputPath | None = None
    bootstrap_token: Path | None = None
    renew_before: PositiveSpan | None = None
    warn_before: PositiveSpan | None = None
    key_type: KeyType = KeyType.EC_P256
    rekey: bool = True


@dataclass(frozen=True, slots=True)
class FileSettings:
    """Who may read one output; what isn't set is the certificate's own setting."""

    owner: AccountName | None = None
    group: AccountName | None = None
    mode: FileMode | None = None


@dataclass(frozen=True, slots=True)
class Pkcs12Settings:
    """Key, certificate and chain in one encrypted file (RFC 7292), for Java and Windows programs."""

    path: OwnPath
    password_file: Path
    friendly_name: str = ""


@dataclass(frozen=True, slots=True)
class ActivateSettings:
    """When a certificate that was issued is put in place; see `renewal.window` and `renewal.plan.override_time`."""

    window: ActivationWindow | None = None
    expires_override: PositiveSpan | None = None

    def problems(self) -> Iterator[KeyProblem]:
        """What overrides a window is of no use without one."""
        if self.window is None and self.expires_override is not None:
            yield KeyProblem(
                "expires_override", "has no effect without a window", "add `window: 02:00-04:00`, or drop it"
            )


class StartTls(StrEnum):
    """Which protocol a service speaks before its TLS begins."""

    SMTP = "smtp"
    IMAP = "imap"
    POP3 = "pop3"


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """Where the service that serves the certificate is, to see whether it does.

    `starttls` is for one that begins in plain text, and is asked for TLS there; unset, TLS comes first.
    `timeout` is for one handshake; up to `attempts` of them are made, `interval` apart; a service that was well is
    looked at again after `every`.
    """

    connect: HostPort
    server_name: DnsName | None = None
    timeout: PositiveSpan = timedelta(seconds=5)
    attempts: PositiveNumber = 6
    interval: PositiveSpan = timedelta(seconds=1)
    every: PositiveSpan = timedelta(hours=6)
    starttls: StartTls | None = None


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """A certificate that this host wants, and where services read it.

    `combined` is key, certificate and chain in one file, for readers that would open two during a switch. `key_mode` is
    for files that hold the private key, `mode` for the others; `files` has what differs, by output. Where nothing of a
    file's owner, group and mode is set, those of the file that it replaces go on.
    """

    name: LineageName
    profile: str
    dns_names: tuple[DnsName, ...]
    key: OwnPath | None = None
    cert: OwnPath | None = None
    chain: OwnPath | None = None
    fullchain: OwnPath | None = None
    renew_before: PositiveSpan | None = None
    reload_command: str = ""
    reload_timeout: PositiveSpan = timedelta(seconds=30)
    key_type: KeyType = KeyType.EC_P256
    key_rotation: KeyRotation = KeyRotation.ALWAYS
    combined: OwnPath | None = None
    pkcs12: Pkcs12Settings | None = None
    install: InstallMode = InstallMode.LINK
    owner: AccountName | None = None
    group: AccountName | None = None
    mode: FileMode | None = None
    key_mode: FileMode | None = None
    files: Mapping[str, FileSettings] = field(default_factory=dict)
    activate: ActivateSettings = ActivateSettings()
    verify: VerifySettings | None = None

    def problems(self) -> Iterator[KeyProblem]:
        """It has names, its files are different files, and nobody but its owner writes one."""
        if not self.dns_names:
            yield KeyProblem("dns_names", "must not be empty", "write the profile's names")
        modes = [("mode", self.mode, _PUBLIC_BITS), ("key_mode", self.key_mode, _KEY_BITS)]
        for kind, settings in self.files.items():
            modes.append((f"files.{kind}.mode", settings.mode, _KEY_BITS if kind in _KEY_KINDS else _PUBLIC_BITS))
            if kind not in self.outputs:
                known = ", ".join(self.outputs) or "none"
                yield KeyProblem(f"files.{kind}", "is no output of this certificate", f"outputs are: {known}")
        for key, mode, bits in modes:
            if mode is not None and (mode & ~bits or not mode & 0o400):
                what = "what holds a private key" if bits == _KEY_BITS else "a certificate"
                yield KeyProblem(key, f"is {mode:04o}; {what} is 0400 to {bits:04o}", f"write {bits:04o}")

    @property
    def outputs(self) -> dict[str, Path]:
        """The configured paths by what stands there (`Part.setting`)."""
        paths = {part.setting: getattr(self, part.setting) for part in Part}
        if self.pkcs12 is not None:
            paths["pkcs12"] = self.pkcs12.path
        return {kind: path for kind, path in paths.items() if path is not None}

    @property
    def files_by_output(self) -> Mapping[str, FileSettings]:
        """Owner, group and mode of each output as they hold; an output of which nothing is set is left out."""
        found = {}
        for kind in self.outputs:
            own = self.files.get(kind, FileSettings())
            group = own.group or self.group
            default = self.mode
            if kind in _KEY_KINDS:
                default = self.key_mode if self.key_mode is not None or group is None else FileMode(_KEY_BITS)
            mode = own.mode if own.mode is not None else default
            found[kind] = FileSettings(own.owner or self.owner, group, mode)
        return {kind: settings for kind, settings in found.items() if settings != FileSettings()}


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where node_exporter's textfile collector reads this host's figures; unset, nowhere."""

    textfile: OwnPath | None = None

    def problems(self) -> Iterator[KeyProblem]:
        """The collector reads `*.prom` alone."""
        if self.textfile is not None and self.textfile.suffix != ".prom":
            yield KeyProblem("textfile", "must end in .prom: node_exporter reads no other file", "rename it")


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The agent's log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.TEXT
    destination: LogDestination = LogDestination.STDERR


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """An agent.yml that is right. `source` says where each key stands."""

    identity: IdentitySettings
    broker: BrokerLinkSettings
    state_dir: OwnPath = Path("/var/lib/certplane/agent")
    certificates: tuple[CertificateSettings, ...] = ()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = field(default_factory=TracingSettings)
    source: Source = field(kw_only=True)

    @property
    def hash(self) -> str:
        """SHA-256 of the file, for the log."""
        return self.source.sha256

    def problems(self) -> Iterator[KeyProblem]:
        """No two certificates share a name, no two outputs a path, none lies below another, and none is read here."""
        names: dict[str, str] = {}
        paths: dict[Path, str] = {}
        outputs = [("identity", kind, getattr(self.identity, kind)) for kind in ("key", "cert")]
        for number, certificate in enumerate(self.certificates):
            where = f"certificates[{number}]"
            first = names.setdefault(certificate.name, where)
            if first != where:
                yield KeyProblem(f"{where}.name", f"is that of {first} too", "give each certificate its own name")
            outputs.extend((where, kind, path) for kind, path in certificate.outputs.items())
        outputs.append(("metrics", "textfile", self.metrics.textfile))
        for where, kind, path in outputs:
            if path is None:
                continue
            key = f"{where}.{kind}"
            first = paths.setdefault(path, key)
            if first != key:
                yield KeyProblem(key, f"is also the path of {first}", "give each file its own path")
        for key, path in self._inputs():
            if path in paths:
                yield KeyProblem(
                    paths[path], f"is the file of {key}, which would be overwritten", "choose another path"
                )
        for path, key in paths.items():
            above = next((paths[folder] for folder in path.parents if folder in paths), None)
            if above is not None:
                yield KeyProblem(key, f"lies below the file of {above}", "choose another directory")

    def _inputs(self) -> Iterator[tuple[str, Path]]:
        """The files that the agent reads, by key."""
        identity = self.identity
        inputs = {
            "identity.issuer_ca_bundle": identity.issuer_ca_bundle,
            "identity.bootstrap_token": identity.bootstrap_token,
            "identity.step_ca.root_ca_bundle": identity.step_ca.root_ca_bundle,
            "broker.server_ca_bundle": self.broker.server_ca_bundle,
            "tracing.ca_bundle": self.tracing.ca_bundle,
        }
        for number, certificate in enumerate(self.certificates):
            if certificate.pkcs12 is not None:
                inputs[f"certificates[{number}].pkcs12.password_file"] = certificate.pkcs12.password_file
        yield from ((key, path) for key, path in inputs.items() if path is not None)


def load_settings(path: Path) -> AgentSettings:
    """Read agent.yml.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    return settings_of(Document.read(path))


def settings_of(document: Document) -> AgentSettings:
    """The settings of an agent.yml that was read, or is yet to be written.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    settings = decode(document, AgentSettings)
    certificates = tuple(  # names are a set: what is written twice is there once
        replace(each, dns_names=tuple(dict.fromkeys(each.dns_names))) for each in settings.certificates
    )
    return replace(settings, certificates=certificates)
