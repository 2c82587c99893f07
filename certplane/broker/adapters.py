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
from certplane.broker.accounts.ports import AccountRows
from certplane.broker.configured import located, locating
from certplane.broker.issuers.acme import AcmeIssuer
from certplane.broker.issuers.acme_account import AccountKey, AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa, AcmeServer
from certplane.broker.issuers.acme_directory import AcmeDirectory
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.issuers.acme_keeping import AccountKeeper, KeptInFile, KeptInSecret, KeptInStore, Seal
from certplane.broker.issuers.acme_registration import ExternalAccount
from certplane.broker.issuers.attempts import all_of
from certplane.broker.issuers.caa_identity import DirectoryCaaIdentity, DirectoryStandingAccount
from certplane.broker.issuers.dns.preflight import DnsPreflight
from certplane.broker.issuers.dns.routing import Routing
from certplane.broker.issuers.dns.solver import DnsSolver
from certplane.broker.issuers.renewal_info import AcmeRenewalInfo
from certplane.broker.ports import KeepsSecrets, SecretSource
from certplane.broker.settings import BrokerSettings
from certplane.errors import ConfigurationError, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

T = TypeVar("T")


def account_keeper(
    settings: BrokerSettings, name: str, *, secrets: SecretSource, files: BlockingPool, rows: AccountRows | None
) -> AccountKeeper:
    """What keeps the account's key of the issuer `name`; nothing is read yet.

    Args:
        settings: Where it is.
        name: The issuer's.
        secrets: For a key that is a secret, or sealed with one.
        files: Reads and writes a file.
        rows: The database's accounts, needed where a key is kept there.
    """
    acme, setting = settings.cas[name], f"{settings.ca_section(name)}.account_key"
    kept = acme.account_key
    if kept.file is not None:
        return KeptInFile(AccountKeyFile(kept.file, setting), files)
    if kept.secret:
        return KeptInSecret(secrets, kept.secret, f"{setting}.secret")
    if rows is None:
        raise RuntimeError("a key in the database needs the database")
    seal = Seal(secrets, settings.store.seal_secret)
    return KeptInStore(rows, name, acme.directory_url, seal, f"{setting}.store")


async def account_keys(settings: BrokerSettings, keepers: Mapping[str, AccountKeeper]) -> dict[str, AccountKey]:
    """The ACME accounts' keys by issuer, made on first use where they aren't secrets.

    Raises:
        ConfigurationError: it can't be used, made or unsealed, or what keeps it can't be reached.
    """
    return {name: await _account_key(settings, name, keeper) for name, keeper in keepers.items()}


async def _account_key(settings: BrokerSettings, name: str, keeper: AccountKeeper) -> AccountKey:
    with located(settings):
        try:
            return await keeper.load()
        except RefusalError as error:
            key = f"{settings.ca_section(name)}.account_key"
            problem = settings.source.problem(key, f"can't be read now: {error.refusal.message}", "try again")
            raise ConfigurationError([problem]) from error


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
        challenge=acme.challenge,
    )
    return AcmeCa(server, clock)


def issuer(
    settings: BrokerSettings,
    name: str,
    ca: AcmeCa,
    account: AccountKey,
    *,
    keeper: AccountKeeper,
    secrets: SecretSource,
    rng: random.Random,
) -> AcmeIssuer:
    """What orders from a public CA; `keeper` keeps `account`, and has it again where it was changed."""
    external = None
    if (eab := settings.cas[name].eab) is not None:
        external = ExternalAccount(eab.kid, functools.partial(secrets.read, eab.hmac_secret), eab.algorithm.value)
    return AcmeIssuer(name, ca, account, rng=rng, keeper=keeper, external=external)


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

    `issuers` tell their accounts' URLs; without them what CAA and standing records say of accounts stays undecided.
    """
    sources = {
        name: DirectoryCaaIdentity(ca, functools.partial(_account_url, issuers.get(name)), ca.server.challenge)
        for name, ca in cas.items()
    }
    kinds = {name: ca.server.challenge for name, ca in cas.items()}
    accounts = {name: issuers.get(name) or DirectoryStandingAccount(ca) for name, ca in cas.items()}
    return DnsPreflight(made.routes, made.delegations, sources, clock, kinds=kinds, accounts=accounts)


def _account_url(issuer: AcmeIssuer | None) -> str:
    return issuer.account_url if issuer is not None else ""
