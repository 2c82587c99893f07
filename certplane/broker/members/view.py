"""The brokers as operators see them: what each says of itself, what it does for all, and in what they differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from certplane.broker.members.comparison import Difference, compare
from certplane.broker.members.model import Member
from certplane.broker.members.ports import Lease, MemberStore


@dataclass(frozen=True, slots=True)
class Brokers:
    """All brokers at one moment, by their start."""

    members: Sequence[Member]
    roles: Mapping[str, Sequence[str]]
    """What runs once for all brokers, by the broker_id of who runs it."""
    differences: Sequence[Difference]
    answering: str
    """The broker_id of the one that says all this."""


class BrokersView:
    """Reads the brokers."""

    def __init__(self, store: MemberStore, me: Callable[[], Member], lease: Lease) -> None:
        """`me` is what this broker says of itself, `lease` its own."""
        self._store = store
        self._me = me
        self._lease = lease

    async def read(self) -> Brokers:
        """The brokers whose lease stands, and this one, which may have none.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        stored = {member.broker_id: member for member in await self._store.living()}
        me = self._me()
        if (before := stored.get(me.broker_id)) is not None:
            me = replace(me, lease_until=before.lease_until, clock_skew=before.clock_skew)
        lost = {me.broker_id} if self._lease.shared and not (before and self._lease.stands()) else set()
        members = sorted(({**stored, me.broker_id: me}).values(), key=lambda each: (each.start_time, each.broker_id))
        return Brokers(members, await self._store.roles(), compare(members, lost), me.broker_id)
