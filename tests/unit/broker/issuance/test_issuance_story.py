"""The way of a certificate through the registration authority, when nothing goes wrong."""

from __future__ import annotations

from certplane.broker.model import AuditEventType, OrderState
from tests.support.issuance import World, caller, issue


async def test_a_first_request_ends_with_a_stored_logged_and_delivered_certificate() -> None:
    """An order goes from PENDING to ISSUED, its events are logged in order, and no TXT record is left."""
    world = World()
    authority = await world.started()

    result = await authority.issue(caller(), issue())

    assert result.order.state is OrderState.ISSUED
    assert result.certificate is not None
    assert result.source == "order"
    assert world.kinds() == [
        AuditEventType.CERTIFICATE_REQUEST_RECEIVED,
        AuditEventType.CERTIFICATE_AUTHORIZED,
        AuditEventType.CERTIFICATE_ISSUED,
        AuditEventType.CERTIFICATE_DELIVERED,
    ]
    assert world.database.certificates[result.certificate.certificate_id].deliver_time == world.clock.now()
    await world.run_on()
    assert world.order.txt_records == ()
    assert not world.dns.records
    assert world.dns.written == 2
