"""broker.yml as frozen values: the public format's keys with their defaults, and Certplane's own after them.

A section is a dataclass, a field a key: this file is the reference of the format, and docs/configuration.md tells it
in words. Paths are kept as written; the files behind them are read, and judged, by those who use them (`Source.problem`
gives them the place to name). Secrets stand in a secret source and are named here; the vault token is the format's one
exception.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol, Self
from urllib.parse import urlsplit

from certplane.broker.contact import NO_CONTACT, ContactEmail
from certplane.broker.dns_settings import (
    CloudflareSettings,
    DnsProvider,
    DnsSettings,
    HttpreqSettings,
    PropagationSettings,
    Rfc2136Settings,
)
from certplane.broker.ports import DurableLimits
from certplane.broker.provider_settings import AcmeDnsSettings, ExecSettings, LexiconSettings
from certplane.config.decoding import Check, InputPath, KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.config.durations import DurationError, format_duration, parse_duration
from certplane.config.values import (
    HttpsUrl,
    HttpUrl,
    ListenAddress,
    LogDestination,
    LogFormat,
    LogLevel,
    PositiveNumber,
    PositiveSpan,
)
from certplane.errors import ConfigurationProblem
from certplane.pki.identity import PROVISIONER_KINDS


def _not_negative(value: int) -> str | None:
    return None if value >= 0 else "must not be negative; 0 is no limit"


def _provisioner_kinds(kinds: tuple[str, ...]) -> str | None:
    unknown = sorted(set(kinds) - set(PROVISIONER_KINDS.values()))
    if unknown:
        return f"has the unknown kind {unknown[0][:40]!a}; step-ca's are {', '.join(PROVISIONER_KINDS.values())}"
    return None if kinds else "must name at least one kind"


def _kv_version(version: int) -> str | None:
    return None if version in {1, 2} else "must be 1 or 2"


def _mount_path(path: str) -> str | None:
    if path.isprintable() and all(part not in {"", ".", ".."} for part in path.strip("/").split("/")):
        return None
    return "must be the path where the store is mounted, such as secret or team/kv"


def _briefly(span: timedelta) -> str | None:
    return None if timedelta() <= span <= timedelta(minutes=5) else "must be between 0s, which keeps nothing, and 5m"


_ISSUER_NAME = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)


def _not_empty(text: str) -> str | None:
    return None if text else "must not be empty"


Limit = Annotated[int, Check(_not_negative)]

_DEFAULT_ADDRESS = ListenAddress("", 8443)


class TlsVersion(StrEnum):
    """The oldest TLS version that a client may speak."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


class IssuerProvider(StrEnum):
    """Where certificates come from."""

    ACME = "acme"


class SecretsProvider(StrEnum):
    """Where secrets are read."""

    ENV = "env"
    FILE = "file"
    VAULT = "vault"
    OPENBAO = "openbao"


class StoreDriver(StrEnum):
    """Which database."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class AuditFailureMode(StrEnum):
    """What happens when an audit event can't be written (design, fixed decision 5)."""

    FAIL_OPEN = "fail_open"
    FAIL_CLOSED = "fail_closed"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The broker's own certificate: `cert` is its chain in PEM, leaf first."""

    cert: InputPath
    key: InputPath
    min_version: TlsVersion = TlsVersion.TLS_1_2


@dataclass(frozen=True, slots=True)
class MtlsSettings:
    """Whose client certificates are accepted; `provisioners` are step-ca's kinds."""

    agent_ca_bundle: InputPath
    provisioners: Annotated[tuple[str, ...], Check(_provisioner_kinds)] = ("JWK",)
    allow_missing_provisioner: bool = False


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """The gRPC server. The four HTTP timeouts are the format's and have no effect here."""

    tls: TlsSettings
    mtls: MtlsSettings
    address: ListenAddress = _DEFAULT_ADDRESS
    read_timeout: timedelta | None = None
    read_header_timeout: timedelta | None = None
    write_timeout: timedelta | None = None
    idle_timeout: timedelta | None = None
    calls_per_identity_per_second: PositiveNumber = 20
    calls_burst: PositiveNumber = 40
    drain_timeout: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Where policy.yml is; `watch` reloads it when its content changes."""

    path: InputPath
    watch: bool = False


class _OwnPropagation(Protocol):
    """The section of a DNS provider: what it may say instead of `propagation`."""

    @property
    def propagation_timeout(self) -> timedelta | None: ...

    @property
    def polling_interval(self) -> timedelta | None: ...


class EabAlgorithm(StrEnum):
    """How an external account's key binds (RFC 7518 3.1)."""

    HS256 = "HS256"
    HS384 = "HS384"
    HS512 = "HS512"


@dataclass(frozen=True, slots=True)
class EabSettings:
    """The external account that the CA wants its accounts bound to; `hmac_secret` names the base64url MAC key."""

    kid: Annotated[str, Check(_not_empty)]
    hmac_secret: Annotated[str, Check(_not_empty)]
    algorithm: EabAlgorithm = EabAlgorithm.HS256


@dataclass(frozen=True, slots=True)
class RenewalInfoSettings:
    """Whether the CA is asked when its certificates should be renewed (RFC 9773)."""

    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeCaSettings:
    """A public CA (RFC 8555) and our account there.

    `account_key` is made on first use. `ca_bundle` is for a private CA's own HTTPS, `allowed_hosts` for hosts other
    than the directory's that its URLs may name. `preferred_chain` is the common name of the issuer of a chain's last
    certificate.
    """

    directory_url: HttpsUrl
    account_key: Path
    account_email: ContactEmail = NO_CONTACT
    preferred_chain: str = ""
    eab: EabSettings | None = None
    ca_bundle: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    renewal_info: RenewalInfoSettings = field(default_factory=RenewalInfoSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcmeSettings(AcmeCaSettings):
    """The default issuer's CA, and the DNS side, which all issuers share."""

    dns_provider: DnsProvider
    propagation: PropagationSettings = field(default_factory=PropagationSettings)
    cloudflare: CloudflareSettings = field(default_factory=CloudflareSettings)
    rfc2136: Rfc2136Settings | None = None
    httpreq: HttpreqSettings | None = None
    acme_dns: AcmeDnsSettings | None = None
    exec: ExecSettings | None = None
    lexicon: LexiconSettings | None = None

    def problems(self) -> Iterator[KeyProblem]:
        """The chosen DNS provider is configured."""
        yield from self.section_problems(self.dns_provider)

    def section_problems(self, provider: DnsProvider) -> Iterator[KeyProblem]:
        """Whatever keeps `provider` from being used: its section isn't there."""
        if getattr(self, provider.section) is None:
            section = provider.section
            yield KeyProblem(section, f"is required with dns_provider: {provider}", f"add `{section}:`")

    @property
    def effective_propagation(self) -> PropagationSettings:
        """`propagation` with what the chosen provider's own section says instead."""
        return self.propagation_of(self.dns_provider)

    def propagation_of(self, provider: DnsProvider) -> PropagationSettings:
        """`propagation` with what the section of `provider` says instead."""
        own: _OwnPropagation | None = getattr(self, provider.section)
        if own is None:
            return self.propagation
        return replace(
            self.propagation,
            timeout=own.propagation_timeout or self.propagation.timeout,
            interval=own.polling_interval or self.propagation.interval,
        )


@dataclass(frozen=True, slots=True)
class IssuerSettings:
    """The issuer; `name` is part of what makes a cached certificate the same."""

    acme: AcmeSettings
    provider: IssuerProvider = IssuerProvider.ACME
    name: Annotated[str, Check(_not_empty)] = "default"


@dataclass(frozen=True, slots=True)
class FurtherIssuerSettings:
    """One of `issuers`: a CA that profiles may name beside the default one."""

    acme: AcmeCaSettings
    provider: IssuerProvider = IssuerProvider.ACME


@dataclass(frozen=True, slots=True)
class FileSecretsSettings:
    """Secrets as files below one directory; nothing outside it is read.

    Without `directory` it is systemd's credentials directory where the broker has one, else /etc/certplane/secrets.
    """

    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """A KV store of Vault or OpenBao; `key` is the field of an entry that holds the secret.

    What is left out of address and token is looked for in the environment when the broker starts. `allow_http` is for a
    store on a private network that speaks no TLS: token and secrets go over it in the clear.
    """

    address: HttpUrl | None = None
    allow_http: bool = False
    token: str = field(default="", repr=False)
    token_file: InputPath | None = None
    mount_path: Annotated[str, Check(_mount_path)] = "secret"
    kv_version: Annotated[int, Check(_kv_version)] = 2
    key: Annotated[str, Check(_not_empty)] = "value"
    timeout: PositiveSpan = timedelta(seconds=10)
    namespace: str = ""
    ca_bundle: Path | None = None
    cache: Annotated[timedelta, Check(_briefly)] = timedelta(seconds=30)

    def problems(self) -> Iterator[KeyProblem]:
        """There is at most one token."""
        if self.token and self.token_file is not None:
            yield KeyProblem("token_file", "and `token` are both there", "keep token_file")


@dataclass(frozen=True, slots=True)
class SecretsSettings:
    """Where secrets are read: the environment, files, or a vault (OpenBao is configured in the same section)."""

    provider: SecretsProvider = SecretsProvider.ENV
    file: FileSecretsSettings = FileSecretsSettings()
    vault: VaultSettings | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """For how long something is kept; None is for good."""

    span: timedelta | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """A duration, or `forever`."""
        if text == "forever":
            return cls(None)
        try:
            span = parse_duration(text)
        except DurationError as error:
            raise ValueError("must be a duration in hours, like 9600h, or forever") from error
        if span < _LEAST_KEEP:
            raise ValueError("must be at least 192h (8 days): the weekly limits count what is younger")
        return cls(span)

    def __str__(self) -> str:
        return "forever" if self.span is None else format_duration(self.span)


_LEAST_KEEP = timedelta(days=8)
_DEFAULT_KEEP = Keep(timedelta(days=400))


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """The database: a file for SQLite, `url` and the name of its password's secret for PostgreSQL.

    `keep` is for ended orders and expired certificates, and for what silent hosts reported, from their end on.
    """

    driver: StoreDriver = StoreDriver.SQLITE
    path: Path = Path("/var/lib/certplane/broker.db")
    url: str = ""
    password_secret: str = ""
    keep: Keep = _DEFAULT_KEEP

    def problems(self) -> Iterator[KeyProblem]:
        """A URL goes with PostgreSQL and holds no password."""
        if self.driver is StoreDriver.SQLITE:
            if self.url or self.password_secret:
                key = "url" if self.url else "password_secret"
                yield KeyProblem(key, "goes with driver: postgresql only", "use `path` for SQLite")
            return
        if not self.url:
            yield KeyProblem("url", "is required with driver: postgresql", "write postgresql://user@host:5432/database")
            return
        try:
            parts = urlsplit(self.url)
            has_password = parts.password is not None or "password=" in parts.query
            good_scheme = parts.scheme in {"postgresql", "postgres"}
        except ValueError:
            has_password = good_scheme = False
        if has_password:
            yield KeyProblem("url", "must not hold a password", "store it as a secret and name it in password_secret")
        elif not good_scheme:
            yield KeyProblem("url", "must be a URL postgresql://...", "write postgresql://user@host:5432/database")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The audit log. `spill_path` takes, under fail_open, what the database doesn't; unset, it stands beside it."""

    enabled: bool = True
    failure_mode: AuditFailureMode = AuditFailureMode.FAIL_OPEN
    mirror_to_log: bool = False
    spill_path: Path | None = None
    keep: Keep = _DEFAULT_KEEP


@dataclass(frozen=True, slots=True)
class RateLimitSettings:
    """Limits counted over orders; 0 is no limit. What each counts: `certplane.broker.policy.limits`.

    A public CA issues five certificates a week for one set of names (Let's Encrypt): four for whoever asks, and the
    fifth is left for what must be replaced.
    """

    per_identity_per_hour: Limit = 50
    per_identity_profile_per_hour: Limit = 20
    new_keys_per_identity_profile_per_day: Limit = 2
    certificates_per_identity_profile_per_day: Limit = 3
    early_renewals_per_identity_profile_per_day: Limit = 2
    certificates_per_name_set_per_week: Limit = 4
    asked_for_per_identity_profile_per_hour: Limit = 20

    @property
    def durable_limits(self) -> DurableLimits:
        """As the order store takes them."""
        return DurableLimits(**{field.name: getattr(self, field.name) or None for field in fields(self)})


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where Prometheus metrics are served, plain HTTP without authentication: loopback, say. Unset is off."""

    address: ListenAddress | None = None


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The broker's log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.JSON
    destination: LogDestination = LogDestination.STDOUT


@dataclass(frozen=True, slots=True)
class _BrokerFile:
    """The whole file."""

    server: ServerSettings
    policy: PolicySettings
    issuer: IssuerSettings
    dns: DnsSettings = field(default_factory=DnsSettings)
    issuers: Mapping[str, FurtherIssuerSettings] = field(default_factory=dict)
    secrets: SecretsSettings = SecretsSettings()
    store: StoreSettings = StoreSettings()
    audit: AuditSettings = AuditSettings()
    rate_limits: RateLimitSettings = RateLimitSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()

    def problems(self) -> Iterator[KeyProblem]:
        """Every issuer has a name and an account key of its own."""
        key_files = {self.issuer.acme.account_key: "issuer"}
        for name, issuer in self.issuers.items():
            if not _ISSUER_NAME.fullmatch(name):
                yield KeyProblem(f"issuers.{name}", "must be named with 1 to 64 of a-z, 0-9, '.', '_', '-'")
            if name == self.issuer.name:
                yield KeyProblem(f"issuers.{name}", "is the name of `issuer` too", "give it another name")
            first = key_files.setdefault(issuer.acme.account_key, f"issuers.{name}")
            if first != f"issuers.{name}":
                # An account key for one CA only: who runs one CA's directory must not be able to use the other's.
                problem = f"is the key of {first} too"
                yield KeyProblem(f"issuers.{name}.acme.account_key", problem, "give each issuer its own file")


@dataclass(frozen=True, slots=True)
class BrokerSettings(_BrokerFile):
    """A broker.yml that is right. `source` says where each key stands."""

    source: Source = field(kw_only=True)

    @property
    def hash(self) -> str:
        """SHA-256 of the file, for the log."""
        return self.source.sha256

    @property
    def cas(self) -> dict[str, AcmeCaSettings]:
        """All issuers by name, the default one first."""
        return {self.issuer.name: self.issuer.acme, **{name: each.acme for name, each in self.issuers.items()}}

    def ca_section(self, name: str) -> str:
        """The section that the issuer `name` is configured in, as the keys below it are named to people."""
        return "issuer.acme" if name == self.issuer.name else f"issuers.{name}.acme"

    @property
    def spill_path(self) -> Path:
        """Where audit events spill: as configured, else beside the database."""
        return self.audit.spill_path or self.store.path.with_name("audit-spill.jsonl")

    @property
    def notices(self) -> tuple[str, ...]:
        """Keys that were read and have no effect, or will meet with a refusal, a line each, for the log."""
        keys = ("read_timeout", "read_header_timeout", "write_timeout", "idle_timeout")
        idle = [
            str(self.source.problem(f"server.{key}", "has no effect: gRPC connections end by keepalive and age"))
            for key in keys
            if getattr(self.server, key) is not None
        ]
        return (*idle, *map(str, self._unusable_contacts()))

    def _unusable_contacts(self) -> Iterator[ConfigurationProblem]:
        for name, ca in self.cas.items():
            if ca.ca_bundle is None and (reserved := ca.account_email.reserved_domain):
                message = f"is at {reserved}, where no mail arrives: public CAs refuse it"
                key = f"{self.ca_section(name)}.account_email"
                yield self.source.problem(key, message, "name an address that is read")

    @property
    def private_issuers(self) -> frozenset[str]:
        """The issuers whose HTTPS is a private CA's, as theirs is who are one; "" stands for the default one."""
        private = {name for name, ca in self.cas.items() if ca.ca_bundle is not None}
        return frozenset(private | ({""} if self.issuer.acme.ca_bundle is not None else set()))


def load_settings(path: Path) -> BrokerSettings:
    """Read broker.yml.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    document = Document.read(path)
    file = decode(document, _BrokerFile)
    sections = {name: getattr(file, name) for name in _BrokerFile.__dataclass_fields__}
    return BrokerSettings(**sections, source=document.source)
