"""The broker's one schema, for SQLite and PostgreSQL (design, fixed decision 6).

Rules it keeps:

- Texts compare by their octets in both databases, as Python sorts them: PostgreSQL's own order is its locale's, and no
  index of that order answers a query for this one.
- Times are whole microseconds since 1970 UTC: they sort, compare and subtract alike in both databases.
- Structured values that are only read back whole (names, TXT records, errors) are JSON in a text column.
- What a query looks for has an index that answers it; each index says which query it is for.
- Migrations make this schema; a test compares the two. Change both, and `SCHEMA_REVISION`, together.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, ForeignKey, Index, Integer, LargeBinary, Table, UniqueConstraint, text

from certplane.broker.store import campaign_schema
from certplane.broker.store.schema_base import SequenceColumn as _Sequence
from certplane.broker.store.schema_base import TextColumn as _Text
from certplane.broker.store.schema_base import TimeColumn as _Time

APPLICATION_ID: Final = 0x43504C4E
"""`CPLN`: SQLite's application_id, so that a wrong file is told from an empty one before anything is written to it."""

SCHEMA_REVISION: Final = "0016"
"""The newest migration: what a command that may not migrate asks for."""

READABLE_FROM: Final = "0013"
"""The oldest schema whose programs can use this one, beside a newer program or in its place (ADR 0037).

Migrations after it only add; a test looks at them. One that drops something, or wants it written by all, raises it to
the first schema whose programs do without: that of the release before, so that brokers can be upgraded one by one.
"""

metadata: Final = campaign_schema.rollouts.metadata
"""All tables, those of `campaign_schema` among them: whoever has this has the schema whole."""

orders = Table(
    "orders",
    metadata,
    Column("order_id", _Text, primary_key=True),
    Column("identity", _Text, nullable=False),
    Column("identity_serial", _Text, nullable=False),
    Column("profile", _Text, nullable=False),
    Column("profile_hash", _Text, nullable=False),
    Column("dns_names", _Text, nullable=False),
    # A hash, since a hundred names are more than PostgreSQL takes into one index entry (2,704 bytes).
    Column("names_sha256", _Text, nullable=False),
    Column("public_key_sha256", _Text, nullable=False),
    Column("csr_der", LargeBinary, nullable=False),
    Column("issuer", _Text, nullable=False),
    Column("request_id", _Text, nullable=False),
    Column("replaces_certificate_id", _Text, nullable=False),
    Column("state", _Text, nullable=False),
    Column("create_time", _Time, nullable=False),
    Column("update_time", _Time, nullable=False),
    # NULL while the order is open: an index's condition that a query can repeat word for word.
    Column("end_time", _Time),
    Column("acme_order_url", _Text, nullable=False),
    Column("txt_records", _Text),
    Column("certificate_id", _Text, nullable=False),
    Column("error", _Text),
    Column("retry_time", _Time),
    # Of the identity's certificate that asked, with identity_serial; empty in rows of before.
    Column("identity_issuer", _Text, nullable=False, server_default=""),
    Column("identity_anchor", _Text, nullable=False, server_default=""),
    Column("cause", _Text, nullable=False, server_default="ordinary"),
    Column("ask_time", _Time),
    Column("retry_epoch", _Text, nullable=False, server_default=""),
    Column("finalize_time", _Time),
    # Whose it is to run, and how often it was taken: writes of whoever ran it before are refused (`order_rows`).
    Column("holder", _Text, nullable=False, server_default=""),
    Column("epoch", _Sequence, nullable=False, server_default="0"),
    # What a CA may take for the same order, while this one waits for its turn there or has it, where brokers share a
    # database; NULL before and after.
    Column("lane", _Text),
    # Since when it has its turn; NULL while it waits.
    Column("turn_time", _Time),
    # What it is at, where a step fails or waits for long: for operators, and who takes the order.
    Column("progress", _Text),
    Column("renewal_request_id", _Text, nullable=False, server_default=""),
    Column("rollout_id", _Text, nullable=False, server_default=""),
    Column("to_issuer", _Text, nullable=False, server_default=""),
    # Digests of the buckets of which it has taken a place and not used it (`campaign_schema.budget_buckets`).
    Column("places", _Text),
    sqlite_strict=True,
)

Index(
    "uq_orders_open",  # single flight: equal keys are one open order (design, fixed decision 3)
    orders.c.identity,
    orders.c.profile_hash,
    orders.c.names_sha256,
    orders.c.public_key_sha256,
    orders.c.replaces_certificate_id,
    unique=True,
    sqlite_where=text("end_time IS NULL"),
    postgresql_where=text("end_time IS NULL"),
)
Index(
    "uq_orders_lane",  # one ACME order at a time for what a CA may confuse
    orders.c.lane,
    unique=True,
    sqlite_where=text("turn_time IS NOT NULL"),
    postgresql_where=text("turn_time IS NOT NULL"),
)
Index(
    "ix_orders_lane",  # who has a lane, and who waits for it
    orders.c.lane,
    orders.c.create_time,
    sqlite_where=text("lane IS NOT NULL"),
    postgresql_where=text("lane IS NOT NULL"),
)
Index("ix_orders_key", orders.c.public_key_sha256, orders.c.create_time)  # joining a failed order
Index("ix_orders_identity", orders.c.identity, orders.c.create_time)  # per_identity_per_hour
Index("ix_orders_identity_profile", orders.c.identity, orders.c.profile, orders.c.create_time)  # the other limits
Index(
    "ix_orders_unfinished",  # what a start picks up
    orders.c.create_time,
    sqlite_where=text("end_time IS NULL OR txt_records IS NOT NULL"),
    postgresql_where=text("end_time IS NULL OR txt_records IS NOT NULL"),
)

Index(
    "ix_orders_spent",  # the limits on certificates of one name set
    orders.c.names_sha256,
    orders.c.create_time,
    sqlite_where=text("end_time IS NULL OR finalize_time IS NOT NULL"),
    postgresql_where=text("end_time IS NULL OR finalize_time IS NOT NULL"),
)
Index("ix_orders_profile", orders.c.profile, orders.c.end_time)  # how a profile's last orders ended

Index(
    "ix_orders_replaces",  # whether a certificate is still in force
    orders.c.replaces_certificate_id,
    sqlite_where=text("state = 'ISSUED'"),
    postgresql_where=text("state = 'ISSUED'"),
)

Index(
    "ix_orders_end_time",  # which ended long enough ago to be pruned
    orders.c.end_time,
    sqlite_where=text("end_time IS NOT NULL"),
    postgresql_where=text("end_time IS NOT NULL"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("certificate_id", _Text, primary_key=True),
    Column("order_id", _Text, ForeignKey("orders.order_id"), nullable=False, unique=True),
    Column("identity", _Text, nullable=False),
    Column("profile", _Text, nullable=False),
    Column("profile_hash", _Text, nullable=False),
    Column("issuer", _Text, nullable=False),
    Column("dns_names", _Text, nullable=False),
    Column("public_key_sha256", _Text, nullable=False),
    Column("serial_number", _Text, nullable=False),
    Column("certificate_pem", _Text, nullable=False),
    Column("chain_pem", _Text, nullable=False),
    Column("not_before", _Time, nullable=False),
    Column("not_after", _Time, nullable=False),
    Column("renew_time", _Time, nullable=False),
    Column("create_time", _Time, nullable=False),
    Column("acme_order_url", _Text, nullable=False),
    Column("deliver_time", _Time),
    Column("revoke_time", _Time),
    Column("revocation_reason", _Text),
    Column("withdrawn", Integer, nullable=False, server_default="0"),
    # Its holder was forgotten: nobody renews it, and nothing plans for it.
    Column("forget_time", _Time),
    sqlite_strict=True,
)

Index(
    "ix_certificates_cached",  # find_cached
    certificates.c.public_key_sha256,
    certificates.c.profile_hash,
    certificates.c.identity,
    certificates.c.issuer,
    certificates.c.create_time,
    sqlite_where=text("revoke_time IS NULL"),
    postgresql_where=text("revoke_time IS NULL"),
)
Index("ix_certificates_identity", certificates.c.identity, certificates.c.create_time, certificates.c.certificate_id)
Index("ix_certificates_create_time", certificates.c.create_time, certificates.c.certificate_id)  # `certs list`

Index(
    "ix_certificates_not_after",  # those in force
    certificates.c.not_after,
    sqlite_where=text("revoke_time IS NULL"),
    postgresql_where=text("revoke_time IS NULL"),
)

Index(
    "ix_certificates_revoke_time",  # whose holders are told
    certificates.c.revoke_time,
    sqlite_where=text("revoke_time IS NOT NULL"),
    postgresql_where=text("revoke_time IS NOT NULL"),
)

renewal_plans = Table(
    "renewal_plans",
    metadata,
    Column("certificate_id", _Text, ForeignKey("certificates.certificate_id"), primary_key=True),
    Column("host", _Text, nullable=False),
    Column("renew_time", _Time, nullable=False),
    Column("cause", _Text, nullable=False),
    Column("reason", _Text, nullable=False),
    Column("explanation_url", _Text, nullable=False),
    Column("window_start", _Time),
    Column("window_end", _Time),
    Column("next_check_time", _Time),
    Column("check_failures", Integer, nullable=False),
    Column("renewal_request_id", _Text, nullable=False),
    # What a rollout asks for besides.
    Column("rollout_id", _Text, nullable=False, server_default=""),
    Column("hold_activation", Integer, nullable=False, server_default="0"),
    Column("activate_by_time", _Time),
    Column("new_key", Integer, nullable=False, server_default="0"),
    Column("to_issuer", _Text, nullable=False, server_default=""),
    # The certificate's, for the indexes.
    Column("issuer", _Text, nullable=False, server_default=""),
    Column("not_after", _Time, nullable=False, server_default="0"),
    sqlite_strict=True,
)

Index("ix_renewal_plans_host", renewal_plans.c.host, renewal_plans.c.certificate_id)  # a host's, and pages of all
Index(
    "ix_renewal_plans_check",  # which certificates their CA is asked about next
    renewal_plans.c.issuer,
    renewal_plans.c.next_check_time,
    renewal_plans.c.certificate_id,
)
Index("ix_renewal_plans_not_after", renewal_plans.c.not_after)  # which have expired

keys = Table(
    "keys",
    metadata,
    Column("public_key_sha256", _Text, primary_key=True),
    Column("identity", _Text, nullable=False),
    Column("first_use_time", _Time, nullable=False),
    Column("block_time", _Time),
    Column("spend_time", _Time),
    Column("compromise_time", _Time),
    sqlite_strict=True,
)

Index(
    "ix_keys_compromise_time",  # those that were called compromised lately
    keys.c.compromise_time,
    sqlite_where=text("compromise_time IS NOT NULL"),
    postgresql_where=text("compromise_time IS NOT NULL"),
)

deny_entries = Table(
    "deny_entries",
    metadata,
    Column("entry_id", _Sequence, primary_key=True, autoincrement=True),
    Column("name", _Text, nullable=False),
    Column("issuer", _Text, nullable=False),
    Column("serial_number", _Text, nullable=False),
    Column("reason", _Text, nullable=False),
    Column("create_time", _Time, nullable=False),
    UniqueConstraint("name", "issuer", "serial_number"),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

identities = Table(
    "identities",
    metadata,
    Column("name", _Text, primary_key=True),
    Column("issuer", _Text, nullable=False),
    Column("serial_number", _Text, nullable=False),
    Column("not_before", _Time, nullable=False),
    Column("activate_time", _Time, nullable=False),
    Column("source_ip", _Text, nullable=False),
    Column("newest_not_before", _Time, nullable=False),
    Column("retired", _Text),
    Column("contest", _Text),
    Column("displaced_count", _Sequence, nullable=False),
    Column("displace_time", _Time),
    # How often the row was written, or, until an older release, a number that grew with each identity's change.
    Column("change_sequence", _Sequence, nullable=False),
    sqlite_strict=True,
)

changes = Table(
    # Every program that writes numbers its own rows (`change_feed`).
    "changes",
    metadata,
    Column("writer", _Text, primary_key=True),
    Column("number", _Sequence, primary_key=True, autoincrement=False),
    Column("kind", _Text, nullable=False),
    Column("key", _Text, nullable=False),
    Column("time", _Time, nullable=False),
    sqlite_strict=True,
)

Index("ix_changes_time", changes.c.time)  # which every reader has read long ago

brokers = Table(
    "brokers",
    metadata,
    Column("broker_id", _Text, primary_key=True),
    Column("name", _Text, nullable=False),
    Column("address", _Text, nullable=False),
    Column("version", _Text, nullable=False),
    Column("start_time", _Time, nullable=False),
    Column("policy_hash", _Text, nullable=False),
    Column("trust_hash", _Text, nullable=False),
    Column("configuration_hash", _Text, nullable=False),
    Column("stream_count", _Sequence, nullable=False),
    # By the database's clock, where brokers share a database.
    Column("lease_until", _Time, nullable=False),
    Column("audit_mode", _Text, nullable=False, server_default=""),
    # The public keys of its ACME accounts: JSON, pairs of issuer and SHA-256.
    Column("account_keys", _Text),
    # Its clock less the database's, when it last renewed its lease.
    Column("clock_skew", _Time, nullable=False, server_default="0"),
    Column("reuse_port", Integer, nullable=False, server_default="0"),
    # The newest schema that its program knows: whom a migration would shut out.
    Column("schema_revision", _Text, nullable=False, server_default=""),
    # Whether an operator has taken it out of service.
    Column("draining", Integer, nullable=False, server_default="0"),
    sqlite_strict=True,
)

policy_versions = Table(
    # The policies that were in force, the last hundred.
    "policy_versions",
    metadata,
    Column("number", _Sequence, primary_key=True, autoincrement=False),
    Column("hash", _Text, nullable=False),
    Column("load_time", _Time, nullable=False),
    Column("loaded_by", _Text, nullable=False),
    Column("broker_name", _Text, nullable=False),
    # What changed against the policy before, by subject: JSON.
    Column("counts", _Text),
    Column("text_size", _Sequence, nullable=False),
    # The text, compressed; NULL if it was too large to be kept.
    Column("packed", LargeBinary),
    sqlite_strict=True,
)
Index("ix_policy_versions_hash", policy_versions.c.hash, policy_versions.c.number)  # one by its hash

broker_requests = Table(
    # What operators ask of brokers through another one: rows stay for minutes.
    "broker_requests",
    metadata,
    Column("request_key", _Text, primary_key=True),
    Column("broker_id", _Text, nullable=False),
    Column("command", _Text, nullable=False),
    Column("asked_by", _Text, nullable=False),
    Column("confirmed", Integer, nullable=False),
    Column("identity", _Text, nullable=False),
    Column("request_id", _Text, nullable=False),
    Column("reason", _Text, nullable=False),
    Column("create_time", _Time, nullable=False),
    # NULL until the broker has answered: JSON.
    Column("answer", _Text),
    sqlite_strict=True,
)
Index("ix_broker_requests_broker_id", broker_requests.c.broker_id, broker_requests.c.create_time)  # what is asked of it
Index("ix_broker_requests_create_time", broker_requests.c.create_time)  # those that nobody waits for

leases = Table(
    # Who does what is done once for all brokers, as long as its own lease (`brokers`) stands; none if the holder is ''.
    "leases",
    metadata,
    Column("role", _Text, primary_key=True),
    Column("holder", _Text, nullable=False),
    Column("epoch", _Sequence, nullable=False),
    sqlite_strict=True,
)

issuer_holds = Table(
    # What a CA has asked to wait for, and CAs that are out of reach.
    "issuer_holds",
    metadata,
    Column("issuer", _Text, primary_key=True),
    Column("directory_url", _Text, primary_key=True),
    Column("scope", _Text, primary_key=True),
    # Of a scope that is about one set of names; else empty.
    Column("names_sha256", _Text, primary_key=True),
    Column("until", _Time, nullable=False),
    Column("refusal", _Text, nullable=False),
    # With which one it ends; empty: the issuer named the time.
    Column("retry_epoch", _Text, nullable=False),
    sqlite_strict=True,
)

Index("ix_issuer_holds_until", issuer_holds.c.until)  # which have ended

shared_values = Table(
    # What all brokers have in common and no table of its own: the retry epoch.
    "shared_values",
    metadata,
    Column("name", _Text, primary_key=True),
    Column("value", _Text, nullable=False),
    Column("change_time", _Time, nullable=False),
    sqlite_strict=True,
)

acme_accounts = Table(
    # Which account the brokers order with, and its key where the database keeps it.
    "acme_accounts",
    metadata,
    Column("issuer", _Text, primary_key=True),
    # Of the CA: another one has another account, and this one's key isn't lost when an issuer moves there and back.
    Column("directory_url", _Text, primary_key=True),
    Column("public_key_sha256", _Text, nullable=False),
    # AES-256-GCM under `store.seal_secret`; NULL where each broker has the key itself.
    Column("sealed_key", LargeBinary),
    # The new key while a change of the key is under way.
    Column("next_key_sha256", _Text, nullable=False),
    Column("sealed_next_key", LargeBinary),
    Column("change_time", _Time, nullable=False),
    sqlite_strict=True,
)

notification_troubles = Table(
    # What notifiers were told of, and not yet that it is over.
    "notification_troubles",
    metadata,
    Column("notifier", _Text, primary_key=True),
    Column("cause", _Text, primary_key=True),
    Column("word", _Text, nullable=False),
    Column("certificate_count", _Sequence, nullable=False),
    Column("open_time", _Time, nullable=False),
    Column("tell_time", _Time, nullable=False),
    sqlite_strict=True,
)

notification_outbox = Table(
    # Messages that their receivers don't have yet, as far as anybody knows.
    "notification_outbox",
    metadata,
    Column("message_id", _Text, primary_key=True),
    Column("notifier", _Text, nullable=False),
    Column("kind", _Text, nullable=False),
    Column("create_time", _Time, nullable=False),
    Column("troubles", _Text),
    Column("trouble_count", _Sequence, nullable=False),
    Column("fleet", _Text),
    # Begun, whatever came of it.
    Column("attempts", _Sequence, nullable=False),
    # NULL before the first attempt.
    Column("next_attempt_time", _Time),
    Column("error", _Text, nullable=False),
    sqlite_strict=True,
)

Index("ix_notification_outbox_notifier", notification_outbox.c.notifier, notification_outbox.c.message_id)  # the oldest

audit_sinks = Table(
    # How far each copy of the audit log is.
    "audit_sinks",
    metadata,
    Column("sink", _Text, primary_key=True),
    Column("low", _Sequence, nullable=False),
    # Of numbers above that were copied: JSON, pairs of the first and the last.
    Column("ranges", _Text, nullable=False),
    Column("change_time", _Time, nullable=False),
    sqlite_strict=True,
)

enrollment_reports = Table(
    "enrollment_reports",
    metadata,
    Column("identity", _Text, primary_key=True),
    Column("agent_version", _Text, nullable=False),
    Column("host_facts", _Text, nullable=False),
    Column("identity_serial_number", _Text, nullable=False),
    Column("record_time", _Time, nullable=False),
    sqlite_strict=True,
)

Index("ix_enrollment_reports_record_time", enrollment_reports.c.record_time)  # which are old enough to be pruned

host_streams = Table(
    "host_streams",
    metadata,
    Column("host", _Text, primary_key=True),
    Column("agent_version", _Text, nullable=False),
    # What agents of before don't say.
    Column("agent_mode", _Text),
    Column("run_interval", _Time),
    Column("broker_roots_sha256", _Text),
    Column("features", _Text),
    Column("identity_serial_number", _Text, nullable=False),
    Column("identity_not_after", _Time, nullable=False),
    Column("source_ip", _Text, nullable=False),
    Column("connect_time", _Time, nullable=False),
    Column("last_seen_time", _Time, nullable=False),
    Column("end_time", _Time),
    Column("clock_skew", _Time),
    Column("directive_error", _Text),
    # Which broker has the stream, and a number that rises with each hello: writes of an earlier stream are refused.
    Column("broker_id", _Text, nullable=False, server_default=""),
    Column("stream_epoch", _Sequence, nullable=False, server_default="0"),
    # The CA of the bundle that the host was let in by: whom another bundle would shut out.
    Column("identity_anchor", _Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

report_sequences = Table(
    # Apart from host_streams, since every report changes it: a short row is a short write.
    "report_sequences",
    metadata,
    Column("host", _Text, primary_key=True),
    Column("epoch", _Text, nullable=False),
    Column("acknowledged_sequence", _Sequence, nullable=False),
    sqlite_strict=True,
)

certificate_statuses = Table(
    "certificate_statuses",
    metadata,
    Column("host", _Text, primary_key=True),
    Column("name", _Text, primary_key=True),
    Column("state", _Text, nullable=False),
    Column("status", _Text, nullable=False),
    # The last one that wasn't empty: what was audited last.
    Column("outcome", _Text, nullable=False),
    sqlite_strict=True,
)

certificate_watchers = Table(
    # Services that watch their certificates, by the broker where they do. Of one that was killed it says nothing.
    "certificate_watchers",
    metadata,
    Column("identity", _Text, primary_key=True),
    Column("broker_id", _Text, primary_key=True),
    Column("watch_count", _Sequence, nullable=False),
    Column("client_version", _Text, nullable=False),
    Column("identity_serial_number", _Text, nullable=False),
    Column("identity_not_after", _Time, nullable=False),
    Column("source_ip", _Text, nullable=False),
    Column("connect_time", _Time, nullable=False),
    Column("last_seen_time", _Time, nullable=False),
    Column("end_time", _Time),
    sqlite_strict=True,
)

Index("ix_certificate_watchers_last_seen_time", certificate_watchers.c.last_seen_time)  # who is gone for long

renewal_requests = Table(
    # What operators asked for, by the id that they or the broker chose: asked again, it changes nothing.
    "renewal_requests",
    metadata,
    Column("requester", _Text, primary_key=True),
    Column("request_id", _Text, primary_key=True),
    Column("create_time", _Time, nullable=False),
    Column("certificate_count", _Sequence, nullable=False),
    Column("changed_count", _Sequence, nullable=False),
    Column("last_renew_time", _Time),
    Column("held_up", _Text),
    Column("held_up_count", _Sequence, nullable=False, server_default="0"),
    Column("reason", _Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

Index("ix_renewal_requests_create_time", renewal_requests.c.create_time)  # which are old enough to be pruned
Index("ix_renewal_requests_request_id", renewal_requests.c.request_id)  # one whose requester isn't known

renewal_request_items = Table(
    # What a request was for: certificates, and identities of hosts. Written with it, and never changed.
    "renewal_request_items",
    metadata,
    Column("requester", _Text, primary_key=True),
    Column("request_id", _Text, primary_key=True),
    Column("number", _Sequence, primary_key=True, autoincrement=False),
    Column("host", _Text, nullable=False),
    # Empty of an identity.
    Column("certificate_id", _Text, nullable=False),
    # Of the identity's certificate that is to be replaced; else empty.
    Column("serial_number", _Text, nullable=False),
    Column("renew_time", _Time, nullable=False),
    # Whether the request gave it that time; else it was due as early anyway.
    Column("planned", Integer, nullable=False),
    sqlite_strict=True,
)

Index(
    "ix_renewal_request_items_identity",  # what a host should be told of its identity
    renewal_request_items.c.host,
    sqlite_where=text("certificate_id = ''"),
    postgresql_where=text("certificate_id = ''"),
)

audit_events = Table(
    # Rows never change. What is stored of an event is `body`, or `record` where that is NULL (`audit_records`).
    "audit_events",
    metadata,
    Column("sequence", _Sequence, primary_key=True, autoincrement=True),
    # Makes the import of spilled events happen once. Ids that sort by age keep its index an append.
    Column("event_id", _Text, nullable=False, unique=True),
    Column("create_time", _Time, nullable=False),
    # The event as text: of releases before `body` was there, and of events that were made elsewhere; else `{}`.
    Column("record", _Text, nullable=False),
    # Its place in the chain of its writer (`audit_chain`); NULL where a release without chains wrote it.
    Column("chain_id", Integer),
    Column("number", _Sequence),
    Column("hash", LargeBinary),
    Column("body", LargeBinary),
    # The event's type where it is one of the few that tell of a change by people or programs, so that they are found.
    Column("kind", _Text),
    sqlite_strict=True,
)

Index(
    "ix_audit_events_kind",  # what changed lately
    audit_events.c.kind,
    audit_events.c.sequence,
    sqlite_where=text("kind IS NOT NULL"),
    postgresql_where=text("kind IS NOT NULL"),
)

audit_chains = Table(
    # One of each start of a broker, and of each command that has written events. They stay when their events are gone.
    "audit_chains",
    metadata,
    Column("chain_id", Integer, primary_key=True, autoincrement=True),
    Column("writer_id", _Text, nullable=False),
    Column("start_time", _Time, nullable=False),
    # The newest event of the log when the chain began, of whichever chain: so no chain can be taken out between others.
    Column("after_chain_id", Integer, nullable=False),
    Column("after_number", _Sequence, nullable=False),
    Column("after_hash", LargeBinary, nullable=False),
    # No event of the chain stands before this place.
    Column("first_sequence", _Sequence, nullable=False),
    # Events up to this number were removed by age, or are being removed: a checkpoint has it.
    Column("pruned_number", _Sequence, nullable=False, server_default="0"),
    # Since when its writer has ended and its last event has a checkpoint; NULL before.
    Column("end_time", _Time),
    sqlite_strict=True,
    sqlite_autoincrement=True,
)

Index(
    "ix_audit_chains_open",  # whose ends another broker may have to seal
    audit_chains.c.chain_id,
    sqlite_where=text("end_time IS NULL"),
    postgresql_where=text("end_time IS NULL"),
)

audit_checkpoints = Table(
    # How far a chain had come at a time, and its hash there, signed.
    "audit_checkpoints",
    metadata,
    Column("chain_id", Integer, primary_key=True, autoincrement=False),
    Column("number", _Sequence, primary_key=True, autoincrement=False),
    # Of the event with this number.
    Column("sequence", _Sequence, nullable=False),
    Column("time", _Time, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # Which key has signed it; empty without a signature.
    Column("key_id", _Text, nullable=False),
    Column("signature", LargeBinary),
    sqlite_strict=True,
)

audit_repeats = Table(
    # Counts of repeated events while they grow. Rows of `audit_events` one day, so they look like them.
    "audit_repeats",
    metadata,
    Column("event_id", _Text, primary_key=True),
    Column("create_time", _Time, nullable=False),
    Column("record", _Text, nullable=False),
    # Who counts; empty in rows of before.
    Column("broker_id", _Text, nullable=False, server_default=""),
    sqlite_strict=True,
)
