"""The names under which audit events are counted."""

from certplane.broker.issuance.measures import Measure

EVENTS_COALESCED = "audit_events_coalesced"
EVENTS_RESCUED = "audit_events_rescued"

AUDIT_MEASURES = (
    Measure(EVENTS_COALESCED, "counter", ("type",), "Repeated audit events that were counted instead of written."),
    Measure(EVENTS_RESCUED, "counter", ("to",), "Audit events that the database did not take, by where they went."),
)
