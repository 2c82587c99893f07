"""What renewal planning needs from outside. The rules of `certplane.broker.ports` hold here too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from certplane.broker.events import AuditEvent
from certplane.broker.model import CertificateRecord
from certplane.broker.renewal.model import (
    DueCheck,
    FollowedItem,
    InForce,
    RecordedRequest,
    RenewalInfo,
    RenewalPlan,
    RequestedRenewal,
    RequestItem,
    Selected,
    Selection,
    WindowMove,
)


class RenewalPlanStore(Protocol):
    """The durable plans, one for each certificate at most, and the certificates that they are for."""

    async def set_plans(self, plans: Sequence[RenewalPlan], events: Sequence[AuditEvent] = ()) -> None:
        """Replace the plans of these certificates, durable, in one transaction with their events.

        What the CA said (its window, the next check and its failures) is kept where a new plan has no
        `next_check_time`: who plans for another cause needn't know of it.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...

    async def in_force(self, host: str, now: datetime) -> Sequence[InForce]:
        """The certificates in force of one identity, with their plans."""
        ...

    async def in_force_of(self, hosts: Sequence[str], now: datetime) -> Sequence[InForce]:
        """Those of several identities, by host."""
        ...

    async def find(self, certificate_id: str, now: datetime) -> InForce | None:
        """The certificate, with its plan; None if it isn't in force."""
        ...

    async def select(self, selection: Selection, now: datetime) -> Sequence[Selected]:
        """The certificates in force that match, by host; of several `dns_names` one that a certificate has is enough.

        However many there are, the event loop is held for a millisecond or two at a time.
        """
        ...


class RenewalRequestLog(Protocol):
    """What operators have asked for, so that asking again changes nothing, and what becomes of it can be told."""

    async def find_request(self, requester: str, request_id: str) -> RequestedRenewal | None:
        """What came of the request with this id of this caller; None if there was none."""
        ...

    async def set_requested(
        self,
        plans: Sequence[RenewalPlan],
        requester: str,
        requested: RequestedRenewal,
        time: datetime,
        events: Sequence[AuditEvent] = (),
        *,
        reason: str = "",
        items: Sequence[RequestItem] = (),
    ) -> RequestedRenewal:
        """Replace plans as `set_plans` does and keep what came of the request, in one transaction with the events.

        `items` are all that the request was for, by host, and `reason` is the requester's.

        The first request of an id is the only one, at whichever broker: of a later one nothing is written, and what
        came of the first is the answer.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...


class RequestItems(Protocol):
    """What requests were for, and what has become of that."""

    async def get_request(self, request_id: str, requester: str) -> RecordedRequest | None:
        """The request of this id: of this requester's own, else the newest; None if there is none."""
        ...

    async def follow_items(self, request: RecordedRequest, after: int, limit: int) -> Sequence[FollowedItem]:
        """Its items, those after one by their numbers, which begin at 1, with what the database has of each now."""
        ...

    async def identity_renewals(self, hosts: Sequence[str]) -> Sequence[tuple[str, RenewalPlan]]:
        """The newest request for the identity of each of these hosts, that has one: as a plan.

        Each with the serial number of the identity's certificate that is to be replaced: it is over once the host has
        another one.
        """
        ...


class RenewalChecks(Protocol):
    """The same plans, for the one who asks the CAs about them."""

    async def to_check(self, issuer: str, now: datetime, limit: int) -> Sequence[DueCheck]:
        """Those of an issuer that it should be asked about now, oldest first.

        That is: in force, and never asked about, or with a `next_check_time` that is past. The former come first.
        """
        ...

    async def replace_plan(
        self,
        before: RenewalPlan | None,
        after: RenewalPlan,
        events: Sequence[AuditEvent] = (),
        *,
        move: WindowMove | None = None,
    ) -> bool:
        """Put `after` in the place of `before` (None: there was none), durable, in one transaction with the events.

        And with what the CA has done to the window, if it did something: whoever looks for many of those at once
        (`certplane.broker.incidents`) misses none, whichever broker heard of it, and however soon it is replaced.

        False, and nothing is written, if the certificate's plan isn't `before` any more: somebody else has planned, or
        it is in force no longer.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...

    async def planned(self, certificate_ids: Collection[str]) -> Sequence[RenewalPlan]:
        """The plans of these certificates, those that have one."""
        ...

    async def renew_times(self, after: str, limit: int) -> Sequence[tuple[str, datetime | None]]:
        """The next certificates after one, by their ids, with the time of the plan; None where nothing is planned."""
        ...

    async def forget_expired(self, now: datetime) -> None:
        """Drop the plans of certificates that have expired; those revoked or replaced have none.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...

    async def adopt(self, now: datetime) -> int:
        """See that every certificate in force can be found here, and say how many could not.

        One that is issued can be; one that was forgotten as expired, by a clock that ran ahead, can not.

        Raises:
            RefusalError: STORE_UNAVAILABLE.
        """
        ...


class RevokedCertificates(Protocol):
    """What was revoked, whoever recorded it: this broker, another one, or a command beside it."""

    async def get_certificate(self, certificate_id: str) -> CertificateRecord | None:
        """The certificate, whoever's it is."""
        ...

    async def revoked_since(self, time: datetime, now: datetime) -> Sequence[CertificateRecord]:
        """Certificates of all identities that were revoked then or later and haven't expired `now`, oldest first."""
        ...


class KeyBlocks(Protocol):
    """Keys that get no certificate any more."""

    async def block_keys(self, certificate_ids: Sequence[str], time: datetime, events: Sequence[AuditEvent]) -> None:
        """Block the keys of these certificates, durable, in one transaction with the events; the first time stays.

        Raises:
            RefusalError: STORE_UNAVAILABLE, AUDIT_UNAVAILABLE; nothing changed.
        """
        ...


class RenewalInfoSource(Protocol):
    """A CA that may tell when its certificates should be renewed (RFC 9773)."""

    async def renewal_info(self, certificate_pem: str, timeout: timedelta) -> RenewalInfo:
        """What the CA says now about the certificate (PEM, the leaf alone); asked once, nothing is repeated.

        Ends within `timeout` of monotonic time. May be called concurrently.

        Raises:
            RenewalInfoUnsupportedError: the CA offers none.
            RenewalInfoError: no answer that can be used.
        """
        ...
