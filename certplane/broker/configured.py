"""What several parts make of broker.yml: adapters, whose mistakes are told with their line, and the secret source."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from certplane.broker.ports import SecretSource
from certplane.broker.secrets.source import open_secrets
from certplane.broker.secrets.vault_settings import VaultSettings
from certplane.broker.settings import BrokerSettings
from certplane.errors import ConfigurationError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

if TYPE_CHECKING:  # a broker without a vault loads no HTTP client for one
    import httpx

T = TypeVar("T")


def locating(settings: BrokerSettings, make: Callable[[], T], *, key: str = "") -> T:
    """Make an adapter; what it finds wrong with a key is told with the line where that key stands.

    Args:
        settings: Which file has that line.
        make: Makes the adapter.
        key: What a problem is about that names a file and no key.
    """
    with located(settings, key):
        return make()


@contextmanager
def located(settings: BrokerSettings, key: str = "") -> Iterator[None]:
    """As `locating`, for a block: adapters know a key, or the file that it names; a user wants both, and the line."""
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
    # Only where there is a vault: the client is a third of what a broker without one would load.
    from certplane.broker.issuers.dns.http_client import new_http_client  # noqa: PLC0415
    from certplane.broker.issuers.outgoing import configured_endpoint, trusted_roots  # noqa: PLC0415

    configured_endpoint(str(vault.address), "secrets.vault.address", private_http=vault.allow_http)
    trusted = trusted_roots(vault.ca_bundle, "secrets.vault.ca_bundle")
    return lambda: new_http_client(vault.timeout, trusted)
