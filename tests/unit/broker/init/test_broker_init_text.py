"""broker.yml and policy.yml as init writes them: they load, and say what was wanted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from certplane.broker.init.text import broker_yml, drop_in, policy_yml
from certplane.broker.init.wanted import BOOTSTRAP_KEY, CREDENTIAL, DIRECTORIES, SECRET_KEYS, Wanted
from certplane.broker.policy.document import load_policy
from certplane.broker.settings import BrokerSettings, parse_settings

WANTED = Wanted(
    name="broker.example.net",
    address=":8443",
    ca_url="https://ca.example.net",
    config=Path("/etc/certplane/broker.yml"),
    state_dir=Path("/var/lib/certplane"),
    directory_url=DIRECTORIES["letsencrypt-staging"],
    email="hostmaster@example.com",
    provider="cloudflare",
    operators=("alice.ops.example.net",),
)
KEYS = {
    "rfc2136": {"server": "192.0.2.53:53", "tsig_name": "certplane", "ttl": "60s"},
    "cloudflare": {"calls_per_five_minutes": "1200"},
    "acme-dns": {"endpoint": "https://auth.example.org"},
    "httpreq": {"endpoint": "https://dns.example.org", "username_secret": "dns-user"},
    "exec": {"program": "/usr/local/lib/dns-hook"},
    "lexicon": {"provider": "powerdns"},
}


def settings(wanted: Wanted) -> BrokerSettings:
    return parse_settings(broker_yml(wanted).encode(), "broker.yml")


@pytest.mark.parametrize("provider", SECRET_KEYS)
def test_each_dns_provider_is_a_file_that_loads(provider: str) -> None:
    """The provider's keys are in its section, and its secret is what the unit hands to the broker."""
    acme = settings(replace(WANTED, provider=provider, provider_keys=KEYS[provider])).issuer.acme
    section = acme.section_of(acme.dns_provider)
    assert acme.dns_provider == provider
    assert getattr(section, SECRET_KEYS[provider]) == CREDENTIAL


def test_the_unit_loads_the_credential_that_the_file_names() -> None:
    """The name of the secret is that of the unit's LoadCredential=, and its place that of the file."""
    unit = (Path(__file__).parents[4] / "packaging" / "systemd" / "certplane-broker.service").read_text()
    assert f"LoadCredential={CREDENTIAL}:{WANTED.dns_secret}\n" in unit


def test_what_was_wanted_is_in_the_file() -> None:
    """Paths beside the file, the CA that renews the certificate, the account and the store."""
    loaded = settings(WANTED)
    assert (loaded.server.tls.cert, loaded.server.tls.key) == (WANTED.certificate, WANTED.key)
    assert loaded.server.tls.step_ca is not None
    assert loaded.server.tls.step_ca.url == WANTED.ca_url
    assert loaded.issuer.acme.directory_url == DIRECTORIES["letsencrypt-staging"]
    assert loaded.store.path == Path("/var/lib/certplane/broker.db")
    assert loaded.secrets.file.directory is None


def test_postgresql_and_folders_of_ones_own_are_taken() -> None:
    """`--store` is a URL; where no unit hands secrets on, the broker reads their folder."""
    loaded = settings(replace(WANTED, store="postgresql://broker@db.example.net:5432/certplane", by_unit=False))
    assert (loaded.store.driver, loaded.store.url) == (
        "postgresql",
        "postgresql://broker@db.example.net:5432/certplane",
    )
    assert loaded.secrets.file.directory == WANTED.secrets


def test_a_provisioner_makes_tokens() -> None:
    """The section `bootstrap` names the CA, the root, the provisioner and the secret that a drop-in hands on."""
    wanted = replace(WANTED, provisioner="certplane-broker")
    bootstrap = settings(wanted).bootstrap
    assert bootstrap is not None
    assert (bootstrap.ca_url, bootstrap.root_ca_bundle) == (WANTED.ca_url, WANTED.internal_ca)
    assert (bootstrap.provisioner, bootstrap.key_secret) == ("certplane-broker", BOOTSTRAP_KEY)
    assert f"LoadCredential={BOOTSTRAP_KEY}:{WANTED.secrets}/{BOOTSTRAP_KEY}\n" in drop_in(wanted)
    assert settings(WANTED).bootstrap is None


@pytest.mark.parametrize(
    ("operators", "labels"),
    [
        (("alice.ops.example.net", "spiffe://example.org/ops/bob"), ["alice", "bob"]),
        (("alice.ops.example.net", "alice.dev.example.net"), ["alice", "alice-2"]),
    ],
)
def test_the_first_policy_loads_and_gives_nobody_a_certificate(
    tmp_path: Path, operators: tuple[str, ...], labels: list[str]
) -> None:
    """Operators are admins under names of their own; hosts and profiles are for a person to write."""
    path = tmp_path / "policy.yml"
    path.write_text(policy_yml(replace(WANTED, operators=operators)))
    load_policy(path)
    text = path.read_text()
    assert [label for label in labels if f"  {label}: {{identity: " in text] == labels


def test_what_the_first_policy_shows_is_right(tmp_path: Path) -> None:
    """Its examples, without the marks before them, are a policy with a host, a profile and an operator."""
    text = re.sub(r"^(profiles|hosts): \{\}\n", "", policy_yml(WANTED), flags=re.MULTILINE)
    path = tmp_path / "policy.yml"
    path.write_text(re.sub(r"^#(?=\w|  )", "", text, flags=re.MULTILINE))
    shown = yaml.safe_load(path.read_text())
    assert [*shown["profiles"], *shown["hosts"], *shown["operators"]] == ["web", "web1", "alice"]
    load_policy(path)
