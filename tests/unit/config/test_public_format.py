"""Files written for the public format load unchanged: each documented key, at its documented place."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.agent.host import Host
from certplane.agent.settings import load_settings as load_agent
from certplane.broker.policy.document import load_policy
from certplane.broker.settings import load_settings as load_broker

AGENT = """\
state_dir: /var/lib/certplane/agent
identity:
  name: web-01.example.net
  provider: step-ca
  cert: /var/lib/certplane/agent/identity.crt
  key: /var/lib/certplane/agent/identity.key
  issuer_ca_bundle: /etc/certplane/identity-ca.crt
  bootstrap_token: /etc/certplane/bootstrap-token
  renew_before: 240h
  warn_before: 72h
  step_ca:
    url: https://step-ca.example.net
    fingerprint: "sha256:3a7b00112233445566778899aabbccddeeff00112233445566778899aabbccdd"
    root_ca_bundle: /etc/certplane/root.crt
    timeout: 10s
broker:
  url: https://broker.example.net:8443
  server_ca_bundle: /etc/certplane/broker-ca.crt
  timeout: 30s
certificates:
  - name: web
    profile: web
    dns_names: [www.example.com, example.com]
    key: /var/lib/certplane/agent/web.key
    cert: /var/lib/certplane/agent/web.crt
    chain: /var/lib/certplane/agent/web.chain.pem
    fullchain: /var/lib/certplane/agent/web.fullchain.pem
    renew_before: 720h
    reload_command: systemctl reload nginx
    reload_timeout: 30s
logging:
  level: info
  format: text
  destination: stderr
"""

BROKER = """\
server:
  address: ":8443"
  read_timeout: 15s
  read_header_timeout: 5s
  write_timeout: 30s
  idle_timeout: 60s
  tls:
    cert: /etc/certplane/broker.crt
    key: /etc/certplane/broker.key
    min_version: "1.2"
  mtls:
    agent_ca_bundle: /etc/certplane/identity-ca.crt
policy:
  path: /etc/certplane/policy.yml
  watch: false
issuer:
  provider: acme
  acme:
    directory_url: https://acme-v02.api.letsencrypt.org/directory
    account_email: ops@example.com
    account_key: /var/lib/certplane/acme-account.key
    dns_provider: httpreq
    preferred_chain: ISRG Root X1
    httpreq:
      endpoint: https://dns.example.net/acme
      mode: RAW
      username_secret: httpreq/username
      password_secret: httpreq/password
      propagation_timeout: 30s
      polling_interval: 2s
      http_timeout: 10s
      recursive_nameservers: ["192.0.2.53:53"]
secrets:
  provider: vault
  vault:
    address: https://vault.example.net:8200
    token_file: /etc/certplane/vault-token
    mount_path: secret
    kv_version: 2
    key: value
    timeout: 10s
    namespace: team
store:
  driver: sqlite
  path: /var/lib/certplane/broker.db
audit:
  enabled: true
  failure_mode: fail_open
  mirror_to_log: false
rate_limits:
  per_identity_per_hour: 50
  per_identity_profile_per_hour: 20
  new_keys_per_identity_profile_per_day: 2
logging:
  level: info
  format: json
  destination: stdout
"""

POLICY = """\
version: 1
profiles:
  web:
    type: multi_san
    dns_names: [www.example.com, example.com]
    acme: {challenge: dns-01, credentials: cloudflare/web}
    renew_before: 720h
  wild:
    type: wildcard
    dns_names: ["*.example.com"]
    acme: {challenge: dns-01, credentials: cloudflare/web}
  both:
    type: mixed
    dns_names: [example.org, "*.example.org"]
    acme: {challenge: dns-01, credentials: cloudflare/web}
hosts:
  web-01: {identity: web-01.example.net, profiles: [web, wild]}
services:
  api: {identity: "spiffe://example.net/api", profiles: [both], roles: [viewer]}
operators:
  alice: {identity: alice.example.net, roles: [admin]}
"""


def keys(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every key of a document, sections and items included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [way for name, value in items for way in ((*path, name), *keys(value, (*path, name)))]


def load(folder: Path, name: str, text: str) -> Any:
    path = folder / name
    path.write_text(text)
    if name == "agent.yml":
        settings = load_agent(path)
        Host(settings).close()  # which judges where the outputs lie
        return settings
    return load_broker(path) if name == "broker.yml" else load_policy(path)


def test_agent(tmp_path: Path) -> None:
    """agent.yml, with identity and service files directly in `state_dir`."""
    settings = load(tmp_path, "agent.yml", AGENT)
    assert settings.identity.cert == Path("/var/lib/certplane/agent/identity.crt")
    assert settings.identity.step_ca.fingerprint.startswith("3a7b")
    assert (settings.broker.url.host, settings.broker.url.port) == ("broker.example.net", 8443)
    assert settings.certificates[0].renew_before == timedelta(hours=720)


def test_broker(tmp_path: Path) -> None:
    """broker.yml, the four HTTP timeouts included."""
    settings = load(tmp_path, "broker.yml", BROKER)
    assert settings.server.read_timeout == timedelta(seconds=15)
    assert settings.issuer.acme.httpreq.endpoint == "https://dns.example.net/acme"


def test_policy(tmp_path: Path) -> None:
    """policy.yml, with each type of profile and each kind of caller."""
    policy = load(tmp_path, "policy.yml", POLICY)
    assert policy.find_grant("web-01.example.net").profiles == ("web", "wild")


_OPTIONAL = {
    "agent.yml": [
        ("state_dir",), ("identity", "provider"), ("identity", "cert"), ("identity", "key"),
        ("identity", "issuer_ca_bundle"), ("identity", "bootstrap_token"), ("identity", "renew_before"),
        ("identity", "warn_before"), ("identity", "step_ca", "fingerprint"), ("identity", "step_ca", "root_ca_bundle"),
        ("identity", "step_ca", "timeout"), ("broker", "timeout"), ("certificates",), ("certificates", 0, "key"),
        ("certificates", 0, "cert"), ("certificates", 0, "chain"), ("certificates", 0, "fullchain"),
        ("certificates", 0, "renew_before"), ("certificates", 0, "reload_command"),
        ("certificates", 0, "reload_timeout"), ("logging",),
    ],
    "broker.yml": [
        ("server", "address"), ("server", "read_timeout"), ("server", "tls", "min_version"), ("policy", "watch"),
        ("issuer", "provider"), ("issuer", "acme", "account_email"), ("issuer", "acme", "preferred_chain"),
        ("issuer", "acme", "httpreq", "mode"), ("issuer", "acme", "httpreq", "recursive_nameservers"), ("secrets",),
        ("store",), ("audit",), ("rate_limits",), ("logging",),
    ],
    "policy.yml": [("profiles", "web", "renew_before"), ("services",), ("operators",)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, id=".".join(map(str, (name, *way)))) for name, ways in _OPTIONAL.items() for way in ways],
)
def test_what_may_be_left_out(tmp_path: Path, name: str, way: tuple[Any, ...]) -> None:
    """A key with a default may be missing."""
    document = yaml.safe_load({"agent.yml": AGENT, "broker.yml": BROKER, "policy.yml": POLICY}[name])
    section = document
    for step in way[:-1]:
        section = section[step]
    del section[way[-1]]
    load(tmp_path, name, yaml.safe_dump(document))


@pytest.mark.parametrize(("name", "text"), [("agent.yml", AGENT), ("broker.yml", BROKER), ("policy.yml", POLICY)])
def test_a_misspelt_key_is_still_told(tmp_path: Path, name: str, text: str) -> None:
    """Loading what is right means nothing if everything loads."""
    document = yaml.safe_load(text)
    section = document
    for step in keys(document)[1][:-1]:
        section = section[step]
    section["no_such_key"] = "x"
    with pytest.raises(Exception, match="no_such_key"):
        load(tmp_path, name, yaml.safe_dump(document))
