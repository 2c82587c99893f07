"""Pending keys in memory."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

from certplane.agent.model import PendingRequest
from certplane.pki.csr import build_csr
from certplane.pki.keys import (
    KeyType,
    PrivateKey,
    generate_private_key,
    private_key_pem,
    public_key_sha256,
)
from certplane.runtime.clock import Clock


class FakePendingKeys:
    """`PendingKeys` and `PendingKeyMaterial`; `current_key` says what `reuse_key` takes."""

    def __init__(
        self,
        *,
        clock: Clock,
        key_type: KeyType = KeyType.EC_P256,
        current_key: Callable[[], PrivateKey | None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._key_type = key_type
        self.current_key = current_key
        self._pending: tuple[str, PrivateKey, PendingRequest] | None = None

    def pending(self) -> PendingRequest | None:
        return None if self._pending is None else self._pending[2]

    def begin(
        self, *, common_name: str, sans: Sequence[str], replaces_certificate_id: str, reuse_key: bool
    ) -> PendingRequest:
        if self._pending is None:
            key = (self.current_key() if reuse_key else None) or generate_private_key(self._key_type)
            request = PendingRequest(
                csr_pem=build_csr(key, common_name=common_name, sans=sans),
                public_key_sha256=public_key_sha256(key.public_key()),
                create_time=self._clock.now(),
                replaces_certificate_id=replaces_certificate_id,
            )
            self._pending = (secrets.token_hex(8), key, request)
        return self._pending[2]

    def record_order(self, order_id: str) -> PendingRequest:
        if self._pending is None:
            raise RuntimeError("no request is pending")
        request_id, key, request = self._pending
        self._pending = (request_id, key, replace(request, order_id=order_id))
        return self._pending[2]

    def abandon(self) -> None:
        self._pending = None

    def private_key_pem(self) -> bytes | None:
        return None if self._pending is None else private_key_pem(self._pending[1])

    def request_id(self) -> str | None:
        return None if self._pending is None else self._pending[0]

    def forget(self, request_id: str) -> None:
        if self.request_id() == request_id:
            self._pending = None

    def sweep(self) -> None:
        """Nothing is ever left half done here."""
