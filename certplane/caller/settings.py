"""client.yml as frozen values: where the brokers are, and as whom a program calls them.

Paths that aren't absolute are relative to the file, so that it works from any directory. `BrokerLinkSettings` and
`IdentitySettings` are sections of ctl.yml too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from certplane.config.broker_urls import BrokerUrl, all_urls, url_problems
from certplane.config.decoding import KeyProblem, RelativePath, decode
from certplane.config.document import Document, Source
from certplane.config.values import PositiveSpan
from certplane.rpc.proxy import ProxyUse


@dataclass(frozen=True, slots=True)
class BrokerLinkSettings:
    """The broker, or several of one fleet; `server_ca_bundle` has the CAs of their certificates, PEM.

    `proxy` says whether calls go through the environment's proxy.
    """

    server_ca_bundle: RelativePath
    url: BrokerUrl | None = None
    urls: tuple[BrokerUrl, ...] = ()
    proxy: ProxyUse = ProxyUse.NONE

    @property
    def all_urls(self) -> tuple[BrokerUrl, ...]:
        """Where the brokers are; one or more."""
        return all_urls(self.url, self.urls)

    def problems(self) -> Iterable[KeyProblem]:
        """There is one URL, or there are several different ones."""
        return url_problems(self.url, self.urls)


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """The caller: `cert` is the identity's certificate with its chain, PEM, and `key` its private key."""

    cert: RelativePath
    key: RelativePath


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """A client.yml that is right. `source` says where each key stands."""

    broker: BrokerLinkSettings
    identity: IdentitySettings
    timeout: PositiveSpan = timedelta(seconds=30)
    source: Source = field(kw_only=True)

    def path(self, path: Path) -> Path:
        """A path of the file, from the file's own directory."""
        return Path(self.source.file).parent / path


def load_settings(path: Path) -> ClientSettings:
    """Read client.yml. Blocks.

    Raises:
        ConfigurationError: everything that is wrong with it.
    """
    return decode(Document.read(path), ClientSettings)
