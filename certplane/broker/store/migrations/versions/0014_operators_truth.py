"""What operators and auditors ask for: an audit log that can be proven."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Events of before are in no chain, and brokers of before go on writing such."""
    op.add_column("orders", sa.Column("progress", _text))
    op.add_column("orders", sa.Column("renewal_request_id", _text, nullable=False, server_default=""))
    op.add_column("brokers", sa.Column("draining", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "policy_versions",
        sa.Column("number", _time, nullable=False, autoincrement=False),
        sa.Column("hash", _text, nullable=False),
        sa.Column("load_time", _time, nullable=False),
        sa.Column("loaded_by", _text, nullable=False),
        sa.Column("broker_name", _text, nullable=False),
        sa.Column("counts", _text),
        sa.Column("text_size", _time, nullable=False),
        sa.Column("packed", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("number", name="pk_policy_versions"),
        sqlite_strict=True,
    )
    op.create_index("ix_policy_versions_hash", "policy_versions", ["hash", "number"])
    op.create_table(
        "broker_requests",
        sa.Column("request_key", _text, nullable=False),
        sa.Column("broker_id", _text, nullable=False),
        sa.Column("command", _text, nullable=False),
        sa.Column("asked_by", _text, nullable=False),
        sa.Column("confirmed", sa.Integer(), nullable=False),
        sa.Column("identity", _text, nullable=False),
        sa.Column("request_id", _text, nullable=False),
        sa.Column("reason", _text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("answer", _text),
        sa.PrimaryKeyConstraint("request_key", name="pk_broker_requests"),
        sqlite_strict=True,
    )
    op.create_index("ix_broker_requests_broker_id", "broker_requests", ["broker_id", "create_time"])
    op.create_index("ix_broker_requests_create_time", "broker_requests", ["create_time"])
    op.add_column("host_streams", sa.Column("identity_anchor", _text, nullable=False, server_default=""))
    op.add_column("audit_events", sa.Column("chain_id", sa.Integer()))
    op.add_column("audit_events", sa.Column("number", _time))
    op.add_column("audit_events", sa.Column("hash", sa.LargeBinary()))
    op.add_column("audit_events", sa.Column("body", sa.LargeBinary()))
    op.add_column("audit_events", sa.Column("kind", _text))
    columns, there = ["kind", "sequence"], sa.text("kind IS NOT NULL")
    op.create_index("ix_audit_events_kind", "audit_events", columns, sqlite_where=there, postgresql_where=there)
    op.create_table(
        "audit_chains",
        sa.Column("chain_id", sa.Integer(), nullable=False, autoincrement=True),
        sa.Column("writer_id", _text, nullable=False),
        sa.Column("start_time", _time, nullable=False),
        sa.Column("after_chain_id", sa.Integer(), nullable=False),
        sa.Column("after_number", _time, nullable=False),
        sa.Column("after_hash", sa.LargeBinary(), nullable=False),
        sa.Column("first_sequence", _time, nullable=False),
        sa.Column("pruned_number", _time, nullable=False, server_default="0"),
        sa.Column("end_time", _time),
        sa.PrimaryKeyConstraint("chain_id", name="pk_audit_chains"),
        sqlite_strict=True,
        sqlite_autoincrement=True,
    )
    there = sa.text("end_time IS NULL")
    op.create_index("ix_audit_chains_open", "audit_chains", ["chain_id"], sqlite_where=there, postgresql_where=there)
    op.create_table(
        "audit_checkpoints",
        sa.Column("chain_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("number", _time, nullable=False),
        sa.Column("sequence", _time, nullable=False),
        sa.Column("time", _time, nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("key_id", _text, nullable=False),
        sa.Column("signature", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("chain_id", "number", name="pk_audit_checkpoints"),
        sqlite_strict=True,
    )
    op.create_table(
        "audit_sinks",
        sa.Column("sink", _text, nullable=False),
        sa.Column("low", _time, nullable=False),
        sa.Column("ranges", _text, nullable=False),
        sa.Column("change_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("sink", name="pk_audit_sinks"),
        sqlite_strict=True,
    )
    op.create_table(
        "notification_troubles",
        sa.Column("notifier", _text, nullable=False),
        sa.Column("cause", _text, nullable=False),
        sa.Column("word", _text, nullable=False),
        sa.Column("certificate_count", _time, nullable=False),
        sa.Column("open_time", _time, nullable=False),
        sa.Column("tell_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("notifier", "cause", name="pk_notification_troubles"),
        sqlite_strict=True,
    )
    op.create_table(
        "notification_outbox",
        sa.Column("message_id", _text, nullable=False),
        sa.Column("notifier", _text, nullable=False),
        sa.Column("kind", _text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("troubles", _text),
        sa.Column("trouble_count", _time, nullable=False),
        sa.Column("fleet", _text),
        sa.Column("attempts", _time, nullable=False),
        sa.Column("next_attempt_time", _time),
        sa.Column("error", _text, nullable=False),
        sa.PrimaryKeyConstraint("message_id", name="pk_notification_outbox"),
        sqlite_strict=True,
    )
    op.create_index("ix_notification_outbox_notifier", "notification_outbox", ["notifier", "message_id"])
    op.add_column("certificates", sa.Column("forget_time", _time))
    op.add_column("renewal_requests", sa.Column("reason", _text, nullable=False, server_default=""))
    op.create_index("ix_renewal_requests_request_id", "renewal_requests", ["request_id"])
    op.create_table(
        "renewal_request_items",
        sa.Column("requester", _text, nullable=False),
        sa.Column("request_id", _text, nullable=False),
        sa.Column("number", _time, nullable=False, autoincrement=False),
        sa.Column("host", _text, nullable=False),
        sa.Column("certificate_id", _text, nullable=False),
        sa.Column("serial_number", _text, nullable=False),
        sa.Column("renew_time", _time, nullable=False),
        sa.Column("planned", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("requester", "request_id", "number", name="pk_renewal_request_items"),
        sqlite_strict=True,
    )
    identity = sa.text("certificate_id = ''")
    op.create_index(
        "ix_renewal_request_items_identity",
        "renewal_request_items",
        ["host"],
        sqlite_where=identity,
        postgresql_where=identity,
    )
    op.add_column("host_streams", sa.Column("agent_mode", _text))
    op.add_column("host_streams", sa.Column("run_interval", _time))
    op.add_column("host_streams", sa.Column("broker_roots_sha256", _text))
    op.add_column("host_streams", sa.Column("features", _text))


def downgrade() -> None:
    """An older release reads whole records alone: what is written compactly is lost to it."""
    op.drop_table("notification_outbox")
    op.drop_table("notification_troubles")
    op.drop_table("audit_sinks")
    op.drop_table("renewal_request_items")
    op.drop_index("ix_renewal_requests_request_id", "renewal_requests")
    op.drop_column("renewal_requests", "reason")
    op.drop_column("certificates", "forget_time")
    for name in ("features", "broker_roots_sha256", "run_interval", "agent_mode"):
        op.drop_column("host_streams", name)
    op.drop_table("audit_checkpoints")
    op.drop_index("ix_audit_chains_open", "audit_chains")
    op.drop_table("audit_chains")
    op.drop_index("ix_audit_events_kind", "audit_events")
    for name in ("kind", "body", "hash", "number", "chain_id"):
        op.drop_column("audit_events", name)
    op.drop_column("host_streams", "identity_anchor")
    op.drop_table("broker_requests")
    op.drop_table("policy_versions")
    op.drop_column("brokers", "draining")
    op.drop_column("orders", "renewal_request_id")
    op.drop_column("orders", "progress")
