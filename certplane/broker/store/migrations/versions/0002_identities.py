"""Which certificate of each host's identity is in use, which it has retired, and who contests it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the ledger, empty: the next call of each host fills it."""
    op.create_table(
        "identities",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("serial_number", sa.Text, nullable=False),
        sa.Column("not_before", _time, nullable=False),
        sa.Column("activate_time", _time, nullable=False),
        sa.Column("source_ip", sa.Text, nullable=False),
        sa.Column("newest_not_before", _time, nullable=False),
        sa.Column("retired", sa.Text),
        sa.Column("contest", sa.Text),
        sa.Column("displaced_count", _time, nullable=False),
        sa.Column("displace_time", _time),
        sa.Column("change_sequence", _time, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_identities"),
        sqlite_strict=True,
    )
    op.create_index("ix_identities_change_sequence", "identities", ["change_sequence"])
    op.create_table(
        "identity_changes",
        sa.Column("counter_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("last_sequence", _time, nullable=False),
        sa.PrimaryKeyConstraint("counter_id", name="pk_identity_changes"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """Forget the ledger."""
    op.drop_table("identity_changes")
    op.drop_table("identities")
