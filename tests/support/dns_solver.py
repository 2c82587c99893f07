"""A `DnsSolver` with one provider and the name servers that a test names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.issuers.dns.routes import Route, Routes
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.config.values import HostPort
from certplane.runtime.clock import SystemClock

QUICKLY = timedelta(milliseconds=50)


def route(provider: DnsProvider, servers: Sequence[HostPort], zone: str = "", credentials: str = "") -> Route:
    """A route whose authoritative servers are `servers`, looked at every 50 ms."""
    lookup = DnsLookup(servers=servers)
    return Route(provider, lookup, PropagationCheck(lookup, interval=QUICKLY), zone, credentials)


def dns_solver(
    provider: DnsProvider,
    servers: Sequence[HostPort],
    *,
    delegations: Sequence[str] = (),
    patience: timedelta = timedelta(seconds=10),
) -> DnsSolver:
    """A solver with one route, which asks servers that give no answer again for `patience`."""
    made = route(provider, servers)
    check = PropagationCheck(made.lookup, interval=QUICKLY, patience=patience, told_after=timedelta())
    return DnsSolver(Routes(replace(made, check=check)), SystemClock(), delegations=delegations)
