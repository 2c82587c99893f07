"""What brokers that share a database must decide together: lanes, streams, holds, accounts, roles."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Rows of before have no lane and no broker: whoever runs an order next, or hears a host, says so."""
    op.add_column("orders", sa.Column("lane", _text))
    op.add_column("orders", sa.Column("turn_time", _time))
    has_turn, there = sa.text("turn_time IS NOT NULL"), sa.text("lane IS NOT NULL")
    op.create_index("uq_orders_lane", "orders", ["lane"], unique=True, sqlite_where=has_turn, postgresql_where=has_turn)
    op.create_index("ix_orders_lane", "orders", ["lane", "create_time"], sqlite_where=there, postgresql_where=there)
    op.add_column("host_streams", sa.Column("broker_id", _text, nullable=False, server_default=""))
    op.add_column("host_streams", sa.Column("stream_epoch", _time, nullable=False, server_default="0"))
    op.add_column("brokers", sa.Column("audit_mode", _text, nullable=False, server_default=""))
    op.add_column("brokers", sa.Column("account_keys", _text))
    op.add_column("brokers", sa.Column("clock_skew", _time, nullable=False, server_default="0"))
    op.add_column("brokers", sa.Column("reuse_port", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("brokers", sa.Column("schema_revision", _text, nullable=False, server_default=""))
    op.add_column("audit_repeats", sa.Column("broker_id", _text, nullable=False, server_default=""))
    op.create_table(
        "leases",
        sa.Column("role", _text, nullable=False),
        sa.Column("holder", _text, nullable=False),
        sa.Column("epoch", _time, nullable=False),
        sa.PrimaryKeyConstraint("role", name="pk_leases"),
        sqlite_strict=True,
    )
    op.create_table(
        "issuer_holds",
        sa.Column("issuer", _text, nullable=False),
        sa.Column("directory_url", _text, nullable=False),
        sa.Column("scope", _text, nullable=False),
        sa.Column("names_sha256", _text, nullable=False),
        sa.Column("until", _time, nullable=False),
        sa.Column("refusal", _text, nullable=False),
        sa.Column("retry_epoch", _text, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "directory_url", "scope", "names_sha256", name="pk_issuer_holds"),
        sqlite_strict=True,
    )
    op.create_index("ix_issuer_holds_until", "issuer_holds", ["until"])
    op.create_table(
        "shared_values",
        sa.Column("name", _text, nullable=False),
        sa.Column("value", _text, nullable=False),
        sa.Column("change_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_shared_values"),
        sqlite_strict=True,
    )
    op.create_table(
        "acme_accounts",
        sa.Column("issuer", _text, nullable=False),
        sa.Column("directory_url", _text, nullable=False),
        sa.Column("public_key_sha256", _text, nullable=False),
        sa.Column("sealed_key", sa.LargeBinary()),
        sa.Column("next_key_sha256", _text, nullable=False),
        sa.Column("sealed_next_key", sa.LargeBinary()),
        sa.Column("change_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("issuer", "directory_url", name="pk_acme_accounts"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """An older release runs alone."""
    for table in ("acme_accounts", "shared_values", "issuer_holds", "leases"):
        op.drop_table(table)
    for name in ("schema_revision", "reuse_port", "clock_skew", "account_keys", "audit_mode"):
        op.drop_column("brokers", name)
    op.drop_column("audit_repeats", "broker_id")
    op.drop_column("host_streams", "stream_epoch")
    op.drop_column("host_streams", "broker_id")
    op.drop_index("ix_orders_lane", "orders")
    op.drop_index("uq_orders_lane", "orders")
    op.drop_column("orders", "turn_time")
    op.drop_column("orders", "lane")
