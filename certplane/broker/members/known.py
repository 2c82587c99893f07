"""Which brokers there are, from memory: read when the change feed tells of a member, and asked without the database."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime

from typing_extensions import override

from certplane.broker.members.model import Member
from certplane.broker.members.ports import MemberStore, OtherBrokers
from certplane.broker.ports import ChangeFollower


class KnownMembers(ChangeFollower, OtherBrokers):
    """The members whose lease stands, and this broker as it is now.

    How many streams the others have, and how far their clocks are off, is as of the last change of any other fact.
    """

    def __init__(self, store: MemberStore, me: Callable[[], Member]) -> None:
        """Nobody else is known before the first `read`; `me` is what this broker says of itself."""
        self._store = store
        self._me = me
        self._others: tuple[Member, ...] = ()
        self._hearing: list[Callable[[], None]] = []

    @property
    def members(self) -> Sequence[Member]:
        """All, by their start."""
        return sorted((*self._others, self._me()), key=lambda member: (member.start_time, member.broker_id))

    @property
    @override
    def alone(self) -> bool:
        return not self._others

    @override
    def find(self, broker_id: str) -> Member | None:
        return next((other for other in self._others if other.broker_id == broker_id), None)

    def subscribe(self, heard: Callable[[], None]) -> None:
        """Call `heard` when others have changed, and with each renewal of this one's lease. It must not raise."""
        self._hearing.append(heard)

    async def read(self) -> None:
        """Read them anew.

        Raises:
            RefusalError: STORE_UNAVAILABLE; what was known stays.
        """
        own = self._store.broker_id
        self._others = tuple(member for member in await self._store.living() if member.broker_id != own)
        self.tell()

    def tell(self) -> None:
        """Call who has subscribed: others may have changed, or this broker."""
        for heard in self._hearing:
            heard()

    @override
    async def reread(self, since: datetime) -> None:
        await self.read()

    @override
    async def changed(self, keys: Collection[str]) -> None:
        await self.read()
