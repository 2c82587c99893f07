"""An HTTP endpoint of one's own: `issuer.acme.httpreq`, and under `provider` what it is made into.

The section stands apart, since what reads broker.yml and asks no DNS shall not load an HTTP client.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Self

from typing_extensions import override

from certplane.broker.issuers.dns.provider import DnsProvider, ProviderSettings
from certplane.broker.ports import SecretSource
from certplane.config.decoding import KeyProblem
from certplane.config.values import DnsServerAddress, HttpUrl, PositiveSpan
from certplane.runtime.clock import Clock


class HttpreqMode(StrEnum):
    """What an endpoint is sent: name and value, or what they derive from."""

    DEFAULT = "default"
    RAW = "raw"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Empty is `default`; case doesn't matter (others write RAW)."""
        mode = text.lower() or "default"
        if mode not in set(cls):
            raise ValueError(f"is {text[:40]!a}, must be one of {', '.join(cls)}")
        return cls(mode)


@dataclass(frozen=True, slots=True)
class HttpreqSettings(ProviderSettings):
    """`issuer.acme.httpreq`; the two secrets, if named, are the endpoint's basic authentication.

    `endpoint` is https, or http to this machine or without authentication. `recursive_nameservers` are who must show a
    record, unless another key says who.
    """

    endpoint: HttpUrl
    mode: HttpreqMode = HttpreqMode.DEFAULT
    username_secret: str = ""
    password_secret: str = ""
    propagation_timeout: PositiveSpan | None = field(default=timedelta(seconds=30), kw_only=True)
    polling_interval: PositiveSpan | None = field(default=timedelta(seconds=2), kw_only=True)
    http_timeout: PositiveSpan = timedelta(seconds=10)
    recursive_nameservers: tuple[DnsServerAddress, ...] = ()

    def problems(self) -> Iterator[KeyProblem]:
        """Basic authentication has two halves."""
        if bool(self.username_secret) != bool(self.password_secret):
            missing = "password_secret" if self.username_secret else "username_secret"
            yield KeyProblem(missing, "is required beside the other one", "name both secrets, or neither")

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        from certplane.broker.issuers.dns.httpreq.provider import HttpreqProvider  # noqa: PLC0415 - see above

        return HttpreqProvider(self, secrets, clock, rng)
