"""Secrets from the environment: the name as written, else as a variable can hold it.

`cloudflare/whisper-cl` is looked for as such, then as CLOUDFLARE_WHISPER_CL. Two names that become the same variable
share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from typing_extensions import override

from certplane.broker.ports import SecretSource
from certplane.errors import Reason, RefusalError

_UNFIT = re.compile(r"[^A-Za-z0-9_]")


class EnvSecrets(SecretSource):
    """The port `SecretSource` on environment variables."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """`environ` is looked at on each read."""
        self._environ = environ

    @override
    async def read(self, name: str) -> str:
        """An empty variable is no secret."""
        secret = self._environ.get(name) or self._environ.get(variable_name(name)) or ""
        secret = secret.rstrip("\r\n")
        if not secret:
            message = f"there is no secret {name!r}: set the environment variable {variable_name(name)}"
            raise RefusalError(Reason.DNS_REJECTED, message)
        return secret


def variable_name(name: str) -> str:
    """The environment variable for a secret's name: upper case, `_` for what a variable can't hold."""
    variable = _UNFIT.sub("_", name).upper()
    return f"_{variable}" if variable[:1].isdigit() else variable
