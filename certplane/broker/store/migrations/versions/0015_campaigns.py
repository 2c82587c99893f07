"""The operator's night: rollouts in rings, and what belongs to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

_time = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_text = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Older brokers beside this one neither write nor read any of it."""
    _add_rollouts()
    _add_to_orders()
    _add_plans_of_rollouts()
    _add_incidents()
    _add_budget()
    _add_compromised_keys()


def _add_rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("rollout_id", _text, nullable=False),
        sa.Column("created_by", _text, nullable=False),
        sa.Column("request_id", _text, nullable=False),
        sa.Column("version", _time, nullable=False),
        sa.Column("spec", _text, nullable=False),
        sa.Column("state", _text, nullable=False),
        sa.Column("state_reason", _text, nullable=False),
        sa.Column("rings", _text, nullable=False),
        sa.Column("attempt", _time, nullable=False),
        sa.Column("finish", _text, nullable=False),
        sa.Column("host_count", _time, nullable=False),
        sa.Column("certificate_count", _time, nullable=False),
        sa.Column("revoked_count", _time, nullable=False),
        sa.Column("unrevoked_count", _time, nullable=False),
        sa.Column("approved_by", _text, nullable=False),
        sa.Column("incident_id", _text, nullable=False),
        sa.Column("create_time", _time, nullable=False),
        sa.Column("start_time", _time),
        sa.Column("update_time", _time, nullable=False),
        sa.Column("end_time", _time),
        sa.Column("expected_end_time", _time),
        sa.PrimaryKeyConstraint("rollout_id", name="pk_rollouts"),
        sqlite_strict=True,
    )
    op.create_index("uq_rollouts_request_id", "rollouts", ["created_by", "request_id"], unique=True)
    op.create_index("ix_rollouts_create_time", "rollouts", ["create_time", "rollout_id"])
    is_open, ended = sa.text("end_time IS NULL"), sa.text("end_time IS NOT NULL")
    columns = ["create_time", "rollout_id"]
    op.create_index("ix_rollouts_open", "rollouts", columns, sqlite_where=is_open, postgresql_where=is_open)
    op.create_index("ix_rollouts_end_time", "rollouts", ["end_time"], sqlite_where=ended, postgresql_where=ended)
    op.create_table(
        "rollout_items",
        sa.Column("rollout_id", _text, nullable=False),
        sa.Column("certificate_id", _text, nullable=False),
        sa.Column("host", _text, nullable=False),
        sa.Column("certificate_name", _text, nullable=False),
        sa.Column("profile", _text, nullable=False),
        sa.Column("issuer", _text, nullable=False),
        sa.Column("dns_names", _text),
        sa.Column("not_after", _time, nullable=False),
        sa.Column("ring", _time, nullable=False),
        sa.Column("state", _text, nullable=False),
        sa.Column("place", _time, nullable=False),
        sa.Column("reason", _text, nullable=False),
        sa.Column("attempt", _time, nullable=False),
        sa.Column("new_certificate_id", _text, nullable=False),
        sa.Column("failure_mark", _text, nullable=False),
        sa.Column("release_time", _time),
        sa.Column("done_time", _time),
        sa.Column("revoke_time", _time),
        sa.Column("excused", _time, nullable=False),
        sa.PrimaryKeyConstraint("rollout_id", "certificate_id", name="pk_rollout_items"),
        sqlite_strict=True,
    )
    op.create_index("ix_rollout_items_place", "rollout_items", ["rollout_id", "place", "certificate_id"])
    op.create_index("ix_rollout_items_host", "rollout_items", ["host"])
    op.create_index("ix_rollout_items_certificate_id", "rollout_items", ["certificate_id"])


def _add_to_orders() -> None:
    """Which rollout wants an order, and where it moves it to."""
    for name in ("rollout_id", "to_issuer"):
        op.add_column("orders", sa.Column(name, _text, nullable=False, server_default=""))


def _add_plans_of_rollouts() -> None:
    """What a rollout asks for besides."""
    op.add_column("renewal_plans", sa.Column("rollout_id", _text, nullable=False, server_default=""))
    op.add_column("renewal_plans", sa.Column("hold_activation", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("renewal_plans", sa.Column("activate_by_time", _time))
    op.add_column("renewal_plans", sa.Column("new_key", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("renewal_plans", sa.Column("to_issuer", _text, nullable=False, server_default=""))


def _add_incidents() -> None:
    op.create_table(
        "moved_windows",
        sa.Column("certificate_id", _text, nullable=False),
        sa.Column("host", _text, nullable=False),
        sa.Column("issuer", _text, nullable=False),
        sa.Column("move_time", _time, nullable=False),
        sa.Column("window_start", _time, nullable=False),
        sa.Column("window_end", _time, nullable=False),
        sa.Column("due_before", _time, nullable=False),
        sa.Column("explanation_url", _text, nullable=False),
        sa.Column("forward", _time, nullable=False),
        sa.Column("incident_id", _text, nullable=False, server_default=""),
        sa.Column("rollout_id", _text, nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("certificate_id", name="pk_moved_windows"),
        sqlite_strict=True,
    )
    op.create_index("ix_moved_windows_incident_id", "moved_windows", ["incident_id", "certificate_id"])
    op.create_table(
        "incidents",
        sa.Column("incident_id", _text, nullable=False),
        sa.Column("issuer", _text, nullable=False),
        sa.Column("open_time", _time, nullable=False),
        sa.Column("version", _time, nullable=False),
        sa.Column("deadline", _time),
        sa.Column("explanation_url", _text, nullable=False),
        sa.Column("close_time", _time),
        sa.Column("rollout_id", _text, nullable=False),
        sa.Column("rollout_count", _time, nullable=False),
        sa.Column("trouble", _text, nullable=False),
        sa.Column("figures", _text),
        sa.PrimaryKeyConstraint("incident_id", name="pk_incidents"),
        sqlite_strict=True,
    )
    there, gone = sa.text("close_time IS NULL"), sa.text("close_time IS NOT NULL")
    op.create_index(
        "uq_incidents_open", "incidents", ["issuer"], unique=True, sqlite_where=there, postgresql_where=there
    )
    columns = ["open_time", "incident_id"]
    op.create_index("ix_incidents_closed", "incidents", columns, sqlite_where=gone, postgresql_where=gone)


def _add_budget() -> None:
    """The ledger of the CAs' limits: all that is taken, and who waits."""
    op.add_column("orders", sa.Column("places", _text))
    op.create_table(
        "budget_buckets",
        sa.Column("bucket_id", _text, nullable=False),
        sa.Column("directory_url", _text, nullable=False),
        sa.Column("account", _text, nullable=False),
        sa.Column("limit_name", _text, nullable=False),
        sa.Column("subject", _text, nullable=False),
        sa.Column("label", _text, nullable=False),
        sa.Column("since", _time, nullable=False),
        sa.Column("full_time", _time, nullable=False),
        sa.Column("told_until", _time),
        sa.Column("free_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("bucket_id", name="pk_budget_buckets"),
        sqlite_strict=True,
    )
    op.create_index("ix_budget_buckets_directory_url", "budget_buckets", ["directory_url", "full_time"])
    op.create_table(
        "budget_waits",
        sa.Column("bucket_id", _text, nullable=False),
        sa.Column("order_id", _text, nullable=False),
        sa.Column("issuer", _text, nullable=False),
        sa.Column("rank", _time, nullable=False),
        sa.Column("expire_time", _time, nullable=False),
        sa.Column("free_time", _time, nullable=False),
        sa.PrimaryKeyConstraint("bucket_id", "order_id", name="pk_budget_waits"),
        sqlite_strict=True,
    )
    op.create_index("ix_budget_waits_order_id", "budget_waits", ["order_id"])


def _add_compromised_keys() -> None:
    """Which of the blocked keys were called compromised, from now on: keys are blocked for other reasons too."""
    op.add_column("keys", sa.Column("compromise_time", _time))
    told = sa.text("compromise_time IS NOT NULL")
    columns = ["compromise_time"]
    op.create_index("ix_keys_compromise_time", "keys", columns, sqlite_where=told, postgresql_where=told)


def downgrade() -> None:
    """What was asked for is forgotten; hosts go on with what they were told."""
    op.drop_index("ix_keys_compromise_time", table_name="keys")
    op.drop_column("keys", "compromise_time")
    op.drop_table("incidents")
    op.drop_table("moved_windows")
    op.drop_table("budget_waits")
    op.drop_table("budget_buckets")
    op.drop_column("orders", "places")
    for name in ("to_issuer", "rollout_id"):
        op.drop_column("orders", name)
    for name in ("to_issuer", "new_key", "activate_by_time", "hold_activation", "rollout_id"):
        op.drop_column("renewal_plans", name)
    op.drop_table("rollout_items")
    op.drop_table("rollouts")
