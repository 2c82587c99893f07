"""Whether a pair and a bundle that were read may be put in force while the broker runs, and what logs say of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from certplane.broker.fleet.audience import AnchoredHost
from certplane.broker.fleet.bundle_plan import shuts_out
from certplane.broker.policy.guard import UnconfirmedError
from certplane.broker.services.trust import LoadedTrust, TrustFiles
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.trust_bundle import TrustBundle

Audience = Callable[[], Awaitable[Sequence[AnchoredHost]]]
"""The hosts, by which CA each was let in last, and whether it is connected."""


def check_in_force(files: TrustFiles, trust: LoadedTrust, now: datetime) -> None:
    """Whether neither the certificate nor all of the bundle has ended.

    Raises:
        ConfigurationError: one has.
    """
    if trust.server.not_after <= now:
        at = files.locate("server.tls.cert")
        message = f"{files.cert} expired at {trust.server.not_after:%Y-%m-%dT%H:%M:%SZ}"
        raise ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, message, "renew it")])
    if problem := trust.ca_problem(now):
        at = files.locate("server.mtls.agent_ca_bundle")
        message, remedy = (f"{files.agent_ca_bundle} {problem}", "put the identity CA's current certificate there")
        raise ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, message, remedy)])


def check_shut_out(files: TrustFiles, before: TrustBundle, after: TrustBundle, hosts: Sequence[AnchoredHost]) -> None:
    """Whether a bundle may take the place of another without being confirmed.

    A host whose chain leads to another CA of the bundle too is counted by the one that its stream was let in by.

    Raises:
        UnconfirmedError: hosts that are connected, to whichever broker, have an identity of a CA that it lacks.
    """
    if problem := shuts_out(before, after, hosts):
        at = files.locate("server.mtls.agent_ca_bundle")
        raise UnconfirmedError(at.file, f"{files.agent_ca_bundle} {problem}", line=at.line, key=at.key)


def trust_fields(trust: LoadedTrust) -> dict[str, Any]:
    """What a log line says of a pair and bundle."""
    return {
        "server_serial_number": trust.server.serial_number,
        "server_not_after": f"{trust.server.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "server_names": " ".join((*trust.server.dns_names, *trust.server.uris)),
        "agent_ca_bundle_hash": trust.bundle.hash,
        "agent_cas": len(trust.bundle.certificates),
    }
