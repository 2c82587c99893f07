"""Which `SecretSource` the configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from certplane.broker.ports import SecretSource
from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets
from certplane.broker.secrets.vault import TOKEN_VARIABLES, VaultSecrets, VaultStore
from certplane.errors import ConfigurationError, ConfigurationProblem
from certplane.runtime.clock import Clock
from certplane.runtime.pool import BlockingPool

CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"
"""Set by systemd for a unit with `LoadCredential=` (systemd.exec(5))."""

DEFAULT_DIRECTORY = Path("/etc/certplane/secrets")
_ADDRESS_VARIABLES = {"vault": ("VAULT_ADDR",), "openbao": ("BAO_ADDR", "VAULT_ADDR")}


@dataclass(frozen=True, slots=True)
class SecretsSetup:
    """`secrets` of broker.yml, and what sources are made with.

    Attributes:
        provider: `env`, `file`, `vault` or `openbao`.
        environ: variables with secrets, and what the configuration leaves to the environment.
        pool: where files are read.
        clock: for what is kept.
        directory: for `file`; None for systemd's credentials directory, else the default.
        store: for `vault` and `openbao`; an empty address is the environment's.
        new_client: for `vault` and `openbao`: given their address, checks it and returns what makes clients.
    """

    provider: str
    environ: Mapping[str, str]
    pool: BlockingPool
    clock: Clock
    directory: Path | None
    store: VaultStore
    new_client: Callable[[str], Callable[[], httpx.AsyncClient]]


def open_secrets(setup: SecretsSetup) -> SecretSource:
    """The source that `secrets.provider` names; nothing is read yet.

    Raises:
        ConfigurationError: the directory isn't there, or a vault's address or token is neither configured nor in the
            environment.
    """
    if setup.provider == "env":
        return EnvSecrets(setup.environ)
    if setup.provider == "file":
        return _files(setup)
    return _vault(setup)


def _files(setup: SecretsSetup) -> FileSecrets:
    given = setup.environ.get(CREDENTIALS_VARIABLE)
    credentials = Path(given) if given else None
    directory = setup.directory or credentials or DEFAULT_DIRECTORY
    if not directory.is_dir():
        raise _problem("secrets.file.directory", f"{directory} isn't a directory", "make it, owned by the broker")
    return FileSecrets(directory, setup.pool, flat=directory == credentials)


def _vault(setup: SecretsSetup) -> VaultSecrets:
    store, environ = setup.store, setup.environ
    names = _ADDRESS_VARIABLES[store.product]
    address = store.address or next((value for name in names if (value := environ.get(name, "").strip())), "")
    if not address:
        remedy = f"write it, or set {names[0]}"
        raise _problem("secrets.vault.address", f"is required with provider: {store.product}", remedy)
    variables = TOKEN_VARIABLES[store.product]
    if not store.token and store.token_file is None and not any(environ.get(name) for name in variables):
        remedy = f"name a file with the token, or set {variables[0]}"
        raise _problem("secrets.vault.token_file", "is required: there is no other token", remedy)
    return VaultSecrets(
        replace(store, address=address),
        environ=environ,
        new_client=setup.new_client(address),
        pool=setup.pool,
        clock=setup.clock,
    )


def _problem(key: str, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("", None, key, message, remedy)])
