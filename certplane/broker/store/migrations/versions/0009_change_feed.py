"""The change feed, in place of the counter that every change of an identity had to take."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table; nobody reads the counter or looks for identities by their number any more."""
    op.create_table(
        "changes",
        sa.Column("writer", sa.Text, nullable=False),
        sa.Column("number", _sequence, nullable=False, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("time", _sequence, nullable=False),
        sa.PrimaryKeyConstraint("writer", "number", name="pk_changes"),
        sqlite_strict=True,
    )
    op.create_index("ix_changes_time", "changes", ["time"])
    op.drop_index("ix_identities_change_sequence", "identities")
    op.drop_table("identity_changes")


def downgrade() -> None:
    """Make the counter again, beyond every number that was given out."""
    op.create_table(
        "identity_changes",
        sa.Column("counter_id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("last_sequence", _sequence, nullable=False),
        sa.PrimaryKeyConstraint("counter_id", name="pk_identity_changes"),
        sqlite_strict=True,
    )
    op.execute("INSERT INTO identity_changes SELECT 1, coalesce(max(change_sequence), 0) FROM identities")
    op.create_index("ix_identities_change_sequence", "identities", ["change_sequence"])
    op.drop_index("ix_changes_time", "changes")
    op.drop_table("changes")
