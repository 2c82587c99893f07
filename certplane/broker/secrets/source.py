"""Which `SecretSource` the configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from certplane.broker.secrets.env import EnvSecrets
from certplane.broker.secrets.files import FileSecrets
from certplane.errors import ConfigurationError, ConfigurationProblem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from certplane.broker.ports import SecretSource
    from certplane.runtime.pool import BlockingPool

__all__ = ["open_secrets"]


def open_secrets(provider: str, *, environ: Mapping[str, str], directory: Path, pool: BlockingPool) -> SecretSource:
    """The source that `secrets.provider` names.

    Args:
        provider: `env` or `file`.
        environ: for `env`.
        directory: for `file`.
        pool: where files are read.

    Raises:
        ConfigurationError: the provider isn't supported by this version, or the directory isn't there.
    """
    if provider == "env":
        return EnvSecrets(environ)
    if provider == "file":
        if not directory.is_dir():
            raise _problem("secrets.file.directory", f"{directory} isn't a directory", "make it, owned by the broker")
        return FileSecrets(directory, pool)
    raise _problem(
        "secrets.provider", f"{provider} is not supported by this version", "use env or file until it is there"
    )


def _problem(key: str, message: str, remedy: str) -> ConfigurationError:
    return ConfigurationError([ConfigurationProblem("", None, key, message, remedy)])
