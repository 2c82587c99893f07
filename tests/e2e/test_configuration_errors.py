"""Configurations that are wrong, of both programs as their users run them.

Whatever is wrong with a file that a person wrote, or with a file that it names: one line on standard error with file,
line, key and remedy, exit status 2, nothing on standard output, never a traceback and never a key. What is in the way
of a right configuration (a port, another broker, a broken database) is one line with its remedy and exit status 1.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from certplane.broker.store.files import open_writer
from certplane.broker.store.soundness import QUICK_AT_START
from certplane.pki.keys import private_key_pem
from certplane.runtime.clock import SystemClock
from certplane.sandbox.certificates import CertificateAuthority, write_private
from certplane.sandbox.identity_ca import SandboxIdentityCa
from certplane.sandbox.ports import PROVISIONER
from certplane.sandbox.tokens import ProvisionerKey, TokenClaims, mint_jwk_token
from tests.support.agent_host import AgentHost
from tests.support.broker_files import BrokerFiles
from tests.support.waiting import HANG

pytestmark = pytest.mark.e2e

WITHOUT_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
"""Before a command whose user must not read what the mode forbids: root may, while it has these capabilities."""


@dataclass
class Place:
    """One program's configuration in a folder; a test spoils it and runs the program."""

    folder: Path
    name: str
    config: Path
    command: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def set(self, path: str, value: object) -> None:
        """Set a key, given with its sections and list indices (`certificates.0.profile`); None removes it."""
        *sections, last = path.split(".")
        at: Any = self.settings
        for section in sections:
            at = at[int(section)] if section.isdigit() else at.setdefault(section, {})
        if value is None:
            del at[last]
        else:
            at[last] = value
        self.config.write_text(yaml.safe_dump(self.settings, sort_keys=False))

    def append(self, text: str) -> None:
        self.config.write_text(self.config.read_text() + text)

    def run(self, *wrapper: str) -> subprocess.CompletedProcess[str]:
        command = [*wrapper, sys.executable, "-m", f"certplane.{self.name}", "-c", str(self.config), *self.command]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)


def broker_place(folder: Path) -> Place:
    files = BrokerFiles(folder)
    return Place(folder, "broker", files.config, ("serve",), files.settings)


def agent_place(folder: Path) -> Place:
    root = CertificateAuthority.root("Nobody")
    (folder / "root.crt").write_bytes(root.pem)
    claims = TokenClaims(
        PROVISIONER, "https://127.0.0.1:9/1.0/sign", "web1.certplane.test", SystemClock().now(), timedelta(minutes=5)
    )
    write_private(folder / "token", mint_jwk_token(ProvisionerKey.generate(), claims).encode())
    settings = {
        "state_dir": str(folder / "state"),
        "identity": {
            "name": "web1.certplane.test",
            "bootstrap_token": str(folder / "token"),
            "step_ca": {
                "url": "https://127.0.0.1:9",
                "fingerprint": root.fingerprint,
                "root_ca_bundle": str(folder / "root.crt"),
            },
        },
        "broker": {"url": "https://localhost:9", "server_ca_bundle": str(folder / "root.crt")},
        "certificates": [{"name": "web", "profile": "web", "dns_names": ["a.certplane.test"]}],
    }
    place = Place(folder, "agent", folder / "agent.yml", ("enroll",), settings)
    place.set("state_dir", str(folder / "state"))
    return place


def lines_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What was told on standard error, the broker's log and the agent's steps left out, and nothing that never may be."""
    assert "Traceback" not in result.stderr
    assert "PRIVATE KEY" not in result.stderr + result.stdout
    return [line for line in result.stderr.splitlines() if not line.startswith(("{", "identity: "))]


# --- what a person wrote ----------------------------------------------------------------------------------------------

Spoil = Callable[[Place], object]


def make_directory(name: str) -> Spoil:
    """Where root runs the tests, a directory is the file that nobody can read."""

    def spoil(place: Place) -> None:
        (place.folder / name).unlink()
        (place.folder / name).mkdir()

    return spoil


def make_open(name: str) -> Spoil:
    return lambda place: (place.folder / name).chmod(0o644)


def remove(name: str) -> Spoil:
    return lambda place: (place.folder / name).unlink()


def write(name: str, content: str) -> Spoil:
    return lambda place: (place.folder / name).write_text(content)


def other_key(place: Place) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (place.folder / "server.key").write_bytes(private_key_pem(key))


def open_account_key(place: Place) -> None:
    key = place.folder / "account.key"
    key.write_bytes(private_key_pem(ec.generate_private_key(ec.SECP256R1())))
    key.chmod(0o644)


def set_key(path: str, value: object) -> Spoil:
    return lambda place: place.set(path, value)


MISTAKES: list[tuple[str, str, Spoil, str, str]] = [
    ("broker", "broken-yaml", lambda place: place.append("\n  - [\n"), "", "is not YAML"),
    ("broker", "unknown-key", set_key("server.adress", ":1"), "server.adress", "did you mean `address`"),
    ("broker", "duplicate-key", lambda place: place.append("policy: {path: /x}\n"), "policy", "twice"),
    ("broker", "wrong-type", set_key("server.drain_timeout", "soon"), "server.drain_timeout", "30s"),
    ("broker", "list-for-a-section", set_key("policy", ["a"]), "policy", ""),
    ("broker", "missing-key", set_key("issuer.acme.directory_url", None), "issuer.acme.directory_url", "is required"),
    ("broker", "missing-file", remove("server.crt"), "server.tls.cert", "does not exist"),
    ("broker", "missing-bundle", remove("agent-ca.pem"), "server.mtls.agent_ca_bundle", "does not exist"),
    ("broker", "bundle-without-certificates", write("agent-ca.pem", "junk"), "server.mtls.agent_ca_bundle", ""),
    ("broker", "key-that-is-a-directory", make_directory("server.key"), "server.tls.key", "is a directory"),
    ("broker", "world-readable-key", make_open("server.key"), "server.tls.key", "chmod 600"),
    ("broker", "world-readable-account-key", open_account_key, "issuer.acme.account_key", "chmod 600"),
    ("broker", "key-of-another-certificate", other_key, "server.tls.key", "is not the key of"),
    ("broker", "missing-policy", remove("policy.yml"), "policy.path", "does not exist"),
    ("broker", "no-such-folder", set_key("store.path", "/nowhere/broker.db"), "store.path", "create the folder"),
    ("broker", "no-secrets", set_key("secrets.provider", "file"), "secrets.file.directory", ""),
    ("agent", "broken-yaml", lambda place: place.append("\n  - [\n"), "", "is not YAML"),
    ("agent", "unknown-key", set_key("broker.ulr", "https://b:1"), "broker.ulr", "did you mean `url`"),
    ("agent", "duplicate-key", lambda place: place.append("state_dir: /x\n"), "state_dir", "twice"),
    ("agent", "wrong-type", set_key("broker.timeout", "soon"), "broker.timeout", "30s"),
    ("agent", "text-for-a-list", set_key("certificates", "web"), "certificates", ""),
    ("agent", "missing-key", set_key("broker.server_ca_bundle", None), "broker.server_ca_bundle", "is required"),
    ("agent", "missing-file", remove("root.crt"), "identity.step_ca.root_ca_bundle", "does not exist"),
    ("agent", "file-that-is-a-directory", make_directory("root.crt"), "identity.step_ca.root_ca_bundle", "directory"),
    ("agent", "bundle-without-certificates", write("root.crt", "x"), "identity.step_ca.root_ca_bundle", ""),
    ("agent", "world-readable-token", make_open("token"), "identity.bootstrap_token", "chmod 600"),
    ("agent", "row-43-path-traversal", set_key("certificates.0.name", "../../etc"), "certificates[0].name", "a-z"),
    ("agent", "row-43-line-break", set_key("certificates.0.name", "web\nroot"), "certificates[0].name", "a-z"),
    ("agent", "row-43-absolute-path", set_key("certificates.0.name", "/etc/web"), "certificates[0].name", "a-z"),
]
"""Program, case, how it is made wrong, the key that is named, and words of the line."""


PLACES: dict[str, Callable[[Path], Place]] = {"broker": broker_place, "agent": agent_place}


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made: Place = PLACES[request.param](tmp_path)
    return made


@pytest.mark.parametrize(
    ("place", "spoil", "key", "words"),
    [pytest.param(program, *rest, id=f"{program}-{case}") for program, case, *rest in MISTAKES],
    indirect=["place"],
)
def test_mistake(place: Place, spoil: Spoil, key: str, words: str) -> None:
    """A mistake is one line with file, line, key, what is wrong and what to do about it, and status 2."""
    spoil(place)
    result = place.run()
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    (line,) = lines_of(result)
    found = re.fullmatch(rf"{re.escape(str(place.config))}:(\d+): (.+)", line)
    assert found is not None, line
    assert words in found[2]
    assert "; " in found[2] or "must be" in found[2], "no remedy"
    if key:
        assert found[2].startswith(f"{key}: ")
        written = place.config.read_text().splitlines()[int(found[1]) - 1]
        assert written.strip(" -").partition(":")[0] in re.split(r"[.\[\]]+", key)  # its own, or the section without it


def test_missing_configuration() -> None:
    """A configuration that isn't there is named, by either program."""
    for program, command in (("broker", "serve"), ("agent", "run")):
        missing = f"/nowhere/{program}.yml"
        arguments = [sys.executable, "-m", f"certplane.{program}", command, "-c", missing]
        result = subprocess.run(arguments, capture_output=True, text=True, timeout=HANG, check=False)
        assert result.returncode == 2
        assert lines_of(result) == [f"{missing}: does not exist; create it, or correct the path"]


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    """Whoever has made several mistakes is told all of them, in the order of the file."""
    place = broker_place(tmp_path)
    place.set("server.drain_timeout", "soon")
    place.set("polici", {})
    place.set("audit", {"failure_mode": "fail_sometimes"})
    result = place.run()
    assert result.returncode == 2
    lines = lines_of(result)
    assert [line.split(": ")[1] for line in lines] == ["server.drain_timeout", "polici", "audit.failure_mode"]


def test_mistakes_of_the_files_at_once(tmp_path: Path) -> None:
    """The same for the files that a right configuration names: certificate, bundle and policy."""
    place = broker_place(tmp_path)
    for name in ("server.crt", "agent-ca.pem"):
        (tmp_path / name).unlink()
    (tmp_path / "policy.yml").write_text("version: 2\nprofiles: {web: {type: odd, dns_names: [a.test]}}\n")
    result = place.run()
    assert result.returncode == 2
    named = [line.split(": ")[:2] for line in lines_of(result)]
    assert [(Path(file.rpartition(":")[0]).name, key) for file, key in named] == [
        ("broker.yml", "server.tls.cert"),
        ("broker.yml", "server.mtls.agent_ca_bundle"),
        ("policy.yml", "version"),
        ("policy.yml", "profiles.web.type"),
    ]


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads everything")
@pytest.mark.parametrize(
    ("place", "name", "key"),
    [
        pytest.param("broker", "server.key", "server.tls.key: ", id="broker-key"),
        pytest.param("broker", "policy.yml", "policy.path: ", id="broker-policy"),
        pytest.param("agent", "token", "identity.bootstrap_token: ", id="agent-token"),
        pytest.param("agent", "agent.yml", "", id="agent-configuration"),
    ],
    indirect=["place"],
)
def test_unreadable_file(place: Place, name: str, key: str) -> None:
    """A file that the program's user may not read is named with the right that is missing."""
    (place.folder / name).chmod(0)
    result = place.run(*WITHOUT_OVERRIDE)
    assert result.returncode == 2, result.stderr
    (line,) = lines_of(result)
    assert line.startswith(f"{place.config}:")
    assert key in line
    assert line.endswith("can't be read by this user; give the program's user the right to read it")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        pytest.param(lambda key: key.chmod(0o644), "identity: {key}: can be accessed by others (mode 0644); chmod 600", id="world-readable"),
        pytest.param(
            lambda key: key.write_bytes(private_key_pem(ec.generate_private_key(ec.SECP256R1()))),
            "can't be used: the key isn't the certificate's", id="of-another-certificate",
        ),
    ],
)  # fmt: skip
async def test_identity_key_that_was_tampered_with(tmp_path: Path, spoil: Callable[[Path], object], words: str) -> None:
    """`check` finds an identity's key that others may read, or that isn't its certificate's, and says what to do."""
    async with SandboxIdentityCa(tmp_path / "ca") as ca:
        host = AgentHost(tmp_path / "host", ca, "web1.certplane.test")
        host.give_token()
        assert (await host.run("enroll")).status == 0
        key = host.state / "identity" / "versions" / "1" / "privkey.pem"
        spoil(key)
        finished = await host.run("check")
    assert finished.status == 1
    failed = [line for line in finished.stdout.splitlines() if line.startswith("FAIL")]
    assert any(words.format(key=key) in line and "; " in line for line in failed), finished.stdout
    assert "Traceback" not in finished.stderr
    assert "PRIVATE KEY" not in finished.stdout + finished.stderr


# --- what is in the way -----------------------------------------------------------------------------------------------


def test_corrupt_database(tmp_path: Path) -> None:
    """A broken database refuses the start, names the file, and says where a restore is described."""
    place = broker_place(tmp_path)
    (tmp_path / "broker.db").write_bytes(b"SQLite format 3\0" + b"\xa5" * 8192)
    (tmp_path / "broker.db").chmod(0o600)
    result = place.run()
    assert result.returncode == 1
    (line,) = lines_of(result)
    assert line.startswith(f"certplane-broker: {tmp_path}/broker.db: the database is corrupt")
    assert "docs/operations.md" in line
    assert (tmp_path / "broker.db").read_bytes().endswith(b"\xa5")  # nothing was tried on it


@pytest.mark.parametrize("part", ["deny_entries", "sqlite_autoindex_identities_1", "sqlite_autoindex_renewal_plans_1"])
def test_damaged_part_of_a_large_database(tmp_path: Path, part: str) -> None:
    """Such a file isn't read as a whole by a start; where what is read is broken, the words are the same."""
    place = broker_place(tmp_path)
    path = tmp_path / "broker.db"
    with contextlib.closing(open_writer(path, timedelta(seconds=HANG), exclusive=True)) as connection:
        connection.execute("INSERT INTO deny_entries VALUES (1, 'web8.example', '', '', hex(zeroblob(9000000)), 0)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (part,)).fetchone()
    assert path.stat().st_size > QUICK_AT_START
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
    result = place.run()
    assert result.returncode == 1
    line = lines_of(result)[-1]
    assert line.startswith(f"certplane-broker: {path}: the database is corrupt")
    assert "docs/operations.md, 'Restore'" in line


def test_second_program_on_the_same_state(tmp_path: Path) -> None:
    """A second broker on the same store or spill file, a second agent on the same state: one line, status 1."""
    locks = (("broker", "broker.db.lock"), ("broker", "audit-spill.jsonl.lock"), ("agent", "state/lock"))
    for program, locked in locks:
        folder = tmp_path / locked.partition("/")[0]
        folder.mkdir()
        place = PLACES[program](folder)
        (folder / locked).parent.mkdir(exist_ok=True)
        with (folder / locked).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            result = place.run()
        assert result.returncode == 1, result.stderr
        (line,) = lines_of(result)
        assert line.startswith(f"certplane-{program}: ")
        assert "another" in line
        assert "; " in line, "no remedy"
