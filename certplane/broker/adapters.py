"""The broker's way to the world as broker.yml asks for it: the public CA and the DNS provider.

Each function makes one adapter from settings and knows nothing of the others; nothing is sent yet. What an adapter
finds wrong with a key is told with the line where that key stands.
"""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from certplane import __version__
from certplane.broker.database import locating
from certplane.broker.issuers.acme import AcmeIssuer, AcmeServer, DirectoryError
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.attempts import all_of
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.routing import Routing
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.issuers.outgoing import trusted_roots
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.ports import CaaIdentitySource, KeepsSecrets, SecretSource
from certplane.broker.settings import BrokerSettings
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
    acme, dns = settings.issuer.acme, settings.dns
    return DnsSolver(
        locating(settings, Routing(acme, dns, secrets, clock, rng).routes),
        clock,
        delegations=dns.delegations,
        secrets=secrets if isinstance(secrets, KeepsSecrets) else None,
    )


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
