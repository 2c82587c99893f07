"""The sections of the server itself: who may call it and how, where policy is, what it logs and measures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from certplane.config.decoding import Check, InputPath, KeyProblem
from certplane.config.durations import DurationError, format_duration, parse_duration
from certplane.config.values import (
    HttpsUrl,
    ListenAddress,
    LogDestination,
    LogFormat,
    LogLevel,
    NonEmptyText,
    PositiveNumber,
    PositiveSpan,
)
from certplane.pki.identity import PROVISIONER_KINDS

_DEFAULT_ADDRESS = ListenAddress("", 8443)

_MOST_KEYS = 5


def _provisioner_kinds(kinds: tuple[str, ...]) -> str | None:
    unknown = sorted(set(kinds) - set(PROVISIONER_KINDS.values()))
    if unknown:
        return f"has the unknown kind {unknown[0][:40]!a}; step-ca's are {', '.join(PROVISIONER_KINDS.values())}"
    return None if kinds else "must name at least one kind"


def _per_cent(number: int) -> str | None:
    return None if 0 <= number <= 100 else f"is {number}, must be a number of per cent, 0 to 100"


def _count(number: int) -> str | None:
    return None if number >= 0 else f"is {number}, must be a number of hosts, or 0 for none"


class TlsVersion(StrEnum):
    """The oldest TLS version that a client may speak."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@dataclass(frozen=True, slots=True)
class ServerCaSettings:
    """The internal CA that the broker's own certificate is of: `certplane-broker renew-certificate` asks it.

    `root_ca_bundle` is what it is known by; unset, `server.mtls.agent_ca_bundle`.
    """

    url: HttpsUrl
    root_ca_bundle: Path | None = None
    timeout: PositiveSpan = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """The broker's own certificate: `cert` is its chain in PEM, leaf first; `step_ca` is who renews it."""

    cert: InputPath
    key: InputPath
    min_version: TlsVersion = TlsVersion.TLS_1_2
    step_ca: ServerCaSettings | None = None


@dataclass(frozen=True, slots=True)
class MtlsSettings:
    """Whose client certificates are accepted; `provisioners` are step-ca's kinds."""

    agent_ca_bundle: InputPath
    provisioners: Annotated[tuple[str, ...], Check(_provisioner_kinds)] = ("JWK",)
    allow_missing_provisioner: bool = False

    @property
    def accepted_provisioners(self) -> tuple[str, ...]:
        """The kinds that identities may come from; "" stands for a certificate that names none."""
        return (*self.provisioners, "") if self.allow_missing_provisioner else self.provisioners


_LEAST_AGE, _MOST_AGE = timedelta(minutes=10), timedelta(hours=3, minutes=30)
"""Connections are made anew after four hours, less ten percent by chance, and streams are to end before (ADR 0032)."""


@dataclass(frozen=True, slots=True)
class StreamAge:
    """How long a host's stream lasts at most; None is as long as its connection."""

    span: timedelta | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """A duration, or `never`."""
        if text == "never":
            return cls(None)
        try:
            span = parse_duration(text)
        except DurationError as error:
            raise ValueError("must be a duration, like 3h, or never") from error
        if not _LEAST_AGE <= span <= _MOST_AGE:
            raise ValueError("must be from 10m to 3h30m, or never: connections themselves last four hours")
        return cls(span)

    def __str__(self) -> str:
        return "never" if self.span is None else format_duration(self.span)


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
    stream_age: StreamAge = StreamAge(_MOST_AGE)
    reuse_port: bool = False


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Where policy.yml is; `watch` reloads it when its content changes.

    `guard`: a reload that removes more per cent of the hosts, or of the grants, wants to be confirmed.
    """

    path: InputPath
    watch: bool = False
    guard: Annotated[int, Check(_per_cent)] = 10


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where Prometheus metrics are served, plain HTTP without authentication: loopback, say. Unset is off.

    `certificates_up_to_hosts`: in a larger fleet no certificate has a series of its own. `host_labels`: keys of
    hosts' labels in the policy that certificates are counted by.
    """

    address: ListenAddress | None = None
    certificates_up_to_hosts: Annotated[int, Check(_count)] = 1000
    host_labels: tuple[NonEmptyText, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """Few keys: each has a series for each value and health."""
        if len(self.host_labels) > _MOST_KEYS:
            problem = f"has {len(self.host_labels)} keys, more than {_MOST_KEYS}"
            yield KeyProblem("host_labels", problem, "leave some out: each has a series for each of its values")


@dataclass(frozen=True, slots=True)
class LoggingSettings:
    """The broker's log."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.JSON
    destination: LogDestination = LogDestination.STDOUT
