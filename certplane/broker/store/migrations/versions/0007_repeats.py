"""The counts of repeated audit events while they grow, and the index that tells which orders ended long ago."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make table and index."""
    op.create_table(
        "audit_repeats",
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_audit_repeats"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_orders_end_time",
        "orders",
        ["end_time"],
        sqlite_where=sa.text("end_time IS NOT NULL"),
        postgresql_where=sa.text("end_time IS NOT NULL"),
    )


def downgrade() -> None:
    """Make events of the counts, as a start does, and drop both."""
    op.execute(
        "INSERT INTO audit_events (event_id, create_time, record) "
        "SELECT event_id, create_time, record FROM audit_repeats WHERE event_id <> '' ORDER BY event_id"
    )
    op.drop_index("ix_orders_end_time", "orders")
    op.drop_table("audit_repeats")
