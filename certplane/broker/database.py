"""The broker's database and secrets as broker.yml asks for them, for the broker and for commands beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from certplane.broker.audit import SpillFallback
from certplane.broker.issuers.dns.http_client import new_http_client
from certplane.broker.issuers.outgoing import configured_endpoint, trusted_roots
from certplane.broker.ports import AuditFallback, Meter, NullMeter, SecretSource
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets
from certplane.broker.secrets.source import open_secrets
from certplane.broker.secrets.vault_settings import VaultSettings
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.store import Stores, open_stores
from certplane.errors import ConfigurationError, RefusalError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

T = TypeVar("T")

_LOOK = timedelta(seconds=5)

_logger = logging.getLogger("certplane.broker")


def locating(settings: BrokerSettings, make: Callable[[], T], *, key: str = "") -> T:
    """Make an adapter; what it finds wrong with a key is told with the line where that key stands.

    Args:
        settings: Which file has that line.
        make: Makes the adapter.
        key: What a problem is about that names a file and no key.
    """
    with _located(settings, key):
        return make()


@contextmanager
def _located(settings: BrokerSettings, key: str = "") -> Iterator[None]:
    """Adapters know a key, or the file that it names; a user wants both, and the line of broker.yml."""
    try:
        yield
    except ConfigurationError as error:
        problems = []
        for problem in error.problems:
            about = problem.key or key
            if problem.line is None and about:
                message = f"{problem.file}: {problem.message}" if problem.file else problem.message
                problems.append(settings.source.problem(about, message, problem.remedy))
            else:
                problems.append(problem)
        raise ConfigurationError(problems) from error


def secret_source(settings: BrokerSettings, pool: BlockingPool, clock: Clock) -> SecretSource:
    """Where secrets are read; `pool` is where files are.

    Raises:
        ConfigurationError: a directory isn't there, or a vault can't be used as configured.
    """
    return locating(
        settings,
        lambda: open_secrets(
            settings.secrets, environ=os.environ, vault_clients=_vault_clients, pool=pool, clock=clock
        ),
    )


def _vault_clients(vault: VaultSettings) -> Callable[[], httpx.AsyncClient]:
    configured_endpoint(str(vault.address), "secrets.vault.address", private_http=vault.allow_http)
    trusted = trusted_roots(vault.ca_bundle, "secrets.vault.ca_bundle")
    return lambda: new_http_client(vault.timeout, trusted)


@asynccontextmanager
async def stores(
    settings: BrokerSettings, secrets: SecretSource, clock: Clock, meter: Meter, *, exclusive: bool
) -> AsyncIterator[Stores]:
    """The database with its audit mode; `exclusive` is the broker's own use of it.

    Raises:
        ConfigurationError: the path, URL, password or schema is wrong.
        OperationError: another broker has the store, it is corrupt, or it can't be reached.
    """
    fallback: AuditFallback | None = None
    if settings.audit.enabled:
        fallback = SpillFallback(
            settings.audit.failure_mode.value,
            settings.spill_path,
            mirror_to_log=settings.audit.mirror_to_log,
            meter=meter,
        )
    elif exclusive:
        _logger.warning("audit.enabled is false: this broker records none of its decisions")
    sqlite = settings.store.driver is StoreDriver.SQLITE
    opening = open_stores(
        driver=settings.store.driver.value,
        path=settings.store.path if sqlite else None,
        url="" if sqlite else await _database_url(settings, secrets),
        audit=fallback,
        exclusive=exclusive,
        clock=clock,
        meter=meter,
    )
    async with AsyncExitStack() as stack:
        with _located(settings):
            opened = await stack.enter_async_context(opening)
        yield opened


async def look_at_server(settings: BrokerSettings, secrets: SecretSource, pool: BlockingPool) -> list[str]:
    """What a start would find of a database on a server; notices, a line each.

    Raises:
        ConfigurationError: a start would refuse it.
    """
    asks_vault = settings.store.password_secret and not isinstance(secrets, EnvSecrets | FileSecrets)
    if settings.store.driver is StoreDriver.SQLITE or asks_vault:
        return []
    from certplane.broker.store import postgresql  # noqa: PLC0415 - not without it

    try:
        url = await _database_url(settings, secrets)
    except ConfigurationError:
        return []  # that the secret can't be read is told for all secrets alike
    with _located(settings):
        return await pool.run(postgresql.look_at, url, _LOOK)


async def _database_url(settings: BrokerSettings, secrets: SecretSource) -> str:
    """The URL with its password, which the configuration names and doesn't hold."""
    name = settings.store.password_secret
    if not name:
        return settings.store.url
    try:
        password = await secrets.read(name)
    except RefusalError as error:
        problem = settings.source.problem("store.password_secret", error.refusal.message, "provide the secret")
        raise ConfigurationError([problem]) from error
    parts = urlsplit(settings.store.url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


@asynccontextmanager
async def open_store(settings: BrokerSettings, *, clock: Clock | None = None) -> AsyncIterator[Stores]:
    """The broker's store for a command beside a running broker: its lock isn't taken, its schema isn't changed.

    Raises:
        ConfigurationError: the path, URL or schema is wrong.
        OperationError: the store can't be reached.
    """
    clock = clock or SystemClock()
    pool = BlockingPool("broker-files", 1)
    try:
        secrets = secret_source(settings, pool, clock)
        async with stores(settings, secrets, clock, NullMeter(), exclusive=False) as opened:
            yield opened
    finally:
        pool.close()
