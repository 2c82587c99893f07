"""What a broker loads: a package that the configuration doesn't use costs memory and a part of each start."""

from __future__ import annotations

import subprocess
import sys

UNUSED = {"acme", "alembic", "cloudflare", "dns", "h11", "httpx", "josepy", "lexicon", "psycopg", "requests"}
"""Migrations that are not due, the driver of the other database, and what its process for ACME and DNS alone needs,
or a test that compares."""


def test_a_broker_loads_no_package_that_its_configuration_does_not_use() -> None:
    """With SQLite, a schema that is current and no provider named, these stay on the disk."""
    script = "import sys, certplane.broker.serving\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not UNUSED & {*done.stdout.split()}
