"""The section `broker` of agent.yml: one broker, or several of one fleet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from certplane.config.broker_urls import BrokerUrl, all_urls, url_problems
from certplane.config.decoding import InputPath, KeyProblem
from certplane.config.values import PositiveSpan
from certplane.rpc.proxy import ProxyUse


@dataclass(frozen=True, slots=True)
class BrokerLinkSettings:
    """The broker, or several of one fleet.

    `server_ca_bundle` verifies their certificates, `proxy` says whether the environment's proxy is used.
    """

    server_ca_bundle: InputPath
    url: BrokerUrl | None = None
    urls: tuple[BrokerUrl, ...] = ()
    timeout: PositiveSpan = timedelta(seconds=30)
    proxy: ProxyUse = ProxyUse.NONE

    @property
    def all_urls(self) -> tuple[BrokerUrl, ...]:
        """Where the brokers are; one or more."""
        return all_urls(self.url, self.urls)

    def problems(self) -> Iterable[KeyProblem]:
        """There is one URL, or there are several different ones."""
        return url_problems(self.url, self.urls)
