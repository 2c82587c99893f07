"""What membership needs from outside, and what others need of it. The rules of `certplane.broker.ports` hold here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from typing_extensions import override

from certplane.broker.members.model import Member, Renewal


class Lease(Protocol):
    """This broker's right to run orders. From memory: asked before each step."""

    @property
    def shared(self) -> bool:
        """Whether other brokers may take orders that this one leaves, and leave some."""
        ...

    def stands(self) -> bool:
        """Whether no other broker can have taken this one's orders: what can't be undone may be done."""
        ...

    @property
    def term(self) -> int:
        """Another number whenever the lease is had anew after it had ended: what was taken before may be another's."""
        ...


class LastingLease(Lease):
    """`Lease` of the one broker of a database that nobody else can open."""

    @property
    @override
    def shared(self) -> bool:
        return False

    @override
    def stands(self) -> bool:
        return True

    @property
    @override
    def term(self) -> int:
        return 0


class RoleLease(Protocol):
    """This broker's right to do what is done once for all brokers. From memory."""

    def holds(self, role: str) -> bool:
        """Whether this broker does it, so that no other one needs to."""
        ...


class RoleStore(Protocol):
    """Who has which role, in the database that the brokers share. A role is held while its holder's lease stands."""

    async def take(self, roles: Collection[str]) -> Mapping[str, int]:
        """Of these roles, take those that no other broker holds, durable; how often each was taken by now.

        Those that this broker's row says it holds are taken anew: it asks for roles that it doesn't know to be its own.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def give_back(self, roles: Collection[str]) -> None:
        """Let others take these of this broker's roles; they hear of it (`ChangeKind.MEMBER`).

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class OtherBrokers(Protocol):
    """The other brokers that share the database, as far as has been heard. From memory: asked for each host."""

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        ...

    def find(self, broker_id: str) -> Member | None:
        """The one with this id; None if it has gone, or its lease has ended."""
        ...


class NoOtherBrokers(OtherBrokers):
    """`OtherBrokers` of the one broker of a database that nobody else can open."""

    @property
    @override
    def alone(self) -> bool:
        return True

    @override
    def find(self, broker_id: str) -> Member | None:
        return None


class DatabaseClock(Protocol):
    """The clock by which leases count."""

    async def time(self) -> datetime:
        """What it says now.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class MemberStore(Protocol):
    """The brokers, in the database that they share. Times of leases are the database's."""

    broker_id: str
    """This broker's."""

    async def renew(self, member: Member, span: timedelta) -> Renewal:
        """Say that the member is there for `span` from now, durable.

        Other brokers hear of it (`ChangeKind.MEMBER`) if it is new, or says something else of itself than before; how
        many streams it has, and how far its clock is off, may change without a word.

        Raises:
            RefusalError: STORE_UNAVAILABLE; whether the lease was renewed isn't known.
        """
        ...

    async def end(self, broker_id: str) -> bool:
        """Say that another broker is known to have ended: what it held can be taken at once; whether it had not left.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def leave(self) -> None:
        """Say that this broker has gone: what it held can be taken at once.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def living(self) -> Sequence[Member]:
        """The members whose lease stands, by their start.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def roles(self) -> Mapping[str, Sequence[str]]:
        """What runs once for all brokers, by name: who does what, by broker_id.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...
