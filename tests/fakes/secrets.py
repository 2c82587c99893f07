"""A `SecretSource` of given secrets."""

from __future__ import annotations

from collections.abc import Mapping

from certplane.errors import Reason, RefusalError
from tests.fakes.faults import FaultScript


class FakeSecretSource:
    """`SecretSource` in memory; change `secrets` to rotate one."""

    def __init__(self, secrets: Mapping[str, str] | None = None) -> None:
        self.secrets = dict(secrets or {})
        self.faults = FaultScript()

    async def read(self, name: str) -> str:
        async with self.faults.around("read"):
            secret = self.secrets.get(name, "").rstrip("\r\n")
            if not secret:
                raise RefusalError(Reason.DNS_REJECTED, f"there is no secret named {name!r}")
            return secret
