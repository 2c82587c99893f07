"""The section `tracing` of both programs: where spans are sent (OpenTelemetry, OTLP over gRPC). Off by default."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from certplane.config.decoding import Check, KeyProblem
from certplane.runtime.tracing import Collector


class OtlpUrl(str):
    """`http://host:port` or `https://host:port`."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URL as it stands."""
        wrong = ValueError("must be http://host:port or https://host:port, a collector's OTLP over gRPC (port 4317)")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise wrong from error
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password)
        if parts.scheme not in {"http", "https"} or not parts.hostname or not port or not plain:
            raise wrong
        return cls(text)

    @property
    def secure(self) -> bool:
        """Whether it is TLS."""
        return self.startswith("https:")

    @property
    def target(self) -> str:
        """`host:port`."""
        return urlsplit(self).netloc


def _per_cent(number: int) -> str | None:
    return None if 1 <= number <= 100 else f"is {number}, must be a number of per cent, 1 to 100"


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """`per_cent` of the traces that begin here are kept; what began elsewhere is kept if it is there."""

    endpoint: OtlpUrl | None = None
    ca_bundle: Path | None = None
    per_cent: Annotated[int, Check(_per_cent)] = 100

    def problems(self) -> Iterator[KeyProblem]:
        """A bundle is for TLS."""
        if self.ca_bundle is not None and (self.endpoint is None or not self.endpoint.secure):
            yield KeyProblem("ca_bundle", "has no effect without an endpoint of https://", "drop it, or use https://")

    @property
    def collector(self) -> Collector | None:
        """Where spans are sent; None for nowhere."""
        if self.endpoint is None:
            return None
        return Collector(self.endpoint.target, self.endpoint.secure, self.ca_bundle, self.per_cent / 100)
