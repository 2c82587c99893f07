"""Secrets that are seen to change: who waits for what a wrong one has broken is told when there is another.

What was read is remembered as a hash with a key of this process, no secret a second time. A secret that could not be
read counts as another one than any that can. Changes show whenever a secret is read and, while something is in
trouble, by reading again what was read before: nobody else may be about to.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from typing_extensions import override

from certplane.broker.ports import KeepsSecrets, SecretSource
from certplane.errors import RefusalError
from certplane.runtime.clock import Clock

_LOOK: Final = timedelta(seconds=15)


class WatchedSecrets(SecretSource):
    """A `SecretSource` over another one."""

    def __init__(self, source: SecretSource, on_change: Callable[[str], None]) -> None:
        """`on_change` is called with the name of a secret that is another one now; it must not raise or wait."""
        self._source = source
        self._on_change = on_change
        self._salt = secrets.token_bytes(16)
        self._seen: dict[str, bytes] = {}

    @override
    async def read(self, name: str) -> str:
        try:
            secret = await self._source.read(name)
        except RefusalError:
            self._note(name, b"")
            raise
        self._note(name, hashlib.sha256(self._salt + secret.encode("utf-8", "surrogatepass")).digest())
        return secret

    async def watch(self, clock: Clock, in_trouble: Callable[[], bool]) -> None:
        """Read again what was read before, while something is in trouble, until cancelled."""
        while True:
            await clock.sleep(_LOOK)
            if in_trouble():
                await self.look()

    async def look(self) -> None:
        """Read again what was read before, from where it is kept."""
        if isinstance(self._source, KeepsSecrets):
            self._source.forget(self._source.generation)
        for name in list(self._seen):
            try:
                await self.read(name)
            except RefusalError:
                continue

    def _note(self, name: str, digest: bytes) -> None:
        before = self._seen.get(name)
        self._seen[name] = digest
        if before is not None and digest and digest != before:
            self._on_change(name)


class _WatchedKeptSecrets(WatchedSecrets, KeepsSecrets):
    """The same over a source that keeps secrets."""

    def __init__(self, source: SecretSource, keeper: KeepsSecrets, on_change: Callable[[str], None]) -> None:
        super().__init__(source, on_change)
        self._keeper = keeper

    @property
    @override
    def generation(self) -> int:
        return self._keeper.generation

    @override
    def forget(self, generation: int) -> bool:
        return self._keeper.forget(generation)


def watched(source: SecretSource, on_change: Callable[[str], None]) -> WatchedSecrets:
    """`source`, watched; it keeps secrets if `source` does."""
    if isinstance(source, KeepsSecrets):
        return _WatchedKeptSecrets(source, source, on_change)
    return WatchedSecrets(source, on_change)
