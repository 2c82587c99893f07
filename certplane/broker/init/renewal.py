"""`certplane-broker renew-certificate`: the broker's own certificate renewed at the internal CA, when it is due.

For a timer; the running broker takes the new pair by itself (`certplane.broker.reload`).
"""

from __future__ import annotations

from certplane.broker.init.certificate import OwnCertificate
from certplane.broker.settings import BrokerSettings
from certplane.config.bundles import read_ca_bundle, require_in_force
from certplane.errors import ConfigurationError
from certplane.runtime.clock import Clock
from certplane.stepca.exchange import Endpoint
from certplane.stepca.trust import PinnedRoots


def renew_certificate(settings: BrokerSettings, clock: Clock, *, now: bool) -> str:
    """Renew it if it is due; returns what was done.

    Args:
        settings: the broker's.
        clock: says whether it is due.
        now: renew it whether it is due or not.

    Raises:
        ConfigurationError: the section isn't there, or its bundle can't be used.
        OperationError: the CA refused or can't be reached, or the disk refused.
    """
    own = own_certificate(settings, clock)
    due, end = own.due_time(), own.end_time()
    if not now and clock.now() < due:
        return f"not due: ends {end:%Y-%m-%d %H:%M} UTC, is renewed from {due:%Y-%m-%d %H:%M} UTC on"
    own.renew(clock.now())
    return f"renewed: ends {own.end_time():%Y-%m-%d %H:%M} UTC"


def own_certificate(settings: BrokerSettings, clock: Clock) -> OwnCertificate:
    """The certificate of `server.tls`, and its CA.

    Raises:
        ConfigurationError: the section isn't there, or its bundle can't be used.
    """
    tls, problem = settings.server.tls, settings.source.problem
    if tls.step_ca is None:
        remedy = "write `step_ca: {url: https://ca...}`, or let what made the certificate renew it"
        raise ConfigurationError([problem("server.tls.step_ca", "is required to renew it", remedy)])
    if tls.step_ca.root_ca_bundle is not None:
        path, at = tls.step_ca.root_ca_bundle, problem("server.tls.step_ca.root_ca_bundle", "")
    else:
        path, at = settings.server.mtls.agent_ca_bundle, problem("server.mtls.agent_ca_bundle", "")
    bundle = read_ca_bundle(path, at=at)
    require_in_force(bundle, clock.now(), path, at=at)
    roots = PinnedRoots(tuple(bundle.in_force(clock.now())))
    return OwnCertificate(tls.cert, tls.key, Endpoint.from_url(tls.step_ca.url), roots, tls.step_ca.timeout)
