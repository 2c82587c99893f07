"""The first schema: orders, certificates, keys, deny-list, enrollment reports, audit events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "orders",
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("identity_serial", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("profile_hash", sa.Text, nullable=False),
        sa.Column("dns_names", sa.Text, nullable=False),
        sa.Column("names_sha256", sa.Text, nullable=False),
        sa.Column("public_key_sha256", sa.Text, nullable=False),
        sa.Column("csr_der", sa.LargeBinary, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("replaces_certificate_id", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("update_time", _time, nullable=False),
        sa.Column("end_time", _time),
        sa.Column("acme_order_url", sa.Text, nullable=False),
        sa.Column("txt_records", sa.Text),
        sa.Column("certificate_id", sa.Text, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("retry_time", _time),
        sa.PrimaryKeyConstraint("order_id", name="pk_orders"),
        sqlite_strict=True,
    )
    op.create_index(
        "uq_orders_open",
        "orders",
        ["identity", "profile_hash", "names_sha256", "public_key_sha256", "replaces_certificate_id"],
        unique=True,
        sqlite_where=sa.text("end_time IS NULL"),
        postgresql_where=sa.text("end_time IS NULL"),
    )
    op.create_index("ix_orders_key", "orders", ["public_key_sha256", "create_time"])
    op.create_index("ix_orders_identity", "orders", ["identity", "create_time"])
    op.create_index("ix_orders_identity_profile", "orders", ["identity", "profile", "create_time"])
    op.create_index(
        "ix_orders_unfinished",
        "orders",
        ["create_time"],
        sqlite_where=sa.text("end_time IS NULL OR txt_records IS NOT NULL"),
        postgresql_where=sa.text("end_time IS NULL OR txt_records IS NOT NULL"),
    )
    op.create_table(
        "certificates",
        sa.Column("certificate_id", sa.Text, nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("profile_hash", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("dns_names", sa.Text, nullable=False),
        sa.Column("public_key_sha256", sa.Text, nullable=False),
        sa.Column("serial_number", sa.Text, nullable=False),
        sa.Column("certificate_pem", sa.Text, nullable=False),
        sa.Column("chain_pem", sa.Text, nullable=False),
        sa.Column("not_before", _time, nullable=False),
        sa.Column("not_after", _time, nullable=False),
        sa.Column("renew_time", _time, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("acme_order_url", sa.Text, nullable=False),
        sa.Column("deliver_time", _time),
        sa.Column("revoke_time", _time),
        sa.Column("revocation_reason", sa.Text),
        sa.PrimaryKeyConstraint("certificate_id", name="pk_certificates"),
        sa.UniqueConstraint("order_id", name="uq_certificates_order_id"),
        sa.ForeignKeyConstraint(["order_id"], ["orders.order_id"], name="fk_certificates_order_id"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_certificates_cached",
        "certificates",
        ["public_key_sha256", "profile_hash", "identity", "issuer", "create_time"],
        sqlite_where=sa.text("revoke_time IS NULL"),
        postgresql_where=sa.text("revoke_time IS NULL"),
    )
    op.create_index("ix_certificates_identity", "certificates", ["identity", "create_time", "certificate_id"])
    op.create_index("ix_certificates_create_time", "certificates", ["create_time", "certificate_id"])
    op.create_table(
        "keys",
        sa.Column("public_key_sha256", sa.Text, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("first_use_time", _time, nullable=False),
        sa.Column("block_time", _time),
        sa.PrimaryKeyConstraint("public_key_sha256", name="pk_keys"),
        sqlite_strict=True,
    )
    op.create_table(
        "deny_entries",
        sa.Column("entry_id", _time, nullable=False, autoincrement=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("serial_number", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_deny_entries"),
        sa.UniqueConstraint("name", "issuer", "serial_number", name="uq_deny_entries_name_issuer_serial_number"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_table(
        "enrollment_reports",
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("host_facts", sa.Text, nullable=False),
        sa.Column("identity_serial_number", sa.Text, nullable=False),
        sa.Column("record_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("identity", name="pk_enrollment_reports"),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_events",
        sa.Column("sequence", _time, nullable=False, autoincrement=True),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_events"),
        sa.UniqueConstraint("event_id", name="uq_audit_events_event_id"),
        sqlite_strict=True,
    )
