"""Run by Alembic: migrates over the connection that `store.migrate` hands in, all revisions in one transaction."""

from __future__ import annotations

from alembic import context

from certplane.broker.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite's DDL is transactional as PostgreSQL's is, once the driver doesn't begin and end transactions by itself
    # (store.migrate): a migration that fails or is killed leaves the schema as it was.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
