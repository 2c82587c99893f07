"""The broker's way to the world as broker.yml asks for it: the public CA and the DNS provider.

Each function makes one adapter from settings and knows nothing of the others; nothing is sent yet. What an adapter
finds wrong with a key is told with the line where that key stands.
"""

from __future__ import annotations

import random

from certplane import __version__
from certplane.broker.database import locating
from certplane.broker.dns_providers import dns_provider
from certplane.broker.issuers.acme import AcmeIssuer, AcmeServer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.ports import SecretSource
from certplane.broker.settings import AcmeSettings, BrokerSettings
from certplane.broker.settings import DnsProvider as DnsProviderName
from certplane.runtime.clock import Clock

__all__ = ["account_key", "issuer", "solver"]


def account_key(settings: BrokerSettings) -> AccountKey:
    """The ACME account's key, made on first use. Blocks.

    Raises:
        ConfigurationError: the file can't be used or made.
    """
    return locating(settings, lambda: AccountKey.load_or_create(settings.issuer.acme.account_key))


def issuer(settings: BrokerSettings, account: AccountKey, clock: Clock, rng: random.Random) -> AcmeIssuer:
    """The public CA; nothing is sent yet.

    Raises:
        ConfigurationError: its URL or an allowed host can't be used.
    """
    acme = settings.issuer.acme
    server = AcmeServer(
        directory_url=acme.directory_url,
        account_email=acme.account_email,
        preferred_chain=acme.preferred_chain,
        allowed_hosts=acme.allowed_hosts,
        ca_bundle=acme.ca_bundle,
        user_agent=f"certplane-broker/{__version__}",
    )
    return locating(settings, lambda: AcmeIssuer(settings.issuer.name, server, account, clock=clock, rng=rng))


def solver(settings: BrokerSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsSolver:
    """What writes TXT records and finds them; nothing is sent yet.

    Raises:
        ConfigurationError: the provider's address or a resolver can't be used.
    """
    return locating(settings, lambda: _solver(settings.issuer.acme, secrets, clock, rng))


def _solver(acme: AcmeSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsSolver:
    propagation = acme.effective_propagation
    httpreq = acme.httpreq if acme.dns_provider is DnsProviderName.HTTPREQ else None
    check = PropagationCheck(
        timeout=propagation.timeout,
        interval=propagation.interval,
        settle=propagation.settle,
        nameservers=acme.propagation.nameservers,
        resolvers=httpreq.recursive_nameservers if httpreq else (),
    )
    return DnsSolver(dns_provider(acme.dns_provider, acme, secrets, clock, rng), check, clock)
