"""What is known against a reload command before it is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from certplane.agent.install.hook_programs import hook_problem


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with one program."""
    program = tmp_path / "reload-it"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "plain.sh").write_text("#!/bin/sh\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "reload-it nginx",
        "reload-it nginx && true",
        "A=b reload-it nginx >/dev/null 2>&1",
        "/bin/sh -c 'no-such-program'",
        "no-such-program || true",
        "if command -v no-such-program; then no-such-program; fi",
        "$RELOAD nginx",
        "cd /srv && reload-it",
        "reload-it a; reload-it b | cat",
        "for each in a b; do reload-it $each; done",
        "# nothing",
        "kill -HUP $(cat /run/nginx.pid)",
        "reload-it 'a; no-such-program'",
        "reload-it a &",
    ],
)
def test_nothing_is_known_against_it(command: str) -> None:
    """What may well work is left to the shell."""
    assert hook_problem(command) == ""


@pytest.mark.parametrize(
    ("command", "words"),
    [
        pytest.param("no-such-program nginx", "no program no-such-program in PATH", id="missing"),
        pytest.param("reload-it && no-such-program", "no program no-such-program", id="the second"),
        pytest.param("A=b no-such-program", "no program no-such-program", id="after a variable"),
        pytest.param("reload-it;no-such-program", "no program no-such-program", id="without a space"),
        pytest.param("/no/such/program --now", "/no/such/program doesn't exist", id="path"),
        pytest.param("{folder}/plain.sh", "can't be run by this user; chmod +x", id="not executable"),
        pytest.param("{folder}", "is a directory", id="directory"),
        pytest.param("reload-it " + "x" * 131_072, "is longer than 128 KiB", id="too long for a program"),
        pytest.param("reload-it 'nginx", "/bin/sh can't read it", id="quotes"),
        pytest.param("if true; then", "/bin/sh can't read it", id="half a command"),
        pytest.param("bin/reload", "/bin/reload doesn't exist", id="relative to /"),
    ],
)
def test_what_cannot_work(command: str, words: str, programs: Path) -> None:
    """A program that isn't there, or not to be run, and what the shell itself refuses."""
    assert words in hook_problem(command.format(folder=programs))


def test_a_shell_without_the_programs_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's PATH has no /usr/sbin, and the service's has."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert hook_problem("env true") == ""
    assert "no program reload-it" in hook_problem("reload-it")


def test_nothing_is_run(tmp_path: Path) -> None:
    """A look at a command leaves no trace of it."""
    hook_problem(f"touch {tmp_path}/ran; echo $(touch {tmp_path}/ran)")
    assert not (tmp_path / "ran").exists()
