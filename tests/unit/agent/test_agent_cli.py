"""The command line of certplane-agent: what it loads, how it fails, what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from certplane.agent.cli import main
from certplane.sandbox.certificates import CertificateAuthority

# Without grpc_health and grpc_reflection, of which `import grpc` itself takes the (empty) packages where they are.
BROKER_PACKAGES = (
    "acme", "alembic", "cloudflare", "dns", "grpc_channelz", "grpc_health.v1", "grpc_reflection.v1alpha", "josepy", "lexicon",
    "prometheus_client", "psycopg", "requests", "sqlalchemy", "certplane.broker", "certplane.sandbox",
)  # fmt: skip

VALID = """\
identity:
  name: web1.example
  step_ca: {url: "https://127.0.0.1:1", fingerprint: %s}
broker:
  url: https://127.0.0.1:1
  server_ca_bundle: /nowhere/root.crt
""" % ("ab" * 32)


NOT_IN_A_QUIET_RUN = {
    "certplane.agent.enrollment.identity",
    "certplane.agent.install.password",
    "certplane.agent.install.pkcs12",
    "certplane.agent.install.probe",
    "certplane.pki.identity",
    "difflib",
    "shlex",
}
"""What talks to the internal CA, what few hosts have configured, and what explains a mistake."""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh Python has after running `code`."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import certplane.agent.cli", id="cli"),
        pytest.param("import certplane.agent.app, certplane.agent.check, certplane.agent.status", id="all commands"),
    ],
)
def test_the_agent_loads_none_of_the_brokers_packages(code: str) -> None:
    """What `pip install certplane` brings is enough, and an idle agent holds nothing else."""
    loaded = loaded_by(code)
    assert not [name for name in BROKER_PACKAGES if name in loaded or any(m.startswith(f"{name}.") for m in loaded)]


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        pytest.param("import certplane.agent.cli", {"grpc", "cryptography", "yaml", "rich"}, id="the command line"),
        pytest.param("import certplane.agent.status, certplane.agent.host", {"grpc", "rich"}, id="status"),
        pytest.param("import certplane.agent.app", {"http.client", "rich", "idna"}, id="a running agent"),
        pytest.param("import certplane.agent.app", NOT_IN_A_QUIET_RUN, id="a run with nothing due"),
    ],
)
def test_a_command_loads_no_more_than_it_needs(code: str, absent: set[str]) -> None:
    """`--help` answers at once, `status` needs no gRPC, an idle agent neither HTTP client nor what isn't configured."""
    assert not absent & loaded_by(code)


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.yml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", [["status"], ["check"], ["enroll"], ["run"], ["run", "--once"], ["renew", "web"]])
@pytest.mark.parametrize(
    ("text", "problems"),
    [
        pytest.param("identity: [", 1, id="broken YAML"),
        pytest.param(VALID + "colour: blue\n", 1, id="unknown key"),
        pytest.param(VALID + "state_dir: /a\nstate_dir: /b\n", 1, id="duplicate key"),
        pytest.param(VALID + "certificates: 7\n", 1, id="wrong type"),
        pytest.param(VALID.replace("https://127.0.0.1:1", "http://127.0.0.1:1"), 2, id="two problems"),
    ],
)
def test_a_wrong_configuration_is_told_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], text: str, problems: int
) -> None:
    """Status 2, one line for each problem with the file's name, nothing on standard output, never a traceback."""
    config = write(tmp_path, text)
    assert main(["-c", str(config), *command]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == problems
    assert all(line.startswith(f"{config}:") for line in lines)


def test_the_configuration_may_stand_before_or_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`-c FILE status` and `status -c FILE` are the same."""
    missing = tmp_path / "missing.yml"
    for arguments in (["-c", str(missing), "status"], ["status", "--config", str(missing)]):
        assert main(arguments) == 2
        assert str(missing) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("key: relative/key.pem", "is a relative path", id="relative output"),
        pytest.param("fullchain: {state}/reports/x.pem", "lies in the agent's own", id="output in the state"),
    ],
)
def test_an_output_that_cannot_be_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    """File, line, key, remedy and status 2, as for any other mistake in the file."""
    state = tmp_path / "state"
    output = text.format(state=state)
    config = write(
        tmp_path,
        f"{VALID}state_dir: {state}\ncertificates:\n- {{name: web, profile: p, dns_names: [a.example], {output}}}\n",
    )
    assert main(["-c", str(config), "status"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{config}:9: certificates[0].")
    assert words in line


def test_renew_of_an_unknown_name_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped name is a wrong argument: status 2."""
    config = write(
        tmp_path,
        f"{VALID}state_dir: {tmp_path}/state\ncertificates:\n- {{name: web, profile: p, dns_names: [a.example]}}\n",
    )
    assert main(["-c", str(config), "renew", "wed"]) == 2
    assert "use one of: web, identity" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run"], ["run", "--once"]])
def test_a_host_without_identity_is_told_to_enroll(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    """One line, status 1."""
    (tmp_path / "root.crt").write_bytes(CertificateAuthority.root("Broker").pem)
    text = VALID.replace("/nowhere", str(tmp_path))
    config = write(tmp_path, f"{text}state_dir: {tmp_path}/state\n")
    assert main(["-c", str(config), *command]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "isn't enrolled" in line
    assert "certplane-agent enroll" in line


def test_status_of_an_empty_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before enrollment `status` works, makes nothing, and shows that there is nothing."""
    config = write(tmp_path, f"{VALID}state_dir: {tmp_path}/state\n")
    assert main(["-c", str(config), "status"]) == 0
    assert "agent: not running" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()
