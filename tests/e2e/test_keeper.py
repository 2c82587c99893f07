"""Programs with certplane.client as processes: killed in the middle of a renewal, and serving while certificates change."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from cryptography import x509

from certplane.caller.folder import FAILPOINTS as FOLDER_FAILPOINTS
from certplane.caller.keeping import FAILPOINTS as KEEPING_FAILPOINTS
from certplane.pki.keys import load_private_key, public_key_sha256
from certplane.sandbox.loopback import free_port
from tests.support.client_site import ClientSite, Load
from tests.support.killing import KILLED, killing_at
from tests.support.waiting import HANG, no_hang, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_EXAMPLES = Path(__file__).parents[2] / "examples" / "python"
RENEW_ONCE = """
import asyncio, sys
from certplane.client import CertificateKeeper, Client

async def main(config, folder, renew):
    async with Client.from_config(config) as client, CertificateKeeper(client, profile="api", folder=folder) as keeper:
        changed = asyncio.Event()
        keeper.on_change(lambda issued: changed.set())
        if renew == "renew":
            keeper.renew()
            await changed.wait()
        print(keeper.current.certificate.certificate_id)

asyncio.run(main(*sys.argv[1:]))
"""
POINTS = (*FOLDER_FAILPOINTS[:3], *KEEPING_FAILPOINTS, *FOLDER_FAILPOINTS[3:])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClientSite]:
    async with ClientSite.running(tmp_path_factory.mktemp("keeper")) as site:
        yield site


async def keep(site: ClientSite, folder: Path, *, renew: bool, failpoint: str = "") -> tuple[int, str]:
    """A program that keeps a certificate in a folder, and renews it once: its status, and the certificate's id."""
    environment = {**os.environ, **(killing_at(failpoint) if failpoint else {})}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        RENEW_ONCE,
        str(await site.config()),
        str(folder),
        "renew" if renew else "keep",
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    async with asyncio.timeout(HANG):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode().strip()


def key_in_use(folder: Path) -> str:
    """The key of the pair that servers would read, which belongs together."""
    current = (folder / "current").resolve(strict=True)
    leaf = x509.load_pem_x509_certificates((current / "fullchain.pem").read_bytes())[0]
    key = load_private_key((current / "privkey.pem").read_bytes())
    assert public_key_sha256(key.public_key()) == public_key_sha256(leaf.public_key())
    return public_key_sha256(key.public_key())


@pytest.mark.parametrize("failpoint", POINTS)
async def test_a_service_that_dies_in_the_middle_of_a_renewal(site: ClientSite, tmp_path: Path, failpoint: str) -> None:
    """Killed at any step it has a whole pair, and the next process ends what was begun: no second order at the CA."""
    folder = tmp_path / "tls"
    assert (await keep(site, folder, renew=False))[0] == 0
    before = key_in_use(folder)
    orders = len(site.broker.deployment.pebble.log.finalizations)
    assert (await keep(site, folder, renew=True, failpoint=failpoint))[0] == KILLED
    key_in_use(folder)
    has_switched = key_in_use(folder) != before
    status, certificate_id = await keep(site, folder, renew=not has_switched)
    assert (status, bool(certificate_id)) == (0, True)
    assert key_in_use(folder) != before
    await site.broker.settle()
    assert len(site.broker.deployment.pebble.log.finalizations) == orders + 1
    assert not (folder / "pending").exists()
    assert not list(folder.rglob(".*"))


async def serving(site: ClientSite, folder: Path, program: str) -> tuple[asyncio.subprocess.Process, int]:
    """An example that serves, and its port."""
    port = free_port()
    config = await site.config()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(_EXAMPLES / program),
        str(config),
        "api",
        str(port),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,  # a line for each request
        cwd=folder,
    )
    assert process.stdout is not None
    async with no_hang():
        assert (await process.stdout.readline()).startswith(b"serving ")
    return process, port


@pytest.mark.parametrize("program", ["https_server.py", "threaded_server.py"])
async def test_a_server_whose_certificate_changes_under_load(site: ClientSite, tmp_path: Path, program: str) -> None:
    """No request is lost while operators have the certificate renewed again and again, on old connections or new ones."""
    process, port = await serving(site, tmp_path, program)
    facts = tmp_path / "tls" / "current" / "certificate.json"
    load, ended = Load(port, await site.roots(), rate=50.0), asyncio.Event()
    if program == "threaded_server.py":
        load.lasting = 0  # its protocol is HTTP/1.0
    try:
        async with asyncio.TaskGroup() as tasks, no_hang():
            running = tasks.create_task(load.run(ended))
            for number in range(5):
                await until(lambda number=number: len(load.serials) > number, what="a request with it", by=running)
                text = facts.read_text()
                await site.request_renewal(text.partition('"certificate_id": "')[2].partition('"')[0])
                await until(lambda text=text: facts.read_text() != text, what="the new certificate", by=running)
            await until(lambda: len(load.serials) > 5, what="a request with the last one", by=running)
            ended.set()
    finally:
        process.kill()
        await process.wait()
    assert load.lost == []
    assert load.answered > 50
