"""README.md: what it tells to type is there, what it shows the demo really says, and its examples load."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from certplane.agent.cli import _parser
from certplane.agent.init.arguments import wanted_by
from certplane.agent.init.text import agent_yml, certificates_of
from certplane.agent.settings import load_settings
from certplane.broker.policy.document import load_policy
from certplane.ctl.watch.known import Answer, Known
from certplane.ctl.watch.page import Page, PageKind, Question, Topic
from certplane.ctl.watch.rollouts import page_lines
from certplane.setup.asking import Asker
from tests.support.parts import need_part
from tests.support.waiting import HANG
from tests.support.watched_fleet import NOW
from tests.support.watched_rollouts import halted

pytestmark = pytest.mark.e2e

_ROOT = Path(__file__).parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_CHANGING = re.compile(
    r"\d+(?:[.:-]\d+)+|serial [0-9a-f]+|\d+[dhms]\b|:\d{4,5}\b|step-ca [\d.]+|the sandbox's own server"
)


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", _README, re.MULTILINE | re.DOTALL)


def shown_of_demo() -> list[str]:
    (shown,) = [block for block in fenced("text") if block.startswith("Certplane's demo:")]
    return [line for line in shown.splitlines() if line and line != "..."]


def pattern(line: str) -> re.Pattern[str]:
    """A line with its ports, dates and versions left open."""
    fixed = _CHANGING.split(line)
    return re.compile(".*".join(re.escape(part) for part in fixed))


def test_demo_says_what_the_readme_shows(tmp_path: Path) -> None:
    """Each line of the README's excerpt is in the demo's output, in its order, but for ports, dates and versions."""
    need_part("pebble")
    need_part("openssl")
    demo = subprocess.run(
        [sys.executable, "-m", "certplane.sandbox", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    lines = iter(demo.stdout.splitlines())
    shown = shown_of_demo()
    assert len(shown) > 15
    for line in shown:
        assert any(pattern(line).fullmatch(said) for said in lines), (
            f"the demo doesn't say, or not in this order: {line}"
        )


def test_scripts_are_there() -> None:
    """Each script that the README names exists and can be run."""
    named = set(re.findall(r"\bscripts/[a-z-]+", _README))
    assert {"scripts/demo", "scripts/test", "scripts/check"} <= named
    for script in named:
        assert os.access(_ROOT / script, os.X_OK), script


def test_commands_are_there() -> None:
    """Each command of a program that the README tells to type is one that the program has."""
    commands = {line.partition("#")[0].strip() for block in fenced("sh") for line in block.splitlines()}
    typed = {command for command in commands if command.startswith("certplane")}
    assert len(typed) == 5
    for command in typed:
        program, *arguments = shlex.split(command)
        installed = Path(sys.executable).parent / program
        subprocess.run([installed, *arguments, "--help"], capture_output=True, timeout=HANG, check=True)


def test_the_rollout_that_it_shows() -> None:
    """The README's rollout is the head of what the full screen shows of one that has halted."""
    shown = next(block for block in fenced("text") if block.startswith("halted:"))
    known = Known("https://broker.example.test")
    known.keep(Question(Topic.ROLLOUT, rollout="r-7f3a"), Answer((halted(),)))
    lines = page_lines(known, Page(PageKind.ROLLOUT, rollout="r-7f3a"), NOW, 96)
    assert shown.splitlines() == [line.fitted(96).text.rstrip() for line in lines][: len(shown.splitlines())]


def test_what_init_writes() -> None:
    """The README's agent.yml is, letter by letter, what `certplane-agent init` writes of the README's line and policy."""
    policy_text, agent_text = fenced("yaml")
    (names,) = (profile["dns_names"] for profile in yaml.safe_load(policy_text)["profiles"].values())
    (typed,) = re.findall(r"certplane-agent (init .*?)\nweb1#", _README, re.DOTALL)
    options = _parser().parse_args(shlex.split(typed.replace("\\\n", " ")))
    wanted, _ = wanted_by(options, Path("/etc/certplane/agent.yml"), Asker("README.md"))
    certificates = certificates_of(wanted, wanted.profiles, {"web": tuple(names)})
    assert agent_text == agent_yml(wanted, certificates)


def test_examples_load(tmp_path: Path) -> None:
    """The README's policy.yml and agent.yml are such files, and fit each other."""
    policy_text, agent_text = fenced("yaml")
    (tmp_path / "policy.yml").write_text(policy_text, encoding="utf-8")
    (tmp_path / "agent.yml").write_text(agent_text, encoding="utf-8")
    policy = load_policy(tmp_path / "policy.yml")
    agent = load_settings(tmp_path / "agent.yml")
    grant = policy.find_grant(agent.identity.name)
    assert grant is not None
    for certificate in agent.certificates:
        assert certificate.profile in grant.profiles
        profile = policy.find_profile(certificate.profile)
        assert profile is not None
        assert set(certificate.dns_names) == set(profile.dns_names)


@pytest.mark.parametrize(
    "document", ["README.md", *sorted(f"docs/{path.name}" for path in (_ROOT / "docs").glob("*.md"))]
)
def test_links(document: str) -> None:
    """Each relative link leads to a file, and its fragment to a heading."""
    file = _ROOT / document
    for target, fragment in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", file.read_text(encoding="utf-8")):
        aim = (file.parent / target) if target else file
        assert aim.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", aim.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert fragment in slugs, f"{target}#{fragment}"
