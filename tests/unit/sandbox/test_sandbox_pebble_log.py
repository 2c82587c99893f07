"""Reading Pebble's log: the lines are copied from runs of 2.4.0 and 2.10.1."""

from __future__ import annotations

from certplane.sandbox.pebble import PebbleLog

LOG = """\
Pebble 2026/11/23 11:01:38 POST /order-plz -> calling handler()
Pebble 2026/11/23 11:01:38 There are now 1 authorizations in the db
Pebble 2026/11/23 11:01:38 Added order "KbL4v_sP" to the db
Pebble 2026/11/23 11:01:38 There are now 1 orders in the db
Pebble 2026/11/23 11:01:39 POST /finalize-order/ -> calling handler()
Pebble 2026/11/23 11:01:39 Order KbL4v_sP is fully authorized. Processing finalization
Pebble 2026/11/23 11:01:39 Issued certificate serial 0f2a for order KbL4v_sP
Pebble 2026/11/23 11:01:40 Added order "W_IRKO-1" to the db
Pebble 2026/11/23 11:01:41 POST /finalize-order/ -> calling handler()
Pebble 2026/11/23 11:01:41 POST /finalize-order/ -> calling handler()
Pebble 2026/11/23 11:01:41 Order W_IRKO-1 is fully authorized. Processing finalization
Pebble 2026/11/23 11:01:41 Order W_IRKO-1 is fully authorized. Processing finalization
"""


def test_counts_orders_finalisations_and_certificates() -> None:
    """A second finalisation of an order shows as its id twice; a refused one only as a request."""
    log = PebbleLog.parse(LOG)
    assert log.orders == ("KbL4v_sP", "W_IRKO-1")
    assert log.finalizations == ("KbL4v_sP", "W_IRKO-1", "W_IRKO-1")
    assert log.finalize_requests == 3
    assert log.issued == (("KbL4v_sP", 0x0F2A),)


def test_an_empty_log_is_nothing() -> None:
    """Before the first order all is empty."""
    assert PebbleLog.parse("") == PebbleLog((), (), 0, ())
