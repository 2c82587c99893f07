"""broker.yml as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from certplane.broker.accounts.seal import HOW_TO_MAKE
from certplane.broker.budget.model import IssuerLimits
from certplane.broker.budget.published import limits_of
from certplane.broker.enrolling.settings import BootstrapSettings
from certplane.broker.issuers.acme_settings import AcmeCaSettings
from certplane.broker.issuers.challenge_kinds import ChallengeKind
from certplane.broker.issuers.dns.settings import DnsSettings
from certplane.broker.notify.receivers import NotifierSettings
from certplane.broker.notify.settings import NOTIFIER_NAME
from certplane.broker.secrets.source import SecretsSettings
from certplane.broker.settings.issuers import NAME_A_PROVIDER, FurtherIssuerSettings, IssuerSettings
from certplane.broker.settings.records import AuditSettings, RateLimitSettings, StoreSettings
from certplane.broker.settings.server import LoggingSettings, MetricsSettings, PolicySettings, ServerSettings
from certplane.config.decoding import KeyProblem, decode
from certplane.config.document import Document, Source
from certplane.config.tracing import TracingSettings
from certplane.errors import ConfigurationProblem

_ISSUER_NAME = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """A broker.yml that is right. `source` says where each key stands."""

    server: ServerSettings
    policy: PolicySettings
    issuer: IssuerSettings
    dns: DnsSettings = field(default_factory=DnsSettings)
    issuers: Mapping[str, FurtherIssuerSettings] = field(default_factory=dict)
    secrets: SecretsSettings = field(default_factory=SecretsSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    rate_limits: RateLimitSettings = field(default_factory=RateLimitSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    notifications: Mapping[str, NotifierSettings] = field(default_factory=dict)
    bootstrap: BootstrapSettings | None = None
    source: Source = field(kw_only=True)

    def problems(self) -> Iterator[KeyProblem]:
        """Every issuer has a name and an account key of its own; the database's keys have a seal, and only they."""
        key_places = {self.issuer.acme.account_key: "issuer"}
        for name, issuer in self.issuers.items():
            if not _ISSUER_NAME.fullmatch(name):
                yield KeyProblem(f"issuers.{name}", "must be named with 1 to 64 of a-z, 0-9, '.', '_', '-'")
            if name == self.issuer.name:
                yield KeyProblem(f"issuers.{name}", "is also the name of `issuer`", "give it another name")
            first = key_places.setdefault(issuer.acme.account_key, f"issuers.{name}")
            if first != f"issuers.{name}" and not issuer.acme.account_key.store:
                # An account key for one CA only: who runs one CA's directory must not be able to use the other's.
                problem = f"is also the key of {first}"
                own = "secret" if issuer.acme.account_key.secret else "file"
                yield KeyProblem(f"issuers.{name}.acme.account_key", problem, f"give each issuer its own {own}")
        proving = [name for name, each in self.issuers.items() if each.acme.challenge is ChallengeKind.DNS_01]
        if proving and self.issuer.acme.dns_provider is None and self.issuer.acme.challenge is not ChallengeKind.DNS_01:
            problem = f"is required by issuers.{proving[0]}, whose challenge is dns-01"
            yield KeyProblem("issuer.acme.dns_provider", problem, NAME_A_PROVIDER)
        for name in self.notifications:
            if not NOTIFIER_NAME.fullmatch(name):
                yield KeyProblem(f"notifications.{name}", "must be named with 1 to 64 of a-z, 0-9, '.', '_', '-'")
        kept = [name for name, ca in self.cas.items() if ca.account_key.store]
        if kept and not self.store.seal_secret:
            remedy = "name the secret that seals the key: " + HOW_TO_MAKE
            yield KeyProblem(
                "store.seal_secret", f"is required by {self.ca_section(kept[0])}.account_key.store", remedy
            )
        if self.store.seal_secret and not kept:
            problem = "seals nothing: the database keeps no account's key"
            remedy = (
                "leave it out, or write `account_key: {store: true}` where the database is to keep an account's key"
            )
            yield KeyProblem("store.seal_secret", problem, remedy)

    @property
    def hash(self) -> str:
        """SHA-256 of the file, for the log."""
        return self.source.sha256

    @property
    def cas(self) -> dict[str, AcmeCaSettings]:
        """All issuers by name, the default one first."""
        return {self.issuer.name: self.issuer.acme, **{name: each.acme for name, each in self.issuers.items()}}

    def proves_by(self, kind: ChallengeKind) -> tuple[str, ...]:
        """The issuers whose challenge this is."""
        return tuple(name for name, ca in self.cas.items() if ca.challenge is kind)

    @property
    def budgets(self) -> dict[str, IssuerLimits]:
        """What each issuer may be asked for, by name, in the order of `cas`."""
        return {name: limits_of(name, ca.directory_url, ca.limits) for name, ca in self.cas.items()}

    @property
    def stores_account_keys(self) -> bool:
        """Whether the database keeps the key of an issuer's account."""
        return any(ca.account_key.store for ca in self.cas.values())

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
        return (*idle, *map(str, self._unused_provider()), *map(str, self._unusable_contacts()))

    def _unused_provider(self) -> Iterator[ConfigurationProblem]:
        if self.issuer.acme.dns_provider is None or self.proves_by(ChallengeKind.DNS_01):
            return
        message = "writes nothing: no issuer's challenge is dns-01; it only removes what older orders have left"
        yield self.source.problem("issuer.acme.dns_provider", message, "leave it out once no such order is open")

    def _unusable_contacts(self) -> Iterator[ConfigurationProblem]:
        for name, ca in self.cas.items():
            if ca.ca_bundle is None and (reserved := ca.account_email.reserved_domain):
                message = f"is at {reserved}, where no mail arrives: public CAs refuse it"
                key = f"{self.ca_section(name)}.account_email"
                yield self.source.problem(key, message, "use the address of a mailbox that somebody reads")

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
    return decode(Document.read(path, keep_text=True), BrokerSettings)


def parse_settings(text: bytes, file: str) -> BrokerSettings:
    """The settings of a broker.yml that another process has read.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    return decode(Document.parse(text, file), BrokerSettings)
