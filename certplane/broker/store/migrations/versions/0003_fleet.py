"""What hosts report of their certificates, and each host's last stream."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables, empty: the hosts' next streams fill them."""
    op.create_table(
        "host_streams",
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("identity_serial_number", sa.Text, nullable=False),
        sa.Column("identity_not_after", _time, nullable=False),
        sa.Column("source_ip", sa.Text, nullable=False),
        sa.Column("connect_time", _time, nullable=False),
        sa.Column("last_seen_time", _time, nullable=False),
        sa.Column("end_time", _time),
        sa.Column("clock_skew", _time),
        sa.Column("directive_error", sa.Text),
        sa.PrimaryKeyConstraint("host", name="pk_host_streams"),
        sqlite_strict=True,
    )
    op.create_table(
        "report_sequences",
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("acknowledged_sequence", _time, nullable=False),
        sa.PrimaryKeyConstraint("host", name="pk_report_sequences"),
        sqlite_strict=True,
    )
    op.create_table(
        "certificate_statuses",
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("host", "name", name="pk_certificate_statuses"),
        sqlite_strict=True,
    )
    op.create_table(
        "renewal_requests",
        sa.Column("requester", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("certificate_count", _time, nullable=False),
        sa.Column("changed_count", _time, nullable=False),
        sa.Column("last_renew_time", _time),
        sa.PrimaryKeyConstraint("requester", "request_id", name="pk_renewal_requests"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """Forget them."""
    op.drop_table("renewal_requests")
    op.drop_table("certificate_statuses")
    op.drop_table("report_sequences")
    op.drop_table("host_streams")
