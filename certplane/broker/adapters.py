"""The broker's way to the world as broker.yml asks for it: the public CA and the DNS provider.

Each function makes one adapter from settings and knows nothing of the others; nothing is sent yet. What an adapter
finds wrong with a key is told with the line where that key stands.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from certplane import __version__
from certplane.broker.database import locating
from certplane.broker.dns_providers import dns_provider
from certplane.broker.dns_settings import DnsPropagationSettings, PropagationMode
from certplane.broker.dns_settings import DnsProvider as DnsProviderName
from certplane.broker.issuers.acme import AcmeIssuer, AcmeServer, DirectoryError
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.attempts import all_of
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity
from certplane.broker.issuers.dns.lookup import DnsLookup
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.propagation import Mode, PropagationCheck
from certplane.broker.issuers.dns.routes import Follow, Route, Routes
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.issuers.outgoing import trusted_roots
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.ports import CaaIdentitySource, KeepsSecrets, SecretSource
from certplane.broker.settings import AcmeSettings, BrokerSettings
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.pki.keys import KeyType, generate_private_key, private_key_pem
from certplane.runtime.clock import Clock

T = TypeVar("T")


def account_keys(settings: BrokerSettings) -> dict[str, AccountKey]:
    """The ACME accounts' keys by issuer, made on first use. Blocks.

    Raises:
        ConfigurationError: a file can't be used or made.
    """
    return {name: locating(settings, account_key_file(settings, name).load) for name in settings.cas}


def account_key_file(settings: BrokerSettings, name: str) -> AccountKeyFile:
    """Where the account key of the issuer `name` is; nothing is read yet."""
    return AccountKeyFile(settings.cas[name].account_key, f"{settings.ca_section(name)}.account_key")


def issuers(
    settings: BrokerSettings,
    accounts: Mapping[str, AccountKey],
    secrets: SecretSource,
    clock: Clock,
    rng: random.Random,
) -> dict[str, AcmeIssuer]:
    """The public CAs by name, the default one first; nothing is sent yet.

    Raises:
        ConfigurationError: a URL, an allowed host or a bundle of roots can't be used.
    """
    return {
        name: locating(
            settings, functools.partial(issuer, settings, name, accounts[name], secrets=secrets, clock=clock, rng=rng)
        )
        for name in settings.cas
    }


def renewal_infos(
    settings: BrokerSettings, accounts: Mapping[str, AccountKey], clock: Clock
) -> dict[str, AcmeRenewalInfo]:
    """What the public CAs say about renewals, by issuer, without those that aren't to be asked; nothing is asked yet.

    Raises:
        ForbiddenUrlError: none that `issuers` hasn't found before.
    """
    return {
        name: AcmeRenewalInfo(_server(settings, name), accounts[name], clock=clock)
        for name, acme in settings.cas.items()
        if acme.renewal_info.enabled
    }


def issuer(
    settings: BrokerSettings,
    name: str,
    account: AccountKey,
    *,
    secrets: SecretSource,
    clock: Clock,
    rng: random.Random,
) -> AcmeIssuer:
    """One public CA; nothing is sent yet. Raises as `issuers`, without the line."""
    acme, key_file = settings.cas[name], account_key_file(settings, name)
    if acme.ca_bundle is not None:
        trusted_roots(acme.ca_bundle, f"{settings.ca_section(name)}.ca_bundle")
    external = None
    if (eab := acme.eab) is not None:
        external = ExternalAccount(eab.kid, functools.partial(secrets.read, eab.hmac_secret), eab.algorithm.value)
    server = _server(settings, name)
    return AcmeIssuer(name, server, account, clock=clock, rng=rng, key_file=key_file, external=external)


async def read_directories(
    settings: BrokerSettings, names: Iterable[str], timeout: timedelta, clock: Clock, rng: random.Random
) -> dict[str, AcmeDirectory | DirectoryError]:
    """The directories of the issuers `names`, all asked at once and each once; whatever can't be read is its error.

    No account is looked up, and no secret read: what signs is thrown away.

    Raises:
        ConfigurationError: a URL, an allowed host or a bundle of roots can't be used.
    """
    key = AccountKey.from_pem(private_key_pem(generate_private_key(KeyType.EC_P256)), Path())

    async def read(name: str) -> AcmeDirectory | DirectoryError:
        made = locating(
            settings, lambda: AcmeIssuer(name, _server(settings, name), key, clock=clock, rng=rng, workers=1)
        )
        try:
            return await made.read_directory(timeout)
        except DirectoryError as error:
            return error
        finally:
            made.close()

    wanted = list(names)
    return dict(zip(wanted, await all_of(read(name) for name in wanted), strict=True))


def _server(settings: BrokerSettings, name: str) -> AcmeServer:
    acme = settings.cas[name]
    return AcmeServer(
        directory_url=acme.directory_url,
        account_email=acme.account_email,
        preferred_chain=acme.preferred_chain,
        allowed_hosts=acme.allowed_hosts,
        ca_bundle=acme.ca_bundle,
        user_agent=f"certplane-broker/{__version__}",
        section=settings.ca_section(name),
    )


def solver(settings: BrokerSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsSolver:
    """What writes TXT records and finds them; nothing is sent yet.

    Raises:
        ConfigurationError: the provider's address or a resolver can't be used.
    """
    return locating(settings, lambda: _solver(settings, secrets, clock, rng))


@asynccontextmanager
async def preflight(
    settings: BrokerSettings, made: DnsSolver, issuers: Mapping[str, AcmeIssuer], clock: Clock
) -> AsyncIterator[DnsPreflight]:
    """What looks at orders before they are spent, with the solver's own routes.

    `issuers` tell their accounts' URLs; without them what CAA says of accounts stays undecided.
    """
    async with AsyncExitStack() as stack:
        cas: dict[str, CaaIdentitySource] = {}
        for name in settings.cas:
            source = DirectoryCaaIdentity(
                _server(settings, name), functools.partial(_account_url, issuers.get(name)), clock
            )
            stack.push_async_callback(source.close)
            cas[name] = source
        yield DnsPreflight(made.routes, made.delegations, cas, clock)


def _account_url(issuer: AcmeIssuer | None) -> str:
    return issuer.account_url if issuer is not None else ""


def _solver(settings: BrokerSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsSolver:
    return DnsSolver(
        _routes(settings, secrets, clock, rng),
        clock,
        delegations=settings.dns.delegations,
        secrets=secrets if isinstance(secrets, KeepsSecrets) else None,
    )


def _routes(settings: BrokerSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> Routes:
    acme, dns = settings.issuer.acme, settings.dns
    lookup = _default_lookup(settings, clock)
    default_provider = dns_provider(acme.dns_provider, acme, secrets, clock, rng)
    shared = {acme.dns_provider: default_provider}
    default = Route(
        default_provider,
        lookup,
        _check(lookup, settings, acme.dns_provider, dns.propagation),
        follow=Follow(dns.follow_cnames),
    )
    zones = []
    for number, zone in enumerate(dns.zones):
        name = zone.provider or acme.dns_provider
        _check_section(acme, name, f"dns.zones[{number}].provider")
        if zone.server is not None:
            provider = dns_provider(name, _at_server(acme, name, zone.server, number), secrets, clock, rng)
        else:
            if name not in shared:
                shared[name] = dns_provider(name, acme, secrets, clock, rng)
            provider = shared[name]
        its_lookup = lookup
        if zone.resolvers:
            its_lookup = DnsLookup(
                resolvers=zone.resolvers,
                servers=zone.authoritative_servers,
                clock=clock,
                key=f"dns.zones[{number}].resolvers",
            )
        elif zone.authoritative_servers:
            its_lookup = _lookup(settings, acme.dns_provider, zone.authoritative_servers, clock)
        elif name is not acme.dns_provider and _httpreq_says_who(settings, name):
            its_lookup = _lookup(settings, name, (), clock)
        propagation = zone.propagation.over(dns.propagation)
        if propagation.mode is None and (zone.resolvers or zone.authoritative_servers):
            propagation = replace(propagation, mode=PropagationMode.AUTHORITATIVE)
        zones.append(
            Route(
                provider,
                its_lookup,
                _check(its_lookup, settings, name, propagation),
                zone=zone.zone,
                follow=Follow(zone.follow_cnames or dns.follow_cnames),
                credentials=zone.credentials,
                own_provider=name is not acme.dns_provider,
            )
        )
    return Routes(default, zones)


def _check_section(acme: AcmeSettings, provider: DnsProviderName, key: str) -> None:
    """What a zone names must have its section."""
    for problem in acme.section_problems(provider):
        message = f"is {provider}, which has no section issuer.acme.{problem.key}"
        raise ConfigurationError([ConfigurationProblem("", None, key, message, "add that section")])


def _at_server(acme: AcmeSettings, provider: DnsProviderName, server: HostPort, number: int) -> AcmeSettings:
    """The settings with the updates of RFC 2136 going to another server."""
    if provider is not DnsProviderName.RFC2136 or acme.rfc2136 is None:
        key, message = f"dns.zones[{number}].server", f"goes with the provider rfc2136, not with {provider}"
        raise ConfigurationError([ConfigurationProblem("", None, key, message, "remove it, or set provider: rfc2136")])
    return replace(acme, rfc2136=replace(acme.rfc2136, server=server))


def _default_lookup(settings: BrokerSettings, clock: Clock) -> DnsLookup:
    acme = settings.issuer.acme
    servers = settings.dns.authoritative_servers or acme.propagation.nameservers
    return _lookup(settings, acme.dns_provider, servers, clock)


def _lookup(
    settings: BrokerSettings, provider: DnsProviderName, servers: Sequence[HostPort], clock: Clock
) -> DnsLookup:
    """With the resolvers of `dns`, else those of httpreq, which may be host names, where that is the provider."""
    httpreq = settings.issuer.acme.httpreq
    if not settings.dns.resolvers and provider is DnsProviderName.HTTPREQ and httpreq is not None:
        key, resolvers = "issuer.acme.httpreq.recursive_nameservers", httpreq.recursive_nameservers
        return DnsLookup(resolvers=resolvers, servers=servers, clock=clock, key=key, named_resolvers=True)
    return DnsLookup(resolvers=settings.dns.resolvers, servers=servers, clock=clock, key="dns.resolvers")


def _check(
    lookup: DnsLookup, settings: BrokerSettings, provider: DnsProviderName, said: DnsPropagationSettings
) -> PropagationCheck:
    acme = settings.issuer.acme
    propagation = said.applied(acme.propagation_of(provider))
    mode = said.mode or PropagationMode.AUTHORITATIVE
    if said.mode is None and _httpreq_says_who(settings, provider):
        mode = PropagationMode.RECURSIVE
    return PropagationCheck(
        lookup,
        mode=Mode(mode),
        timeout=propagation.timeout,
        interval=propagation.interval,
        settle=propagation.settle,
    )


def _httpreq_says_who(settings: BrokerSettings, provider: DnsProviderName) -> bool:
    """Whether `httpreq.recursive_nameservers` are who must show a record, as the key's format means it.

    The keys that are this broker's own (`dns.resolvers`, authoritative servers) say more, and come first.
    """
    acme = settings.issuer.acme
    others = settings.dns.resolvers or settings.dns.authoritative_servers or acme.propagation.nameservers
    httpreq = acme.httpreq if provider is DnsProviderName.HTTPREQ else None
    return httpreq is not None and bool(httpreq.recursive_nameservers) and not others


def propagation_limit(settings: BrokerSettings) -> timedelta:
    """The longest that the records of any zone are looked for, settling included."""
    acme, dns = settings.issuer.acme, settings.dns
    said = [(acme.dns_provider, dns.propagation)]
    said += [(zone.provider or acme.dns_provider, zone.propagation.over(dns.propagation)) for zone in dns.zones]
    effective = [propagation.applied(acme.propagation_of(provider)) for provider, propagation in said]
    return max(one.timeout + one.settle for one in effective)
