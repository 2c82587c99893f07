"""Services that watch their certificates: who does, and at which broker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Older brokers beside this one have no such services, and neither write nor read it."""
    op.create_table(
        "certificate_watchers",
        sa.Column("identity", _text, nullable=False),
        sa.Column("broker_id", _text, nullable=False),
        sa.Column("watch_count", _time, nullable=False),
        sa.Column("client_version", _text, nullable=False),
        sa.Column("identity_serial_number", _text, nullable=False),
        sa.Column("identity_not_after", _time, nullable=False),
        sa.Column("source_ip", _text, nullable=False),
        sa.Column("connect_time", _time, nullable=False),
        sa.Column("last_seen_time", _time, nullable=False),
        sa.Column("end_time", _time),
        sa.PrimaryKeyConstraint("identity", "broker_id", name="pk_certificate_watchers"),
        sqlite_strict=True,
    )
    op.create_index("ix_certificate_watchers_last_seen_time", "certificate_watchers", ["last_seen_time"])


def downgrade() -> None:
    """Services watch again, or don't."""
    op.drop_table("certificate_watchers")
