"""agent.yml as init writes it: it loads, and says what was wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from certplane.agent.init.presets import PRESETS, Service
from certplane.agent.init.text import agent_yml, certificates_of, head, service_lines
from certplane.agent.init.wanted import ProfileChoice, Wanted, lineage_name
from certplane.agent.settings import AgentSettings, StartTls, settings_of
from certplane.config.document import Document
from certplane.setup.yaml_text import scalar

WANTED = Wanted(
    name="web1.example.net",
    ca_url="https://ca.example.net",
    broker=["https://broker.example.net:8443"],
    config=Path("/etc/certplane/agent.yml"),
    state_dir=Path("/var/lib/certplane/agent"),
)
NAMES = {"web": ("www.example.com", "example.com"), "wild": ("*.example.com",)}


def settings(wanted: Wanted, *choices: ProfileChoice) -> AgentSettings:
    text = agent_yml(wanted, certificates_of(wanted, choices, NAMES))
    return settings_of(Document.parse(text.encode(), "agent.yml"))


@pytest.mark.parametrize("service", [None, *Service])
def test_each_preset_is_a_file_that_loads(service: Service | None) -> None:
    """Every service's outputs, reload and look are settings, and the names are the profile's."""
    (certificate,) = settings(WANTED, ProfileChoice("web", service)).certificates
    assert certificate.dns_names == NAMES["web"]
    assert certificate.outputs["combined" if service in {Service.HAPROXY, Service.POSTFIX} else "key"].parent == Path(
        "/etc/certplane/tls"
    )
    if service is None:
        assert (certificate.reload_command, certificate.verify) == ("", None)
        return
    assert certificate.reload_command == f"systemctl reload {PRESETS[service].unit}"
    assert certificate.verify is not None
    assert certificate.verify.server_name == "www.example.com"
    assert certificate.verify.starttls is (StartTls.SMTP if service is Service.POSTFIX else None)


def test_each_preset_s_unit_may_be_reloaded_by_the_agent() -> None:
    """The polkit rule of the units names what the presets reload."""
    rule = (Path(__file__).parents[4] / "packaging" / "systemd" / "certplane-agent.rules").read_text()
    assert not [preset.unit for preset in PRESETS.values() if f'"{preset.unit}"' not in rule]


def test_a_wildcard_is_asked_for_by_a_name_below_it() -> None:
    """Without a plain name `verify` says none, and the agent makes one."""
    (certificate,) = settings(WANTED, ProfileChoice("wild", Service.NGINX)).certificates
    assert certificate.verify is not None
    assert certificate.verify.server_name is None


def test_several_brokers_are_a_list() -> None:
    """One URL is `url`, several are `urls`."""
    brokers = ["https://b1.example.net:8443", "https://b2.example.net:8443"]
    assert [str(each) for each in settings(replace(WANTED, broker=brokers)).broker.all_urls] == brokers


def test_a_file_begins_with_its_head_whatever_certificates_it_has() -> None:
    """An earlier run's file is known before the names are."""
    for choices in ((), (ProfileChoice("web"),)):
        text = agent_yml(WANTED, certificates_of(WANTED, choices, NAMES))
        assert text.startswith(f"{head(WANTED)}certificates:")


def test_odd_paths_and_uris_survive_the_file() -> None:
    """What YAML would read otherwise is quoted."""
    odd = replace(WANTED, name="spiffe://example.org/host/web1", state_dir=Path("/srv/agent: #1/state"))
    loaded = settings(odd)
    assert (loaded.identity.name, loaded.state_dir) == (odd.name, odd.state_dir)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("web", "web"), ("/etc/x.pem", "/etc/x.pem"), ("no", '"no"'), ("1.0", '"1.0"'), ("a b", '"a b"'), ("", '""'),
     ('a"b', '"a\\"b"'), ("https://x", '"https://x"'), ("*.x", '"*.x"')],
)  # fmt: skip
def test_texts_are_plain_only_where_yaml_reads_them_as_texts(text: str, expected: str) -> None:
    """Words, numbers and marks of YAML are quoted."""
    assert scalar(text) == expected


@pytest.mark.parametrize(
    ("profile", "name"),
    [("web", "web"), ("Web Shop", "web-shop"), ("..", "certificate"), ("identity", "identity-certificate")],
)
def test_a_profile_s_name_becomes_a_directory_s(profile: str, name: str) -> None:
    """Whatever policy calls it, a host can keep it under that name."""
    assert lineage_name(profile) == name


def test_a_service_is_told_its_files() -> None:
    """The lines for its own configuration name the paths of agent.yml."""
    (certificate,) = certificates_of(WANTED, [ProfileChoice("web", Service.POSTFIX)], NAMES)
    assert service_lines(Service.POSTFIX, certificate)[0] == "smtpd_tls_chain_files = /etc/certplane/tls/web.combined"
