"""What brokers of one fleet must say alike in their broker.yml."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.settings.common import OWN, common_hash


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., BrokerSettings]:
    """The settings of a file with `changes` laid over its keys, as paths from the top."""

    def made(**changes: Any) -> BrokerSettings:
        document: dict[str, Any] = {
            "server": {"tls": {"cert": "/a/cert", "key": "/a/key"}, "mtls": {"agent_ca_bundle": "/a/ca"}},
            "policy": {"path": "/a/policy.yml"},
            "issuer": {
                "acme": {
                    "directory_url": "https://ca.example/dir",
                    "account_key": "/a/account.key",
                    "dns_provider": "rfc2136",
                    "rfc2136": {"server": "ns.example:53", "tsig_name": "key", "tsig_secret": "tsig"},
                }
            },
        }
        for path, value in changes.items():
            *sections, key = path.split("__")
            section = document
            for name in sections:
                section = section.setdefault(name, {})
            section[key] = value
        file = tmp_path / "broker.yml"
        file.write_text(yaml.safe_dump(document))
        return load_settings(file)

    return made


OTHER_MACHINE: dict[str, Any] = {
    "server__address": "192.0.2.1:9443",
    "server__reuse_port": True,
    "server__tls__cert": "/b/cert",
    "server__mtls__agent_ca_bundle": "/b/ca",
    "policy__path": "/b/policy.yml",
    "policy__watch": True,
    "issuer__acme__account_key": "/b/account.key",
    "secrets__provider": "file",
    "store__driver": "postgresql",
    "store__url": "postgresql://certplane@db.example/certplane",
    "store__path": "/b/broker.db",
    "audit__spill_path": "/b/spill",
    "audit__failure_mode": "fail_closed",
    "metrics__address": "127.0.0.1:9000",
    "logging__level": "debug",
}
ALIKE: dict[str, Any] = {
    "issuer__acme__directory_url": "https://other.example/dir",
    "issuer__acme__account_email": "ops@example.net",
    "issuer__acme__rfc2136__server": "other.example:53",
    "issuer__name": "other",
    "issuers": {"second": {"acme": {"directory_url": "https://2.example/dir", "account_key": "/a/2.key"}}},
    "dns__delegations": ["acme.example.net"],
    "server__stream_age": "1h",
    "server__mtls__provisioners": ["JWK", "ACME"],
    "rate_limits__per_identity_per_hour": 51,
    "store__keep": "300h",
    "audit__keep": "300h",
}


def test_another_machine_s_file_may_differ(load: Callable[..., BrokerSettings]) -> None:
    """In where things are, and in what is compared by itself."""
    assert common_hash(load(**OTHER_MACHINE)) == common_hash(load())


@pytest.mark.parametrize("key", ALIKE)
def test_what_decides_must_be_alike(load: Callable[..., BrokerSettings], key: str) -> None:
    """Who signs, how names are proved, and what is allowed."""
    assert common_hash(load(**{key: ALIKE[key]})) != common_hash(load())


def test_a_default_that_is_written_down_is_no_difference(load: Callable[..., BrokerSettings]) -> None:
    """So a key that only a newer release knows is none either, as long as nobody sets it."""
    assert common_hash(load(rate_limits__per_identity_per_hour=50, server__drain_timeout="30s")) == common_hash(load())


def test_a_broker_s_own_keys_are_keys(load: Callable[..., BrokerSettings]) -> None:
    """None of them has been renamed since."""

    def keys(path: str, value: Any) -> Iterator[str]:
        for field in fields(value) if is_dataclass(value) else ():
            name = f"{path}.{field.name}".lstrip(".")
            yield name
            yield from keys(name, getattr(value, field.name))

    assert set(keys("", load())) >= OWN
