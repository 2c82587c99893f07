"""A broker that moves from SQLite to PostgreSQL, as docs/operations.md tells it, with its hosts."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest
import yaml

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from tests.support.parts import need_part

pytestmark = pytest.mark.e2e

_POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
}
_CERTIFICATE = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test"]}


async def test_a_broker_moves_to_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """While it runs the copy is refused; stopped, all goes over, and the broker serves its hosts from PostgreSQL."""
    need_part("pebble")
    async with Deployment(tmp_path / "deployment", DeploymentOptions(_POLICY)) as deployment:
        await deployment.start_broker()
        host = deployment.add_host("web1.certplane.test", [_CERTIFICATE])
        for command in (["enroll"], ["run", "--once"]):
            done = await host.run(*command)
            assert done.status == 0, done.stderr
        before = (await deployment.run_broker("certs", "list")).stdout.splitlines()

        configuration = deployment.broker_config
        settings = yaml.safe_load(configuration.read_text())
        store = {**settings["store"], "driver": "postgresql", "url": postgres_url}
        new = configuration.with_name("new.yml")
        new.write_text(yaml.safe_dump({**settings, "store": store}))
        refused = await deployment.run_broker("store", "copy", "--to", str(new))
        assert refused.status == 1
        assert "another broker" in refused.stderr
        await deployment.stop_broker()
        copied = await deployment.run_broker("store", "copy", "--to", str(new))
        assert copied.status == 0, copied.stderr
        rows = {row["table"]: row["rows"] for row in map(json.loads, copied.stdout.splitlines())}
        assert (rows["certificates"], rows["orders"]) == (1, 1)

        new.rename(configuration)
        await deployment.start_broker()
        assert (await deployment.run_broker("certs", "list")).stdout.splitlines() == before
        renewed = await host.run("renew", "web")
        assert renewed.status == 0, renewed.stderr
        assert "version 2 is in use" in renewed.stderr
        with psycopg.connect(postgres_url) as server:
            assert server.execute("SELECT count(*) FROM certificates").fetchone() == (2,)
            query = "SELECT count(*) FROM audit_events WHERE kind = 'store_copied'"
            assert server.execute(query).fetchone() == (1,)
