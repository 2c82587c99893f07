"""The registry of DNS providers: from a provider's name in broker.yml to a `DnsProvider` with its settings.

A provider is one module in `issuers/dns`, one section below `issuer.acme`, and one line in the table at the end. Its
package is loaded only where it is used: Cloudflare's alone takes 50 MB. Nothing is sent yet.
"""

# ruff: noqa: PLC0415 - see above

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from certplane.broker.dns_settings import DnsProvider as DnsProviderName
from certplane.broker.dns_settings import HttpreqMode
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.ports import SecretSource
from certplane.broker.settings import AcmeSettings
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock

T = TypeVar("T")


def dns_provider(
    name: DnsProviderName, acme: AcmeSettings, secrets: SecretSource, clock: Clock, rng: random.Random
) -> DnsProvider:
    """The provider `name`, as its section below `issuer.acme` says.

    Records carry the name of the secret that they were written with, so that one provider serves zones with different
    credentials.

    Raises:
        ConfigurationError: its section is missing, or something in it can't be used.
    """
    return _PROVIDERS[name](_Surroundings(acme, secrets, clock, rng))


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What providers are made from."""

    acme: AcmeSettings
    secrets: SecretSource
    clock: Clock
    rng: random.Random


def _section(name: DnsProviderName, section: T | None) -> T:
    if section is None:
        key = f"issuer.acme.{name.section}"
        raise ConfigurationError([ConfigurationProblem("", None, key, f"is required for the DNS provider {name}")])
    return section


def _cloudflare(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.cloudflare import CloudflareProvider
    from certplane.broker.issuers.dns.cloudflare_calls import CloudflareApi

    cloudflare = around.acme.cloudflare
    api = CloudflareApi(
        base_url=cloudflare.base_url,
        credentials=cloudflare.credentials,
        timeout=cloudflare.http_timeout,
        ttl=cloudflare.ttl,
        calls_per_five_minutes=cloudflare.calls_per_five_minutes,
    )
    return CloudflareProvider(api, around.secrets, around.clock, around.rng)


def _rfc2136(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.rfc2136 import Rfc2136Provider, UpdateServer

    rfc2136 = _section(DnsProviderName.RFC2136, around.acme.rfc2136)
    server = UpdateServer(
        address=rfc2136.server,
        key_name=rfc2136.tsig_name,
        secret_name=rfc2136.tsig_secret,
        algorithm=rfc2136.tsig_algorithm,
        timeout=rfc2136.timeout,
        ttl=rfc2136.ttl,
    )
    return Rfc2136Provider(server, around.secrets, around.rng)


def _httpreq(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.httpreq import HttpreqEndpoint, HttpreqProvider

    httpreq = _section(DnsProviderName.HTTPREQ, around.acme.httpreq)
    endpoint = HttpreqEndpoint(
        url=httpreq.endpoint,
        raw=httpreq.mode is HttpreqMode.RAW,
        username_secret=httpreq.username_secret,
        password_secret=httpreq.password_secret,
        timeout=httpreq.http_timeout,
    )
    return HttpreqProvider(endpoint, around.secrets, around.clock, around.rng)


def _acme_dns(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.acme_dns import AcmeDnsProvider, AcmeDnsServer

    acme_dns = _section(DnsProviderName.ACME_DNS, around.acme.acme_dns)
    server = AcmeDnsServer(
        url=acme_dns.endpoint,
        accounts=acme_dns.accounts,
        timeout=acme_dns.http_timeout,
        ca_bundle=acme_dns.ca_bundle,
    )
    return AcmeDnsProvider(server, around.secrets, around.clock, around.rng)


def _exec(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.exec import ExecProvider, OperatorProgram

    program = _section(DnsProviderName.EXEC, around.acme.exec)
    return ExecProvider(
        OperatorProgram(program.program, program.credentials, program.timeout), around.secrets, around.rng
    )


def _lexicon(around: _Surroundings) -> DnsProvider:
    from certplane.broker.issuers.dns.lexicon import LexiconApi, LexiconProvider

    lexicon = _section(DnsProviderName.LEXICON, around.acme.lexicon)
    api = LexiconApi(
        provider=lexicon.provider,
        credentials=lexicon.credentials,
        options=lexicon.options,
        resolvers=lexicon.recursive_nameservers,
        timeout=lexicon.timeout,
        ttl=lexicon.ttl,
    )
    return LexiconProvider(api, around.secrets, around.rng)


_PROVIDERS: Mapping[DnsProviderName, Callable[[_Surroundings], DnsProvider]] = {
    DnsProviderName.CLOUDFLARE: _cloudflare,
    DnsProviderName.RFC2136: _rfc2136,
    DnsProviderName.HTTPREQ: _httpreq,
    DnsProviderName.ACME_DNS: _acme_dns,
    DnsProviderName.EXEC: _exec,
    DnsProviderName.LEXICON: _lexicon,
}
