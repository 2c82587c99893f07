"""`secrets.vault`; apart from `vault`, since what reads broker.yml and asks no vault shall not load an HTTP client."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from certplane.config.decoding import Check, InputPath, KeyProblem
from certplane.config.values import HttpUrl, NonEmptyText, PositiveSpan

TOKEN_VARIABLES = {"vault": ("VAULT_TOKEN",), "openbao": ("BAO_TOKEN", "VAULT_TOKEN")}
"""Variables with a token, the first that is set; OpenBao's own clients read Vault's variables too."""


def _kv_version(version: int) -> str | None:
    return None if version in {1, 2} else "must be 1 or 2"


def _mount_path(path: str) -> str | None:
    if path.isprintable() and all(part not in {"", ".", ".."} for part in path.strip("/").split("/")):
        return None
    return "must be the path where the store is mounted, such as secret or team/kv"


def _briefly(span: timedelta) -> str | None:
    return None if timedelta() <= span <= timedelta(minutes=5) else "must be between 0s, which keeps nothing, and 5m"


@dataclass(frozen=True, slots=True)
class VaultSettings:
    """`secrets.vault`, for OpenBao too; `key` is the field of an entry that holds the secret.

    What is left out of address and token is looked for in the environment when the broker starts. `allow_http` is for a
    store on a private network that speaks no TLS: token and secrets go over it in the clear. `timeout` is for one
    request; a secret is kept for as long as `cache` says.
    """

    address: HttpUrl | None = None
    allow_http: bool = False
    token: str = field(default="", repr=False)
    token_file: InputPath | None = None
    mount_path: Annotated[str, Check(_mount_path)] = "secret"
    kv_version: Annotated[int, Check(_kv_version)] = 2
    key: NonEmptyText = "value"
    timeout: PositiveSpan = timedelta(seconds=10)
    namespace: str = ""
    ca_bundle: Path | None = None
    cache: Annotated[timedelta, Check(_briefly)] = timedelta(seconds=30)

    def problems(self) -> Iterator[KeyProblem]:
        """There is at most one token."""
        if self.token and self.token_file is not None:
            yield KeyProblem("token_file", "and `token` are both there", "keep token_file")
