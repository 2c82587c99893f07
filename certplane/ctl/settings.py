"""ctl.yml as frozen values: where the broker is, and as whom certplanectl calls it.

Paths that aren't absolute are relative to the file, so that it works from any directory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from certplane.config.decoding import KeyProblem, RelativePath, decode
from certplane.config.document import Document, Source
from certplane.config.files import is_there
from certplane.config.values import HttpsUrl, PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.rpc.proxy import ProxyUse

_VARIABLE = "CERTPLANECTL_CONFIG"
_SYSTEM_FILE = Path("/etc/certplane/ctl.yml")


@dataclass(frozen=True, slots=True)
class BrokerLinkSettings:
    """The broker: `url` is `https://host[:port]`, `server_ca_bundle` the CAs of its certificate, PEM.

    `proxy` says whether calls go through the environment's proxy.
    """

    url: HttpsUrl
    server_ca_bundle: RelativePath
    proxy: ProxyUse = ProxyUse.NONE


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """The caller: `cert` is the identity's certificate with its chain, PEM, and `key` its private key."""

    cert: RelativePath
    key: RelativePath


@dataclass(frozen=True, slots=True)
class CtlSettings:
    """A ctl.yml that is right. `source` says where each key stands."""

    broker: BrokerLinkSettings
    identity: IdentitySettings
    timeout: PositiveSpan = timedelta(seconds=30)
    source: Source = field(kw_only=True)

    def problems(self) -> Iterator[KeyProblem]:
        """The URL names a server and nothing on it."""
        parts = urlsplit(self.broker.url)
        if parts.path not in {"", "/"} or parts.query:
            yield KeyProblem("broker.url", "has a path", "write https://host:port")

    def path(self, path: Path) -> Path:
        """A path of the file, from the file's own directory."""
        return Path(self.source.file).parent / path


def find_settings() -> Path:
    """The file to use when none is named: $CERTPLANECTL_CONFIG, the user's own, then the system's.

    Raises:
        ConfigurationError: there is none.
    """
    named = os.environ.get(_VARIABLE)
    if named:
        return Path(named)
    candidates = [*_own_files(), _SYSTEM_FILE]
    for candidate in candidates:
        if is_there(candidate):
            return candidate
    message = "there is no ctl.yml"
    files = " or ".join(map(str, candidates))
    remedy = f"write {files}, or name one with --config or ${_VARIABLE} (docs/configuration.md)"
    raise ConfigurationError([ConfigurationProblem("certplanectl", None, "", message, remedy)])


def _own_files() -> list[Path]:
    """The user's own file; none for a number without an entry in passwd(5), as containers run programs."""
    configuration = os.environ.get("XDG_CONFIG_HOME")
    try:
        return [(Path(configuration) if configuration else Path.home() / ".config") / "certplane" / "ctl.yml"]
    except RuntimeError:
        return []


def load_settings(path: Path) -> CtlSettings:
    """Read ctl.yml.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    return decode(Document.read(path), CtlSettings)
