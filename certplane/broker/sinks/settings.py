"""The section `audit.sinks` of broker.yml."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from certplane.config.decoding import Check, KeyProblem
from certplane.config.values import HostPort, HttpUrl, OwnPath

SINK_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)
_PLACES: Final = ("file", "syslog", "otlp")


def _briefly(span: timedelta) -> str | None:
    return None if timedelta() < span <= timedelta(minutes=1) else "must be more than 0s, and at most 1m"


def _lag(span: timedelta) -> str | None:
    return None if span >= timedelta(seconds=30) else "must be at least 30s: another broker may have to take over first"


Timeout = Annotated[timedelta, Check(_briefly)]
"""For one batch of events."""


class Facility(StrEnum):
    """Of syslog (RFC 5424 6.2.1): those that audit events are kept under."""

    AUTHPRIV = "authpriv"
    AUDIT = "audit"
    LOCAL0 = "local0"
    LOCAL1 = "local1"
    LOCAL2 = "local2"
    LOCAL3 = "local3"
    LOCAL4 = "local4"
    LOCAL5 = "local5"
    LOCAL6 = "local6"
    LOCAL7 = "local7"

    @property
    def code(self) -> int:
        """The number."""
        match self:
            case Facility.AUTHPRIV:
                return 10
            case Facility.AUDIT:
                return 13
            case local:
                return 16 + int(local.removeprefix("local"))


@dataclass(frozen=True, slots=True)
class FileSinkSettings:
    """A file that events are appended to, one JSON object a line, on the machine of the broker that copies."""

    path: OwnPath


@dataclass(frozen=True, slots=True)
class SyslogSinkSettings:
    """A syslog server over TLS (RFC 5424 by RFC 5425).

    `cert` and `key` are this client's, where it wants one; they are read for each connection.
    """

    server: HostPort
    facility: Facility = Facility.AUDIT
    ca_bundle: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    timeout: Timeout = timedelta(seconds=10)

    def problems(self) -> Iterator[KeyProblem]:
        """A certificate has a key."""
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            yield KeyProblem(missing, "is required beside the other one", "name both files, or neither")


@dataclass(frozen=True, slots=True)
class OtlpSinkSettings:
    """An OpenTelemetry collector's gRPC endpoint for logs; `token_secret` names a bearer token."""

    endpoint: HttpUrl
    token_secret: str = ""
    ca_bundle: Path | None = None
    timeout: Timeout = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSinkSettings:
    """One of `audit.sinks`. `required`: decisions are refused while it is further behind than `max_lag`."""

    file: FileSinkSettings | None = None
    syslog: SyslogSinkSettings | None = None
    otlp: OtlpSinkSettings | None = None
    required: bool = False
    max_lag: Annotated[timedelta, Check(_lag)] = timedelta(minutes=1)

    @property
    def kind(self) -> str:
        """Which of them it has."""
        return next(key for key in _PLACES if getattr(self, key) is not None)

    def problems(self) -> Iterator[KeyProblem]:
        """It is in one place."""
        places = [key for key in _PLACES if getattr(self, key) is not None]
        if len(places) != 1:
            written = " and ".join(places) + " are there" if places else "is required"
            key = places[1] if places else "file"
            yield KeyProblem(key, written, "write one of file, syslog and otlp; each sink is in one place")
