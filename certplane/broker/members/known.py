"""Which brokers there are, from memory: read when the change feed tells of a member, and asked without the database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime

from typing_extensions import override

from certplane.broker.members.model import Member
from certplane.broker.members.ports import MemberStore, OtherBrokers
from certplane.broker.ports import ChangeFollower

logger = logging.getLogger(__name__)


class KnownMembers(ChangeFollower, OtherBrokers):
    """The members whose lease stands, and this broker as it is now.

    How many streams the others have, and how far their clocks are off, is as of the last change of any other fact.
    """

    def __init__(self, store: MemberStore, me: Callable[[], Member], stands: Callable[[], bool] = lambda: True) -> None:
        """Nobody else is known before the first `read`.

        Args:
            store: Who has a lease.
            me: What this broker says of itself.
            stands: Whether its own lease does: where the database was away from all, none has, and no broker is gone.
        """
        self._store = store
        self._me = me
        self._stands = stands
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

    async def read(self, named: Collection[str] = ()) -> None:
        """Read them anew, and log who has come and gone.

        Args:
            named: Whom the change feed has named: a broker that stops names itself, one that was killed can't.

        Raises:
            RefusalError: STORE_UNAVAILABLE; what was known stays.
        """
        own = self._store.broker_id
        others = tuple(member for member in await self._store.living() if member.broker_id != own)
        before, now = _by_id(self._others), _by_id(others)  # after the wait: another read may have ended meanwhile
        self._others = others
        for broker_id in now.keys() - before.keys():
            logger.info("another broker shares this database", extra={"fields": _fields(now[broker_id])})
        for broker_id in before.keys() - now.keys():
            fields = {"fields": _fields(before[broker_id])}
            if broker_id in named:
                logger.info("another broker has left", extra=fields)
            elif not self._stands():
                logger.info("another broker's lease has ended as this one's has", extra=fields)
            else:
                logger.warning(
                    "another broker's lease has ended, and it hasn't said that it stops: others take over what it did; "
                    "see whether it runs, and reaches the database",
                    extra=fields,
                )
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
        await self.read(keys)


def _by_id(members: Iterable[Member]) -> Mapping[str, Member]:
    return {member.broker_id: member for member in members}


def _fields(member: Member) -> Mapping[str, str]:
    return {
        "name": member.name,
        "address": member.address,
        "version": member.version,
        "broker_id": member.broker_id,
    }
