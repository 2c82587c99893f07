"""The names under which issuance counts and times; each comes with exactly the labels listed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Measure:
    """One metric: what an exporter must know to declare it before its first value."""

    name: str
    kind: Literal["counter", "duration", "level"]
    labels: tuple[str, ...]
    help: str


REQUESTS = "certificate_requests"
ORDERS_OPENED = "orders_opened"
LIMITS_REACHED = "limits_reached"
ORDERS_ENDED = "orders_ended"
FAILOVERS = "issuer_failovers"
ORDERS_ABANDONED = "acme_orders_abandoned"
PROFILES_BLOCKED = "profiles_blocked"
ORDERS_OPEN = "orders_open"
ORDER_DURATION = "order_duration"
STEP_DURATION = "order_step_duration"
STEP_FAILURES = "order_step_failures"
JOURNAL_RETRIES = "journal_retries"
DELIVERIES = "certificate_deliveries"
REVOCATIONS = "certificate_revocations"
RECORDS_LEFT = "txt_records_left"
SERVERS_SILENT = "name_servers_silent"
IDENTITIES_CONTESTED = "identities_contested"
IDENTITY_ACTIVATIONS = "identity_activations"
RENEWAL_CHECKS = "renewal_checks"
RENEWAL_PLANS_MOVED = "renewal_plans_moved"

MEASURES = (
    Measure(
        REQUESTS,
        "counter",
        ("profile", "result"),
        "Requests for a certificate by result: cache, opened, joined, or the reason of the refusal. The profile is "
        "empty unless policy granted it.",
    ),
    Measure(
        ORDERS_OPENED,
        "counter",
        ("cause",),
        "Orders by why they are wanted: ordinary, early, withdrawn (by the holder), or asked for: revoked, operator, "
        "issuer, due.",
    ),
    Measure(LIMITS_REACHED, "counter", ("limit",), "Requests that a limit of rate_limits has refused, by its key."),
    Measure(ORDERS_ENDED, "counter", ("profile", "reason"), "Orders that ended: ISSUED, or the reason of the failure."),
    Measure(FAILOVERS, "counter", ("issuer", "reason"), "Orders that went on at another issuer, by the one they left."),
    Measure(ORDERS_ABANDONED, "counter", (), "Orders at the CA that were given up before they were finalised."),
    Measure(PROFILES_BLOCKED, "level", ("profile",), "1 while the last order of a profile ended for a person to mend."),
    Measure(ORDERS_OPEN, "level", (), "Orders that this process works on or that wait for their turn."),
    Measure(ORDER_DURATION, "duration", ("reason",), "From an order's turn to its end, by ISSUED or reason."),
    Measure(STEP_DURATION, "duration", ("step",), "Steps of orders that succeeded."),
    Measure(STEP_FAILURES, "counter", ("reason",), "Steps of orders that failed, retried or not, by reason."),
    Measure(JOURNAL_RETRIES, "counter", (), "Journal writes of orders that had to be repeated."),
    Measure(DELIVERIES, "counter", ("source",), "Certificates handed out: cache, order or stored."),
    Measure(REVOCATIONS, "counter", ("reason",), "Certificates revoked."),
    Measure(RECORDS_LEFT, "counter", (), "TXT records that could not be removed and wait for the next start."),
    Measure(
        SERVERS_SILENT,
        "counter",
        (),
        "Name servers that gave no answer, each time that an order went on without them because all others showed the "
        "records.",
    ),
    Measure(IDENTITIES_CONTESTED, "level", (), "Host identities that are contested until an operator decides."),
    Measure(RENEWAL_CHECKS, "counter", ("issuer", "result"), "Questions to a CA about a renewal, by their result."),
    Measure(RENEWAL_PLANS_MOVED, "counter", ("issuer",), "Renewals that a CA has moved."),
    Measure(IDENTITY_ACTIVATIONS, "counter", (), "Identity certificates that came into use by their first call."),
)
