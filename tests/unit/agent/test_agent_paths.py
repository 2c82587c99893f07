"""Which paths agent.yml may name, and which users and groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from certplane.agent.host import Host
from certplane.agent.settings import AccountName, load_settings
from certplane.errors import ConfigurationError

CASES = Path(__file__).parents[2] / "cases"
FINGERPRINT = "3a7b00112233445566778899aabbccddeeff00112233445566778899aabbccdd"


def problems(folder: Path, *, key: str = "", value: Any = None, certificate: dict[str, Any] | None = None) -> list[str]:
    """What is wrong with a file in which `key` has `value`; the file's name and line are cut off."""
    document: dict[str, Any] = {
        "state_dir": "/var/lib/certplane/agent",
        "identity": {"name": "web1.example", "step_ca": {"url": "https://ca.example", "fingerprint": FINGERPRINT}},
        "broker": {"url": "https://broker.example:8443", "server_ca_bundle": "/etc/certplane/broker-ca.pem"},
        "certificates": [{"name": "web", "profile": "web", "dns_names": ["a.example"], **(certificate or {})}],
    }
    section = document
    *parents, last = key.split(".") if key else [""]
    for parent in parents:
        section = section["certificates"][0] if parent == "certificate" else section.setdefault(parent, {})
    if key:
        section[last] = value
    path = folder / "agent.yml"
    path.write_text(yaml.safe_dump(document))
    try:
        Host(load_settings(path)).close()
    except ConfigurationError as error:
        return [str(problem).partition(f":{problem.line}: ")[2] for problem in error.problems]
    return []


PATHS = [
    "state_dir",
    "identity.cert",
    "identity.key",
    "identity.issuer_ca_bundle",
    "identity.bootstrap_token",
    "identity.step_ca.root_ca_bundle",
    "broker.server_ca_bundle",
    "certificate.key",
    "certificate.cert",
    "certificate.chain",
    "certificate.fullchain",
    "certificate.combined",
]
OUTPUTS = [key for key in PATHS if key.startswith("certificate.") or key in {"identity.cert", "identity.key"}]


@pytest.mark.parametrize("key", PATHS)
@pytest.mark.parametrize(
    ("value", "phrase"),
    [
        pytest.param("~/certplane", "begins with ~", id="home"),
        pytest.param("~root/certplane", "begins with ~", id="another's home"),
        pytest.param("${STATE_DIRECTORY}", "has a variable", id="variable in braces"),
        pytest.param("$HOME/state", "has a variable", id="variable"),
        pytest.param("/srv/$(hostname)/state", "has a variable", id="command"),
    ],
)
def test_paths_that_nobody_expands(tmp_path: Path, key: str, value: str, phrase: str) -> None:
    """Each path is whole as it stands: what only a shell, or one folder, makes whole is refused with its remedy."""
    (problem,) = problems(tmp_path, key=key, value=value)
    assert problem.startswith(key.replace("certificate.", "certificates[0]."))
    assert phrase in problem
    assert "write the whole path" in problem


@pytest.mark.parametrize("key", [key for key in PATHS if not key.endswith("_bundle")])
@pytest.mark.parametrize("value", ["state", "./state", "%S/certplane"])
def test_relative_paths_of_what_is_written(tmp_path: Path, key: str, value: str) -> None:
    """What is written there would be another file in each folder."""
    (problem,) = problems(tmp_path, key=key, value=value)
    assert "is a relative path" in problem
    assert "write the whole path" in problem


@pytest.mark.parametrize("key", [key for key in PATHS if key.endswith("_bundle")])
def test_relative_paths_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """As the public format has them in its own example; whole once they are read, so that messages show the file."""
    monkeypatch.chdir(tmp_path)
    assert problems(tmp_path, key=key, value="dev/ca.crt") == []
    settings = load_settings(tmp_path / "agent.yml")
    found = {
        settings.identity.issuer_ca_bundle,
        settings.identity.step_ca.root_ca_bundle,
        settings.broker.server_ca_bundle,
    }
    assert tmp_path / "dev" / "ca.crt" in found


@pytest.mark.parametrize("key", [key for key in PATHS if key.endswith("_bundle")] + ["identity.bootstrap_token"])
@pytest.mark.parametrize("output", ["key", "chain"])
def test_an_output_is_no_file_that_is_read(tmp_path: Path, key: str, output: str) -> None:
    """The first installation would overwrite it, and the agent, not that certificate alone, would be at its end."""
    (problem,) = problems(tmp_path, key=key, value="/srv/tls/file", certificate={output: "/srv/tls/file"})
    assert problem.startswith(f"certificates[0].{output}: is the file of {key}, which would be overwritten")


def test_an_output_is_no_password_file(tmp_path: Path) -> None:
    """The same of what a PKCS#12 file is encrypted with."""
    (problem,) = problems(tmp_path, certificate={"pkcs12": {"path": "/srv/tls/p", "password_file": "/srv/tls/p"}})
    assert "is the file of certificates[0].pkcs12.password_file" in problem


def test_an_output_is_not_this_file(tmp_path: Path) -> None:
    """The same of agent.yml."""
    (problem,) = problems(tmp_path, certificate={"key": str(tmp_path / "agent.yml")})
    assert "is this file, which would be overwritten; choose another path" in problem


@pytest.mark.parametrize("line", [line for line in (CASES / "J1/values.txt").read_text().splitlines() if line])
def test_state_dirs_that_were_taken(tmp_path: Path, line: str) -> None:
    """The identity's key would have gone into a folder called `~`."""
    assert problems(tmp_path, key="state_dir", value=yaml.safe_load(line)["state_dir"])


@pytest.mark.parametrize("key", ["state_dir", *OUTPUTS])
@pytest.mark.parametrize("value", ["/srv/web/current/../tls/web.key", "/srv/..", "/"])
def test_paths_that_are_written_at(tmp_path: Path, key: str, value: str) -> None:
    """`..` through a link is another folder than it looks, and the root is no file."""
    (problem,) = problems(tmp_path, key=key, value=value)
    assert ("goes through `..`" if ".." in value else "is the root") in problem


def test_the_case_that_ended_the_agent(tmp_path: Path) -> None:
    """One certificate's odd path is told by line, not by a traceback of `run`."""
    certificate = yaml.safe_load((CASES / "A1/agent.yml.part").read_text())["certificates"][0]
    (problem,) = problems(tmp_path, certificate=certificate)
    assert problem.startswith("certificates[0].key: goes through `..`")


@pytest.mark.parametrize(
    ("certificate", "phrase"),
    [
        pytest.param({"key": "/srv/a", "cert": "//srv/a"}, "is also the path of certificates[0].key", id="two slashes"),
        pytest.param({"key": "/srv/a", "cert": "/srv/./a"}, "is also the path of certificates[0].key", id="a dot"),
        pytest.param(
            {"key": "/srv/a", "cert": "/srv/a/cert"}, "lies below the file of certificates[0].key", id="below"
        ),
        pytest.param({"cert": "/srv/a/b/c", "key": "/srv/a"}, "lies below the file of certificates[0].key", id="deep"),
        pytest.param({"pkcs12": {"path": "a", "password_file": "/b"}}, "is a relative path", id="PKCS#12"),
        pytest.param({"pkcs12": {"path": "/a", "password_file": "~/b"}}, "begins with ~", id="its password"),
        pytest.param({"pkcs12": {"path": "/a/../b", "password_file": "/b"}}, "goes through `..`", id="its .."),
    ],
)
def test_outputs_that_exclude_each_other(tmp_path: Path, certificate: dict[str, Any], phrase: str) -> None:
    """Each output is a file of its own, however its path is written."""
    (problem,) = problems(tmp_path, certificate=certificate)
    assert phrase in problem


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        pytest.param("/var/lib/certplane/agent/identity.crt", False, id="the public format's own example"),
        pytest.param("/var/lib/certplane/agent/web.key", False, id="a service's file"),
        pytest.param("/var/lib/certplane/agent/tls/web.key", False, id="a folder of its own"),
        pytest.param("/var/lib/certplane/agent/certificates.d/web.key", False, id="a name that only begins like ours"),
        pytest.param("/var/lib/certplane/agent/identity", True, id="the identity's folder"),
        pytest.param("/var/lib/certplane/agent/identity/current/privkey.pem", True, id="in it"),
        pytest.param("/var/lib/certplane/agent/certificates/web/web.key", True, id="in a certificate's"),
        pytest.param("/var/lib/certplane/agent/certificates/other.key", True, id="beside one"),
        pytest.param("/var/lib/certplane/agent/reports/web.key", True, id="in the reports"),
        pytest.param("/var/lib/certplane/agent/control/agent.sock", True, id="the socket"),
        pytest.param("/var/lib/certplane/agent/lock", True, id="the lock"),
        pytest.param("/var/lib/certplane/agent/link.json", True, id="the link's state"),
        pytest.param("/var/lib/certplane/agent", True, id="state_dir itself"),
    ],
)
@pytest.mark.parametrize("key", ["identity.cert", "certificate.key"])
def test_outputs_in_the_state_directory(tmp_path: Path, key: str, path: str, refused: bool) -> None:
    """Files may lie in `state_dir`, as the public format has them; what the agent keeps there is its own."""
    assert bool(problems(tmp_path, key=key, value=path)) == refused


@pytest.mark.parametrize(
    "name",
    [
        "www-data",
        "0",
        "DOMAIN\\user",
        "domain users",
        "user@domain.example",
        "MÜLLER\\ä",
        "host$",
        "_apt",
        "x+y",
        "a.b",
    ],
)
def test_account_names(tmp_path: Path, name: str) -> None:
    """Names of a directory are names: whether there is such a one is the system's to say, and later."""
    assert problems(tmp_path, certificate={"owner": name, "group": name}) == []
    assert AccountName.parse(name) == name


@pytest.mark.parametrize("name", ["root:", "root:root", " root", "root ", "a\nb", "-R", "", "x" * 300, "a,b"])
def test_what_is_no_account_name(tmp_path: Path, name: str) -> None:
    """What no user database can hold is a mistake in the file."""
    with pytest.raises(ValueError, match="name or number of a user or group"):
        AccountName.parse(name)


@pytest.mark.parametrize(
    "text",
    [
        FINGERPRINT,
        FINGERPRINT.upper(),
        f"sha256:{FINGERPRINT}",
        f"SHA256:{FINGERPRINT}",
        f"sha256={FINGERPRINT}",
        ":".join(FINGERPRINT[place : place + 2] for place in range(0, 64, 2)),
    ],
)
def test_fingerprints(tmp_path: Path, text: str) -> None:
    """As step, the public format and openssl write it."""
    assert problems(tmp_path, key="identity.step_ca.fingerprint", value=text) == []
