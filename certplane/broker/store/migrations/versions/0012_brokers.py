"""The brokers that share a database, and which of them runs each order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Orders of before have no holder: the broker that starts takes them."""
    op.create_table(
        "brokers",
        sa.Column("broker_id", _text, nullable=False),
        sa.Column("name", _text, nullable=False),
        sa.Column("address", _text, nullable=False),
        sa.Column("version", _text, nullable=False),
        sa.Column("start_time", _time, nullable=False),
        sa.Column("policy_hash", _text, nullable=False),
        sa.Column("trust_hash", _text, nullable=False),
        sa.Column("configuration_hash", _text, nullable=False),
        sa.Column("stream_count", _time, nullable=False),
        sa.Column("lease_until", _time, nullable=False),
        sa.PrimaryKeyConstraint("broker_id", name="pk_brokers"),
        sqlite_strict=True,
    )
    op.add_column("orders", sa.Column("holder", _text, nullable=False, server_default=""))
    op.add_column("orders", sa.Column("epoch", _time, nullable=False, server_default="0"))


def downgrade() -> None:
    """An older release takes whatever is open."""
    op.drop_column("orders", "epoch")
    op.drop_column("orders", "holder")
    op.drop_table("brokers")
