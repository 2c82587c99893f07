"""Secrets from a key-value store of Vault or OpenBao, which speak one HTTP API, read at use.

`cloudflare/whisper-cl` is the entry of that name below the mount; the secret is one of its fields. Version 2 of the
store keeps entries below `data/`, in one more envelope. The token is configured, in a file that an agent of the vault
may replace at any time, or in the environment; it is read again for each request and sent nowhere else: https or this
machine only, no redirects.

A secret is kept for some seconds, so that a burst of orders asks once, or until somebody was refused with it. Failures
are never kept. Nothing here makes or
renews tokens, and of what the vault answers only the status and what is known of it reach a message.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import quote

import httpx
from typing_extensions import override

from certplane.broker.ports import KeepsSecrets, SecretSource
from certplane.broker.secrets.files import NotASecretError, decode_secret, read_secret_file
from certplane.broker.secrets.vault_settings import TOKEN_VARIABLES, VaultSettings
from certplane.errors import Reason, RefusalError
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

_MOST_KEPT = 1024
_MOMENT = timedelta(seconds=1)
_NAMES = {"vault": "Vault", "openbao": "OpenBao"}
_BUSY = frozenset({408, 412, 429})  # 412: a replica that has not caught up
_NO_ROUTE = "no handler for route"


class VaultSecrets(SecretSource, KeepsSecrets):
    """The port `SecretSource` on Vault and OpenBao."""

    def __init__(
        self,
        product: str,
        settings: VaultSettings,
        *,
        environ: Mapping[str, str],
        new_client: Callable[[], httpx.AsyncClient],
        pool: BlockingPool,
        clock: Clock,
    ) -> None:
        """Nothing is sent yet.

        Args:
            product: `vault` or `openbao`, for messages and for the environment.
            settings: what to ask; with an address, which the caller has checked: secrets are sent there.
            environ: for the token.
            new_client: a client for one request that follows no redirects and limits what it reads.
            pool: where the token's file is read.
            clock: for how long secrets are kept.
        """
        self._settings, self._environ, self._new_client = settings, environ, new_client
        self._pool, self._clock = pool, clock
        self._name, self._token_variables = _NAMES[product], TOKEN_VARIABLES[product]
        self._kept: dict[str, _Kept] = {}
        self._asking: dict[str, asyncio.Task[str]] = {}
        self._generation = 0

    @override
    async def read(self, name: str) -> str:
        """Who asks for the same secret meanwhile waits for the same answer."""
        kept = self._kept.get(name)
        if kept is not None and self._clock.monotonic() < kept.until:
            return kept.secret
        asking = self._asking.get(name)
        if asking is None:
            asking = self._asking[name] = asyncio.create_task(self._ask(name), name="vault-read")
            asking.add_done_callback(lambda task: self._asked(name, task))
        return await asyncio.shield(asking)

    @property
    @override
    def generation(self) -> int:
        return self._generation

    @override
    def forget(self, generation: int) -> bool:
        fresh = {name: kept for name, kept in self._kept.items() if self._clock.monotonic() < kept.fresh}
        if len(fresh) < len(self._kept):
            self._kept = fresh
            self._generation += 1
        return self._generation != generation

    def _asked(self, name: str, task: asyncio.Task[str]) -> None:
        del self._asking[name]
        if task.cancelled() or task.exception() is not None:
            return
        self._kept.pop(name, None)  # so that the first one is the oldest
        if len(self._kept) >= _MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        now = self._clock.monotonic()
        self._kept[name] = _Kept(
            task.result(), fresh=now + _MOMENT.total_seconds(), until=now + self._settings.cache.total_seconds()
        )

    async def _ask(self, name: str) -> str:
        parts = name.split("/")
        if not name.isprintable() or any(part in {"", ".", ".."} for part in parts):
            raise RefusalError(Reason.DNS_REJECTED, f"the secret {name!r} is no name of an entry below the mount")
        token = await self._token()
        settings = self._settings
        mount = settings.mount_path.strip("/").split("/")
        path = "/".join(quote(part, safe="") for part in (*mount, *(["data"] * (settings.kv_version == 2)), *parts))
        # The official clients send X-Vault-Request too: a vault may refuse requests without, as others' forgeries.
        headers = {"X-Vault-Token": token, "X-Vault-Request": "true", "Accept": "application/json"}
        if settings.namespace:
            headers["X-Vault-Namespace"] = settings.namespace.strip("/")
        try:
            async with asyncio.timeout(settings.timeout.total_seconds()), self._new_client() as client:
                answer = await client.get(f"{str(settings.address).rstrip('/')}/v1/{path}", headers=headers)
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            remedy = "check that it runs, secrets.vault.address and ca_bundle"
            message = f"{self._name} can't be reached for the secret {name!r}: {why}; {remedy}"
            raise RefusalError(Reason.DNS_UNAVAILABLE, message) from error
        return self._secret(name, "/".join([*mount, *parts]), answer)

    async def _token(self) -> str:
        settings = self._settings
        if settings.token:
            token, where = settings.token, "secrets.vault.token"
        elif settings.token_file is not None:
            where = f"the token file {settings.token_file}"
            try:
                token = decode_secret(await self._pool.run(read_secret_file, settings.token_file))
            except NotASecretError as error:
                raise RefusalError(Reason.DNS_REJECTED, f"{where} {error}") from error
        else:
            names = self._token_variables
            where = " or ".join(names)
            token = next((value for name in names if (value := self._environ.get(name, "").strip())), "")
        token = token.strip()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise RefusalError(Reason.DNS_REJECTED, f"{where} holds no token of {self._name}")
        return token

    def _secret(self, name: str, path: str, answer: httpx.Response) -> str:
        body = _body(answer)
        if answer.status_code != 200:
            raise self._refused(name, path, answer.status_code, body)
        data = body.get("data")
        if self._settings.kv_version == 2 and isinstance(data, dict):
            data = data.get("data")
        if not isinstance(data, dict):
            remedy = f"check that {self._settings.mount_path} is a KV store of version {self._settings.kv_version}"
            raise RefusalError(Reason.DNS_REJECTED, f"{self._name} has no entry at {path} for {name!r}; {remedy}")
        secret = data.get(self._settings.key)
        if not isinstance(secret, str) or not secret.rstrip("\r\n"):
            message = f"the entry {path} in {self._name} has no text in the field {self._settings.key!r}"
            raise RefusalError(Reason.DNS_REJECTED, f"{message}; set it, or name another one in secrets.vault.key")
        return secret.rstrip("\r\n")

    def _refused(self, name: str, path: str, status: int, body: Mapping[str, object]) -> RefusalError:
        told = body.get("errors")
        errors = " ".join(error for error in told if isinstance(error, str)) if isinstance(told, list) else ""
        what = f"{self._name} did not give the secret {name!r}"
        if status == 404:
            if _NO_ROUTE in errors:
                why = (
                    f"nothing is mounted at {self._settings.mount_path}; correct secrets.vault.mount_path or namespace"
                )
            elif isinstance(body.get("data"), dict):
                why = f"the entry {path} is deleted; restore it, or write a new version"
            else:
                why = f"there is no entry {path}; write it, or check secrets.vault.kv_version"
            return RefusalError(Reason.DNS_REJECTED, f"{what}: {why}")
        if status == 403:
            why = f"its token has expired or may not read {path}; renew it, or give it a policy with read"
            return RefusalError(Reason.DNS_REJECTED, f"{what}: {why}")
        if "sealed" in errors:
            return RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: it is sealed; unseal it")
        if 300 <= status < 400:
            why = "it redirects, which isn't followed with a token; name the active server in secrets.vault.address"
            return RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: {why}")
        if status in _BUSY or status >= 500:
            return RefusalError(Reason.DNS_UNAVAILABLE, f"{what}: it answered with status {status}; will retry")
        why = f"it answered with status {status}; check address, namespace and mount_path in secrets.vault"
        return RefusalError(Reason.DNS_REJECTED, f"{what}: {why}")


@dataclass(frozen=True, slots=True)
class _Kept:
    secret: str = field(repr=False)
    fresh: float
    until: float


def _body(answer: httpx.Response) -> Mapping[str, object]:
    """The answer's JSON object; empty for anything else."""
    try:
        body = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
