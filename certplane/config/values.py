"""Kinds of values that both programs' settings have: addresses, URLs, names, logging choices.

Each is made by `parse`, which takes the text of the file and raises `ValueError` with what the text must be instead.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from certplane.config.decoding import Check
from certplane.pki.names import DnsNameError, canonical_dns_name

_URI = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)
_MAX_URI_LENGTH = 2048  # SPIFFE-ID 2.3


def _positive(value: Any) -> str | None:
    return None if value > type(value)() else "must be more than zero"


def _not_empty(text: str) -> str | None:
    return None if text else "must not be empty"


def _own_path(value: Path) -> str | None:
    if ".." in value.parts:
        return "goes through `..`, whose meaning changes with links; write the path without it"
    return "is the root of the file system; give a path below it" if value == Path("/") else None


OwnPath = Annotated[Path, Check(_own_path)]
"""A path that a program writes at: without `..`."""
NonEmptyText = Annotated[str, Check(_not_empty)]
"""For keys with a default; a text without one must not be empty anyway."""
PositiveSpan = Annotated[timedelta, Check(_positive)]
PositiveNumber = Annotated[int, Check(_positive)]


class LogLevel(StrEnum):
    """From which severity on lines are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`warn` is `warning`; case doesn't matter."""
        level = text.lower()
        level = "warning" if level == "warn" else level
        if level not in set(cls):
            raise ValueError(f"is {text[:40]!a}, must be one of {', '.join(cls)}")
        return cls(level)


class LogFormat(StrEnum):
    """How a log line looks."""

    TEXT = "text"
    JSON = "json"


class LogDestination(StrEnum):
    """Where log lines go."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class HostPort:
    """A server to talk to: a host name or address, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`host:port`, an IPv6 address in brackets."""
        host, port = _split(text, "host:port")
        if not host:
            raise ValueError("must be host:port")
        return cls(host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class DnsServerAddress(HostPort):
    """A DNS server; without a port it is 53."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`host`, `host:port`, or an IPv6 address, in brackets if a port follows."""
        try:
            return cls(str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]"))), 53)
        except ValueError:
            pass
        host, port = _split(text if ":" in text else f"{text}:53", "host or host:port")
        if not host:
            raise ValueError("must be host or host:port")
        return cls(host, port)

    __str__ = HostPort.__str__


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where a server listens. An empty host is every address of the machine; port 0 is one that the system picks."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`:port`, `host:port`, or an IPv6 address in brackets with a port."""
        return cls(*_split(text, ":port or host:port", lowest_port=0))

    @property
    def target(self) -> str:
        """The address as gRPC binds it."""
        host = self.host or "::"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HttpUrl(str):
    """An http or https URL without user, password and fragment."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URL as it stands."""
        _check_url(text, {"http", "https"})
        return cls(text)


class HttpsUrl(str):
    """An https URL without user, password and fragment."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The URL as it stands."""
        _check_url(text, {"https"})
        return cls(text)


class DnsName(str):
    """A DNS name or wildcard name, canonical (`certplane.pki.names`)."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The canonical form; a final dot, as zone files have it, is left out."""
        try:
            return cls(canonical_dns_name(_without_final_dot(text)))
        except DnsNameError as error:
            raise ValueError(str(error)) from error


class IdentityName(str):
    """What names an identity in a certificate: a canonical DNS name, or a URI as written."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """A DNS name in canonical form, a URI as it stands."""
        return cls(canonical_identity_name(text))


class Fingerprint(str):
    """SHA-256 of the root certificate's DER, lower-case hexadecimal."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """As `step certificate fingerprint` prints it; case, dashes, colons and `sha256:` before it don't matter."""
        digits = text.lower().replace("-", "").replace(":", "").removeprefix("sha256").removeprefix("=")
        if re.fullmatch(r"[0-9a-f]{64}", digits, re.ASCII) is None:
            raise ValueError(
                "must be a SHA-256 in hexadecimal, as `step certificate fingerprint root_ca.crt` prints it"
            )
        return cls(digits)


def canonical_identity_name(text: str) -> str:
    """The identity's name as a certificate's SAN would show it.

    Raises:
        ValueError: it is neither a DNS name (wildcards name nobody) nor a URI with an authority.
    """
    if "://" in text:
        if len(text) > _MAX_URI_LENGTH or _URI.fullmatch(text) is None:
            raise ValueError("is not a URI like spiffe://example.org/host/web1")
        return text
    try:
        name = canonical_dns_name(_without_final_dot(text))
    except DnsNameError as error:
        raise ValueError(f"{error}; an identity is a DNS name or a URI") from error
    if name.startswith("*"):
        raise ValueError("is a wildcard; an identity is one DNS name or URI")
    return name


def _without_final_dot(name: str) -> str:
    """A person writes the same name with or without it; on the wire and in certificates it stays an error."""
    return name[:-1] if name.endswith(".") and not name.endswith("..") else name


def _split(text: str, form: str, *, lowest_port: int = 1) -> tuple[str, int]:
    host, colon, port_text = text.rpartition(":")
    if not colon or re.fullmatch(r"[0-9]{1,5}", port_text, re.ASCII) is None:
        raise ValueError(f"must be {form}")
    port = int(port_text)
    if not lowest_port <= port <= 65535:
        raise ValueError(f"has the port {port}, must be {lowest_port} to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ValueError("has something in brackets that is no IPv6 address") from error
    elif host and re.fullmatch(r"[A-Za-z0-9._-]+", host, re.ASCII) is None:
        raise ValueError(f"must be {form}; an IPv6 address stands in brackets")
    return _without_final_dot(host), port


def _check_url(text: str, schemes: set[str]) -> None:
    wanted = " or ".join(f"{scheme}://..." for scheme in sorted(schemes))
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"must be a URL {wanted}") from error
    well_formed = text.isascii() and text.isprintable() and " " not in text and parts.hostname and port != 0
    if parts.scheme not in schemes or not well_formed:
        raise ValueError(f"must be a URL {wanted}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user or password")
    if parts.fragment:
        raise ValueError("must not have a fragment (#...)")
