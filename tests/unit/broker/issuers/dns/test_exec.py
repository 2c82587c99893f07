"""A program of the operator's: how it is called, what it gets, and what each end means."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker.issuers.attempts import Deadline
from certplane.broker.issuers.dns.exec import ExecProvider, ExecSettings
from certplane.broker.model import DnsChallenge, Profile, TxtRecord
from certplane.errors import ConfigurationError, Reason, Refusal, RefusalError
from certplane.runtime.clock import SystemClock
from tests.fakes.secrets import FakeSecretSource
from tests.support.processes import OthersPrograms
from tests.support.waiting import HANG, until

NAME = "_acme-challenge.www.certplane.test"
RECORD = TxtRecord("", NAME, "-value; $(touch /tmp/x)")
SECRETS = {"dns/token": "hunter2-s3cret", "dns/other": "other", "dns/large": "x" * 70_000}
Make = Callable[..., ExecProvider]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A provider with a shell script of one's own; it stands in `tmp_path`, and `$D` there is that."""

    def make(script: str, *, credentials: str = "dns/token", seconds: float = 10) -> ExecProvider:
        path = tmp_path / "hook"
        path.write_text(f"#!/bin/sh\nD='{tmp_path}'\n{script}\n")
        path.chmod(0o755)
        program = ExecSettings(path, credentials, timedelta(seconds=seconds))
        return ExecProvider(program, FakeSecretSource(SECRETS), random.Random(1))

    return make


def soon(seconds: float = 10) -> Deadline:
    return Deadline.after(timedelta(seconds=seconds), SystemClock())


async def refusal_of(provider: ExecProvider, seconds: float = 10, of: TxtRecord = RECORD) -> Refusal:
    with pytest.raises(RefusalError) as caught:
        await provider.add_txt(of, soon(seconds))
    return caught.value.refusal


async def test_arguments(make: Make, tmp_path: Path) -> None:
    """What to do, the name with its final dot, the value: an argument each, and no shell sees them."""
    provider = make('printf "%s|" "$#" "$@" >>"$D/calls"')
    assert await provider.add_txt(RECORD, soon()) == RECORD
    await provider.remove_txt(RECORD, soon())
    expected = "".join(f"3|{what}|{NAME}.|-value; $(touch /tmp/x)|" for what in ("present", "cleanup"))
    assert (tmp_path / "calls").read_text() == expected


async def test_plan(make: Make) -> None:
    """A record is what the challenge wants, with the profile's secret."""
    challenge = DnsChallenge("www.certplane.test", NAME, "value", "https://ca/a", "https://ca/c", "t.t")
    profile = Profile("web", "multi_san", ("www.certplane.test",), "hash", credentials="dns/other")
    assert make("").plan(challenge, profile) == TxtRecord("", NAME, "value", credentials="dns/other")


@pytest.mark.parametrize(
    ("configured", "recorded", "told"),
    [
        pytest.param("dns/token", "", "hunter2-s3cret\n", id="configured"),
        pytest.param("dns/token", "dns/other", "other\n", id="profile's"),
        pytest.param("", "", "", id="none"),
    ],
)
async def test_secret_on_standard_input(make: Make, tmp_path: Path, configured: str, recorded: str, told: str) -> None:
    """The secret comes as standard input, a line, and its end after it."""
    provider = make('cat >"$D/told"', credentials=configured)
    await provider.add_txt(replace(RECORD, credentials=recorded), soon())
    assert (tmp_path / "told").read_text() == told


async def test_environment(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the broker's environment, and no secret, is in the program's."""
    monkeypatch.setenv("VAULT_TOKEN", "hvs.x")
    await make('tr "\\0" "\\n" </proc/self/environ >"$D/environment"; pwd >"$D/place"').add_txt(RECORD, soon())
    lines = (tmp_path / "environment").read_text().splitlines()
    assert {line.partition("=")[0] for line in lines} <= {"PATH", "LANG", "HOME", "PWD"}
    assert (tmp_path / "place").read_text() == "/\n"


async def test_open_files_are_not_inherited(make: Make, tmp_path: Path) -> None:
    """The program has its three streams and nothing of the broker's."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    await make('ls /proc/self/fd | wc -l >"$D/count"').add_txt(RECORD, soon())
    os.close(reader)
    os.close(writer)
    assert int((tmp_path / "count").read_text()) <= 4  # the three, and the directory that ls reads


@pytest.mark.parametrize(
    ("script", "reason", "said"),
    [
        pytest.param("exit 1", Reason.DNS_UNAVAILABLE, "exit status 1", id="1"),
        pytest.param("exit 77", Reason.DNS_REJECTED, "it may not (77)", id="EX_NOPERM"),
        pytest.param("exit 78", Reason.DNS_REJECTED, "its configuration is wrong (78)", id="EX_CONFIG"),
        pytest.param("exit 126", Reason.DNS_REJECTED, "126", id="126"),
        pytest.param("no-such-command-at-all", Reason.DNS_REJECTED, "127", id="127"),
        pytest.param("kill -SEGV $$", Reason.DNS_UNAVAILABLE, "exit status 139", id="signal"),
        pytest.param("echo no zone >&2; exit 1", Reason.DNS_UNAVAILABLE, "status 1: no zone", id="error"),
        pytest.param("echo no zone; exit 1", Reason.DNS_UNAVAILABLE, "status 1: no zone", id="output"),
        pytest.param("echo a; echo b >&2; echo >&2; exit 1", Reason.DNS_UNAVAILABLE, "status 1: b", id="last-line"),
        pytest.param(r"printf 'a\033[2J\007b\n' >&2; exit 1", Reason.DNS_UNAVAILABLE, "1: a[2Jb", id="controls"),
        pytest.param(r"printf 'a\377b\n' >&2; exit 1", Reason.DNS_UNAVAILABLE, "1: a\ufffdb", id="no-text"),
        pytest.param("read -r s; echo got $s >&2; exit 1", Reason.DNS_UNAVAILABLE, "1: got [secret]", id="secret"),
    ],
)
async def test_ends(make: Make, script: str, reason: Reason, said: str) -> None:
    """The status says whose job it is; the last line that was printed is told, as text and without the secret."""
    refusal = await refusal_of(make(script))
    assert (refusal.reason, said in refusal.message) == (reason, True), refusal.message
    assert "hunter2" not in refusal.message
    assert NAME in refusal.message


async def test_tries_again_when_asked(make: Make, tmp_path: Path) -> None:
    """EX_TEMPFAIL is called again at once, another failure isn't."""
    await make('echo >>"$D/n"; [ "$(wc -l <"$D/n")" -gt 1 ] || exit 75').add_txt(RECORD, soon())
    assert (tmp_path / "n").read_text() == "\n\n"
    await refusal_of(make('echo >>"$D/m"; exit 1'))
    assert (tmp_path / "m").read_text() == "\n"


async def test_lots_of_output(make: Make) -> None:
    """A talkative program isn't blocked, and only its end is kept."""
    refusal = await refusal_of(
        make("yes noise | head -c 3000000; yes noise | head -c 3000000 >&2; echo end >&2; exit 1")
    )
    assert refusal.message.endswith("exit status 1: end")


async def test_standard_input_is_not_read(make: Make) -> None:
    """A program that doesn't care for its input, and closes it, is fine."""
    await make("exec <&-; exit 0").add_txt(RECORD, soon())


async def test_limit_ends_the_whole_group(make: Make, tmp_path: Path) -> None:
    """At the limit the program and what it started are killed, whatever they do about signals."""
    provider = make(
        'trap "" TERM INT; mkfifo "$D/f"; (exec 3<>"$D/f"; read -r x <&3) & echo slow >&2; wait', seconds=0.4
    )
    refusal = await refusal_of(provider)
    assert refusal.reason is Reason.DNS_UNAVAILABLE
    assert "took too long to present" in refusal.message
    assert refusal.message.endswith(": slow")
    await _nobody_has(tmp_path / "f")


async def test_program_of_another_user_is_left_behind(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that has become root (`exec sudo ...`) can't be signalled: its time ends the order's wait all the same."""
    pid_file = tmp_path / "pid"
    programs = OthersPrograms(monkeypatch)
    provider = make(f"echo $$ > {pid_file}; exec sleep 600", seconds=2)
    try:
        refusal = await asyncio.wait_for(refusal_of(provider), HANG)
    finally:
        await programs.kill(int(pid_file.read_text()))
    assert (refusal.reason, "took too long" in refusal.message) == (Reason.DNS_UNAVAILABLE, True)
    assert "another user" in caplog.text


async def test_the_order_has_less_time(make: Make) -> None:
    """The caller's deadline counts when it is earlier."""
    assert "took too long" in (await refusal_of(make("exec sleep 20"), seconds=0.2)).message


async def test_cancellation_ends_the_program(make: Make, tmp_path: Path) -> None:
    """A caller that goes takes the program with it."""
    provider = make('mkfifo "$D/f"; exec 3<>"$D/f"; echo >"$D/started"; read -r x <&3')
    task = asyncio.create_task(provider.add_txt(RECORD, soon()))
    await until((tmp_path / "started").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _nobody_has(tmp_path / "f")


async def test_what_is_left_running_holds_nobody(make: Make, tmp_path: Path) -> None:
    """The program's exit counts, not the end of output that a child of it keeps open."""
    provider = make('mkfifo "$D/f"; (exec 3<>"$D/f"; read -r x <&3) & exit 0')
    await asyncio.wait_for(provider.add_txt(RECORD, soon()), HANG)
    with (tmp_path / "f").open("w") as fifo:
        fifo.write("end\n")
    await _nobody_has(tmp_path / "f")


async def test_no_secret(make: Make, tmp_path: Path) -> None:
    """Without its secret, or with one that no pipe takes, the program isn't started."""
    provider = make('echo >"$D/started"', credentials="dns/nobody")
    assert "dns/nobody" in (await refusal_of(provider)).message
    assert "too large" in (await refusal_of(provider, of=replace(RECORD, credentials="dns/large"))).message
    assert not (tmp_path / "started").exists()


async def test_program_that_goes_away(make: Make, tmp_path: Path) -> None:
    """A program that was removed, or replaced by what isn't one, is a person's job."""
    provider = make("")
    (tmp_path / "hook").write_text("no program\n")
    refusal = await refusal_of(provider)
    assert (refusal.reason, "can't be started: Exec format error" in refusal.message) == (Reason.DNS_REJECTED, True)
    (tmp_path / "hook").unlink()
    assert "No such file" in (await refusal_of(provider)).message


@pytest.mark.parametrize(
    ("path", "mode", "message"),
    [
        pytest.param("hook", 0o755, "isn't an absolute path", id="relative"),
        pytest.param("{}/nothing", None, "No such file", id="missing"),
        pytest.param("{}", None, "isn't a program", id="directory"),
        pytest.param("{}/hook", 0o644, "isn't a program", id="not-executable"),
        pytest.param("{}/hook", 0o757, "can be changed by everybody", id="writable"),
    ],
)
def test_programs_that_are_refused(tmp_path: Path, path: str, mode: int | None, message: str) -> None:
    """What isn't a program, or everybody's, is found at the start."""
    if mode is not None:
        (tmp_path / "hook").write_text("#!/bin/sh\n")
        (tmp_path / "hook").chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        ExecProvider(ExecSettings(Path(path.format(tmp_path))), FakeSecretSource(), random.Random(1))
    (problem,) = caught.value.problems
    assert (problem.key, message in problem.message) == ("issuer.acme.exec.program", True)


async def _nobody_has(fifo: Path) -> None:
    """Wait until no process has the FIFO open: opening it to write without waiting fails then."""

    def closed() -> bool:
        try:
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:
            return True
        return False

    await until(closed, what="the end of whatever has the FIFO open")
