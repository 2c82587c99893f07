"""step-ca's own client against both identity CAs: neither our tokens nor our CA are a dialect of our own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from cryptography import x509

from certplane.sandbox.identity_pki import IdentityCaClient
from certplane.sandbox.ports import PROVISIONER
from tests.support.parts import need_part

pytestmark = pytest.mark.integration

NAME = "web.certplane.test"


@pytest.fixture
def step(tmp_path: Path) -> Callable[..., Awaitable[tuple[int, str]]]:
    """Runs `step ARGUMENTS` with a home of its own; gives exit status and output."""
    program = need_part("step").path
    home = tmp_path / "home"
    home.mkdir()

    async def run(*arguments: object) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            program,
            *map(str, arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=home,
            env={"HOME": str(home), "STEPPATH": str(home / "step"), "PATH": "/usr/bin:/bin"},
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    return run


async def test_steps_client_gets_renews_rekeys_and_revokes(
    any_identity_ca: IdentityCaClient, step: Callable[..., Awaitable[tuple[int, str]]], tmp_path: Path
) -> None:
    """`step ca bootstrap`, `certificate` with a token of ours and with its own, `renew`, `rekey` and `revoke` work."""
    ca, home = any_identity_ca, tmp_path / "home"
    leaf, key = home / "web.crt", home / "web.key"
    provisioner = home / "provisioner.jwk"
    provisioner.write_text(json.dumps(ca.provisioner_keys[PROVISIONER].private_jwk))

    async def succeeds(*arguments: object) -> str:
        status, output = await step(*arguments)
        assert status == 0, output
        return output

    def serial() -> int:
        return x509.load_pem_x509_certificate(leaf.read_bytes()).serial_number

    await succeeds("ca", "bootstrap", "--ca-url", ca.url, "--fingerprint", ca.authority.fingerprint)
    assert await succeeds("ca", "health") == "ok\n"
    output = await succeeds("ca", "token", NAME, "--provisioner", PROVISIONER, "--key", provisioner)
    serials = []
    for token in (ca.mint_token(NAME, [NAME]), output.split()[-1]):
        await succeeds("ca", "certificate", NAME, leaf, key, "--token", token, "--force")
        serials.append(serial())
    for command in ("renew", "rekey"):
        await succeeds("ca", command, leaf, key, "--force")
        serials.append(serial())
    assert len(set(serials)) == 4
    await succeeds("certificate", "verify", leaf, "--roots", ca.roots_file)
    await succeeds("ca", "revoke", "--cert", leaf, "--key", key)
    status, output = await step("ca", "renew", leaf, key, "--force")
    assert (status, "lacked necessary authorization" in output) == (1, True)
