"""The broker's way to the world as broker.yml asks for it: the public CA and the DNS provider.

Each function makes one adapter from settings and knows nothing of the others; nothing is sent yet. What an adapter
finds wrong with a key is told with the line where that key stands.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import TypeVar

from certplane import __version__
from certplane.broker.configured import locating
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.attempts import all_of
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.routing import Routing
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.ports import KeepsSecrets, SecretSource
from certplane.broker.settings import BrokerSettings
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

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


@asynccontextmanager
async def cas(settings: BrokerSettings, clock: Clock) -> AsyncIterator[dict[str, AcmeCa]]:
    """The public CAs by issuer, the default one first; nothing is sent yet. Closes their connections.

    Raises:
        ConfigurationError: a URL, an allowed host or a bundle of roots can't be used.
    """
    async with AsyncExitStack() as stack:
        made: dict[str, AcmeCa] = {}
        for name in settings.cas:
            made[name] = locating(settings, functools.partial(ca, settings, name, clock))
            stack.push_async_callback(made[name].close)
        yield made


def ca(settings: BrokerSettings, name: str, clock: Clock) -> AcmeCa:
    """The public CA of the issuer `name`, to be closed; nothing is sent yet. Raises as `cas`, without the line."""
    acme = settings.cas[name]
    server = AcmeServer(
        directory_url=acme.directory_url,
        account_email=acme.account_email,
        preferred_chain=acme.preferred_chain,
        allowed_hosts=acme.allowed_hosts,
        ca_bundle=acme.ca_bundle,
        user_agent=f"certplane-broker/{__version__}",
        section=settings.ca_section(name),
    )
    return AcmeCa(server, clock)


def issuer(
    settings: BrokerSettings,
    name: str,
    ca: AcmeCa,
    account: AccountKey,
    *,
    secrets: SecretSource,
    files: BlockingPool,
    rng: random.Random,
) -> AcmeIssuer:
    """What orders from a public CA; `files` reads the account's key again where it was changed."""
    external = None
    if (eab := settings.cas[name].eab) is not None:
        external = ExternalAccount(eab.kid, functools.partial(secrets.read, eab.hmac_secret), eab.algorithm.value)
    key_file = account_key_file(settings, name)
    return AcmeIssuer(name, ca, account, rng=rng, key_file=key_file, files=files, external=external)


def renewal_infos(settings: BrokerSettings, cas: Mapping[str, AcmeCa]) -> dict[str, AcmeRenewalInfo]:
    """What the public CAs say about renewals, by issuer, without those that aren't to be asked."""
    return {name: AcmeRenewalInfo(ca) for name, ca in cas.items() if settings.cas[name].renewal_info.enabled}


async def read_directories(cas: Mapping[str, AcmeCa], timeout: timedelta) -> dict[str, AcmeDirectory | AcmeError]:
    """The CAs' directories, all asked at once and each once; whatever can't be read is its error."""

    async def read(ca: AcmeCa) -> AcmeDirectory | AcmeError:
        try:
            return await ca.read_directory(timeout)
        except AcmeError as error:
            return error

    return dict(zip(cas, await all_of(read(ca) for ca in cas.values()), strict=True))


def solver(settings: BrokerSettings, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsSolver:
    """What writes TXT records and finds them; nothing is sent yet.

    Raises:
        ConfigurationError: the provider's address or a resolver can't be used.
    """
    acme, dns = settings.issuer.acme, settings.dns
    return DnsSolver(
        locating(settings, Routing(acme, dns, secrets, clock, rng).routes),
        clock,
        delegations=dns.delegations,
        secrets=secrets if isinstance(secrets, KeepsSecrets) else None,
    )


def preflight(
    made: DnsSolver, cas: Mapping[str, AcmeCa], issuers: Mapping[str, AcmeIssuer], clock: Clock
) -> DnsPreflight:
    """What looks at orders before they are spent, with the solver's own routes.

    `issuers` tell their accounts' URLs; without them what CAA says of accounts stays undecided.
    """
    sources = {
        name: DirectoryCaaIdentity(ca, functools.partial(_account_url, issuers.get(name))) for name, ca in cas.items()
    }
    return DnsPreflight(made.routes, made.delegations, sources, clock)


def _account_url(issuer: AcmeIssuer | None) -> str:
    return issuer.account_url if issuer is not None else ""
