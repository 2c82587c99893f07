"""`certplane-broker check`: whether a start with this configuration would get as far as its store and its port.

Makes what a start makes of the configuration, secrets' source, issuers and DNS providers too, and tells all problems at
once. What it asks for outside are a database on a server, and the directories of the CAs: a start doesn't need them,
but nothing would ever be issued by one that isn't there. It changes nothing: no account key is made, no vault asked,
and a database is read without a lock. Secrets of files and of the environment are read to see that they can be, and
forgotten.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from certplane.broker import adapters
from certplane.broker.configured import located, locating, secret_source
from certplane.broker.database import look_at_server
from certplane.broker.forwarding import open_sinks
from certplane.broker.issuers.acme_account import AccountKeyFile
from certplane.broker.issuers.acme_ca import AcmeCa
from certplane.broker.issuers.acme_errors import AcmeError
from certplane.broker.notifiers.making import open_notifiers
from certplane.broker.ports import SecretSource
from certplane.broker.prepared import Prepared, prepare
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.settings import BrokerSettings
from certplane.broker.surroundings import (
    look_at_store,
    looks_where_the_service_does,
    missing_folder,
    seen_as_root,
    unreadable_secrets,
)
from certplane.config.files import is_there
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.rpc.otlp import why_unusable
from certplane.runtime.clock import Clock, SystemClock
from certplane.runtime.pool import BlockingPool

NOTHING_HANDED: Final[Mapping[str, str]] = MappingProxyType({})
_DIRECTORY_TIME = timedelta(seconds=10)


async def check(
    settings: BrokerSettings,
    clock: Clock | None = None,
    *,
    offline: bool = False,
    handed: Mapping[str, str] = NOTHING_HANDED,
) -> tuple[Prepared, tuple[str, ...]]:
    """What a start would begin with, and notices, a line each: what may be well at another time or in the service.

    Args:
        settings: the configuration.
        clock: for time limits.
        offline: ask nobody for the CAs' directories and no database server.
        handed: secrets by name that the service will be handed (`LoadCredential=`), where this user can't read them.

    Raises:
        ConfigurationError: everything that would keep the broker from starting, and CAs whose directory isn't there.
    """
    clock = clock or SystemClock()
    rng = random.SystemRandom()
    problems: list[ConfigurationProblem] = []
    doubts: list[ConfigurationProblem] = []
    usable: dict[str, AcmeCa] = {}
    folders: set[str] = set()
    prepared: Prepared | None = None
    nothing = EnvSecrets({})
    secrets: SecretSource = nothing  # until there is another
    async with AsyncExitStack() as stack:
        pool = BlockingPool("check-files", 1)
        stack.callback(pool.close)
        with _gathering(problems):
            prepared = prepare(settings)
        with _gathering(doubts if settings.secrets.leaves_to_environment else problems):
            secrets = secret_source(settings, pool, clock)
        for name, acme in settings.cas.items():
            if (file := acme.account_key.file) is not None:
                with _gathering(problems):
                    if not is_there(file.parent, folder=True):
                        folders.add(missing_folder(settings, f"{settings.ca_section(name)}.account_key", file))
                with _gathering(problems):
                    if is_there(file):
                        locating(settings, AccountKeyFile(file, f"{settings.ca_section(name)}.account_key").load)
            with _gathering(problems):
                usable[name] = locating(settings, functools.partial(adapters.ca, settings, name, clock))
                stack.push_async_callback(usable[name].close)
        with _gathering(problems):
            solver = adapters.solver(settings, secrets, clock, rng)
            stack.push_async_callback(solver.close)
        await _receivers(settings, secrets, clock, stack, problems)
        wrong, away = await _directories(settings, {} if offline else usable)
        with _gathering(problems):
            folders.update([] if offline else await look_at_server(settings, secrets, pool))
        unread = (
            []
            if secrets is nothing
            else await unreadable_secrets(settings, prepared, secrets, lambda name: name not in handed)
        )
    problems += await unreadable_secrets(settings, prepared, EnvSecrets(handed), lambda name: name in handed)
    problems += [*wrong, *_tracing(settings)]
    (problems if looks_where_the_service_does(settings) else doubts).extend(unread)
    with _gathering(problems):
        folders.update(look_at_store(settings))
    if prepared is not None:
        with _gathering(problems):
            require_agent_cas(prepared, clock.now())
    if problems or prepared is None:
        raise ConfigurationError(problems)
    here = [f"{doubt} (unless the service's environment sets it)" for doubt in doubts]
    there = [f"{doubt} (the broker starts without it, and retries)" for doubt in away]
    bundle = prepared.trust_files.agent_ca_bundle
    ending = [f"server.mtls.agent_ca_bundle: {bundle}: {line}" for line in prepared.trust.ca_warnings(clock.now())]
    return prepared, (*here, *there, *ending, *sorted(folders), *seen_as_root(settings))


def _tracing(settings: BrokerSettings) -> list[ConfigurationProblem]:
    unusable = why_unusable(settings.tracing.collector)
    if unusable is None:
        return []
    return [settings.source.problem(f"tracing.{unusable.key}", unusable.message, unusable.remedy)]


def require_agent_cas(prepared: Prepared, now: datetime) -> None:
    """See that somebody can be let in.

    Raises:
        ConfigurationError: every CA of the agents' bundle has ended.
    """
    problem = prepared.trust.ca_problem(now)
    if problem:
        at = prepared.trust_files.locate("server.mtls.agent_ca_bundle")
        message, remedy = (
            f"{prepared.trust_files.agent_ca_bundle} {problem}",
            "put the identity CA's current certificate there",
        )
        raise ConfigurationError([ConfigurationProblem(at.file, at.line, at.key, message, remedy)])


async def _receivers(
    settings: BrokerSettings,
    secrets: SecretSource,
    clock: Clock,
    stack: AsyncExitStack,
    problems: list[ConfigurationProblem],
) -> None:
    """Make what copies the audit log and notifies people; nobody is connected to."""
    with _gathering(problems):
        await stack.enter_async_context(open_sinks(settings, secrets, clock))
    with _gathering(problems), located(settings):
        await stack.enter_async_context(open_notifiers(settings.notifications, secrets, clock))


async def _directories(
    settings: BrokerSettings, cas: Mapping[str, AcmeCa]
) -> tuple[list[ConfigurationProblem], list[ConfigurationProblem]]:
    """What is wrong with the CAs' directories, and which can't be read at this hour."""
    wrong: list[ConfigurationProblem] = []
    away: list[ConfigurationProblem] = []
    for name, found in (await adapters.read_directories(cas, _DIRECTORY_TIME)).items():
        if not isinstance(found, AcmeError):
            continue
        key = f"{settings.ca_section(name)}.directory_url"
        (wrong if found.suspects_configuration else away).append(settings.source.problem(key, found.refusal.message))
    return wrong, away


@contextmanager
def _gathering(problems: list[ConfigurationProblem]) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        problems += error.problems
