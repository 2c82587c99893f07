"""An identity that another program enrolled at the same step-ca is the agent's, by its commands as processes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from certplane.pki.csr import build_csr
from certplane.pki.keys import private_key_pem
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import write_private
from certplane.sandbox.step_ca import StepCa
from tests.support.agent_host import AgentHost
from tests.support.identities import authority_for, new_key

pytestmark = pytest.mark.integration


async def enrolled_by_another(host: AgentHost, *, with_chain: bool = True) -> int:
    """Put an identity of the host's CA at its paths; returns the serial number."""
    key = new_key()
    authority = authority_for(host.ca)
    csr = build_csr(key, common_name=host.name, sans=[host.name])
    issued = await authority.enroll(host.ca.mint_token(host.name), csr)
    authority.close()
    host.cert.parent.mkdir()
    host.cert.write_text(issued.certificate_pem + (issued.chain_pem if with_chain else ""))
    write_private(host.key, private_key_pem(key))
    leaf = host.identity()
    assert leaf is not None
    return leaf.serial_number


@pytest.fixture
def host(tmp_path: Path, step_ca: StepCa, own_name: str) -> AgentHost:
    return AgentHost(tmp_path / "host", step_ca, own_name)


async def test_enroll_takes_over_what_stands_there_and_leaves_the_token(host: AgentHost) -> None:
    """`check` says so before; `enroll` needs no token; a second one says that the host is enrolled."""
    serial = await enrolled_by_another(host)
    check = await host.run("check")
    assert (
        "ok    identity: what stands at identity.cert and identity.key is taken over at the agent's start"
        in check.stdout
    )
    assert "warn  broker: not checked before the identity is taken over" in check.stdout
    token = host.give_token()
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr
    assert "taken over, valid until" in finished.stdout + finished.stderr
    assert host.token.read_text().strip() == token
    assert (leaf := host.identity()) is not None
    assert leaf.serial_number == serial
    assert host.key.is_symlink()
    assert stat.S_IMODE(host.key.stat().st_mode) == 0o600
    assert leaf.not_valid_after_utc > SystemClock().now()
    again = await host.run("enroll")
    assert (again.status, "this host is enrolled as" in again.stderr) == (1, True)
    forced = await host.run("enroll", "--force")
    assert forced.status == 0, forced.stderr
    assert (renewed := host.identity()) is not None
    assert renewed.serial_number != serial


async def test_an_identity_without_its_intermediate_needs_a_token(host: AgentHost) -> None:
    """No broker would find the way from it to the root: said, with what to add, and the token is used."""
    serial = await enrolled_by_another(host, with_chain=False)
    check = await host.run("check")
    assert "that certificate must stand behind it" in check.stdout
    host.give_token()
    finished = await host.run("enroll")
    assert finished.status == 0, finished.stderr
    assert "not taken over: it doesn't lead to the internal CA" in finished.stderr
    assert (leaf := host.identity()) is not None
    assert leaf.serial_number != serial
    assert not host.token.exists()
