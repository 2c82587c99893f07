"""The index that tells which certificates were revoked lately."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index(
        "ix_certificates_revoke_time",
        "certificates",
        ["revoke_time"],
        sqlite_where=sa.text("revoke_time IS NOT NULL"),
        postgresql_where=sa.text("revoke_time IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop it: revocations themselves stay."""
    op.drop_index("ix_certificates_revoke_time", "certificates")
