"""Texts of PostgreSQL compare by their octets, so that an index finds a page of hosts; SQLite's always did.

And what is old enough to be pruned is found by an index.
"""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TEXTS = {
    "orders": (
        "order_id identity identity_serial profile profile_hash dns_names names_sha256 public_key_sha256 issuer "
        "request_id replaces_certificate_id state acme_order_url txt_records certificate_id error identity_issuer "
        "identity_anchor cause retry_epoch"
    ),
    "certificates": (
        "certificate_id order_id identity profile profile_hash issuer dns_names public_key_sha256 serial_number "
        "certificate_pem chain_pem acme_order_url revocation_reason"
    ),
    "renewal_plans": "certificate_id host cause reason explanation_url renewal_request_id",
    "keys": "public_key_sha256 identity",
    "deny_entries": "name issuer serial_number reason",
    "identities": "name issuer serial_number source_ip retired contest",
    "changes": "writer kind key",
    "enrollment_reports": "identity agent_version host_facts identity_serial_number",
    "host_streams": "host agent_version identity_serial_number source_ip directive_error",
    "report_sequences": "host epoch",
    "certificate_statuses": "host name state status outcome",
    "renewal_requests": "requester request_id held_up",
    "audit_events": "event_id record",
    "audit_repeats": "event_id record",
}


def upgrade() -> None:
    """One step a table: its rows stay as they are, its indexes are made again."""
    _collate('"C"')
    op.create_index("ix_enrollment_reports_record_time", "enrollment_reports", ["record_time"])
    op.create_index("ix_renewal_requests_create_time", "renewal_requests", ["create_time"])


def downgrade() -> None:
    """Compare as the database's locale says."""
    op.drop_index("ix_renewal_requests_create_time", "renewal_requests")
    op.drop_index("ix_enrollment_reports_record_time", "enrollment_reports")
    _collate('"default"')


def _collate(collation: str) -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, columns in _TEXTS.items():
        steps = ", ".join(f"ALTER COLUMN {column} TYPE TEXT COLLATE {collation}" for column in columns.split())
        op.execute(f"ALTER TABLE {table} {steps}")
