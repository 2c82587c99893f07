"""What is asked again of an order, what the limits on certificates count, and keys that a revocation has spent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_spent = sa.text("end_time IS NULL OR finalize_time IS NOT NULL")


def upgrade() -> None:
    """Add the columns; what was finalised, and which keys are spent, follows from the rows that there are."""
    for name, default in (("identity_issuer", ""), ("identity_anchor", ""), ("cause", "ordinary"), ("retry_epoch", "")):
        op.add_column("orders", sa.Column(name, sa.Text, nullable=False, server_default=default))
    for name in ("ask_time", "finalize_time"):
        op.add_column("orders", sa.Column(name, _time))
    op.add_column("certificates", sa.Column("withdrawn", sa.Integer, nullable=False, server_default="0"))
    op.add_column("keys", sa.Column("spend_time", _time))
    op.execute("UPDATE orders SET finalize_time = update_time WHERE state IN ('FINALIZING', 'ISSUED')")
    revoked = "FROM certificates WHERE certificates.public_key_sha256 = keys.public_key_sha256"
    op.execute(f"UPDATE keys SET spend_time = (SELECT min(revoke_time) {revoked})")  # noqa: S608 - a constant
    op.create_index(
        "ix_orders_spent",
        "orders",
        ["names_sha256", "create_time"],
        sqlite_where=_spent,
        postgresql_where=_spent,
    )
    op.create_index("ix_orders_profile", "orders", ["profile", "end_time"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_orders_profile", "orders")
    op.drop_index("ix_orders_spent", "orders")
    op.drop_column("keys", "spend_time")
    op.drop_column("certificates", "withdrawn")
    for name in ("finalize_time", "ask_time", "retry_epoch", "cause", "identity_anchor", "identity_issuer"):
        op.drop_column("orders", name)
