"""Hooks: an operator's shell command, its time limit, its output and what it leaves behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.agent.install.hook import OUTPUT_LIMIT, ShellHookRunner, hook_environment, readable
from certplane.errors import OperationError
from certplane.runtime.clock import SystemClock
from tests.support.processes import OthersPrograms
from tests.support.waiting import HANG, until

LONG = timedelta(seconds=30)
SHORT = timedelta(seconds=1.5)  # long enough for a shell to begin on a busy machine


def runner(**environment: str) -> ShellHookRunner:
    inherited = {"PATH": os.environ["PATH"], **environment}
    return ShellHookRunner(clock=SystemClock(), environment=inherited, grace=timedelta(milliseconds=500))


@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        pytest.param("echo out; echo err >&2", 0, "out\nerr\n", id="both outputs"),
        pytest.param("echo no; exit 3", 3, "no\n", id="a status"),
        pytest.param("nginx-that-is-not-here 2>/dev/null", 127, "", id="no such command"),
        pytest.param("kill -TERM $$", 143, "", id="killed by a signal, as a shell says it"),
        pytest.param("cat; echo end", 0, "end\n", id="nothing to read"),
        pytest.param("pwd", 0, "/\n", id="at the root"),
        pytest.param("echo a && false || echo b | tr b c", 0, "a\nc\n", id="shell syntax"),
        pytest.param("", 0, "", id="nothing"),
    ],
)
async def test_result_is_the_commands(command: str, status: int, output: str) -> None:
    """The exit status and the output are the command's own."""
    result = await runner().run(command, LONG, {})
    assert (result.exit_status, result.output) == (status, output)
    assert result.succeeded == (status == 0)


async def test_environment_is_passed_without_what_is_the_agents() -> None:
    """A hook learns about its certificate, and nothing that speaks for the agent to systemd."""
    hooks = runner(NOTIFY_SOCKET="/run/n", CREDENTIALS_DIRECTORY="/run/c", LANG="C", CERTPLANE_FAILPOINTS="x=kill")
    result = await hooks.run("env", LONG, {"CERTPLANE_NAME": "www", "LANG": "C.UTF-8"})
    lines = result.output.splitlines()
    assert "CERTPLANE_NAME=www" in lines
    assert "LANG=C.UTF-8" in lines
    assert not [line for line in lines if line.startswith(("NOTIFY", "CREDENTIALS", "CERTPLANE_FAILPOINTS"))]


def test_own_environment_is_inherited_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't the agent's own goes on to hooks."""
    assert hook_environment({"PATH": "/bin", "WATCHDOG_USEC": "1", "LISTEN_FDS": "1"}, {}) == {"PATH": "/bin"}


async def test_hook_at_its_limit_is_ended_with_all_it_forked(tmp_path: Path) -> None:
    """At the limit the whole group ends, the part that ignores SIGTERM too, and the status says that it was stopped."""
    pids = tmp_path / "pids"
    command = (
        f"(trap '' TERM; sh -c 'echo $$ >> {pids}; sleep 60' & sleep 60) & echo $! >> {pids}; echo begun; sleep 60"
    )
    result = await runner().run(command, SHORT, {})
    assert result.exit_status is None
    assert not result.succeeded
    assert result.output == "begun\n"
    await all_gone([int(pid) for pid in pids.read_text().split()])


async def test_hook_that_heeds_sigterm_may_clean_up() -> None:
    """SIGTERM comes first, and what the hook says then is kept."""
    result = await runner().run("trap 'echo cleaned; exit 0' TERM; sleep 60 & wait", SHORT, {})
    assert result.exit_status is None
    assert result.output == "cleaned\n"


async def test_child_that_keeps_the_output_does_not_hold_the_hook(tmp_path: Path) -> None:
    """The exit counts, not the end of the output: a daemon that the hook starts lives on, and is not waited for."""
    pid_file = tmp_path / "pid"
    result = await runner().run(f"sleep 600 & echo $! > {pid_file}; echo started", LONG, {})
    assert (result.exit_status, result.output) == (0, "started\n")
    pid = int(pid_file.read_text())
    os.kill(pid, 0)  # alive: nobody has waited for its end
    os.kill(pid, signal.SIGKILL)


async def test_child_that_goes_on_writing_does_not_hold_the_hook(tmp_path: Path) -> None:
    """Output without end from what the hook left behind ends with the hook's."""
    result = await runner().run("yes & echo started", LONG, {})
    assert result.exit_status == 0
    assert len(result.output) <= OUTPUT_LIMIT + 10


async def test_end_of_a_long_output_is_kept() -> None:
    """However much a hook says, it isn't blocked, and its last 16 KiB are kept in whole lines."""
    result = await runner().run("seq 1 200000; echo the end", LONG, {})
    assert result.exit_status == 0
    assert result.output.startswith("[...]\n1")
    assert result.output.endswith("200000\nthe end\n")
    assert OUTPUT_LIMIT - 100 < len(result.output) <= OUTPUT_LIMIT + 10


async def test_hook_does_not_hold_the_agents_files(tmp_path: Path) -> None:
    """A hook inherits no descriptor of the agent: neither the state lock nor a connection."""
    with (tmp_path / "file").open("w"):
        result = await runner().run("ls /proc/self/fd | wc -l", LONG, {})
    assert int(result.output) <= 4  # the three of every process, and the directory that ls reads


async def test_cancelled_hook_is_ended(tmp_path: Path) -> None:
    """An agent that stops takes its running hook with it."""
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(runner().run(f"echo $$ > {pid_file}; sleep 60", LONG, {}))
    await until(lambda: pid_file.exists() and pid_file.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await all_gone([int(pid_file.read_text())])


@pytest.mark.parametrize("cancelled", [pytest.param(False, id="at-its-limit"), pytest.param(True, id="cancelled")])
async def test_hook_of_another_user_is_left_behind(
    cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook that has become root (`exec sudo ...`) can't be signalled: it is past its time, and nobody waits for it."""
    pid_file = tmp_path / "pid"
    programs = OthersPrograms(monkeypatch)
    task = asyncio.create_task(runner().run(f"echo $$ > {pid_file}; sleep 60", SHORT, {}))
    try:
        if cancelled:
            await until(lambda: pid_file.exists() and pid_file.read_text())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, HANG)
        else:
            assert (await asyncio.wait_for(task, HANG)).exit_status is None
    finally:
        await programs.kill(int(pid_file.read_text()))
    assert "another user" in caplog.text
    await all_gone([int(pid_file.read_text())])


async def test_runs_do_not_mix() -> None:
    """Several hooks at once each have their own output."""
    hooks = runner()
    results = await asyncio.gather(*(hooks.run(f"sleep 0.0{n}; echo {n}", LONG, {}) for n in range(5)))
    assert [result.output for result in results] == [f"{n}\n" for n in range(5)]


async def test_shell_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """When no process can be made, the error is an `OperationError`, and no descriptor is lost."""

    async def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    before = open_descriptors()
    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    with pytest.raises(OperationError, match="/bin/sh can't be started"):
        await runner().run("true", LONG, {})
    assert open_descriptors() <= before


@pytest.fixture(autouse=True)
async def no_descriptor_is_lost() -> AsyncIterator[None]:
    """Every test leaves as many descriptors as it found."""
    before = open_descriptors()
    yield
    await asyncio.sleep(0.01)
    assert open_descriptors() <= before


KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\nAgEGCCqGSM49AwEH\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        pytest.param(b"plain \xc3\xa9\n\ttext\r\n", "plain é\n\ttext\n", id="text"),
        pytest.param(b"\x1b[31mred\x07\x00", "\\x1b[31mred\\x07\\x00", id="a terminal's commands"),
        pytest.param("\u009b2J".encode(), "\\x9b2J", id="C1 controls"),
        pytest.param(b"caf\xe9", "caf\\xe9", id="not UTF-8"),
        pytest.param(f"a\n{KEY}b".encode(), "a\n[private key removed]\nb", id="a private key"),
        pytest.param(KEY.replace(" PRIVATE", " EC PRIVATE").encode(), "[private key removed]\n", id="a SEC 1 key"),
        pytest.param(KEY[:40].encode(), "[private key removed]", id="a key without its end"),
        pytest.param(KEY[30:].encode() + b"b", "[private key removed]\nb", id="a key without its beginning"),
        pytest.param(b"[...]\n" + KEY[49:].encode(), "[private key removed]\n", id="a key cut off"),
        pytest.param((KEY + "x" + KEY).encode(), "[private key removed]\nx[private key removed]\n", id="two keys"),
    ],
)
def test_output_is_safe_to_log(output: bytes, text: str) -> None:
    """No control character reaches a terminal through the log, and no private key reaches the log."""
    assert readable(output) == text


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def all_gone(pids: list[int]) -> None:
    assert pids
    await until(lambda: not any(map(is_running, pids)), what=f"the end of {pids}")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ended before the file was opened, or before it was read
        return False
