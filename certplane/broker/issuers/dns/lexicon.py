"""TXT records through lexicon, which knows some eighty DNS APIs: the optional package `certplane[lexicon]`.

Each call runs in a process of its own (`lexicon_call`). Lexicon blocks, and most of its providers call without a time
limit: a thread that hangs can't be ended, a process can. Besides, nothing of the broker is in reach of what eighty
vendors' code does, and its memory goes with it. A call costs some tenths of a second of a processor.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib.util
import json
import os
import random
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from typing_extensions import override

from certplane.broker.issuers.answers import one_line
from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.provider import DnsProvider, ProviderSettings, while_unavailable
from certplane.broker.model import TxtRecord
from certplane.broker.ports import SecretSource
from certplane.config.values import HostPort, PositiveSpan
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import Clock
from certplane.runtime.programs import SEARCH_PATH, NotStartedError, run_program

_REPEAT = Backoff(first=timedelta(seconds=2), most=timedelta(seconds=20), floor=timedelta(seconds=1))
_PROCESSES = 4
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_PASSED_ON = (*_PROXIES, *map(str.upper, _PROXIES), "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONPATH")
_OPTION = re.compile(r"[a-z][a-z0-9_-]*", re.ASCII)
_PROVIDERS = Path("_private", "providers")


@dataclass(frozen=True, slots=True)
class LexiconSettings(ProviderSettings):
    """`issuer.acme.lexicon`; `provider` is lexicon's name of the DNS API, and `options` are its other options.

    `credentials` names the secret, as `read_credentials` takes it, for profiles that name none. The zone is found by
    `recursive_nameservers`, or those of this machine. `timeout` is for one call.
    """

    provider: str
    credentials: str = "lexicon/credentials"
    options: Mapping[str, str] = field(default_factory=dict)
    recursive_nameservers: tuple[HostPort, ...] = ()
    timeout: PositiveSpan = timedelta(seconds=60)
    ttl: PositiveSpan = timedelta(seconds=60)

    @override
    def make(self, secrets: SecretSource, clock: Clock, rng: random.Random) -> DnsProvider:
        return LexiconProvider(self, secrets, rng)


class LexiconProvider(DnsProvider):
    """A `DnsProvider` that is any of lexicon's."""

    def __init__(self, settings: LexiconSettings, secrets: SecretSource, rng: random.Random) -> None:
        """Nothing is run yet; credentials are read at each use.

        Raises:
            ConfigurationError: lexicon isn't installed, or has no such provider.
        """
        _check_installed(settings.provider)
        self._settings, self._secrets, self._rng = settings, secrets, rng
        self._processes = asyncio.Semaphore(_PROCESSES)

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._call("create", record, deadline)
        return record

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._call("delete", record, deadline)

    async def _call(self, operation: str, record: TxtRecord, deadline: Deadline) -> None:
        secret = record.credentials or self._settings.credentials
        credentials = read_credentials(secret, await self._secrets.read(secret))
        told = json.dumps(
            {
                "operation": operation,
                "name": record.name,
                "value": record.value,
                "resolvers": [[resolver.host, resolver.port] for resolver in self._settings.recursive_nameservers],
                "secrets": list(credentials.values()),
                "config": {
                    "provider_name": self._settings.provider,
                    "domain": record.name,
                    "resolve_zone_name": True,
                    "ttl": int(self._settings.ttl.total_seconds()),
                    self._settings.provider: {**_options(self._settings.options), **credentials},
                },
            }
        ).encode()
        await while_unavailable(
            lambda: self._call_once(operation, record.name, told, deadline),
            deadline,
            self._rng,
            _REPEAT,
        )

    async def _call_once(self, operation: str, name: str, told: bytes, deadline: Deadline) -> None:
        what = f"lexicon's provider {self._settings.provider} did not {operation} the record at {name}"
        environment = {key: value for key in _PASSED_ON if (value := os.environ.get(key))}
        async with self._processes:
            try:
                ended = await run_program(
                    [sys.executable, "-P", "-m", "certplane.broker.issuers.dns.lexicon_call"],
                    environment={"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": "/", **environment},
                    told=told,
                    timeout=min(self._settings.timeout, deadline.left),
                    clock=deadline.clock,
                )
            except NotStartedError as error:
                raise RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: its process can't be started: {error}") from error
        if ended.status is None:
            raise RefusalError(Reason.DNS_UNAVAILABLE, f"{what} in time")
        result, message = _read_result(ended.output)
        if result == "done":
            return
        if result == "rejected":
            raise RefusalError(Reason.DNS_REJECTED, f"{what}: {message}")
        why = message if result == "unavailable" else f"its process ended without a result, status {ended.status}"
        raise RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: {why}")


def read_credentials(name: str, text: str) -> dict[str, str]:
    """A provider's options from a secret: a JSON object, lines of `key=value`, or else one text, the `auth_token`.

    Keys are lexicon's, with `_` or `-`: `auth_username`, `auth-token`.

    Raises:
        RefusalError: DNS_REJECTED, naming the secret and nothing of it.
    """
    if text.lstrip().startswith("{"):
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict) or not all(isinstance(value, str | int) for value in content.values()):
            message = f"the secret {name!r} is no JSON object with texts for lexicon"
            raise RefusalError(Reason.DNS_REJECTED, message) from None  # the cause may quote it
        return _options({key: str(value) for key, value in content.items()})
    pairs = [line.partition("=") for line in text.splitlines() if line.strip()]
    if pairs and all(_OPTION.fullmatch(key.strip()) and value.strip("=") for key, _, value in pairs):
        return _options({key.strip(): value.strip() for key, _, value in pairs})
    return {"auth_token": text.strip()}


def _options(options: Mapping[str, str]) -> dict[str, str]:
    return {key.replace("-", "_"): value for key, value in options.items()}


def _read_result(output: bytes) -> tuple[str, str]:
    """Result and message of the last line; two empty texts if it isn't one."""
    try:
        content = json.loads(output.rstrip().rpartition(b"\n")[2])
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(content, dict):
        return "", ""
    return str(content.get("result", "")), one_line(content.get("message"), 300)


def _check_installed(provider: str) -> None:
    spec = importlib.util.find_spec("lexicon")  # looked for, not loaded
    if spec is None or not spec.submodule_search_locations:
        remedy = "install the release's optional.txt in place of broker.txt (docs/operations.md, Install)"
        problem = ConfigurationProblem("", None, "issuer.acme.lexicon", "needs the package dns-lexicon", remedy)
        raise ConfigurationError([problem])
    modules = Path(next(iter(spec.submodule_search_locations)), _PROVIDERS).glob("[a-z]*.py")
    known = sorted(module.stem for module in modules if module.stem != "base")
    if known and provider not in known:
        nearest = difflib.get_close_matches(provider, known, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else "`lexicon --help` lists them"
        message = f"lexicon has no provider {provider[:40]!a}"
        raise ConfigurationError([ConfigurationProblem("", None, "issuer.acme.lexicon.provider", message, remedy)])
