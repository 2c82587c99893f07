"""What held up the certificates of an operator's request, so that asking again has the same answer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_sequence = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add the columns."""
    op.add_column("renewal_requests", sa.Column("held_up", sa.Text))
    op.add_column("renewal_requests", sa.Column("held_up_count", _sequence, nullable=False, server_default="0"))


def downgrade() -> None:
    """Drop them."""
    op.drop_column("renewal_requests", "held_up_count")
    op.drop_column("renewal_requests", "held_up")
