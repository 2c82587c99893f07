"""Whether a pair and a bundle that were read may be put in force while the broker runs, and what logs say of them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from certplane.broker.policy.guard import UnconfirmedError
from certplane.broker.services.trust import LoadedTrust, TrustFiles
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.trust_bundle import TrustBundle, anchor_of
from certplane.runtime.text import printable

ShutOut = Callable[[Collection[str]], tuple[int, int]]
"""From a bundle's anchors (`TrustBundle.anchors`): how many of the hosts that are connected to this broker have an
identity of none of them, and how many are connected."""

_MOST_CAS, _LONGEST_NAME = 5, 100


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


def check_shut_out(files: TrustFiles, before: TrustBundle, after: TrustBundle, shut_out: ShutOut) -> None:
    """Whether a bundle may take the place of another without being confirmed.

    A host whose chain leads to another CA of the bundle too is counted by the one that its stream was let in by.

    Raises:
        UnconfirmedError: hosts that are connected have an identity of a CA that it lacks.
    """
    removed = before.anchors - after.anchors
    count, connected = shut_out(after.anchors) if removed else (0, 0)
    if not count:
        return
    names = sorted(
        {
            printable(certificate.subject.rfc4514_string(), _LONGEST_NAME)
            for certificate in before.certificates
            if anchor_of(certificate) in removed
        }
    )
    more = f" and {len(names) - _MOST_CAS} more" if len(names) > _MOST_CAS else ""
    at = files.locate("server.mtls.agent_ca_bundle")
    message = (
        f"{files.agent_ca_bundle} would shut out {count} of the {connected} hosts that are connected to this broker: "
        f"it lacks {'; '.join(names[:_MOST_CAS])}{more}"
    )
    raise UnconfirmedError(at.file, message, line=at.line, key=at.key)


def trust_fields(trust: LoadedTrust) -> dict[str, Any]:
    """What a log line says of a pair and bundle."""
    return {
        "server_serial_number": trust.server.serial_number,
        "server_not_after": f"{trust.server.not_after:%Y-%m-%dT%H:%M:%SZ}",
        "server_names": " ".join((*trust.server.dns_names, *trust.server.uris)),
        "agent_ca_bundle_hash": trust.bundle.hash,
        "agent_cas": len(trust.bundle.certificates),
    }
