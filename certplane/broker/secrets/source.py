"""The section `secrets` of broker.yml, and the `SecretSource` that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from certplane.broker.ports import SecretSource
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets, FileSecretsSettings
from certplane.broker.secrets.vault_settings import TOKEN_VARIABLES, VaultSettings
from certplane.config.files import is_there
from certplane.config.values import HttpUrl
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

if TYPE_CHECKING:  # a broker without a vault loads no HTTP client for one
    import httpx

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a unit with `LoadCredential=` (systemd.exec(5))."""

DEFAULT_DIRECTORY = Path("/etc/certplane/secrets")
_ADDRESS_VARIABLES = {"vault": ("VAULT_ADDR",), "openbao": ("BAO_ADDR", "VAULT_ADDR")}

VaultClients: TypeAlias = "Callable[[VaultSettings], Callable[[], httpx.AsyncClient]]"
"""Checks the address, reads the roots, and returns what makes a client for one request (`VaultSecrets`).

Raises ConfigurationError: one of them can't be used.
"""


class SecretsProvider(StrEnum):
    """Where secrets are read."""

    ENV = "env"
    FILE = "file"
    VAULT = "vault"
    OPENBAO = "openbao"


@dataclass(frozen=True, slots=True)
class SecretsSettings:
    """Where secrets are read: the environment, files, or a vault (OpenBao is configured in the same section)."""

    provider: SecretsProvider = SecretsProvider.ENV
    file: FileSecretsSettings = field(default_factory=FileSecretsSettings)
    vault: VaultSettings | None = None

    @property
    def leaves_to_environment(self) -> bool:
        """Whether the source is completed from the environment, which a service has and a shell has not."""
        match self.provider:
            case SecretsProvider.ENV:
                return False
            case SecretsProvider.FILE:
                return self.file.directory is None
            case _:
                vault = self.vault or VaultSettings()
                return vault.address is None or not (vault.token or vault.token_file)


def open_secrets(
    settings: SecretsSettings,
    *,
    environ: Mapping[str, str],
    vault_clients: VaultClients,
    pool: BlockingPool,
    clock: Clock,
) -> SecretSource:
    """The source that `secrets.provider` names; nothing is read yet.

    Args:
        settings: the section.
        environ: variables with secrets, and what the configuration leaves to the environment.
        vault_clients: what a vault is asked with.
        pool: where files are read.
        clock: for what is kept.

    Raises:
        ConfigurationError: the directory isn't there, or a vault's address or token is neither configured nor in the
            environment.
    """
    match settings.provider:
        case SecretsProvider.ENV:
            return EnvSecrets(environ)
        case SecretsProvider.FILE:
            return _files(settings.file, environ, pool)
        case product:
            from certplane.broker.secrets.vault import VaultSecrets  # noqa: PLC0415 - see above

            vault = _completed(settings.vault or VaultSettings(), product, environ)
            return VaultSecrets(
                product, vault, environ=environ, new_client=vault_clients(vault), pool=pool, clock=clock
            )


def _files(settings: FileSecretsSettings, environ: Mapping[str, str], pool: BlockingPool) -> FileSecrets:
    given = environ.get(CREDENTIALS_VARIABLE)
    credentials = Path(given) if given else None
    directory = settings.directory or credentials or DEFAULT_DIRECTORY
    if not is_there(directory, folder=True):
        raise _problem("secrets.file.directory", f"{directory} isn't a directory", "make it, owned by the broker")
    return FileSecrets(directory, pool, flat=directory == credentials)


def _completed(vault: VaultSettings, product: str, environ: Mapping[str, str]) -> VaultSettings:
    """The section with the environment's address where it has none."""
    names = _ADDRESS_VARIABLES[product]
    address = vault.address or next((value for name in names if (value := environ.get(name, "").strip())), "")
    if not address:
        raise _problem("secrets.vault.address", f"is required with provider: {product}", f"write it, or set {names[0]}")
    variables = TOKEN_VARIABLES[product]
    if not vault.token and vault.token_file is None and not any(environ.get(name) for name in variables):
        remedy = f"name a file with the token, or set {variables[0]}"
        raise _problem("secrets.vault.token_file", "is required: there is no other token", remedy)
    return replace(vault, address=HttpUrl(address))


def _problem(key: str, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("", None, key, message, remedy)])
