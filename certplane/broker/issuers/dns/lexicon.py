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
from certplane.broker.issuers.attempts import Deadline, repeat
from certplane.broker.issuers.dns.program import SEARCH_PATH, NotStartedError, run_program
from certplane.broker.issuers.dns.provider import DnsProvider
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.broker.ports import SecretSource
from certplane.config.values import HostPort
from certplane.errors import ConfigurationError, ConfigurationProblem, Reason, RefusalError
from certplane.runtime.backoff import Backoff

_REPEAT = Backoff(first=timedelta(seconds=2), most=timedelta(seconds=20), floor=timedelta(seconds=1))
_PROCESSES = 4
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_PASSED_ON = (*_PROXIES, *map(str.upper, _PROXIES), "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONPATH")
_OPTION = re.compile(r"[a-z][a-z0-9_-]*", re.ASCII)
_PROVIDERS = Path("_private", "providers")


@dataclass(frozen=True, slots=True)
class LexiconApi:
    """`issuer.acme.lexicon`.

    Attributes:
        provider: lexicon's name of it.
        credentials: name of the secret, as `read_credentials` takes it. A profile's `credentials` may name another.
        options: the provider's other options.
        resolvers: by which the zone is found; none for those of this machine.
        timeout: of one call.
        ttl: of the records.
    """

    provider: str
    credentials: str
    options: Mapping[str, str] = field(default_factory=dict)
    resolvers: tuple[HostPort, ...] = ()
    timeout: timedelta = timedelta(seconds=60)
    ttl: timedelta = timedelta(seconds=60)


class LexiconProvider(DnsProvider):
    """A `DnsProvider` that is any of lexicon's."""

    def __init__(self, api: LexiconApi, secrets: SecretSource, rng: random.Random) -> None:
        """Nothing is run yet; credentials are read at each use.

        Raises:
            ConfigurationError: lexicon isn't installed, or has no such provider.
        """
        _check_installed(api.provider)
        self._api, self._secrets, self._rng = api, secrets, rng
        self._processes = asyncio.Semaphore(_PROCESSES)

    async def close(self) -> None:
        """Nothing stays open."""

    @override
    def plan(self, challenge: DnsChallenge, profile: Profile) -> TxtRecord:
        return TxtRecord("", challenge.record_name, challenge.record_value, credentials=profile.credentials)

    @override
    async def add_txt(self, record: TxtRecord, deadline: Deadline) -> TxtRecord:
        await self._call("create", record, deadline)
        return record

    @override
    async def remove_txt(self, record: TxtRecord, deadline: Deadline) -> None:
        await self._call("delete", record, deadline)

    async def _call(self, operation: str, record: TxtRecord, deadline: Deadline) -> None:
        secret = record.credentials or self._api.credentials
        credentials = read_credentials(secret, await self._secrets.read(secret))
        told = json.dumps(
            {
                "operation": operation,
                "name": record.name,
                "value": record.value,
                "resolvers": [[resolver.host, resolver.port] for resolver in self._api.resolvers],
                "secrets": list(credentials.values()),
                "config": {
                    "provider_name": self._api.provider,
                    "domain": record.name,
                    "resolve_zone_name": True,
                    "ttl": int(self._api.ttl.total_seconds()),
                    self._api.provider: {**_options(self._api.options), **credentials},
                },
            }
        ).encode()
        await repeat(
            lambda: self._call_once(operation, record.name, told, deadline),
            deadline=deadline,
            backoff=_REPEAT,
            rng=self._rng,
            on=RefusalError,
            when=lambda error: error.refusal.reason is Reason.DNS_UNAVAILABLE,
        )

    async def _call_once(self, operation: str, name: str, told: bytes, deadline: Deadline) -> None:
        what = f"lexicon's provider {self._api.provider} did not {operation} the record at {name}"
        environment = {key: value for key in _PASSED_ON if (value := os.environ.get(key))}
        async with self._processes:
            try:
                ended = await run_program(
                    [sys.executable, "-P", "-m", "certplane.broker.issuers.dns.lexicon_call"],
                    environment={"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": "/", **environment},
                    told=told,
                    timeout=min(self._api.timeout, deadline.left),
                )
            except NotStartedError as error:
                raise RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: no process for it: {error}") from error
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
