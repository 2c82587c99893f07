"""The files of packaging/systemd, as systemd's own tools read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from certplane.sandbox import parts
from tests.support.waiting import HANG

FOLDER = Path(__file__).parents[3] / "packaging" / "systemd"
UNITS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".service", ".timer"})
MOST_EXPOSURE = {
    "certplane-broker.service": 1.1,
    "certplane-broker@.service": 1.1,
    "certplane-broker-certificate.service": 1.1,
    "certplane-agent.service": 1.4,
    "certplane-agent-once.service": 1.4,
}
"""What docs/operations.md says, of 10; lower is tighter."""
ROOT_EXPOSURE = 2.1


def systemd(tool: str, *arguments: str | Path, folder: Path) -> str:
    """The output of one of systemd's tools; the test is skipped without it."""
    program = shutil.which(tool)
    if program is None:
        if parts.all_required():
            pytest.fail(f"{tool} is left out", pytrace=False)
        pytest.skip(f"{tool} isn't here: Debian's package systemd has it")
    finished = subprocess.run(
        [program, *arguments], cwd=folder, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units with programs that exist: their paths are looked at too."""
    for name in UNITS:
        text = (FOLDER / name).read_text(encoding="utf-8")
        text = re.sub(r"/opt/certplane/bin/certplane-\w+", sys.executable, text)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def exposure(unit: str, folder: Path) -> float:
    found = re.search(
        r"exposure level for \S+: ([0-9.]+)",
        systemd("systemd-analyze", "security", "--offline=true", "--no-pager", f"./{unit}", folder=folder),
    )
    assert found is not None
    return float(found[1])


def test_units_are_clean(units: Path) -> None:
    """Not a word from `systemd-analyze verify`: no unknown key, no value that counts for nothing."""
    assert systemd("systemd-analyze", "verify", *(f"./{name}" for name in UNITS), folder=units) == ""


@pytest.mark.parametrize("unit", MOST_EXPOSURE)
def test_the_sandbox_is_as_tight_as_the_handbook_says(units: Path, unit: str) -> None:
    """The score of `systemd-analyze security`; all services are bounded."""
    assert exposure(unit, units) <= MOST_EXPOSURE[unit]
    assert set(MOST_EXPOSURE) == {name for name in UNITS if name.endswith(".service")}


def test_the_drop_in_for_root_gives_no_more_than_it_says(units: Path) -> None:
    """Clean beside the unit, and still a sandbox."""
    folder = units / "certplane-agent.service.d"
    folder.mkdir()
    shutil.copy(FOLDER / "certplane-agent-root.conf", folder / "root.conf")
    assert systemd("systemd-analyze", "verify", "./certplane-agent.service", folder=units) == ""
    assert exposure("certplane-agent.service", units) <= ROOT_EXPOSURE


def test_the_handbook_has_the_figures() -> None:
    """A score that changes is a sentence that changes."""
    text = " ".join((FOLDER.parents[1] / "docs" / "operations.md").read_text(encoding="utf-8").split())
    broker, agent = (MOST_EXPOSURE[f"certplane-{name}.service"] for name in ("broker", "agent"))
    assert f"gives {broker} of 10 for the broker and {agent} for the agent" in text
    assert f"(score {ROOT_EXPOSURE})" in text
    assert all(f"`{path.name}`" in text or path.suffix in {".sysusers", ".timer"} for path in FOLDER.iterdir())


def test_the_agents_units_differ_in_nothing_but_how_they_run() -> None:
    """One sandbox for both, so that what a daemon may do a timer may too."""
    daemon, once = (
        (FOLDER / f"{name}.service").read_text(encoding="utf-8").split("\nUser=")[1].split("\n[Install]")[0].strip()
        for name in ("certplane-agent", "certplane-agent-once")
    )
    assert daemon == once


def test_one_of_several_brokers_is_in_the_sandbox_of_a_single_one() -> None:
    """The template differs in the lines that name the instance alone; each has its own configuration and folder."""
    single, template = (
        [line for line in (FOLDER / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        for name in ("certplane-broker.service", "certplane-broker@.service")
    )
    assert len(single) == len(template)
    differing = {after: before for before, after in zip(single, template, strict=True) if before != after}
    assert all("%i" in line for line in differing)
    assert [line for line in template if line.startswith("StateDirectory=")] == [
        "StateDirectory=certplane certplane/broker-%i"
    ]
    for line, before in differing.items():
        assert (
            line.replace("broker-%i.yml", "broker.yml")
            .replace(" certplane/broker-%i", "")
            .replace("broker %i", "broker")
            == before
        )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_users_and_folders_are_made(tmp_path: Path) -> None:
    """systemd-sysusers and systemd-tmpfiles take their files; services' certificates lie in a folder of the agent."""
    (tmp_path / "etc").mkdir()
    for kind, extension in (("sysusers", "sysusers"), ("tmpfiles", "tmpfiles")):
        folder = tmp_path / "usr" / "lib" / f"{kind}.d"
        folder.mkdir(parents=True)
        for path in FOLDER.glob(f"*.{extension}"):
            shutil.copy(path, folder / f"{path.stem}.conf")
    systemd("systemd-sysusers", f"--root={tmp_path}", folder=tmp_path)
    users = {
        line.split(":")[0]: int(line.split(":")[2])
        for line in (tmp_path / "etc" / "passwd").read_text(encoding="utf-8").splitlines()
    }
    assert sorted(users) == ["certplane-agent", "certplane-broker"]
    names = ("certplane-agent.conf", "certplane-broker.conf")
    systemd("systemd-tmpfiles", "--create", f"--root={tmp_path}", *names, folder=tmp_path)

    def owner(path: str) -> tuple[int, int]:
        status = (tmp_path / path).stat()
        return status.st_uid, status.st_mode & 0o777

    agent, broker = users["certplane-agent"], users["certplane-broker"]
    assert owner("etc/certplane") == (0, 0o755)
    assert owner("etc/certplane/tls") == owner("var/lib/certplane/agent") == (agent, 0o755)
    assert owner("etc/certplane/broker") == (broker, 0o700)
    assert owner("etc/certplane/secrets") == (0, 0o700)
    assert owner("var/lib/certplane") == (broker, 0o711)


def test_the_polkit_rule_lets_the_agent_reload_and_no_more(tmp_path: Path) -> None:
    """As polkit would run it: the named units, the verb, the user."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node isn't here to run polkit's JavaScript")
    script = """
const polkit = {Result: {YES: "yes", NOT_HANDLED: ""}, addRule(rule) { this.rule = rule; }};
RULE
const ask = (id, user, verb, unit) =>
    polkit.rule({id, lookup: (key) => ({verb, unit})[key]}, {user}) || "no";
const manage = "org.freedesktop.systemd1.manage-units";
console.log([
    ask(manage, "certplane-agent", "reload", "nginx.service"),
    ask(manage, "certplane-agent", "restart", "nginx.service"),
    ask(manage, "certplane-agent", "reload", "sshd.service"),
    ask(manage, "www-data", "reload", "nginx.service"),
    ask("org.freedesktop.login1.reboot", "certplane-agent", "reload", "nginx.service"),
].join(" "));
""".replace("RULE", (FOLDER / "certplane-agent.rules").read_text(encoding="utf-8"))
    (tmp_path / "rule.js").write_text(script, encoding="utf-8")
    finished = subprocess.run([node, tmp_path / "rule.js"], capture_output=True, text=True, timeout=HANG, check=False)
    assert (finished.stdout.strip(), finished.stderr) == ("yes no no no no", "")


@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_no_unit_leaves_a_dump(name: str) -> None:
    """The memory of each program holds keys."""
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    assert "LimitCORE=0" in lines
