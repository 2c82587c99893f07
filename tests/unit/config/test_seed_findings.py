"""What users of the first project with this format met when they came: each by the number that it has in the findings.

What stands elsewhere is named here: 1 also in `test_public_format`, 3 in `tests/unit/broker/test_adapters.py`
(`test_httpreq_recursive_nameservers`), 5 in `tests/unit/agent/test_takeover.py`.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent.host import Host
from certplane.agent.settings import load_settings as load_agent
from certplane.broker.identity.authentication import AuthenticationError
from certplane.broker.policy.document import load_policy, read_policy
from certplane.broker.settings import load_settings as load_broker
from certplane.broker.store.files import open_writer
from certplane.config.document import Document
from certplane.config.files import read_service_key
from certplane.errors import ConfigurationError, RefusalError
from certplane.pki.identity import verify_identity
from certplane.pki.trust_bundle import TrustBundle
from tests.support.authority import NOW, Authority
from tests.unit.broker.identity.test_authentication import HOST, Gate
from tests.unit.config.test_public_format import AGENT, BROKER, POLICY


def broker(folder: Path, *changes: tuple[str, str]) -> object:
    text = BROKER
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path = folder / "broker.yml"
    path.write_text(text)
    return load_broker(path)


@pytest.mark.parametrize("own", ["identity", "certificates/web", "reports", "lock"])
def test_1_files_in_the_state_folder_itself(tmp_path: Path, own: str) -> None:
    """Identity and services' files may lie directly there; only what the agent keeps there is refused."""
    path = tmp_path / "agent.yml"
    path.write_text(AGENT)
    Host(load_agent(path)).close()
    path.write_text(AGENT.replace("/var/lib/certplane/agent/web.key", f"/var/lib/certplane/agent/{own}/web.key"))
    with pytest.raises(ConfigurationError, match="lies in the agent's own"):
        Host(load_agent(path))


@pytest.mark.parametrize("hosts", ["hosts: {}", "hosts:", ""])
def test_2_a_policy_whose_hosts_are_empty(tmp_path: Path, hosts: str) -> None:
    """What a template rendered of nothing is refused, whoever asks."""
    path = tmp_path / "policy.yml"
    path.write_text(f"version: 1\nprofiles:\n  web: {{type: multi_san, dns_names: [a.example.com]}}\n{hosts}\n")
    with pytest.raises(ConfigurationError, match="gives nothing to anybody"):
        load_policy(path)


@pytest.mark.parametrize("server", ["192.0.2.53", "resolver.example.net", "resolver.example.net:53", "2001:db8::53"])
def test_3_resolvers_without_a_port(tmp_path: Path, server: str) -> None:
    """Addresses and host names, with a port or without, are taken as they are there."""
    broker(tmp_path, ('["192.0.2.53:53"]', f'["{server}"]'))


def test_6_the_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    """It is refused, and its mode is the one that it had."""
    path = tmp_path / "broker.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE certificates (id TEXT)")
    connection.close()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError):
        open_writer(path, timedelta(seconds=1), exclusive=True)
    assert (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) == (0o644, before)


@pytest.mark.parametrize("name", ["db.corp.internal", "printer.local", "nas.home.arpa"])
def test_7_names_of_private_networks_at_a_private_ca(name: str) -> None:
    """They pass where the issuer has a `ca_bundle`, or the profile says `private_ca`; else they are refused."""

    def text(acme: str) -> Document:
        profile = f"profiles: {{p: {{type: multi_san, dns_names: [{name}], acme: {acme}}}}}"
        return Document.parse(
            f"{profile}\nhosts: {{a: {{identity: a.example, profiles: [p]}}}}\n".encode(), "policy.yml"
        )

    read_policy(text("{}"), [""])
    read_policy(text("{private_ca: true}"), [])
    with pytest.raises(ConfigurationError, match="are not public"):
        read_policy(text("{}"), [])


def test_8_no_version(tmp_path: Path) -> None:
    """It is 1 then."""
    path = tmp_path / "policy.yml"
    path.write_text(POLICY.removeprefix("version: 1\n"))
    assert load_policy(path).find_grant("web-01.example.net") is not None


def test_8_a_server_key_that_the_brokers_group_reads(tmp_path: Path) -> None:
    """0640 root:group of the broker's own group is how services share a key; 0644 isn't."""
    key = tmp_path / "broker.key"
    key.write_text("key")
    if os.geteuid() == 0:
        os.chown(key, 0, 996)
        key.chmod(0o640)
        assert read_service_key(key) == b"key"
    key.chmod(0o644)
    with pytest.raises(ConfigurationError):
        read_service_key(key)


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8090/acme", "http://dns.example.net/acme"])
def test_8_an_endpoint_without_tls(tmp_path: Path, endpoint: str) -> None:
    """To this machine, or where no credentials are sent."""
    secrets = ("      username_secret: httpreq/username\n      password_secret: httpreq/password\n", "")
    broker(tmp_path, ("https://dns.example.net/acme", endpoint), secrets)


def test_8_a_final_dot_and_a_doubled_name(tmp_path: Path) -> None:
    """They are folded, in agent.yml and in policy.yml."""
    path = tmp_path / "agent.yml"
    names = "[www.example.com, example.com]"
    path.write_text(AGENT.replace(names, "[www.example.com., example.com, WWW.example.com]"))
    assert load_agent(path).certificates[0].dns_names == ("www.example.com", "example.com")
    path = tmp_path / "policy.yml"
    path.write_text(POLICY.replace(names, "[www.example.com., example.com, WWW.example.com]", 1))
    assert {*load_policy(path).names_of("web")} == {"www.example.com", "example.com"}


def test_8_one_block_for_all_profiles(tmp_path: Path) -> None:
    """Anchors and aliases."""
    block = "acme: {challenge: dns-01, credentials: cloudflare/web}"
    first, _, rest = POLICY.partition(block)
    path = tmp_path / "policy.yml"
    path.write_text(first + block.replace("acme: ", "acme: &acme ") + rest.replace(block, "acme: *acme"))
    assert {profile.credentials for profile in load_policy(path).profiles} == {"cloudflare/web"}


def test_8_a_vault_on_a_private_network(tmp_path: Path) -> None:
    """Http with a key that says so."""
    broker(tmp_path, ("https://vault.example.net:8200", "http://10.0.0.5:8200\n    allow_http: true"))


def test_9_identities_that_are_not_accepted() -> None:
    """It is said which key of broker.yml decides it, and what a certificate without a SAN lacks."""
    gate = Gate(provisioners=("JWK",))
    for leaf, phrase in (
        (gate.ca.issue([HOST], provisioner=("ACME", "acme")), "add ACME to server.mtls.provisioners"),
        (gate.ca.issue([HOST], provisioner=None), "server.mtls.allow_missing_provisioner: true"),
    ):
        with pytest.raises(AuthenticationError) as caught:
            gate.authenticator.admit(gate.peer(leaf))
        assert phrase in caught.value.refusal.message


def test_9_an_identity_with_a_common_name_alone() -> None:
    """The refusal says what the certificate lacks, and where step-ca takes it from."""
    ca = Authority("Seed")
    leaf = ca.issue(common_name=HOST)
    with pytest.raises(RefusalError, match=r"no subjectAltName, and a common name alone names no identity.*`sans`"):
        verify_identity(leaf.pem.encode(), leaf.chain_pem.encode(), TrustBundle.from_pem(ca.root_pem), NOW)
