"""The tables of rollouts and what belongs to them: part of the one schema, by its rules (`schema`)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Column, Index, Table, text

from certplane.broker.store.schema_base import SequenceColumn as _Sequence
from certplane.broker.store.schema_base import TextColumn as _Text
from certplane.broker.store.schema_base import TimeColumn as _Time
from certplane.broker.store.schema_base import metadata

rollouts: Final = Table(
    "rollouts",
    metadata,
    Column("rollout_id", _Text, primary_key=True),
    Column("created_by", _Text, nullable=False),
    # Chosen by whoever created it, or made: asked again, nothing is created.
    Column("request_id", _Text, nullable=False),
    # Rises with each write, which is refused where it isn't the one that was read: brokers don't undo each other's.
    Column("version", _Sequence, nullable=False),
    Column("spec", _Text, nullable=False),
    Column("state", _Text, nullable=False),
    Column("state_reason", _Text, nullable=False),
    # How far each is, with the numbers of its certificates: JSON.
    Column("rings", _Text, nullable=False),
    # How often an operator had what failed tried again.
    Column("attempt", _Sequence, nullable=False),
    # What an operator said who finished it; empty before.
    Column("finish", _Text, nullable=False),
    Column("host_count", _Sequence, nullable=False),
    Column("certificate_count", _Sequence, nullable=False),
    Column("revoked_count", _Sequence, nullable=False),
    Column("unrevoked_count", _Sequence, nullable=False),
    Column("approved_by", _Text, nullable=False),
    Column("incident_id", _Text, nullable=False),
    Column("create_time", _Time, nullable=False),
    Column("start_time", _Time),
    Column("update_time", _Time, nullable=False),
    # NULL until it has ended.
    Column("end_time", _Time),
    Column("expected_end_time", _Time),
    sqlite_strict=True,
)

Index("uq_rollouts_request_id", rollouts.c.created_by, rollouts.c.request_id, unique=True)
Index("ix_rollouts_create_time", rollouts.c.create_time, rollouts.c.rollout_id)  # the newest
Index(
    "ix_rollouts_open",  # those that run
    rollouts.c.create_time,
    rollouts.c.rollout_id,
    sqlite_where=text("end_time IS NULL"),
    postgresql_where=text("end_time IS NULL"),
)
Index(
    "ix_rollouts_end_time",  # which ended long enough ago to be pruned
    rollouts.c.end_time,
    sqlite_where=text("end_time IS NOT NULL"),
    postgresql_where=text("end_time IS NOT NULL"),
)

rollout_items: Final = Table(
    # A certificate that is replaced, each. What it is (above `state`) is written once.
    "rollout_items",
    metadata,
    Column("rollout_id", _Text, primary_key=True),
    Column("certificate_id", _Text, primary_key=True),
    Column("host", _Text, nullable=False),
    Column("certificate_name", _Text, nullable=False),
    Column("profile", _Text, nullable=False),
    Column("issuer", _Text, nullable=False),
    Column("dns_names", _Text),
    Column("not_after", _Time, nullable=False),
    # The ring's place in the rollout, from 0.
    Column("ring", _Sequence, nullable=False),
    Column("state", _Text, nullable=False),
    # Of its state in lists: what failed comes first.
    Column("place", _Sequence, nullable=False),
    Column("reason", _Text, nullable=False),
    Column("attempt", _Sequence, nullable=False),
    Column("new_certificate_id", _Text, nullable=False),
    # Of the last failure that was seen: another one is another failure.
    Column("failure_mark", _Text, nullable=False),
    Column("release_time", _Time),
    Column("done_time", _Time),
    Column("revoke_time", _Time),
    # 1 where it had failed before an operator resumed: it halts nobody by that again.
    Column("excused", _Sequence, nullable=False),
    sqlite_strict=True,
)

Index("ix_rollout_items_place", rollout_items.c.rollout_id, rollout_items.c.place, rollout_items.c.certificate_id)
Index("ix_rollout_items_host", rollout_items.c.host)  # what a host is told when it comes
Index("ix_rollout_items_certificate_id", rollout_items.c.certificate_id)  # which rollouts replace a certificate

moved_windows: Final = Table(
    # A certificate whose window its CA has brought forward, each: its last move. No foreign key: an incident keeps its
    # certificates for as long as it is kept.
    "moved_windows",
    metadata,
    Column("certificate_id", _Text, primary_key=True),
    Column("host", _Text, nullable=False),
    Column("issuer", _Text, nullable=False),
    Column("move_time", _Time, nullable=False),
    Column("window_start", _Time, nullable=False),
    Column("window_end", _Time, nullable=False),
    Column("due_before", _Time, nullable=False),
    Column("explanation_url", _Text, nullable=False),
    Column("forward", _Sequence, nullable=False),
    # Empty while it belongs to none.
    Column("incident_id", _Text, nullable=False, server_default=""),
    # The rollout of that incident that has it; empty while none has.
    Column("rollout_id", _Text, nullable=False, server_default=""),
    sqlite_strict=True,
)

Index("ix_moved_windows_incident_id", moved_windows.c.incident_id, moved_windows.c.certificate_id)

incidents: Final = Table(
    "incidents",
    metadata,
    Column("incident_id", _Text, primary_key=True),
    Column("issuer", _Text, nullable=False),
    Column("open_time", _Time, nullable=False),
    Column("version", _Sequence, nullable=False),
    Column("deadline", _Time),
    Column("explanation_url", _Text, nullable=False),
    # NULL until it has ended.
    Column("close_time", _Time),
    Column("rollout_id", _Text, nullable=False),
    Column("rollout_count", _Sequence, nullable=False),
    Column("trouble", _Text, nullable=False),
    # How far it is, as it was last seen: JSON.
    Column("figures", _Text),
    sqlite_strict=True,
)

Index(
    "uq_incidents_open",  # an issuer has one that is open
    incidents.c.issuer,
    unique=True,
    sqlite_where=text("close_time IS NULL"),
    postgresql_where=text("close_time IS NULL"),
)
Index(
    "ix_incidents_closed",  # the newest of those that have ended
    incidents.c.open_time,
    incidents.c.incident_id,
    sqlite_where=text("close_time IS NOT NULL"),
    postgresql_where=text("close_time IS NOT NULL"),
)

budget_buckets: Final = Table(
    # Of a CA's limits, of which places are taken. What is full again is removed; a bucket without a row is full.
    "budget_buckets",
    metadata,
    # A digest of the next four.
    Column("bucket_id", _Text, primary_key=True),
    Column("directory_url", _Text, nullable=False),
    Column("account", _Text, nullable=False),
    Column("limit_name", _Text, nullable=False),
    Column("subject", _Text, nullable=False),
    Column("label", _Text, nullable=False),
    Column("since", _Time, nullable=False),
    Column("full_time", _Time, nullable=False),
    Column("told_until", _Time),
    # From when on there is a place: follows from the others, by the limits of who wrote it.
    Column("free_time", _Time, nullable=False),
    sqlite_strict=True,
)

Index("ix_budget_buckets_directory_url", budget_buckets.c.directory_url, budget_buckets.c.full_time)

budget_waits: Final = Table(
    # For which buckets an order waits. It counts as long as the order does: open, at that issuer, of a living broker,
    # without a place; what is left behind is removed later.
    "budget_waits",
    metadata,
    Column("bucket_id", _Text, primary_key=True),
    Column("order_id", _Text, primary_key=True),
    Column("issuer", _Text, nullable=False),
    # Who goes first: `budget.model.Urgency`.
    Column("rank", _Sequence, nullable=False),
    Column("expire_time", _Time, nullable=False),
    # When it can go at the earliest, as was found when it asked last.
    Column("free_time", _Time, nullable=False),
    sqlite_strict=True,
)

Index("ix_budget_waits_order_id", budget_waits.c.order_id)
