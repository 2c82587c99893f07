"""The policies that were in force, at any broker of a fleet, with their texts: what did it say before?

A version is kept when it is put in force and isn't the one that was kept last: the brokers of a fleet load the same one
after the other. Only so many are kept, and no text that is very large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from certplane.broker.policy.changes import Count

MOST_VERSIONS: Final = 100
MOST_PACKED: Final = 1024 * 1024
"""Octets of a text, compressed: of a policy for some hundred thousand hosts. So all of them are a hundred megabytes."""


@dataclass(frozen=True, slots=True)
class PolicyVersion:
    """A policy that was put in force.

    Attributes:
        hash: SHA-256 of the file's bytes.
        load_time: When, first at any broker.
        loaded_by: Who had it loaded, for people.
        broker_name: The name of that broker's machine.
        counts: What changed against the policy before; empty of a broker's first one.
        text_size: Octets of its text; 0 if it isn't kept.
        number: Rises from version to version; the store gives it.
    """

    hash: str
    load_time: datetime
    loaded_by: str
    broker_name: str
    counts: tuple[Count, ...] = ()
    text_size: int = 0
    number: int = 0


class PolicyHistory(Protocol):
    """Keeps them; the rules of `certplane.broker.ports` hold here."""

    async def keep(self, version: PolicyVersion, packed: bytes) -> bool:
        """Keep a version with its text (`zlib`; empty if it isn't to be kept), durable, and drop those beyond the last.

        Nothing is done, and the answer is False, if it is the one that was kept last.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def versions(self, *, before: int | None, limit: int) -> Sequence[PolicyVersion]:
        """The newest first, those before a number.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def find(self, policy_hash: str) -> tuple[PolicyVersion, bytes] | None:
        """The newest of this hash, and its packed text, empty if that isn't kept.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
