"""The broker's database and secrets as broker.yml asks for them, for the broker and for commands beside it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from urllib.parse import quote, urlsplit, urlunsplit

from certplane.broker.audit import SpillFallback
from certplane.broker.configured import located, secret_source
from certplane.broker.ports import AuditFallback, Meter, NullMeter, SecretSource
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets
from certplane.broker.settings import BrokerSettings, StoreDriver
from certplane.broker.sinks.gate import SinkGate
from certplane.broker.store import Stores, open_stores
from certplane.errors import ConfigurationError, RefusalError
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

_LOOK = timedelta(seconds=5)

_logger = logging.getLogger("certplane.broker")


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
        url="" if sqlite else await database_url(settings, secrets, settings.store.url),
        direct_url="" if sqlite else await database_url(settings, secrets, settings.store.direct_url),
        audit=fallback,
        exclusive=exclusive,
        clock=clock,
        meter=meter,
    )
    async with AsyncExitStack() as stack:
        with located(settings):
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
        url = await database_url(settings, secrets, settings.store.direct_url or settings.store.url)
    except ConfigurationError:
        return []  # that the secret can't be read is told for all secrets alike
    with located(settings):
        key = "store.direct_url" if settings.store.direct_url else "store.url"
        return await pool.run(partial(postgresql.look_at, url, _LOOK, key=key))


async def database_url(settings: BrokerSettings, secrets: SecretSource, url: str) -> str:
    """One of the URLs, with the password that the configuration names and doesn't hold.

    Raises:
        ConfigurationError: the secret can't be read.
    """
    name = settings.store.password_secret
    if not name or not url:
        return url
    try:
        password = await secrets.read(name)
    except RefusalError as error:
        problem = settings.source.problem("store.password_secret", error.refusal.message, "provide the secret")
        raise ConfigurationError([problem]) from error
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


async def hold_up_decisions(settings: BrokerSettings, opened: Stores, clock: Clock) -> None:
    """Have what a command decides refused while a required sink is too far behind, as a broker does.

    Raises:
        RefusalError: STORE_UNAVAILABLE.
    """
    if required := settings.audit.required_sinks:
        opened.audit.gate = gate = SinkGate(opened.stored_events, required, clock, NullMeter())
        await gate.look()


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
