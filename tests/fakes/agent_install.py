"""Versions, statuses and hooks of a host, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from certplane.agent.model import (
    Activation,
    ActivationHold,
    DirectedRenewal,
    HookResult,
    IssuedCertificate,
    LineageStatus,
    ServedLeaf,
    ServiceView,
    Version,
)
from certplane.agent.ports import PendingKeyMaterial
from certplane.errors import OperationError
from certplane.pki.chain import leaf_facts
from certplane.pki.chain_path import ChainError
from certplane.pki.keys import KeyType, PrivateKey, load_private_key, public_key_sha256


class FakeDirectiveFile:
    """`DirectiveFile`."""

    def __init__(self) -> None:
        self._directed: DirectedRenewal | None = None

    def load(self) -> DirectedRenewal | None:
        return self._directed

    def save(self, directed: DirectedRenewal) -> None:
        self._directed = directed


class FakeActivationFile:
    """`ActivationFile`."""

    def __init__(self) -> None:
        self._activations: tuple[Activation, ...] = ()

    def load(self) -> tuple[Activation, ...]:
        return self._activations

    def save(self, activations: Sequence[Activation]) -> None:
        self._activations = tuple(activations)


class FakeVersionStore:
    """`VersionStore`; `shown` is every version that was activated, in order; `failures` are raised first."""

    def __init__(self, keys: PendingKeyMaterial) -> None:
        self._keys = keys
        self._versions: dict[int, tuple[Version, str, bytes]] = {}
        self._current: int | None = None
        self.shown: list[int] = []
        self.failures: list[OperationError] = []

    def current(self) -> Version | None:
        return None if self._current is None else self._versions[self._current][0]

    def current_key(self) -> PrivateKey | None:
        """For `FakePendingKeys.current_key`."""
        return None if self._current is None else load_private_key(self._versions[self._current][2])

    def versions(self) -> Sequence[Version]:
        return [version for _, (version, _, _) in sorted(self._versions.items())]

    def stage(self, issued: IssuedCertificate, hold: ActivationHold | None = None) -> Version:
        for version, pem, _ in self._versions.values():
            if pem.strip() == issued.certificate_pem.strip():
                return version
        key_pem, request_id = self._keys.private_key_pem(), self._keys.request_id()
        if key_pem is None or request_id is None:
            raise OperationError("no key waits for this certificate")
        key = load_private_key(key_pem)
        try:
            facts = leaf_facts(issued.certificate_pem)
        except ChainError as error:
            raise OperationError("the certificate can't be installed") from error
        if facts.public_key_sha256 != public_key_sha256(key.public_key()):
            raise OperationError("the certificate is for another key than the one that waits for it")
        number = max(self._versions, default=0) + 1
        version = Version(
            number=number,
            path=Path(f"/nowhere/versions/{number}"),
            dns_names=facts.dns_names,
            serial_number=facts.serial_number,
            public_key_sha256=facts.public_key_sha256,
            not_before=facts.not_before,
            not_after=facts.not_after,
            certificate_id=issued.certificate_id,
            renew_time=issued.renew_time,
            key_type=KeyType.EC_P256,
            hold=hold,
        )
        self._versions[number] = (version, issued.certificate_pem, key_pem)
        self._keys.forget(request_id)
        return version

    def activate(self, version: Version) -> None:
        if self.failures:
            raise self.failures.pop(0)
        if version.number not in self._versions:
            raise OperationError(f"version {version.number} is not complete")
        self._current = version.number
        self.shown.append(version.number)

    def prune(self, keep: int) -> None:
        if keep < 1:
            raise ValueError("at least one version must be kept")
        numbers = sorted(self._versions)
        before = [number for number in numbers if self._current is not None and number < self._current]
        for number in set(numbers[:-keep]) - {self._current, *before[-1:]}:
            del self._versions[number]

    def recover(self) -> None:
        """Nothing is ever left half done here."""


class FakeStatusFile:
    """`StatusFile`; `saved` is every status that was saved, in order."""

    def __init__(self, status: LineageStatus | None = None) -> None:
        self._status = status
        self.saved: list[LineageStatus] = []

    def load(self) -> LineageStatus | None:
        return self._status

    def save(self, status: LineageStatus) -> None:
        self._status = status
        self.saved.append(status)


class FakeHookRunner:
    """`HookRunner` that answers from `results` in turn, then with success; `runs` is what was asked of it."""

    def __init__(self, *results: HookResult) -> None:
        self.results = list(results)
        self.runs: list[tuple[str, timedelta, dict[str, str]]] = []

    async def run(self, command: str, timeout: timedelta, environment: dict[str, str]) -> HookResult:
        self.runs.append((command, timeout, dict(environment)))
        return self.results.pop(0) if self.results else HookResult(0, "")


class FakeServiceProbe:
    """`ServiceProbe` of a service that serves `served`; nobody answers while that is None. `looks` were for these."""

    def __init__(self) -> None:
        self.served: Version | None = None
        self.looks: list[int] = []

    async def look(self, version: Version) -> ServiceView:
        self.looks.append(version.number)
        if self.served is None:
            return ServiceView(None, "nobody answers")
        leaf = leaf_of(self.served)
        return ServiceView(leaf, "" if leaf == leaf_of(version) else "it serves another certificate")


def leaf_of(version: Version) -> ServedLeaf:
    """What a service presents that serves a version."""
    return ServedLeaf(version.serial_number, version.public_key_sha256, version.not_before, version.not_after)
