"""agent.yml: the public format loads unchanged, with its defaults; mistakes are all told at once."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from certplane.agent.model import InstallMode
from certplane.agent.renewal.window import ActivationWindow
from certplane.agent.settings import (
    AccountName,
    ActivateSettings,
    AgentSettings,
    FileMode,
    FileSettings,
    KeyRotation,
    StartTls,
    VerifySettings,
    load_settings,
)
from certplane.config.broker_urls import BrokerUrl
from certplane.config.values import DnsName, HostPort, LogDestination, LogFormat, LogLevel
from certplane.errors import ConfigurationError
from certplane.pki.keys import KeyType

EXAMPLE = Path(__file__).parent.parent / "config" / "examples" / "agent.yml"

MINIMAL = """\
identity:
  name: web1.example
  step_ca:
    url: https://ca.example
    fingerprint: "3a7b00112233445566778899aabbccddeeff00112233445566778899aabbccdd"
broker:
  url: https://broker.example:8443
  server_ca_bundle: /etc/certplane/broker-ca.pem
"""


def _load(tmp_path: Path, text: str) -> AgentSettings:
    path = tmp_path / "agent.yml"
    path.write_text(text)
    return load_settings(path)


def _problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        _load(tmp_path, text)
    return [str(problem).removeprefix(f"{tmp_path}/agent.yml:") for problem in caught.value.problems]


def test_every_key_of_the_format() -> None:
    """A file with every key loads, and each value arrives where it belongs."""
    settings = load_settings(EXAMPLE)
    assert settings.state_dir == Path("/srv/certplane/agent")
    identity = settings.identity
    assert (identity.name, identity.provider) == ("web1.example", "step-ca")
    assert (identity.cert, identity.key) == (
        Path("/etc/certplane/identity/cert.pem"), Path("/etc/certplane/identity/key.pem"),
    )  # fmt: skip
    assert identity.issuer_ca_bundle == Path("/etc/certplane/identity/issuer.pem")
    assert identity.bootstrap_token == Path("/etc/certplane/bootstrap-token")
    assert (identity.renew_before, identity.warn_before) == (timedelta(hours=8), timedelta(hours=4))
    assert (identity.key_type, identity.rekey) == (KeyType.EC_P384, False)
    step_ca = identity.step_ca
    assert (step_ca.url, step_ca.timeout) == ("https://ca.example:9000", timedelta(seconds=15))
    assert step_ca.fingerprint == "3a7b00112233445566778899aabbccddeeff00112233445566778899aabbccdd"
    assert step_ca.root_ca_bundle == Path("/etc/certplane/root.pem")
    assert settings.broker.url.target == "broker.example:8443"
    assert settings.broker.server_ca_bundle == Path("/etc/certplane/broker-ca.pem")
    assert settings.broker.timeout == timedelta(seconds=90)
    www, mail = settings.certificates
    assert (www.name, www.profile, www.dns_names) == ("www", "web-wildcard", ("*.example.com", "example.com"))
    assert www.outputs == {
        "key": Path("/etc/ssl/www/privkey.pem"),
        "cert": Path("/etc/ssl/www/cert.pem"),
        "chain": Path("/etc/ssl/www/chain.pem"),
        "fullchain": Path("/etc/ssl/www/fullchain.pem"),
        "combined": Path("/etc/ssl/www/combined.pem"),
        "pkcs12": Path("/etc/ssl/www/bundle.p12"),
    }
    assert www.pkcs12 is not None
    assert (www.pkcs12.password_file, www.pkcs12.friendly_name) == (Path("/etc/certplane/p12-password"), "www")
    assert www.files_by_output == {
        **dict.fromkeys(
            ("key", "combined"), FileSettings(AccountName("root"), AccountName("www-data"), FileMode(0o640))
        ),
        **dict.fromkeys(
            ("cert", "chain", "fullchain"), FileSettings(AccountName("root"), AccountName("www-data"), FileMode(0o644))
        ),
        "pkcs12": FileSettings(AccountName("tomcat"), AccountName("1001"), FileMode(0o400)),
    }
    assert www.activate == ActivateSettings(
        ActivationWindow(time(22, 30), time(5), frozenset({5, 6}), UTC), timedelta(hours=48)
    )
    assert www.verify == VerifySettings(
        HostPort("::1", 443), DnsName("example.com"), timedelta(seconds=3), 4, timedelta(milliseconds=500),
        timedelta(hours=1), StartTls.SMTP,
    )  # fmt: skip
    assert (www.renew_before, www.reload_timeout) == (timedelta(hours=720), timedelta(seconds=45))
    assert www.reload_command == "systemctl reload nginx"
    assert (www.key_type, www.key_rotation, www.install) == (KeyType.RSA_3072, KeyRotation.REUSE, InstallMode.COPY)
    assert (mail.name, mail.outputs) == ("mail.internal_1", {})
    assert settings.metrics.textfile == Path("/var/lib/node_exporter/certplane.prom")
    logging = settings.logging
    assert (logging.level, logging.format, logging.destination) == (
        LogLevel.DEBUG, LogFormat.JSON, LogDestination.STDOUT,
    )  # fmt: skip
    assert settings.hash == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()


def test_the_example_has_every_key() -> None:
    """The example can't fall behind the settings: each field of each section stands in it."""
    document_keys = {key.split("[")[0] + key.partition("]")[2] for key in load_settings(EXAMPLE).source.lines}
    settings = load_settings(EXAMPLE)
    sections: dict[str, Any] = {
        "": settings, "identity": settings.identity, "identity.step_ca": settings.identity.step_ca,
        "broker": settings.broker, "certificates": settings.certificates[0], "logging": settings.logging,
        "metrics": settings.metrics, "tracing": settings.tracing,
    }  # fmt: skip
    expected = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, section in sections.items()
        for name in (spec.name for spec in dataclasses.fields(section))
        if name != "source"
    }
    assert expected - document_keys == {"broker.urls"}, "which takes the place of broker.url"


URLS = "urls: [https://b1.example:8443, 'https://[2001:db8::1]:8443', https://b2.example]"


def test_several_brokers(tmp_path: Path) -> None:
    """`urls` takes the place of `url`; what the agent goes by is the list of either."""
    settings = _load(tmp_path, MINIMAL.replace("url: https://broker.example:8443", URLS))
    assert [str(url) for url in settings.broker.all_urls] == [
        "https://b1.example:8443", "https://[2001:db8::1]:8443", "https://b2.example:443",
    ]  # fmt: skip
    assert [str(url) for url in _load(tmp_path, MINIMAL).broker.all_urls] == ["https://broker.example:8443"]


def test_defaults(tmp_path: Path) -> None:
    """What a short file leaves out has the format's default."""
    settings = _load(tmp_path, MINIMAL + "certificates:\n- {name: www, profile: p, dns_names: [a.example]}\n")
    assert settings.state_dir == Path("/var/lib/certplane/agent")
    assert settings.identity.provider == "step-ca"
    assert settings.identity.renew_before is None
    assert settings.identity.step_ca.timeout == timedelta(seconds=10)
    assert (settings.identity.key_type, settings.identity.rekey) == (KeyType.EC_P256, True)
    assert settings.broker.timeout == timedelta(seconds=30)
    (www,) = settings.certificates
    assert (www.files_by_output, www.activate, www.verify) == ({}, ActivateSettings(), None)
    assert www.reload_timeout == timedelta(seconds=30)
    assert (www.key_type, www.key_rotation, www.install) == (KeyType.EC_P256, KeyRotation.ALWAYS, InstallMode.LINK)
    logging = settings.logging
    assert (logging.level, logging.format, logging.destination) == (
        LogLevel.INFO, LogFormat.TEXT, LogDestination.STDERR,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("url", "target", "shown"),
    [
        pytest.param("https://b.example:8443", "b.example:8443", "https://b.example:8443", id="port"),
        pytest.param("https://b.example:8443/", "b.example:8443", "https://b.example:8443", id="slash"),
        pytest.param("https://b.example", "b.example:443", "https://b.example:443", id="no-port"),
        pytest.param("https://[::1]:8443", "[::1]:8443", "https://[::1]:8443", id="ipv6"),
    ],
)
def test_broker_url(url: str, target: str, shown: str) -> None:
    """An https URL is the gRPC target."""
    assert BrokerUrl.parse(url).target == target
    assert str(BrokerUrl.parse(url)) == shown


CERTIFICATE = "certificates:\n- name: www\n  profile: p\n  dns_names: [a.example]\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(
            MINIMAL.replace("https://broker.example:8443", "http://b:1"), "7: broker.url: must be a URL https://...", id="http"
        ),
        pytest.param(
            MINIMAL.replace(":8443", ":8443/v1"), "7: broker.url: must be https://host:port without a path", id="path"
        ),
        pytest.param(
            MINIMAL.replace("url: https://broker.example:8443", "proxy: none"),
            "6: broker.url: is required; write https://host:port, or a list of them as `urls`", id="no-broker",
        ),
        pytest.param(
            MINIMAL.replace("url: https://broker.example:8443", "urls: []"),
            "6: broker.url: is required; write https://host:port, or a list of them as `urls`", id="no-brokers",
        ),
        pytest.param(
            MINIMAL + f"  {URLS}\n",
            "9: broker.urls: goes without `url`; put that URL into the list, and drop `url`", id="url-and-urls",
        ),
        pytest.param(
            MINIMAL.replace("url: https://broker.example:8443", "urls: [https://b.example, https://B.example:443/]"),
            "7: broker.urls[1]: is the same broker as urls[0]; name each broker once", id="broker-twice",
        ),
        pytest.param(
            MINIMAL.replace("url: https://broker.example:8443", "urls: [https://b.example, http://b2.example]"),
            "7: broker.urls[1]: must be a URL https://...", id="urls-http",
        ),
        pytest.param(
            MINIMAL.replace("url: https://broker.example:8443", "urls: [https://b.example/v1]"),
            "7: broker.urls[0]: must be https://host:port without a path", id="urls-path",
        ),
        pytest.param(
            MINIMAL.replace(
                "url: https://broker.example:8443", f"urls: [{', '.join(f'https://b{n}.example' for n in range(33))}]"
            ),
            "7: broker.urls: names 33 brokers, at most 32 are allowed; give them one DNS name with several addresses",
            id="too-many-brokers",
        ),
        pytest.param(
            MINIMAL.replace("web1.example", "'*.example'"), "2: identity.name: is a wildcard; an identity is one DNS name or URI",
            id="wildcard-identity",
        ),
        pytest.param(
            MINIMAL.replace("name: web1.example", "provider: vault"),
            "1: identity.name: is required; add `name: ...`", id="no-name",
        ),
        pytest.param(
            MINIMAL.replace('"3a', '"zz'),
            "5: identity.step_ca.fingerprint: must be a SHA-256 in hexadecimal, as `step certificate fingerprint root_ca.crt` prints it",
            id="fingerprint",
        ),
        pytest.param(
            MINIMAL.replace("    fingerprint", "    #"),
            "3: identity.step_ca.fingerprint: or `root_ca_bundle` is required, to know the CA by; "
            "write the output of `step certificate fingerprint root_ca.crt`",
            id="unpinned-ca",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + CERTIFICATE.replace("certificates:\n", ""),
            "13: certificates[1].name: is that of certificates[0] too; give each certificate its own name", id="name-twice",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  key: /k.pem\n  cert: /k.pem\n",
            "14: certificates[0].cert: is also the path of certificates[0].key; give each file its own path", id="path-twice",
        ),
        pytest.param(
            MINIMAL.replace("  step_ca:", "  key: /k.pem\n  step_ca:") + CERTIFICATE + "  key: /k.pem\n",
            "14: certificates[0].key: is also the path of identity.key; give each file its own path", id="identity-path-twice",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE.replace("[a.example]", "[]"),
            "12: certificates[0].dns_names: must not be empty; write the profile's names", id="no-dns-names",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  reload_timeout: 0s\n", "13: certificates[0].reload_timeout: must be more than zero",
            id="zero-timeout",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  key_type: ed25519\n",
            "13: certificates[0].key_type: is 'ed25519', must be one of ec-p256, ec-p384, rsa-2048, rsa-3072, rsa-4096",
            id="key-type",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  key_mode: 0644\n",
            "13: certificates[0].key_mode: is 0644; what holds a private key is 0400 to 0640; write 0640", id="open-key",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  mode: 0664\n",
            "13: certificates[0].mode: is 0664; a certificate is 0400 to 0644; write 0644", id="group-writes",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  mode: rw-r--r--\n",
            "13: certificates[0].mode: must be like 0640: three octal digits", id="mode-in-letters",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  combined: /c.pem\n  files:\n    combined: {mode: 0644}\n",
            "15: certificates[0].files.combined.mode: is 0644; what holds a private key is 0400 to 0640; write 0640",
            id="open-combined",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  key: /k.pem\n  files:\n    cert: {mode: 0644}\n",
            "15: certificates[0].files.cert: is no output of this certificate; outputs are: key", id="no-such-output",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  group: 'www:data'\n",
            "13: certificates[0].group: must be the name or number of a user or group, as `id` or `getent` shows it",
            id="group-name",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  activate: {window: 2-4}\n",
            "13: certificates[0].activate.window: must be like 02:00-04:00, sat,sun 22:00-05:00 or mon-fri 02:00-04:00 "
            "Europe/Berlin",
            id="window",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  activate: {expires_override: 48h}\n",
            "13: certificates[0].activate.expires_override: has no effect without a window; add `window: 02:00-04:00`, "
            "or drop it",
            id="override-without-window",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  verify: {connect: localhost}\n",
            "13: certificates[0].verify.connect: must be host:port", id="connect-without-port",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  verify: {connect: localhost:443, attempts: 0}\n",
            "13: certificates[0].verify.attempts: must be more than zero", id="no-attempts",
        ),
        pytest.param(
            MINIMAL + CERTIFICATE + "  key: /k.pem\n  pkcs12: {path: /k.pem, password_file: /p}\n",
            "14: certificates[0].pkcs12: is also the path of certificates[0].key; give each file its own path",
            id="pkcs12-path-twice",
        ),
    ],
)  # fmt: skip
def test_refuses(tmp_path: Path, text: str, problem: str) -> None:
    """One line with file, line, key and remedy."""
    assert problem in _problems(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["../www", "a/b", ".www", "..", "", "Www", "w w", "www\\n", "w\\0", "a" * 65, "\u00fc"]
)
def test_row43_lineage_names(tmp_path: Path, name: str) -> None:
    """A certificate's name is a directory's: nothing that leaves it, hides it or breaks a line."""
    (problem,) = _problems(tmp_path, MINIMAL + CERTIFICATE.replace("name: www", f'name: "{name}"'))
    assert problem in {
        "10: certificates[0].name: must be 1 to 64 of a-z, 0-9, '.', '_', '-', not beginning with '.'",
        "1: is not YAML: it has a character that YAML doesn't allow",
    }


def test_settings_say_where_they_stand(tmp_path: Path) -> None:
    """Whoever reads a file that a setting names can report the setting's line."""
    settings = _load(tmp_path, MINIMAL)
    problem = settings.source.problem("broker.server_ca_bundle", "is empty")
    assert str(problem) == f"{tmp_path}/agent.yml:8: broker.server_ca_bundle: is empty"
