"""broker.yml: the public format loads unchanged, with its defaults; mistakes are all told at once."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.broker.budget.model import Exemption, LimitScope
from certplane.broker.budget.published import LimitModel, LimitSettings
from certplane.broker.issuers.acme_settings import EabAlgorithm
from certplane.broker.issuers.dns.providers import DnsProviderName
from certplane.broker.issuers.dns.settings import DnsPropagationSettings, DnsZoneSettings, Follow, Mode, ZoneName
from certplane.broker.notify.settings import NotificationRule, WeeklyTime
from certplane.broker.ports import DurableLimits
from certplane.broker.settings import BrokerSettings, load_settings
from certplane.broker.settings.records import Keep
from certplane.broker.settings.server import StreamAge
from certplane.config.tracing import OtlpUrl
from certplane.config.values import DnsServerAddress, HostPort, ListenAddress
from certplane.errors import ConfigurationError
from certplane.runtime.health import HealthWord, Severity

ISSUERS = ("issuer", "issuers.second")
EXAMPLE = Path(__file__).parent.parent / "config" / "examples" / "broker.yml"

MINIMAL = """\
server:
  tls: {cert: /c.pem, key: /k.pem}
  mtls: {agent_ca_bundle: /ca.pem}
policy:
  path: /policy.yml
issuer:
  acme:
    directory_url: https://acme.example/dir
    account_key: /a.pem
    dns_provider: cloudflare
"""


def _load(tmp_path: Path, text: str) -> BrokerSettings:
    path = tmp_path / "broker.yml"
    path.write_text(text)
    return load_settings(path)


def _further(name: str, key: str) -> str:
    """An `issuers` section with one entry."""
    return f"issuers:\n  {name}: {{acme: {{directory_url: https://b.example/dir, account_key: {key}}}}}\n"


def _problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    return [str(problem).removeprefix(f"{tmp_path}/broker.yml:") for problem in caught.value.problems]


def _sections(section: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key below a section with its value, by its path."""
    entries = section.items() if isinstance(section, dict) else vars_of(section)
    for name, value in entries:
        if name == "source":
            continue
        yield f"{prefix}{name}", value
        if not _is_leaf(value):
            yield from _sections(value, f"{prefix}{name}.")


def vars_of(section: Any) -> list[tuple[str, Any]]:
    return [(spec.name, getattr(section, spec.name)) for spec in dataclasses.fields(section)]


def _is_leaf(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_leaf, value.values()))
    return not dataclasses.is_dataclass(value) or hasattr(value, "parse")


def _seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def _notifier(name: str, **keys: Any) -> dict[str, Any]:
    """The keys of one of `notifications`, with the defaults of its rules."""
    rules = {"rules": (NotificationRule(),), "after": _seconds(120), "repeat": timedelta(hours=24), "over": True}
    values = {**rules, "digest": WeeklyTime(None), **keys}
    return _at_one_place(f"notifications.{name}", ("webhook", "mail", "apprise"), values)


def _sink(name: str, **keys: Any) -> dict[str, Any]:
    """The keys of one of `audit.sinks`."""
    values = {"required": False, "max_lag": _seconds(60), **keys}
    return _at_one_place(f"audit.sinks.{name}", ("file", "syslog", "otlp"), values)


def _at_one_place(section: str, places: tuple[str, ...], values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a section of which one of `places` is written."""
    values = {**dict.fromkeys(places), **values}
    written = {f"{place}.{key}": value for place in places if values[place] for key, value in values.pop(place).items()}
    return {f"{section}.{key}": value for key, value in {**values, **written}.items()}


EXPECTED = {
    "server.address": ListenAddress("127.0.0.1", 9443),
    "metrics.address": ListenAddress("127.0.0.1", 9464),
    "metrics.certificates_up_to_hosts": 500,
    "metrics.host_labels": ("ring", "dc"),
    "bootstrap.ca_url": "https://ca.internal.example:8443",
    "bootstrap.provisioner": "certplane-broker",
    "bootstrap.key_secret": "bootstrap-key",
    "bootstrap.root_ca_bundle": None,
    "bootstrap.fingerprint": "3d1a63e1bf9c7b8b6f4e9a2d5c7f0e1122334455667788990011223344556677",
    "bootstrap.max_lifetime": timedelta(minutes=10),
    "tracing.endpoint": OtlpUrl("https://otlp.example:4317"),
    "tracing.ca_bundle": Path("/etc/certplane/otlp-ca.pem"),
    "tracing.per_cent": 10,
    "server.read_timeout": _seconds(15),
    "server.read_header_timeout": _seconds(5),
    "server.write_timeout": _seconds(30),
    "server.idle_timeout": _seconds(120),
    "server.tls.cert": Path("/etc/certplane/broker.pem"),
    "server.tls.key": Path("/etc/certplane/broker.key"),
    "server.tls.min_version": "1.3",
    "server.tls.step_ca.url": "https://ca.example:9000",
    "server.tls.step_ca.root_ca_bundle": Path("/etc/certplane/root.pem"),
    "server.tls.step_ca.timeout": _seconds(15),
    "server.mtls.agent_ca_bundle": Path("/etc/certplane/agent-ca.pem"),
    "server.mtls.provisioners": ("JWK", "X5C"),
    "server.mtls.allow_missing_provisioner": True,
    "server.calls_per_identity_per_second": 7,
    "server.calls_burst": 9,
    "server.drain_timeout": _seconds(45),
    "server.stream_age": StreamAge(_seconds(7200)),
    "server.reuse_port": True,
    "policy.path": Path("/etc/certplane/policy.yml"),
    "policy.watch": True,
    "policy.guard": 25,
    "issuers.second.provider": "acme",
    "issuers.second.acme.eab.kid": "kid-2",
    "issuers.second.acme.eab.hmac_secret": "acme/eab-2",
    "issuers.second.acme.eab.algorithm": EabAlgorithm.HS256,
    "issuers.second.acme.directory_url": "https://second.example/directory",
    "issuers.second.acme.challenge": "none",
    "issuers.second.acme.account_key.file": None,
    "issuers.second.acme.account_key.secret": "",
    "issuers.second.acme.account_key.store": True,
    "issuers.second.acme.account_email": "ops@example.com",
    "issuers.second.acme.preferred_chain": "Other Root",
    "issuers.second.acme.ca_bundle": Path("/etc/certplane/second-ca.pem"),
    "issuers.second.acme.allowed_hosts": ("cdn.second.example",),
    "issuers.second.acme.renewal_info.enabled": False,
    "issuers.second.acme.limits.model": LimitModel.NONE,
    "issuers.second.acme.limits.own": (),
    "issuer.provider": "acme",
    "issuer.name": "pebble",
    "issuer.acme.directory_url": "https://acme.example/directory",
    "issuer.acme.account_email": "ops@example.com",
    "issuer.acme.account_key.file": Path("/var/lib/certplane/account.pem"),
    "issuer.acme.account_key.secret": "",
    "issuer.acme.account_key.store": False,
    "issuer.acme.challenge": "dns-01",
    "issuer.acme.dns_provider": "httpreq",
    "issuer.acme.preferred_chain": "Example Root X1",
    "issuer.acme.ca_bundle": Path("/etc/certplane/acme-ca.pem"),
    "issuer.acme.eab.kid": "kid-1",
    "issuer.acme.eab.hmac_secret": "acme/eab",
    "issuer.acme.eab.algorithm": EabAlgorithm.HS384,
    "issuer.acme.allowed_hosts": ("cdn.acme.example",),
    "issuer.acme.renewal_info.enabled": False,
    "issuer.acme.limits.model": None,
    "issuer.acme.limits.own": (
        LimitSettings("orders", LimitScope.ACCOUNT, 100, timedelta(hours=1), (Exemption.ARI, Exemption.SAME_NAMES)),
        LimitSettings("names", LimitScope.NAMES, 2, timedelta(days=7)),
    ),
    "issuer.acme.propagation.timeout": _seconds(180),
    "issuer.acme.propagation.interval": _seconds(1),
    "issuer.acme.propagation.nameservers": (HostPort("192.0.2.53", 53), HostPort("2001:db8::53", 5353)),
    "issuer.acme.propagation.settle": _seconds(0.5),
    "issuer.acme.httpreq.endpoint": "https://dns.example/acme",
    "issuer.acme.httpreq.mode": "raw",
    "issuer.acme.httpreq.username_secret": "httpreq/user",
    "issuer.acme.httpreq.password_secret": "httpreq/password",
    "issuer.acme.httpreq.propagation_timeout": _seconds(90),
    "issuer.acme.httpreq.polling_interval": _seconds(3),
    "issuer.acme.httpreq.http_timeout": _seconds(12),
    "issuer.acme.httpreq.recursive_nameservers": (
        DnsServerAddress("resolver.example", 53),
        DnsServerAddress("resolver.example", 53),
        DnsServerAddress("192.0.2.53", 53),
        DnsServerAddress("2001:db8::53", 5353),
    ),
    "issuer.acme.cloudflare.base_url": "http://127.0.0.1:8080/client/v4",
    "issuer.acme.cloudflare.credentials": "cloudflare/whisper-cl",
    "issuer.acme.cloudflare.http_timeout": _seconds(11),
    "issuer.acme.cloudflare.propagation_timeout": _seconds(240),
    "issuer.acme.cloudflare.polling_interval": _seconds(5),
    "issuer.acme.cloudflare.ttl": _seconds(120),
    "issuer.acme.cloudflare.calls_per_five_minutes": 600,
    "issuer.acme.rfc2136.server": HostPort("ns1.example", 53),
    "issuer.acme.rfc2136.tsig_name": "certplane",
    "issuer.acme.rfc2136.tsig_secret": "rfc2136/tsig",
    "issuer.acme.rfc2136.tsig_algorithm": "hmac-sha512",
    "issuer.acme.rfc2136.timeout": _seconds(6),
    "issuer.acme.rfc2136.propagation_timeout": _seconds(60),
    "issuer.acme.rfc2136.polling_interval": _seconds(4),
    "issuer.acme.rfc2136.ttl": _seconds(30),
    "issuer.acme.acme_dns.endpoint": "https://auth.example",
    "issuer.acme.acme_dns.accounts": "acme-dns/all",
    "issuer.acme.acme_dns.ca_bundle": Path("/etc/certplane/acme-dns-ca.pem"),
    "issuer.acme.acme_dns.http_timeout": _seconds(14),
    "issuer.acme.acme_dns.propagation_timeout": _seconds(70),
    "issuer.acme.acme_dns.polling_interval": _seconds(6),
    "issuer.acme.exec.program": Path("/usr/local/lib/dns-hook"),
    "issuer.acme.exec.credentials": "exec/token",
    "issuer.acme.exec.timeout": _seconds(25),
    "issuer.acme.exec.propagation_timeout": _seconds(75),
    "issuer.acme.exec.polling_interval": _seconds(8),
    "dns.delegations": ("acme.example",),
    "dns.follow_cnames": Follow.ALWAYS,
    "dns.resolvers": (DnsServerAddress("192.0.2.53", 53), DnsServerAddress("2001:db8::53", 5353)),
    "dns.authoritative_servers": (DnsServerAddress("ns1.example", 53), DnsServerAddress("ns2.example", 5353)),
    "dns.propagation.mode": "recursive",
    "dns.propagation.timeout": _seconds(240),
    "dns.propagation.interval": _seconds(3),
    "dns.propagation.settle": _seconds(1),
    "dns.zones": (
        DnsZoneSettings(
            zone=ZoneName("corp.example"),
            provider=DnsProviderName("rfc2136"),
            server=HostPort("ns1.corp.example", 53),
            credentials="rfc2136/corp",
            resolvers=(DnsServerAddress("2001:db8::54", 53),),
            authoritative_servers=(DnsServerAddress("192.0.2.54", 53),),
            propagation=DnsPropagationSettings(mode=Mode.WAIT, settle=_seconds(30)),
        ),
    ),
    "issuer.acme.lexicon.provider": "powerdns",
    "issuer.acme.lexicon.credentials": "lexicon/powerdns",
    "issuer.acme.lexicon.options": {"pdns_server": "https://pdns.example"},
    "issuer.acme.lexicon.recursive_nameservers": (HostPort("192.0.2.53", 53),),
    "issuer.acme.lexicon.timeout": _seconds(35),
    "issuer.acme.lexicon.propagation_timeout": _seconds(80),
    "issuer.acme.lexicon.polling_interval": _seconds(9),
    "issuer.acme.lexicon.ttl": _seconds(45),
    "secrets.provider": "openbao",
    "secrets.file.directory": Path("/etc/certplane/private"),
    "secrets.vault.allow_http": False,
    "secrets.vault.address": "https://vault.example:8200",
    "secrets.vault.token": "",
    "secrets.vault.token_file": Path("/etc/certplane/vault-token"),
    "secrets.vault.mount_path": "kv",
    "secrets.vault.kv_version": 1,
    "secrets.vault.key": "token",
    "secrets.vault.timeout": _seconds(5),
    "secrets.vault.namespace": "ops",
    "secrets.vault.ca_bundle": Path("/etc/certplane/vault-ca.pem"),
    "secrets.vault.cache": _seconds(5),
    "store.driver": "postgresql",
    "store.path": Path("/srv/certplane/broker.db"),
    "store.url": "postgresql://certplane@db.example:5432/certplane",
    "store.direct_url": "postgresql://certplane@db1.example,db2.example:5433/certplane",
    "store.password_secret": "postgresql/certplane",
    "store.seal_secret": "certplane/seal",
    "store.keep": Keep(timedelta(days=200)),
    "audit.enabled": True,
    "audit.failure_mode": "fail_closed",
    "audit.mirror_to_log": True,
    "audit.spill_path": Path("/srv/certplane/spill.jsonl"),
    "audit.keep": Keep(None),
    "audit.checkpoint_key_secret": "certplane/audit",
    "audit.checkpoint_keys": ("3q2+796tvu/erb7v3q2+796tvu/erb7v3q2+796tvu8=",),
    **_sink("archive", file={"path": Path("/srv/certplane/audit.jsonl")}, required=True, max_lag=_seconds(120)),
    **_sink(
        "siem",
        syslog={
            "server": HostPort("siem.example", 6514),
            "facility": "local3",
            "ca_bundle": Path("/etc/certplane/siem-ca.pem"),
            "cert": Path("/etc/certplane/siem.pem"),
            "key": Path("/etc/certplane/siem.key"),
            "timeout": _seconds(8),
        },
    ),
    **_sink(
        "collector",
        otlp={
            "endpoint": "https://otel.example:4317",
            "token_secret": "otlp/token",
            "ca_bundle": Path("/etc/certplane/otel-ca.pem"),
            "timeout": _seconds(7),
        },
    ),
    "rate_limits.per_identity_per_hour": 60,
    "rate_limits.per_identity_profile_per_hour": 30,
    "rate_limits.new_keys_per_identity_profile_per_day": 0,
    "rate_limits.certificates_per_identity_profile_per_day": 6,
    "rate_limits.early_renewals_per_identity_profile_per_day": 1,
    "rate_limits.certificates_per_name_set_per_week": 5,
    "rate_limits.asked_for_per_identity_profile_per_hour": 40,
    "logging.level": "warning",
    "logging.format": "text",
    "logging.destination": "stderr",
    **_notifier(
        "oncall",
        rules=(
            NotificationRule(severity=Severity.CRITICAL, profiles=("web",)),
            NotificationRule(healths=(HealthWord.MISMATCHED, HealthWord.UNHEARD), life_left=20),
        ),
        after=_seconds(300),
        repeat=timedelta(hours=12),
        over=False,
        digest=WeeklyTime(0, 8),
        webhook={
            "url": "https://hooks.example/certplane",
            "url_secret": "",
            "signing_secret": "notify/key",
            "token_secret": "notify/token",
            "template": '{"text": "$subject"}',
            "content_type": "application/json; charset=utf-8",
            "ca_bundle": Path("/etc/certplane/hooks-ca.pem"),
            "allow_http": False,
            "timeout": _seconds(5),
        },
    ),
    **_notifier(
        "chat",
        webhook={
            "url": None,
            "url_secret": "notify/chat",
            "signing_secret": "",
            "token_secret": "",
            "template": "",
            "content_type": "application/json",
            "ca_bundle": None,
            "allow_http": False,
            "timeout": _seconds(10),
        },
    ),
    **_notifier(
        "post",
        mail={
            "server": HostPort("mail.example", 465),
            "sender": "certplane@example.com",
            "recipients": ("ops@example.com",),
            "tls": "tls",
            "username_secret": "mail/user",
            "password_secret": "mail/password",
            "ca_bundle": Path("/etc/certplane/mail-ca.pem"),
            "timeout": _seconds(20),
        },
    ),
    **_notifier("phone", apprise={"url_secret": "notify/phone", "timeout": _seconds(15)}),
}


def test_every_key_of_the_format() -> None:
    """A file with every key loads, each value where it belongs, and no key of the settings is missing in it."""
    settings = load_settings(EXAMPLE)
    leaves = ((key, value) for key, value in _sections(settings) if _is_leaf(value))
    found = dict(leaves)
    assert found == EXPECTED
    written = set(settings.source.lines)
    one_of_three = {f"{issuer}.acme.account_key.{place}" for issuer in ISSUERS for place in ("file", "secret", "store")}
    one_of_three |= {f"{issuer}.acme.limits.{form}" for issuer in ISSUERS for form in ("model", "own")}
    # Of the notifiers one has all that each of them may have; the sinks have it together.
    others = re.compile(r"notifications\.(chat|post|phone)\.|audit\.sinks\.")
    unwritten = {key for key, _ in _sections(settings) if not others.match(key)}
    not_beside = {
        "notifications.oncall.mail",
        "notifications.oncall.apprise",
        "notifications.oncall.webhook.url_secret",
        "bootstrap.root_ca_bundle",
    }
    assert unwritten - written - one_of_three - not_beside == {"secrets.vault.token"}
    assert settings.hash == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    assert settings.spill_path == Path("/srv/certplane/spill.jsonl")


def test_settings_load_without_the_packages_of_providers() -> None:
    """Cloudflare's package takes 50 MB: a file with the sections of all providers is read without any of theirs."""
    script = f"""
import sys
from pathlib import Path
from certplane.broker.settings import load_settings
load_settings(Path({str(EXAMPLE)!r}))
print({{"cloudflare", "dns", "lexicon", "acme", "sqlalchemy", "httpx"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_defaults(tmp_path: Path) -> None:
    """What a short file leaves out has the format's default."""
    settings = _load(tmp_path, MINIMAL)
    assert settings.server.address.target == "[::]:8443"
    assert settings.server.tls.min_version == "1.2"
    assert settings.server.mtls.provisioners == ("JWK",)
    assert settings.server.mtls.allow_missing_provisioner is False
    assert (settings.server.calls_per_identity_per_second, settings.server.drain_timeout) == (20, _seconds(30))
    assert (settings.server.stream_age, settings.server.reuse_port) == (StreamAge(timedelta(hours=3.5)), False)
    assert settings.policy.watch is False
    assert settings.policy.guard == 10
    assert (settings.issuer.name, settings.issuer.provider) == ("default", "acme")
    acme = settings.issuer.acme
    assert acme.cloudflare.base_url == "https://api.cloudflare.com/client/v4"
    assert acme.cloudflare.credentials == "cloudflare/api-token"
    assert (acme.propagation.timeout, acme.propagation.interval) == (_seconds(120), _seconds(2))
    assert (settings.secrets.provider, settings.secrets.vault) == ("env", None)
    assert (settings.store.driver, settings.store.path) == ("sqlite", Path("/var/lib/certplane/broker.db"))
    assert settings.audit.enabled
    assert settings.audit.failure_mode == "fail_open"
    assert settings.spill_path == Path("/var/lib/certplane/audit-spill.jsonl")
    assert (settings.audit.keep, settings.store.keep) == (Keep(timedelta(days=400)), Keep(timedelta(days=400)))
    assert settings.rate_limits.durable_limits == DurableLimits(50, 20, 2, 3, 2, 4, 20)
    assert settings.metrics.address is None
    logging = settings.logging
    assert (logging.level, logging.format, logging.destination) == ("info", "json", "stdout")
    assert settings.notices == ()


def test_httpreq_and_vault_defaults(tmp_path: Path) -> None:
    """The sections that only some files have."""
    text = MINIMAL.replace("cloudflare", "httpreq\n    httpreq: {endpoint: 'http://localhost:1'}")
    settings = _load(tmp_path, text + "secrets: {provider: vault, vault: {address: 'http://v:8200', token: hush}}\n")
    httpreq = settings.issuer.acme.httpreq
    assert httpreq is not None
    assert (httpreq.mode, httpreq.propagation_timeout, httpreq.polling_interval) == (
        "default",
        _seconds(30),
        _seconds(2),
    )
    assert httpreq.http_timeout == _seconds(10)
    vault = settings.secrets.vault
    assert vault is not None
    assert (vault.mount_path, vault.kv_version, vault.key, vault.timeout) == ("secret", 2, "value", _seconds(10))
    assert vault.token == "hush"
    assert "hush" not in repr(settings)


def test_http_timeouts_are_reported(tmp_path: Path) -> None:
    """The four keys that mean nothing to gRPC are accepted, and said to be without effect."""
    settings = _load(tmp_path, MINIMAL.replace("server:\n", "server:\n  read_timeout: 5s\n  idle_timeout: 1m\n"))
    assert settings.notices == (
        f"{tmp_path}/broker.yml:2: server.read_timeout: has no effect: gRPC connections end by keepalive and age",
        f"{tmp_path}/broker.yml:3: server.idle_timeout: has no effect: gRPC connections end by keepalive and age",
    )


@pytest.mark.parametrize("challenge", ["none", "dns-persist-01"])
def test_nobody_writes_where_no_record_is_wanted(tmp_path: Path, challenge: str) -> None:
    """A DNS provider is needed by dns-01 alone; one that is there all the same is said to write nothing."""
    settings = _load(tmp_path, MINIMAL.replace("dns_provider: cloudflare", f"challenge: {challenge}"))
    assert settings.issuer.acme.dns_provider is None
    assert settings.notices == ()
    settings = _load(tmp_path, MINIMAL + f"    challenge: {challenge}\n")
    (notice,) = settings.notices
    assert "10: issuer.acme.dns_provider: writes nothing: no issuer's challenge is dns-01" in notice
    assert _load(tmp_path, MINIMAL + f"    challenge: {challenge}\n" + _further("b", "/b.pem")).notices == ()


def test_no_limit_is_zero(tmp_path: Path) -> None:
    """0 turns a limit off."""
    settings = _load(tmp_path, MINIMAL + "rate_limits: {per_identity_per_hour: 0}\n")
    assert settings.rate_limits.durable_limits == DurableLimits(None, 20, 2, 3, 2, 4, 20)


@pytest.mark.parametrize(
    ("provider", "section", "timeout", "interval", "nameservers"),
    [
        pytest.param("cloudflare", "", 60, 7, ["192.0.2.1:53"], id="general"),
        pytest.param("cloudflare", "cloudflare: {propagation_timeout: 9s}", 9, 7, ["192.0.2.1:53"], id="own-timeout"),
        pytest.param("httpreq", "httpreq: {endpoint: 'http://x'}", 30, 2, ["192.0.2.1:53"], id="httpreq"),
        pytest.param(
            "rfc2136", "rfc2136: {server: 'n:53', tsig_name: a, tsig_secret: b, polling_interval: 1s}", 60, 1,
            ["192.0.2.1:53"], id="own-interval",
        ),
    ],
)  # fmt: skip
def test_effective_propagation(
    tmp_path: Path, provider: str, section: str, timeout: int, interval: int, nameservers: list[str]
) -> None:
    """What the chosen provider's section says goes before the general section."""
    text = MINIMAL.replace("cloudflare", provider) + f"    {section}\n"
    text += "    propagation: {timeout: 60s, interval: 7s, nameservers: ['192.0.2.1:53']}\n"
    acme = _load(tmp_path, text).issuer.acme
    propagation = acme.propagation_of(acme.dns_provider)
    assert (propagation.timeout, propagation.interval) == (_seconds(timeout), _seconds(interval))
    assert [str(nameserver) for nameserver in propagation.nameservers] == nameservers


def _with(**replaced: str) -> str:
    text = MINIMAL
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return text


BOOTSTRAP = {"ca_url": "https://ca", "provisioner": "p", "key_secret": "k", "fingerprint": "ab" * 32}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"fingerprint": None}, "bootstrap.fingerprint: or `root_ca_bundle` is required", id="no-root"),
        pytest.param({"root_ca_bundle": "/r.pem"}, "doesn't go with `root_ca_bundle`", id="two-roots"),
        pytest.param({"fingerprint": "ab"}, "bootstrap.fingerprint: must be a SHA-256", id="no-fingerprint"),
        pytest.param({"ca_url": "http://ca"}, "bootstrap.ca_url: ", id="plain-http"),
        pytest.param({"ca_url": "https://ca/?x=1"}, "bootstrap.ca_url: must have no query", id="a-query"),
        pytest.param({"provisioner": None}, "bootstrap.provisioner: is required", id="no-provisioner"),
        pytest.param({"key_secret": None}, "bootstrap.key_secret: is required", id="no-key"),
        pytest.param({"max_lifetime": "5s"}, "bootstrap.max_lifetime: must be from 10s to 24h", id="short"),
        pytest.param({"max_lifetime": "25h"}, "bootstrap.max_lifetime: must be from 10s to 24h", id="long"),
        pytest.param({"key": "x"}, "bootstrap.key: ", id="unknown-key"),
    ],
)
def test_tokens_need_a_ca_a_root_and_a_key(tmp_path: Path, changes: dict[str, str | None], problem: str) -> None:
    """What is wrong with the section `bootstrap` is told by its key."""
    section = {key: value for key, value in {**BOOTSTRAP, **changes}.items() if value is not None}
    lines = "".join(f"  {key}: {value}\n" for key, value in section.items())
    (found,) = _problems(tmp_path, f"{MINIMAL}bootstrap:\n{lines}")
    assert problem in found


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("", " policy.path: is required; add `path: ...`", id="empty-file"),
        pytest.param(
            MINIMAL.replace("path: /policy.yml", "path: /policy.yml\n  guard: 101"),
            "policy.guard: is 101, must be a number of per cent, 0 to 100", id="policy-guard",
        ),
        pytest.param(
            _with(cloudflare="route53"), "10: issuer.acme.dns_provider: is 'route53', must be one of cloudflare, httpreq, rfc2136, acme-dns, exec, lexicon",
            id="dns-provider",
        ),
        pytest.param(
            _with(cloudflare="rfc2136"),
            "7: issuer.acme.rfc2136: is required with dns_provider: rfc2136; add `rfc2136:`", id="provider-not-configured",
        ),
        pytest.param(
            _with(cloudflare="acme-dns"),
            "7: issuer.acme.acme_dns: is required with dns_provider: acme-dns; add `acme_dns:`", id="section-of-another-name",
        ),
        pytest.param(
            MINIMAL.replace("    dns_provider: cloudflare\n", ""),
            "7: issuer.acme.dns_provider: is required; name who writes the TXT records, as in `dns_provider: cloudflare`; or set `challenge`",
            id="nobody-who-writes",
        ),
        pytest.param(
            MINIMAL.replace("dns_provider: cloudflare", "challenge: none") + _further("b", "/b.pem"),
            "7: issuer.acme.dns_provider: is required by issuers.b, whose challenge is dns-01; name who writes the TXT records, as in `dns_provider: cloudflare`; or set `challenge`",
            id="nobody-who-writes-for-a-further-issuer",
        ),
        pytest.param(
            MINIMAL.replace("dns_provider: cloudflare", "challenge: http-01"),
            "10: issuer.acme.challenge: is 'http-01', must be one of dns-01, dns-persist-01, none", id="challenge",
        ),
        pytest.param(_with(https="http"), "8: issuer.acme.directory_url: must be a URL https://...", id="http-directory"),
        pytest.param(
            MINIMAL.replace("agent_ca_bundle: /ca.pem", "agent_ca_bundle: /ca.pem, provisioners: [jwk]"),
            "3: server.mtls.provisioners: has the unknown kind 'jwk'; step-ca's are "
            "JWK, OIDC, GCP, AWS, Azure, ACME, X5C, K8sSA, SSHPOP, SCEP, Nebula, Wire",
            id="provisioner",
        ),
        pytest.param(
            MINIMAL.replace("agent_ca_bundle: /ca.pem", "agent_ca_bundle: /ca.pem, provisioners: []"),
            "3: server.mtls.provisioners: must name at least one kind", id="no-provisioner",
        ),
        pytest.param(
            MINIMAL.replace("key: /k.pem", "key: /k.pem, min_version: 1.1"),
            "2: server.tls.min_version: is '1.1', must be one of 1.2, 1.3", id="tls-1.1",
        ),
        pytest.param(
            MINIMAL + "secrets: {vault: {address: 'https://v', token: hush, token_file: /t}}\n",
            "11: secrets.vault.token_file: and `token` are both there; keep token_file", id="two-tokens",
        ),
        pytest.param(
            MINIMAL + "secrets: {vault: {mount_path: a/../sys}}\n",
            "11: secrets.vault.mount_path: must be the path where the store is mounted, such as secret or team/kv", id="mount",
        ),
        pytest.param(
            MINIMAL + "secrets: {vault: {cache: 1h}}\n",
            "11: secrets.vault.cache: must be between 0s, which keeps nothing, and 5m", id="vault-cache",
        ),
        pytest.param(
            MINIMAL + "secrets: {vault: {address: 'https://v', token: hush, kv_version: 3}}\n",
            "11: secrets.vault.kv_version: must be 1 or 2", id="kv-version",
        ),
        pytest.param(
            MINIMAL + "store: {url: 'postgresql://h/d'}\n",
            "11: store.url: goes with driver: postgresql only; use `path` for SQLite", id="url-with-sqlite",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql}\n",
            "11: store.url: is required with driver: postgresql; write postgresql://user@host:5432/database", id="no-url",
        ),
        pytest.param(
            MINIMAL + "store: {direct_url: 'postgresql://h/d'}\n",
            "11: store.direct_url: goes with driver: postgresql only; use `path` for SQLite", id="direct-url-with-sqlite",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'postgresql://h/d', direct_url: 'postgresql://u:hush@h/d'}\n",
            "11: store.direct_url: must not hold a password; store it as a secret and name it in password_secret", id="direct-password",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'postgresql://a,b/d?target_session_attrs=prefer-standby'}\n",
            "11: store.url: asks for a server with target_session_attrs=prefer-standby, and the broker writes; leave it out, or write read-write or primary", id="standby",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'postgresql://u:hush@h/d'}\n",
            "11: store.url: must not hold a password; store it as a secret and name it in password_secret", id="password",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'postgresql://h/d?password=hush'}\n",
            "11: store.url: must not hold a password; store it as a secret and name it in password_secret", id="password-query",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'mysql://h/d'}\n",
            "11: store.url: must be a URL postgresql://...; write postgresql://user@host:5432/database", id="mysql",
        ),
        pytest.param(
            MINIMAL + "store: {driver: postgresql, url: 'postgresql://[h/d'}\n",
            "11: store.url: must be a URL postgresql://...; write postgresql://user@host:5432/database", id="broken-url",
        ),
        pytest.param(
            MINIMAL + "rate_limits: {per_identity_per_hour: -1}\n",
            "11: rate_limits.per_identity_per_hour: must not be negative; 0 is no limit", id="negative-limit",
        ),
        pytest.param(
            MINIMAL.replace("cloudflare", "httpreq\n    httpreq: {endpoint: 'http://x', username_secret: u}"),
            "11: issuer.acme.httpreq.password_secret: is required beside the other one; name both secrets, or neither",
            id="half-of-basic-authentication",
        ),
        pytest.param(
            MINIMAL.replace("cloudflare", "httpreq\n    httpreq: {endpoint: 'http://x', mode: cooked}"),
            "11: issuer.acme.httpreq.mode: is 'cooked', must be one of default, raw", id="httpreq-mode",
        ),
        pytest.param(MINIMAL + "audit: {failure_mode: open}\n", "11: audit.failure_mode: is 'open', must be one of fail_open, fail_closed", id="mode"),
        pytest.param(MINIMAL + "issuerz: {}\n", "11: issuerz: is not a known key; did you mean `issuer`?", id="nearest"),
        pytest.param(MINIMAL + _further("default", "/b.pem"), "12: issuers.default: is also the name of `issuer`; give it another name", id="issuer-named-as-the-default"),
        pytest.param(MINIMAL + _further("b", "/a.pem"), "12: issuers.b.acme.account_key: is also the key of issuer; give each issuer its own file", id="shared-account-key"),
        pytest.param(
            MINIMAL.replace("/a.pem", "{secret: acme/key}") + _further("b", "{secret: acme/key}"),
            "12: issuers.b.acme.account_key: is also the key of issuer; give each issuer its own secret", id="shared-account-secret",
        ),
        pytest.param(
            MINIMAL.replace("/a.pem", "{}"),
            "9: issuer.acme.account_key.file: is required; name a file, or write `secret: NAME` or `store: true` instead",
            id="account-key-nowhere",
        ),
        pytest.param(
            MINIMAL.replace("/a.pem", "{file: /a.pem, store: true}"),
            "9: issuer.acme.account_key.store: stands beside `file`, and the key is in one place; leave one of them out",
            id="account-key-in-two-places",
        ),
        pytest.param(
            MINIMAL.replace("/a.pem", "a.pem"),
            "9: issuer.acme.account_key: is a relative path, which means another file in each folder; write the whole path, from / on",
            id="account-key-relative",
        ),
        pytest.param(
            MINIMAL.replace("/a.pem", "{vault: acme/key}"),
            "9: issuer.acme.account_key.vault: is not a known key; known here: file, secret, store", id="account-key-unknown-place",
        ),
        pytest.param(
            MINIMAL.replace("/a.pem", "{store: true}"),
            "store.seal_secret: is required by issuer.acme.account_key.store; name the secret that seals the key: make one with "
            "`openssl rand -base64 32`", id="no-seal-secret",
        ),
        pytest.param(
            MINIMAL + "store: {seal_secret: certplane/seal}\n",
            "11: store.seal_secret: seals nothing: the database keeps no account's key; leave it out, or write "
            "`account_key: {store: true}` where the database is to keep an account's key", id="seal-secret-of-nothing",
        ),
        pytest.param(MINIMAL + _further("B!", "/b.pem"), "12: issuers.B!: must be named with 1 to 64 of a-z, 0-9, '.', '_', '-'", id="issuer-name"),
        pytest.param(
            MINIMAL.replace("acme:\n", "name: ''\n  acme:\n"), "7: issuer.name: must not be empty", id="empty-issuer-name"
        ),
        pytest.param(
            MINIMAL + "dns: {propagation: {mode: dns}}\n",
            "11: dns.propagation.mode: is 'dns', must be one of authoritative, recursive, wait", id="propagation-mode",
        ),
        pytest.param(
            MINIMAL + "dns: {propagation: {mode: wait}}\n",
            "11: dns.propagation: has mode: wait and no `settle`, so it would wait for nothing; "
            "add `settle: 2m`, as long as the zone's servers need", id="wait-for-nothing",
        ),
        pytest.param(
            MINIMAL + "dns:\n  zones:\n  - {zone: a.test}\n  - {zone: A.test.}\n",
            "14: dns.zones[1].zone: is a.test again; write each zone once", id="zone-twice",
        ),
        pytest.param(
            MINIMAL + "dns: {delegations: ['*.a.test']}\n",
            "11: dns.delegations[0]: must be a zone's name like acme.example.net, without wildcards", id="wildcard-delegation",
        ),
        pytest.param(
            MINIMAL + "dns: {resolvers: ['192.0.2.1:0']}\n",
            "11: dns.resolvers[0]: has the port 0, must be 1 to 65535", id="resolver-port",
        ),
        pytest.param(
            MINIMAL + "store: {keep: 24h}\n",
            "11: store.keep: must be at least 192h (8 days): the weekly limits count what is younger", id="keep-too-short",
        ),
        pytest.param(
            MINIMAL.replace("server:\n", "server:\n  stream_age: 4h\n"),
            "2: server.stream_age: must be from 10m to 3h30m, or never: connections themselves last four hours",
            id="stream-age-too-long",
        ),
        pytest.param(
            MINIMAL.replace("server:\n", "server:\n  stream_age: 0s\n"),
            "2: server.stream_age: must be from 10m to 3h30m, or never: connections themselves last four hours",
            id="stream-age-zero",
        ),
        pytest.param(
            MINIMAL.replace("server:\n", "server:\n  stream_age: forever\n"),
            "2: server.stream_age: must be a duration, like 3h, or never", id="stream-age-no-duration",
        ),
        pytest.param(
            MINIMAL + "audit: {keep: 400d}\n",
            "11: audit.keep: must be a duration in hours, like 9600h, or forever", id="keep-in-days",
        ),
        pytest.param(
            MINIMAL + "audit: {checkpoint_keys: [hush]}\n",
            "11: audit.checkpoint_keys[0]: isn't 32 octets in base64; copy it from `certplane-broker audit keys`",
            id="checkpoint-key",
        ),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, text: str, problem: str) -> None:
    """One line with file, line, key and remedy, never a secret."""
    problems = _problems(tmp_path, text)
    assert any(line.endswith(problem) for line in problems)
    assert "hush" not in "".join(problems)
