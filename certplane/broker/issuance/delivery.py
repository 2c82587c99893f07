"""The hand-out of a certificate: all is asked again, the hand-out is made durable, then the certificate is given.

If the event can't be written (`fail_closed`) or the store is away, nothing is handed out. The certificate stays stored
and undelivered, so that asking again gets it.

A certificate that its holder gets again and again is audited at once the first time, then counted (`EventRecorder`).
"""

from __future__ import annotations

from certplane.broker import metrics
from certplane.broker.events import AuditEvent, EventKind
from certplane.broker.issuance.authorisation import AuthorisedRequest, CallAuthorisation
from certplane.broker.issuance.context import IssuancePorts, known_profile
from certplane.broker.issuance.events import CallEvents
from certplane.broker.model import Caller, CertificateRecord, Order
from certplane.errors import RefusalError


class Delivery:
    """Hands certificates out; each method returns when the hand-out is on record."""

    def __init__(self, ports: IssuancePorts, authorisation: CallAuthorisation) -> None:
        self._ports = ports
        self._authorisation = authorisation

    async def from_cache(
        self, caller: Caller, asked: AuthorisedRequest, record: CertificateRecord, events: CallEvents
    ) -> None:
        """A stored certificate answers a request: one event tells of request, decision and hand-out."""
        self._authorisation.ask_at_hand_out(caller, record, asked.policy)
        event = events.cache_hit(record)
        await self._record(events.handing_out(record, event), record, event)
        self._ports.meter.count(metrics.DELIVERIES, source="cache")

    async def of_order(self, caller: Caller, order: Order, events: CallEvents) -> CertificateRecord:
        """The certificate of an ISSUED order."""
        record = await self._ports.certificates.get_certificate(order.certificate_id)
        if record is None:
            raise RuntimeError(f"order {order.order_id} is ISSUED, but its certificate is not in the store")
        await self._hand_out(caller, record, events, "order", order)
        return record

    async def of_certificate(self, caller: Caller, record: CertificateRecord, events: CallEvents) -> None:
        """A stored certificate that was asked for by its id."""
        await self._hand_out(caller, record, events, "stored")

    async def _hand_out(
        self, caller: Caller, record: CertificateRecord, events: CallEvents, source: str, order: Order | None = None
    ) -> None:
        policy = await self._authorisation.ask_again(caller, record)
        events.learn_policy(policy, known_profile(policy, caller.name, record.profile))
        event = events.delivered(record, order)
        await self._record(events.handing_out(record, event), record, event)
        self._ports.meter.count(metrics.DELIVERIES, source=source)

    async def _record(self, kind: EventKind, record: CertificateRecord, event: AuditEvent) -> None:
        """Make the hand-out durable: the first one of a certificate with its time, any further one as an event."""
        repeats, now = self._ports.repeats, self._ports.clock.now()
        if record.deliver_time is not None:
            await repeats.record(kind, (event,))
        elif not repeats.begin(kind, event):  # another call is handing it out at this moment
            await repeats.record(kind, (event,))
            await self._ports.certificates.mark_delivered(record.certificate_id, now, ())
        else:
            try:
                await self._ports.certificates.mark_delivered(record.certificate_id, now, (event,))
            except RefusalError:
                repeats.withdraw(kind, event)
                raise
