"""When each certificate should be renewed, and the indexes that tell which ones are in force."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the table, empty: the next checks fill it."""
    op.create_table(
        "renewal_plans",
        sa.Column("certificate_id", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("renew_time", _time, nullable=False),
        sa.Column("cause", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("explanation_url", sa.Text, nullable=False),
        sa.Column("window_start", _time),
        sa.Column("window_end", _time),
        sa.Column("next_check_time", _time),
        sa.Column("check_failures", sa.Integer, nullable=False),
        sa.Column("renewal_request_id", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("certificate_id", name="pk_renewal_plans"),
        sa.ForeignKeyConstraint(
            ["certificate_id"], ["certificates.certificate_id"], name="fk_renewal_plans_certificate_id"
        ),
        sqlite_strict=True,
    )
    op.create_index("ix_renewal_plans_next_check_time", "renewal_plans", ["next_check_time"])
    op.create_index(
        "ix_orders_replaces",
        "orders",
        ["replaces_certificate_id"],
        sqlite_where=sa.text("state = 'ISSUED'"),
        postgresql_where=sa.text("state = 'ISSUED'"),
    )
    op.create_index(
        "ix_certificates_not_after",
        "certificates",
        ["not_after"],
        sqlite_where=sa.text("revoke_time IS NULL"),
        postgresql_where=sa.text("revoke_time IS NULL"),
    )


def downgrade() -> None:
    """Forget the plans: they are made again from what the CA says."""
    op.drop_index("ix_certificates_not_after", "certificates")
    op.drop_index("ix_orders_replaces", "orders")
    op.drop_table("renewal_plans")
