"""Every metric that the broker has: its name, its labels and its help text, declared here and nowhere else.

Code counts with the value (`meter.count(metrics.REQUESTS, ...)`, port `Meter`); `telemetry` exports each of them from
the start, before it has moved. Names and labels are public: docs/monitoring.md has a row for each, and a test compares
the rows with this module and sees each metric move.

Labels are bounded: methods are those of the access table, codes and reasons those of the error table, profiles and
issuers those of the files; never a name that a caller chose. A `Table` alone is as long as the fleet: it has a bound of
its own in broker.yml.

A name ends in its unit: `_duration_seconds` is a span, `_timestamp_seconds` a moment in Unix time. A metric whose name
was another one before shows both for one release (`formerly`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From a group commit to an order that waits for slow DNS."""

_CALL_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""From an answer out of the cache to the longest wait for an order."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """What an exporter must know of a metric before its first value."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    formerly: str = field(default="", kw_only=True)
    """The name that it is shown under too, until the next release."""


@dataclass(frozen=True, slots=True, eq=False)
class Counter(Metric):
    """Only grows; its name ends in `_total`."""


@dataclass(frozen=True, slots=True, eq=False)
class Gauge(Metric):
    """What now is; 0 until it is set, if it has no labels and this broker is the one to tell it."""


@dataclass(frozen=True, slots=True, eq=False)
class Table(Gauge):
    """One whose rows are shown together, by `Meter.table`: a row that isn't there the next time is gone."""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram(Metric):
    """Spans of time, in seconds; its name ends in `_seconds`."""

    buckets: tuple[float, ...] = _SECONDS


# The broker and others.

BUILD_INFO: Final = Gauge(
    "certplane_build_info", "1; its labels say which release this is, and which Python runs it.", ("version", "python")
)

LEASE: Final = Gauge("certplane_lease", "1 while this broker holds its lease on the database, and may issue.")
BROKERS: Final = Gauge("certplane_brokers", "Brokers that share the database and have a lease, this one included.")
BROKERS_DIFFER: Final = Gauge(
    "certplane_brokers_differ", "1 while brokers differ in something that should be alike, by what.", ("subject",)
)
CLOCK_SKEW: Final = Gauge(
    "certplane_clock_skew_seconds", "This machine's clock less the database's, as the last renewal of the lease showed."
)
ROLES_HELD: Final = Gauge(
    "certplane_role_held", "1 while this broker does what one broker does for all of its database.", ("role",)
)

# Calls and the process.

RPC_CALLS: Final = Counter(
    "certplane_rpc_calls_total",
    "Calls that ended, by method, gRPC code and refusal reason (empty when not refused).",
    ("method", "code", "reason"),
)
RPC_SECONDS: Final = Histogram(
    "certplane_rpc_duration_seconds",
    "Time from the arrival of a call with one answer to its end; streams are left out.",
    ("method",),
    _CALL_SECONDS,
    formerly="certplane_rpc_seconds",
)
RPC_IN_FLIGHT: Final = Gauge("certplane_rpc_in_flight", "Calls being served.")
LOOP_LAG: Final = Histogram(
    "certplane_event_loop_lag_seconds",
    "How late the event loop starts work that is due: a delay that every call shares.",
)
DRAINING: Final = Gauge("certplane_draining", "1 while the broker shuts down.")
RELOADS: Final = Counter(
    "certplane_reloads_total",
    "Files read again, by what (policy, trust) and result (loaded, rejected).",
    ("what", "result"),
)
CERTIFICATE_NOT_AFTER: Final = Gauge(
    "certplane_certificate_not_after_timestamp_seconds",
    "End of validity, Unix time: the broker's own certificate (server) and the CA of the agents that ends first "
    "(agent_ca).",
    ("certificate",),
    formerly="certplane_certificate_not_after_seconds",
)

# Requests and orders.

REQUESTS: Final = Counter(
    "certplane_certificate_requests_total",
    "Requests for a certificate by result: cache, opened, joined, or the reason of the refusal. The profile is empty "
    "unless policy granted it.",
    ("profile", "result"),
)
DELIVERIES: Final = Counter(
    "certplane_certificate_deliveries_total", "Certificates handed out: cache, order or stored.", ("source",)
)
REVOCATIONS: Final = Counter("certplane_certificate_revocations_total", "Certificates revoked.", ("reason",))
LIMITS_REACHED: Final = Counter(
    "certplane_limits_reached_total", "Requests that a limit of rate_limits has refused, by its key.", ("limit",)
)
CERTIFICATES_LEFT: Final = Table(
    "certplane_certificates_left",
    "Certificates of a profile's names that rate_limits.certificates_per_name_set_per_week leaves now.",
    ("profile",),
)
BUDGET_LEFT: Final = Table(
    "certplane_budget_left",
    "Places of a CA's limit that are left: of its fullest bucket, as the ledger of all brokers has it.",
    ("issuer", "limit"),
)
BUDGET_PLACES: Final = Table(
    "certplane_budget_places", "Places that a limit of a CA has when nothing is taken.", ("issuer", "limit")
)
BUDGET_WAITING: Final = Table(
    "certplane_budget_waiting_orders", "Orders that wait for a place within a CA's limits.", ("issuer",)
)
BUDGET_WAIT: Final = Table(
    "certplane_budget_wait_seconds",
    "In how long the last order that waits now has its place, if none comes between; +Inf: one not within 90 days.",
    ("issuer",),
)
PROFILES_BLOCKED: Final = Gauge(
    "certplane_profiles_blocked",
    "1 while the last order of a profile failed with an error that only a person can fix.",
    ("profile",),
)
ORDERS_OPENED: Final = Counter(
    "certplane_orders_opened_total",
    "Orders by why they are wanted: ordinary, early, withdrawn (by the holder), or asked for: revoked, operator, "
    "issuer, due.",
    ("cause",),
)
ORDERS_OPEN: Final = Gauge("certplane_orders_open", "Orders that this process works on or that wait for their turn.")
ORDERS_ENDED: Final = Counter(
    "certplane_orders_ended_total", "Orders that ended: ISSUED, or the reason of the failure.", ("profile", "reason")
)
ORDER_DURATION: Final = Histogram(
    "certplane_order_duration_seconds", "From an order's turn to its end, by ISSUED or reason.", ("reason",)
)
STEP_DURATION: Final = Histogram("certplane_order_step_duration_seconds", "Steps of orders that succeeded.", ("step",))
STEP_FAILURES: Final = Counter(
    "certplane_order_step_failures_total", "Steps of orders that failed, retried or not, by reason.", ("reason",)
)
FAILOVERS: Final = Counter(
    "certplane_issuer_failovers_total",
    "Orders that went on at another issuer, by the one they left.",
    ("issuer", "reason"),
)
ORDERS_ABANDONED: Final = Counter(
    "certplane_acme_orders_abandoned_total", "Orders at the CA that were given up before they were finalised."
)
JOURNAL_RETRIES: Final = Counter("certplane_journal_retries_total", "Journal writes of orders that had to be repeated.")
RECORDS_LEFT: Final = Counter(
    "certplane_txt_records_left_total", "TXT records that could not be removed and wait for the next start."
)
SERVERS_SILENT: Final = Counter(
    "certplane_name_servers_silent_total",
    "Name servers that gave no answer, each time that an order went on without them because all others showed the "
    "records.",
)

# The process that does ACME and DNS.

ISSUING_UP: Final = Gauge("certplane_issuing_process_up", "1 while there is a process that does ACME and DNS.")
ISSUING_RESTARTS: Final = Counter(
    "certplane_issuing_process_restarts_total",
    "Processes for ACME and DNS that took another one's place: it had ended, or grown (memory).",
    ("reason",),
)
ISSUING_MEMORY: Final = Gauge(
    "certplane_issuing_process_resident_bytes", "Memory of the process that does ACME and DNS, in octets."
)
ISSUING_CALLS: Final = Gauge(
    "certplane_issuing_calls_in_flight", "Calls of the process that does ACME and DNS that are under way."
)

CA_CALLS: Final = Histogram(
    "certplane_ca_call_duration_seconds",
    "Operations at a CA, with all that they ask it for, by their result: ok, the reason of a refusal, or cut_off.",
    ("issuer", "call", "result"),
    _CALL_SECONDS,
)
DNS_CALLS: Final = Histogram(
    "certplane_dns_call_duration_seconds",
    "Operations on the DNS, waits for propagation among them, by their result: ok, a refusal's reason, or cut_off.",
    ("call", "result"),
    _CALL_SECONDS,
)

# Identities, renewals and the fleet.

IDENTITIES_CONTESTED: Final = Gauge(
    "certplane_identities_contested", "Host identities that are contested until an operator decides."
)
IDENTITY_ACTIVATIONS: Final = Counter(
    "certplane_identity_activations_total", "Identity certificates that came into use by their first call."
)
RENEWAL_CHECKS: Final = Counter(
    "certplane_renewal_checks_total", "Questions to a CA about a renewal, by their result.", ("issuer", "result")
)
RENEWAL_PLANS_MOVED: Final = Counter(
    "certplane_renewal_plans_moved_total", "Renewals that a CA has moved.", ("issuer",)
)
INCIDENTS: Final = Gauge("certplane_incidents", "Incidents that are open: CAs that want many certificates replaced.")
INCIDENT_CERTIFICATES: Final = Table(
    "certplane_incident_certificates",
    "Certificates of open incidents, by state: open (something is to come), in_use (a successor is), hurt (revoked or "
    "expired without one), failing.",
    ("issuer", "state"),
)
INCIDENT_DEADLINE: Final = Table(
    "certplane_incident_deadline_timestamp_seconds",
    "When the certificates of an open incident should be replaced, Unix time.",
    ("issuer",),
)
STREAMS: Final = Gauge("certplane_host_streams", "Hosts with a status stream.")
STREAMS_ENDED: Final = Counter(
    "certplane_host_streams_ended_total", "Status streams that the broker has ended, by reason.", ("reason",)
)
STREAM_MISUSES: Final = Counter(
    "certplane_stream_misuses_total", "Answers to directives that were never sent, or had been answered."
)
REPORTS: Final = Counter(
    "certplane_renewal_reports_total",
    "Reports of hosts: durable, repeated, or failed and tried again.",
    ("result",),
)
DIRECTIVES: Final = Counter("certplane_directives_total", "Directives: sent, taken, refused.", ("result",))
DIRECTIVE_SECONDS: Final = Histogram(
    "certplane_directive_answer_duration_seconds",
    "Time until a host has answered a directive.",
    formerly="certplane_directive_answer_seconds",
)
CERTIFICATES: Final = Gauge(
    "certplane_host_certificates", "Certificates of all hosts, by the state that was reported last.", ("state",)
)
HEALTH: Final = Gauge("certplane_fleet_certificates", "Certificates of all hosts, by health.", ("health",))
LABEL_HEALTH: Final = Table(
    "certplane_fleet_label_certificates",
    "Certificates by health and by a label of their hosts in the policy; of the keys of metrics.host_labels.",
    ("key", "value", "health"),
)
SOONEST_END: Final = Gauge(
    "certplane_fleet_soonest_not_after_timestamp_seconds",
    "The soonest end of what hosts use, Unix time; +Inf for none.",
    ("profile",),
)
ENDING: Final = Gauge(
    "certplane_fleet_certificates_ending",
    "Certificates that hosts use and that end within that many days, those that have ended among them.",
    ("profile", "days"),
)
NOT_AFTER: Final = Table(
    "certplane_fleet_certificate_not_after_timestamp_seconds",
    "End of what a host uses, Unix time; none in a fleet of more hosts than metrics.certificates_up_to_hosts.",
    ("host", "certificate", "profile", "issuer"),
)
HOSTS: Final = Gauge(
    "certplane_hosts", "Hosts by their link: up, down, or never for those of the policy that never came.", ("link",)
)
WATCHERS: Final = Gauge("certplane_renewal_watchers", "Streams of WatchRenewals.")
SERVICE_WATCHES: Final = Gauge(
    "certplane_service_watches", "Calls of WatchMyCertificates, in which services hear of their own certificates."
)

# Rollouts.

ROLLOUTS: Final = Gauge("certplane_rollouts", "Rollouts that haven't ended, by their state.", ("state",))
ROLLOUT_CERTIFICATES: Final = Gauge(
    "certplane_rollout_certificates", "Certificates of rollouts that haven't ended, by how far they are.", ("state",)
)
ROLLOUT_UNREVOKED: Final = Gauge(
    "certplane_rollout_unrevoked_certificates", "Certificates that rollouts are to revoke, and haven't yet."
)
ROLLOUTS_LATE: Final = Gauge(
    "certplane_rollouts_late", "Rollouts that end after their deadline, by how far they are and what CAs allow."
)
ROLLOUT_RING_SECONDS: Final = Gauge(
    "certplane_rollout_ring_seconds",
    "For how long the slowest running rollout has waited for hosts of a ring that may use their new certificates.",
)

# Notifications.

NOTIFICATIONS: Final = Counter(
    "certplane_notifications_total",
    "Attempts to deliver a notification, by result: delivered, failed (tried again), refused (tried again), given_up.",
    ("notifier", "result"),
)
NOTIFICATIONS_WAITING: Final = Gauge(
    "certplane_notifications_waiting", "Notifications that wait to be delivered.", ("notifier",)
)

# The database and the audit log.

STORE_GROUP: Final = Histogram(
    "certplane_store_group_duration_seconds",
    "Time until a group of writes to the database was durable.",
    formerly="certplane_store_group_seconds",
)
ROWS_PRUNED: Final = Counter(
    "certplane_store_rows_pruned_total", "Rows that were removed because they had ended long ago.", ("table",)
)
STORE_SIZE: Final = Gauge("certplane_store_size_bytes", "Size of the database on disk, in octets.")
STORE_GROWTH: Final = Gauge("certplane_store_growth_bytes", "Octets that the database has grown by in the last hour.")
FREE_SPACE: Final = Gauge(
    "certplane_free_space_bytes",
    "Octets that are free where the database (store) or the spill file lies.",
    ("place",),
)
SPACE_LOW: Final = Gauge(
    "certplane_space_low", "1 while the database or the spill file has little room left, or grows fast."
)
STORE_CHECKED: Final = Gauge(
    "certplane_store_check_timestamp_seconds",
    "When the database was last read from end to end, Unix time; 0 before the first time since the start.",
)
STORE_DAMAGED: Final = Gauge("certplane_store_damaged", "1 if the last look from end to end found damage.")
EVENTS_COALESCED: Final = Counter(
    "certplane_audit_events_coalesced_total",
    "Repeated audit events that were counted instead of written.",
    ("type",),
)
EVENTS_RESCUED: Final = Counter(
    "certplane_audit_events_rescued_total", "Audit events that the database did not take, by where they went.", ("to",)
)

AUDIT_UNPROVEN: Final = Gauge(
    "certplane_audit_unproven",
    "1 while the audit log gets no checkpoint; 1 since this broker found an end that was changed, until its restart.",
    ("why",),
)
SINK_EVENTS: Final = Counter("certplane_audit_sink_events_total", "Audit events that a sink has taken.", ("sink",))
SINK_FAILURES: Final = Counter(
    "certplane_audit_sink_failures_total", "Batches of audit events that a sink didn't take.", ("sink",)
)
SINK_LAG: Final = Gauge(
    "certplane_audit_sink_lag_seconds", "Age of the oldest audit event that a sink lacks; 0 if it has all.", ("sink",)
)
SINK_HOLDS_UP: Final = Gauge(
    "certplane_audit_sink_holds_up",
    "1 while this broker authorises nothing because a required sink is too far behind.",
    ("sink",),
)

METRICS: Final = tuple(value for value in globals().values() if isinstance(value, Metric))
"""All of the above."""
