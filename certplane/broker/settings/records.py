"""The sections of what is kept: the database, the audit log, and the limits that count what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import parse_qs, urlsplit

from certplane.broker.ports import DurableLimits
from certplane.broker.proof.checkpoints import CheckpointKeyError, Verifier
from certplane.broker.sinks.settings import SINK_NAME, AuditSinkSettings
from certplane.config.decoding import Check, KeyProblem
from certplane.config.durations import DurationError, format_duration, parse_duration


class StoreDriver(StrEnum):
    """Which database."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"


class AuditFailureMode(StrEnum):
    """What happens when an audit event can't be written (design, fixed decision 5)."""

    FAIL_OPEN = "fail_open"
    FAIL_CLOSED = "fail_closed"


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

    `direct_url` leads past a pooler that `url` leads to, with the same password.
    `seal_secret` seals the ACME accounts' keys that the database keeps (`account_key: {store: true}`).
    `keep` is for ended orders and expired certificates, and for what silent hosts reported, from their end on.
    """

    driver: StoreDriver = StoreDriver.SQLITE
    path: Path = Path("/var/lib/certplane/broker.db")
    url: str = ""
    direct_url: str = ""
    password_secret: str = ""
    seal_secret: str = ""
    keep: Keep = _DEFAULT_KEEP

    def problems(self) -> Iterator[KeyProblem]:
        """URLs go with PostgreSQL and hold no password."""
        if self.driver is StoreDriver.SQLITE:
            for key in ("url", "direct_url", "password_secret"):
                if getattr(self, key):
                    yield KeyProblem(key, "goes with driver: postgresql only", "use `path` for SQLite")
                    return
            return
        if not self.url:
            yield KeyProblem("url", "is required with driver: postgresql", _WRITE)
            return
        for key in ("url", "direct_url"):
            if url := getattr(self, key):
                yield from _url_problems(key, url)


_WRITE: Final = "write postgresql://user@host:5432/database"
_WRITABLE: Final = ("read-write", "primary")


def _url_problems(key: str, url: str) -> Iterator[KeyProblem]:
    try:
        parts = urlsplit(url)
        has_password = parts.password is not None or "password=" in parts.query
        good_scheme = parts.scheme in {"postgresql", "postgres"}
    except ValueError:
        yield KeyProblem(key, "must be a URL postgresql://...", _WRITE)
        return
    asked = parse_qs(parts.query).get("target_session_attrs", [_WRITABLE[0]])[-1]
    if has_password:
        yield KeyProblem(key, "must not hold a password", "store it as a secret and name it in password_secret")
    elif not good_scheme:
        yield KeyProblem(key, "must be a URL postgresql://...", _WRITE)
    elif asked not in _WRITABLE:
        message = f"asks for a server with target_session_attrs={asked[:20]}, and the broker writes"
        yield KeyProblem(key, message, f"leave it out, or write {' or '.join(_WRITABLE)}")


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """The audit log. `spill_path` takes, under fail_open, what the database doesn't; unset, it stands beside it.

    `checkpoint_key_secret` signs how far the log has come; `checkpoint_keys` are public keys that have signed before.
    `sinks` are its copies, by name.
    """

    enabled: bool = True
    failure_mode: AuditFailureMode = AuditFailureMode.FAIL_OPEN
    mirror_to_log: bool = False
    spill_path: Path | None = None
    keep: Keep = _DEFAULT_KEEP
    checkpoint_key_secret: str = ""
    checkpoint_keys: tuple[str, ...] = ()
    sinks: Mapping[str, AuditSinkSettings] = field(default_factory=dict)

    def problems(self) -> Iterator[KeyProblem]:
        """Public keys are keys; sinks have names, and something to copy."""
        for number, key in enumerate(self.checkpoint_keys):
            try:
                Verifier([key])
            except CheckpointKeyError as error:
                remedy = "copy it from `certplane-broker audit keys`"
                yield KeyProblem(f"checkpoint_keys[{number}]", f"{error}", remedy)
        for name in self.sinks:
            if not SINK_NAME.fullmatch(name):
                yield KeyProblem(f"sinks.{name}", "must be named with 1 to 64 of a-z, 0-9, '.', '_', '-'")
        if self.sinks and not self.enabled:
            yield KeyProblem("sinks", "have nothing to copy: nothing is recorded", "leave `enabled: false` out")

    @property
    def required_sinks(self) -> Mapping[str, timedelta]:
        """How far behind each sink may be without which nothing is decided, by name."""
        return {name: each.max_lag for name, each in self.sinks.items() if each.required}

    @property
    def mode(self) -> str:
        """`failure_mode`, or `off`."""
        return self.failure_mode.value if self.enabled else "off"


def _not_negative(value: int) -> str | None:
    return None if value >= 0 else "must not be negative; 0 is no limit"


Limit = Annotated[int, Check(_not_negative)]


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
