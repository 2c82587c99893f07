"""docs/integrating.md: its code runs as it stands there, at a real broker."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from certplane.sandbox.loopback import free_port
from tests.support.client_site import ClientSite, Load
from tests.support.waiting import HANG, no_hang, until

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

_BLOCKS = re.findall(
    r"^```python\n(.*?)^```",
    (Path(__file__).parents[2] / "docs" / "integrating.md").read_text(),
    re.DOTALL | re.MULTILINE,
)
_SERVER, _CONTEXT, _CALLBACK, _CALLS, _SYNC, _ERRORS = _BLOCKS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClientSite]:
    async with ClientSite.running(tmp_path_factory.mktemp("integrating")) as site:
        yield site


def indented(text: str, by: int) -> str:
    return "".join(" " * by + line if line.strip() else line for line in text.splitlines(keepends=True))


def program(body: str) -> str:
    """Code that stands where a client is open."""
    return f"""
import asyncio, ssl
from certplane.client import *

async def main():
    async with Client.from_config("client.yml") as client:
        async with CertificateKeeper(client, profile="api", folder="tls") as keeper:
{indented(body, 12)}

asyncio.run(main())
"""


async def run(site: ClientSite, text: str) -> str:
    """What a program says, which ends well."""
    folder = (await site.config()).parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", text, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=folder
    )
    async with asyncio.timeout(HANG):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode()


async def test_the_server_is_short() -> None:
    """Ten lines or fewer of it are about certificates."""
    lines = [line for line in _SERVER.splitlines() if re.search("certplane|Client|Keeper|keeper", line)]
    assert len(lines) <= 10
    ast.parse(_SERVER)


async def test_the_server(site: ClientSite) -> None:
    """It serves with the certificate of its profile."""
    folder, port = (await site.config()).parent, free_port()
    text = _SERVER.replace("port=8443", f"port={port}")
    process = await asyncio.create_subprocess_exec(sys.executable, "-P", "-c", text, cwd=folder, env=os.environ)
    try:
        load = Load(port, await site.roots(), lasting=0, rate=20)

        async def served() -> bool:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return True
            return False

        ended = asyncio.Event()
        async with no_hang():
            await until(served, poll=0.1, what="a server that listens")
            running = asyncio.create_task(load.run(ended))
            await until(lambda: load.answered, what="an answer", by=running)
            ended.set()
            await running
        assert load.lost == []
    finally:
        process.kill()
        await process.wait()


async def test_settings_and_callback(site: ClientSite) -> None:
    """A context takes ALPN and client CAs; the callback says which certificate is new."""
    folder = (await site.config()).parent
    (folder / "client-ca.pem").write_bytes((await site.roots()).read_bytes())
    body = _CONTEXT + _CALLBACK + "changed = asyncio.Event()\nkeeper.on_change(lambda _: changed.set())\n"
    said = await run(site, program(body + "keeper.renew()\nawait changed.wait()\n"))
    assert re.fullmatch(r"new certificate [0-9a-f]+ until 20.*\n", said)


async def test_calls(site: ClientSite) -> None:
    """Identity, issue and list say what the document says."""
    said = await run(
        site,
        f"import asyncio\nfrom certplane.client import *\n\nasync def main():\n{indented(_CALLS, 4)}\n\nasyncio.run(main())\n",
    )
    assert said.startswith("api.certplane.test ('api', 'wide') {'api': ('api.example.test',)")


async def test_calls_without_a_loop(site: ClientSite) -> None:
    """The same for programs with threads."""
    said = await run(site, f"from certplane.client import *\n\n{_SYNC}")
    assert said == "api.certplane.test\n('api.example.test',)\n"


async def test_errors(site: ClientSite) -> None:
    """A refusal is caught as the document catches it."""
    said = await run(site, program(_ERRORS))
    assert said == "PROFILE_NOT_ALLOWED None \n"
