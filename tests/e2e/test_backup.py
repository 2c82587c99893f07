"""Backup and restore of docs/operations.md, as it is told there, on a broker that runs."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from certplane.sandbox.deployment import Deployment, DeploymentOptions
from certplane.sandbox.errors import ServerStartError
from tests.support.parts import need_part

pytestmark = pytest.mark.e2e

_DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"
_POLICY = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {"web1": {"identity": "web1.certplane.test", "profiles": ["web"]}},
}
_CERTIFICATE = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test"]}


async def copy_as_documented(config: Path, copy: Path) -> None:
    """Run the document's command for a copy beside the running broker, with other paths."""
    chapter = _DOCUMENT.read_text(encoding="utf-8").partition("\n## Backup\n")[2].partition("\n## ")[0]
    (command,) = re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)
    for written, meant in (
        ("certplane-broker backup", f"{sys.executable} -m certplane.broker -c {config} backup"),
        ("/var/backups/certplane-broker.db", str(copy)),
    ):
        assert written in command
        command = command.replace(written, meant)
    process = await asyncio.create_subprocess_exec("bash", "-c", command)
    assert await process.wait() == 0


async def test_backup_and_restore(tmp_path: Path) -> None:
    """A copy made beside the running broker brings its records back after the database was lost, and hosts go on."""
    need_part("pebble")
    copy = tmp_path / "copy.db"
    async with Deployment(tmp_path / "deployment", DeploymentOptions(_POLICY)) as deployment:
        database = deployment.broker_folder / "broker.db"
        await deployment.start_broker()
        host = deployment.add_host("web1.certplane.test", [_CERTIFICATE])
        for command in (["enroll"], ["run", "--once"]):
            done = await host.run(*command)
            assert done.status == 0, done.stderr
        await copy_as_documented(deployment.broker_config, copy)
        assert (await host.run("renew", "web")).status == 0
        before = (await deployment.run_broker("certs", "list")).stdout.splitlines()
        await deployment.stop_broker()
        assert not database.with_name("broker.db-wal").exists(), "after an orderly stop the file is all there is"

        content = bytearray(database.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        database.write_bytes(content)
        with pytest.raises(ServerStartError, match=r"docs/operations\.md, 'Restore'"):
            await deployment.start_broker()

        for file in deployment.broker_folder.glob("broker.db*"):
            if not file.name.endswith(".lock"):
                file.rename(tmp_path / file.name)
        copy.rename(database)
        database.chmod(0o600)
        await deployment.start_broker()
        restored = (await deployment.run_broker("certs", "list")).stdout.splitlines()
        assert len(before) == 2
        assert [json.loads(line)["certificateId"] for line in restored] == [json.loads(before[-1])["certificateId"]]
        renewed = await host.run("renew", "web")
        assert renewed.status == 0, renewed.stderr
        assert "version 3 is in use" in renewed.stderr
