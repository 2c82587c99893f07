"""What was worked out before, by what it was worked out from: bounded in number, in octets, and for each owner.

Whose answers may fill it says for whom they are kept, so that nobody pushes out what others have there: above its
share, in number or in octets, an owner loses its own oldest. Above the whole, the oldest go. A look-up is one of a
dictionary and moves nothing, since it is made on every call: what is asked for often is worked out again once in a
while.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Owned(Generic[K]):
    """The keys of one owner by age, and what their values take."""

    __slots__ = ("keys", "octets")

    def __init__(self) -> None:
        self.keys: OrderedDict[K, None] = OrderedDict()
        self.octets = 0


class Remembered(Generic[K, V]):
    """The memory. For one thread."""

    def __init__(self, *, entries: int, octets: int, of_one_owner: int) -> None:
        """Room for `entries`, of which one owner may have `of_one_owner`, and for `octets` as `put` counts them.

        Of the octets an owner may have the same part.
        """
        self._most = entries
        self._most_octets = octets
        self._share = of_one_owner
        self._share_octets = octets * of_one_owner // entries
        self._entries: dict[K, V] = {}
        self._weights: OrderedDict[K, tuple[int, str]] = OrderedDict()  # by age, as the keys of each owner are
        self._owned: dict[str, _Owned[K]] = {}
        self.octets = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value of a key, if it is remembered."""
        return self._entries.get(key)

    def put(self, key: K, value: V, octets: int, owner: str = "") -> None:
        """Remember a value of about so many octets for `owner`, in place of the key's last one."""
        self.forget(key)
        self._entries[key] = value
        self._weights[key] = (octets, owner)
        owned = self._owned.setdefault(owner, _Owned())
        owned.keys[key] = None
        owned.octets += octets
        self.octets += octets
        while len(owned.keys) > self._share or owned.octets > self._share_octets:
            self.forget(next(iter(owned.keys)))
        while len(self._entries) > self._most or self.octets > self._most_octets:
            self.forget(next(iter(self._weights)))

    def clear(self) -> None:
        """Remember nothing."""
        self._entries.clear()
        self._weights.clear()
        self._owned.clear()
        self.octets = 0

    def forget(self, key: K) -> None:
        """Remember nothing of this key."""
        if key not in self._entries:
            return
        del self._entries[key]
        octets, owner = self._weights.pop(key)
        self.octets -= octets
        owned = self._owned[owner]
        del owned.keys[key]
        owned.octets -= octets
        if not owned.keys:
            del self._owned[owner]
