"""The broker's way to the world as broker.yml asks for it: the public CA and the DNS provider.

Each function makes one adapter from settings and knows nothing of the others; nothing is sent yet. What an adapter
finds wrong with a key is told with the line where that key stands.
"""

from __future__ import annotations

import random

from certplane import __version__
from certplane.broker.database import locating
from certplane.broker.issuers.acme import AcmeIssuer, AcmeServer
from certplane.broker.issuers.acme_account import AccountKey
from certplane.broker.issuers.dns.propagation import PropagationCheck
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.ports import SecretSource
from certplane.broker.settings import AcmeSettings, BrokerSettings, HttpreqMode
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
    return DnsSolver(_dns_provider(acme, secrets, clock, rng), check, clock)


def _dns_provider(acme: AcmeSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
    # Each provider's package is loaded only where it is used: Cloudflare's alone takes 50 MB.
    # ruff: noqa: PLC0415
    if acme.dns_provider is DnsProviderName.RFC2136 and acme.rfc2136 is not None:
        from certplane.broker.issuers.dns.rfc2136 import Rfc2136Provider, UpdateServer

        rfc2136 = acme.rfc2136
        server = UpdateServer(
            address=rfc2136.server,
            key_name=rfc2136.tsig_name,
            secret_name=rfc2136.tsig_secret,
            algorithm=rfc2136.tsig_algorithm,
            timeout=rfc2136.timeout,
            ttl=rfc2136.ttl,
        )
        return Rfc2136Provider(server, secrets, rng)
    if acme.dns_provider is DnsProviderName.HTTPREQ and acme.httpreq is not None:
        from certplane.broker.issuers.dns.httpreq import HttpreqEndpoint, HttpreqProvider

        httpreq = acme.httpreq
        endpoint = HttpreqEndpoint(
            url=httpreq.endpoint,
            raw=httpreq.mode is HttpreqMode.RAW,
            username_secret=httpreq.username_secret,
            password_secret=httpreq.password_secret,
            timeout=httpreq.http_timeout,
        )
        return HttpreqProvider(endpoint, secrets, clock, rng)
    from certplane.broker.issuers.dns.cloudflare import CloudflareApi, CloudflareProvider

    cloudflare = acme.cloudflare
    api = CloudflareApi(
        base_url=cloudflare.base_url,
        credentials=cloudflare.credentials,
        timeout=cloudflare.http_timeout,
        ttl=cloudflare.ttl,
    )
    return CloudflareProvider(api, secrets, clock, rng)
