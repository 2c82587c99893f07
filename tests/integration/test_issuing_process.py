"""The issuing process itself: started, asked, killed, stopped, grown, and never left behind."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from certplane.broker import metrics
from certplane.broker.issuing import messages as m
from certplane.broker.issuing.child import Child, ChildEndedError
from certplane.broker.issuing.remote import RemoteIssuer, RemotePreflight, RemoteRenewalInfo, RemoteSolver
from certplane.broker.issuing.supervision import Bounds, IssuingProcess
from certplane.broker.model import TxtRecord
from certplane.broker.renewal.model import RenewalInfoError
from certplane.broker.settings import load_settings
from certplane.broker.telling import telling
from certplane.errors import ConfigurationError, OperationError, Reason, RefusalError
from certplane.runtime.backoff import Backoff
from certplane.runtime.clock import SystemClock
from certplane.runtime.logging import request_id
from tests.fakes.audit import FakeMeter
from tests.support.broker_files import BrokerFiles, account_keys
from tests.support.waiting import HANG, no_hang, until

pytestmark = pytest.mark.integration

SOON = timedelta(seconds=5)
QUICKLY = Bounds(
    beat=timedelta(milliseconds=100),
    most_unanswered=30,
    start=timedelta(seconds=HANG),
    restart=Backoff(timedelta(milliseconds=20), timedelta(milliseconds=100)),
    for_a_child=timedelta(seconds=HANG),
)
RECORD = TxtRecord("", "_acme-challenge.a.certplane.test", "value")


class Silent:
    """A CA that takes connections and says nothing: calls of it are under way until they are cut off."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]


@pytest.fixture
def silent() -> AsyncIterator[Silent]:  # type: ignore[misc]
    server = Silent()
    yield server  # type: ignore[misc]
    server.server.close()


@pytest.fixture
def files(tmp_path: Path, silent: Silent) -> BrokerFiles:
    files = BrokerFiles(tmp_path)
    files.settings["issuer"]["acme"]["directory_url"] = f"https://127.0.0.1:{silent.port}/directory"
    files.write()
    return files


class Running:
    def __init__(self, files: BrokerFiles, bounds: Bounds, environment: dict[str, str] | None = None) -> None:
        settings = load_settings(files.config)
        self.meter = FakeMeter()
        self.changed: list[str] = []
        self.again = 0
        self.process = IssuingProcess(
            m.Begin(settings.source.file, settings.source.text, "info"),
            meter=self.meter,
            secret_changed=self.changed.append,
            started_again=self._count,
            environment=environment,
            bounds=bounds,
        )
        self.name = next(iter(settings.cas))
        self.issuer = RemoteIssuer(self.process, self.name, "")

    def _count(self) -> None:
        self.again += 1

    def call(self) -> asyncio.Task[object]:
        """A call that ends when it is cut off."""
        return asyncio.create_task(self.issuer.get_order("https://ca.test/1", timedelta(seconds=HANG)))

    async def under_way(self, calls: int = 1) -> None:
        child = self.process._child
        assert child is not None
        await until(lambda: child.calls == calls, what="the call")


@asynccontextmanager
async def running(
    files: BrokerFiles, bounds: Bounds = QUICKLY, environment: dict[str, str] | None = None
) -> AsyncIterator[Running]:
    run = Running(files, bounds, environment)
    async with run.process.running() as starting:
        await starting
        yield run


def seen_in_proc(pid: int) -> tuple[list[str], list[bytes]]:
    """What its descriptors are, and its environment."""
    process = Path(f"/proc/{pid}")
    links = [str(entry.readlink()) for entry in (process / "fd").iterdir()]
    return links, (process / "environ").read_bytes().split(b"\0")


def own_children() -> set[int]:
    """Processes that this one has started."""
    return {
        int(pid) for thread in Path("/proc/self/task").iterdir() for pid in (thread / "children").read_text().split()
    }


def gone(pid: int) -> Callable[[], bool]:
    return lambda: not Path(f"/proc/{pid}").exists()


async def test_one_life(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """It makes the account's key, tells its hash, inherits nothing, heeds no signal meant for the broker, and goes."""
    leaked = socket.create_server(("127.0.0.1", 0))
    leaked.set_inheritable(True)
    environment = {**os.environ, "NOTIFY_SOCKET": "/nowhere", "CLOUDFLARE_TOKEN": "secret"}
    run = Running(files, QUICKLY, environment)
    with leaked:
        inode = os.fstat(leaked.fileno()).st_ino
        async with run.process.running() as starting:
            accounts = await starting
            settings = load_settings(files.config)
            keys = await account_keys(settings)
            assert accounts == {name: key.public_key_sha256 for name, key in keys.items()}
            pid = run.process.pid
            links, variables = seen_in_proc(pid)
            assert f"socket:[{inode}]" not in links
            assert b"CLOUDFLARE_TOKEN=secret" in variables
            assert not [each for each in variables if each.startswith(b"NOTIFY_SOCKET")]
            assert os.getpgid(pid) != os.getpgid(0)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
            token = request_id.set("order-7")
            with caplog.at_level(logging.INFO), pytest.raises(RefusalError) as refused:
                await run.issuer.get_order("https://ca.test/1", timedelta(milliseconds=300))
            request_id.reset(token)
            assert refused.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
            assert "did not show the order" in refused.value.refusal.message
            assert run.process.pid == pid
    assert gone(pid)()


async def test_killed_in_a_call(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """The call is cut off as each port says, another process takes its place, and the next call waits for it."""
    async with running(files) as run:
        pid, call = run.process.pid, run.call()
        await run.under_way()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RefusalError) as cut:
            await call
        assert cut.value.refusal.reason is Reason.ISSUER_UNAVAILABLE
        assert "ended" in cut.value.refusal.message
        assert not await RemoteSolver(run.process, SystemClock()).check_accounts([], timedelta(seconds=HANG))
        await until(lambda: run.again == 1, what="the news")
        assert run.process.pid not in (0, pid)
    assert metrics.ISSUING_RESTARTS in run.meter.moved
    assert "killed by signal 9" in caplog.text


async def test_each_port_says_in_its_way_that_a_call_was_cut_off(files: BrokerFiles) -> None:
    """A solver's is DNS_UNAVAILABLE, a preflight's no reason, a question about renewals has no answer for now."""
    async with running(files) as run:
        process = run.process
    solver = RemoteSolver(process, SystemClock())
    with pytest.raises(RefusalError) as cut:
        await solver.present([RECORD], timedelta(milliseconds=10))
    assert cut.value.refusal.reason is Reason.DNS_UNAVAILABLE
    assert await solver.remove([RECORD], timedelta(milliseconds=10)) == [RECORD]
    await RemotePreflight(process).check_order(["a.test"], run.name, timedelta(milliseconds=10))
    with pytest.raises(RenewalInfoError) as no_answer:
        await RemoteRenewalInfo(process, run.name).renewal_info("", timedelta(milliseconds=10))
    assert no_answer.value.temporary


async def test_a_removal_is_repeated_by_the_next_process(files: BrokerFiles) -> None:
    """Else the records would stand until the broker's next start. Here nobody answers the update: they are left."""
    async with running(files, environment={**os.environ, "DNS_TSIG": "b25l"}) as run:
        pid = run.process.pid
        removal = asyncio.create_task(RemoteSolver(run.process, SystemClock()).remove([RECORD], SOON))
        await run.under_way()
        os.kill(pid, signal.SIGKILL)
        assert await removal == [RECORD]
        assert run.process.pid != pid


async def test_one_that_hangs_is_killed(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped, it gives no sign of life; its call is cut off, and the next one is another process's."""
    async with running(files) as run:
        pid, call = run.process.pid, run.call()
        await run.under_way()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RefusalError):
            await call
        await until(lambda: run.process.pid not in (0, pid), what="another process")
        assert gone(pid)()
    assert "gave no sign of life" in caplog.text


async def test_one_that_has_grown_is_replaced_in_order(files: BrokerFiles) -> None:
    """New calls are the next one's, the old one ends when its call has."""
    async with running(files, Bounds(beat=QUICKLY.beat, large=1, stable=timedelta(minutes=5))) as run:
        old, call = run.process.pid, run.call()
        await run.under_way()
        await until(lambda: run.process.pid != old, what="another process")
        assert not gone(old)()
        assert not call.done()
        call.cancel()
        await until(gone(old), what="the end of the old one")
    assert run.again == 1


async def test_one_that_ends_while_the_next_is_started(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills one that has grown before another is ready: calls wait for that, and none holds the loop."""
    may_start, starting, started = asyncio.Event(), asyncio.Event(), IssuingProcess._started

    async def start(process: IssuingProcess) -> Child | None:
        starting.set()
        await may_start.wait()
        return await started(process)

    monkeypatch.setattr(IssuingProcess, "_started", start)
    bounds = Bounds(beat=QUICKLY.beat, large=1, stable=timedelta(minutes=5), for_a_child=timedelta(seconds=HANG))
    async with running(files, bounds) as run:
        call, pid = run.call(), run.process.pid
        await run.under_way()
        async with no_hang():
            await starting.wait()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RefusalError):
            await call
        assert not run.process.up
        removing = asyncio.create_task(
            RemoteSolver(run.process, SystemClock()).remove([RECORD], timedelta(seconds=HANG))
        )
        await asyncio.sleep(0)
        may_start.set()
        await until(lambda: run.process.up, what="another process")
        assert run.process.pid != pid
        removing.cancel()
        await asyncio.wait([removing])
    assert run.again == 1


async def test_one_that_has_grown_beyond_measure_is_killed(
    files: BrokerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the kernel looks for whom to kill."""
    async with running(files, Bounds(beat=QUICKLY.beat, too_large=1, restart=QUICKLY.restart)) as run:
        await until(lambda: run.again > 0, what="another process")
    assert "MiB of memory and was killed" in caplog.text


async def test_garbage_ends_it(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """What isn't a message isn't guessed at; another one is started."""
    async with running(files) as run:
        pid = run.process.pid
        child = run.process._child
        assert child is not None
        assert child._connection is not None
        child._connection.send(b"\xc1garbage")
        await until(gone(pid), what="its end")
        await until(lambda: run.process.pid != 0, what="another process")
    assert "exit status 0" in caplog.text


async def test_a_start_that_fails_is_told_by_the_start(files: BrokerFiles) -> None:
    """A program that can't run at all."""
    run = Running(files, QUICKLY, {"PYTHONHOME": "/nowhere"})
    async with run.process.running() as starting:
        with pytest.raises(OperationError, match="can't be started: exit status 1"):
            await starting
    assert not run.process.up


async def test_what_is_wrong_with_the_settings_is_told_in_the_same_words(files: BrokerFiles) -> None:
    """With file and line, as the adapters of the broker's own process tell it."""
    key = files.directory / "account.key"
    key.write_text("x")
    key.chmod(0o644)
    with pytest.raises(ConfigurationError) as here:
        await account_keys(load_settings(files.config))
    run = Running(files, QUICKLY)
    async with run.process.running() as starting:
        with pytest.raises(ConfigurationError) as there:
            await starting
    assert there.value.problems == here.value.problems
    assert there.value.problems[0].line is not None


async def test_one_that_can_not_be_started_again_is_tried_until_it_can(
    files: BrokerFiles, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile the broker says that nothing is issued, and what is wrong."""
    key = files.directory / "account.key"
    async with running(files, Bounds(restart=QUICKLY.restart, for_a_child=timedelta())) as run:
        key.chmod(0o644)
        os.kill(run.process.pid, signal.SIGKILL)
        await until(lambda: "can't be started, no certificate is issued" in caplog.text, what="the line")
        assert "can be read or changed by others" in caplog.text
        assert not run.process.up
        assert run.process.out
        with pytest.raises(ChildEndedError):
            await run.process.ask(m.NoteDirectory(SOON, issuer=run.name))
        key.chmod(0o600)
        await until(lambda: run.process.up, what="another process")


async def test_its_settings_are_those_that_the_broker_has_read(files: BrokerFiles) -> None:
    """A file that has been edited since is no other configuration, for its successor neither."""
    async with running(files) as run:
        files.config.write_text("edited: true\n")
        os.kill(run.process.pid, signal.SIGKILL)
        await until(lambda: run.again == 1, what="another process")


async def test_a_secret_that_has_changed_is_told_by_its_name(files: BrokerFiles) -> None:
    """While something is in trouble; what the secret is stays there."""
    folder = files.directory / "secrets"
    folder.mkdir()
    secret = folder / "dns-tsig"
    secret.write_text("b25l")
    secret.chmod(0o600)
    files.settings["secrets"] = {"provider": "file", "file": {"directory": str(folder)}}
    files.settings["issuer"]["acme"]["rfc2136"]["tsig_secret"] = "dns-tsig"
    files.write()
    async with running(files) as run:
        solver = RemoteSolver(run.process, SystemClock())
        await solver.remove([RECORD], timedelta(milliseconds=500))
        secret.write_text("dHdv")
        await solver.remove([RECORD], timedelta(milliseconds=500))
        await until(lambda: run.changed == ["dns-tsig"], what="the news")


async def test_a_stop_of_the_whole_service_in_a_start(files: BrokerFiles) -> None:
    """SIGTERM to each process of a service while the child loads what it needs: it is the broker's to answer."""
    run = Running(files, QUICKLY)
    before = own_children()
    async with run.process.running() as starting:
        await until(lambda: own_children() > before, what="the process")
        (pid,) = own_children() - before
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
        await starting
        assert run.process.pid == pid
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()).isdisjoint({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


async def test_no_descriptor_is_left_for_another_one(
    files: BrokerFiles, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again: a flood of connections passes."""

    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with running(files) as run:
        with monkeypatch.context() as full:
            full.setattr("certplane.broker.issuing.child.socket.socketpair", none_left)
            os.kill(run.process.pid, signal.SIGKILL)
            await until(lambda: "can't be started: Too many open files" in caplog.text, what="the line")
        await until(lambda: run.process.up and run.again == 1, what="another process")


async def test_an_old_one_that_hangs_is_killed(files: BrokerFiles, caplog: pytest.LogCaptureFixture) -> None:
    """One that was replaced is watched until it has ended, and so is one in whose place another one is being started."""
    bounds = Bounds(beat=QUICKLY.beat, most_unanswered=10, large=1, stable=timedelta(minutes=5))
    async with running(files, bounds) as run:
        old, call = run.process.pid, run.call()
        await run.under_way()
        await until(lambda: run.process.pid != old, what="another process")
        os.kill(old, signal.SIGSTOP)
        with pytest.raises(RefusalError):
            await call
        await until(lambda: not run.process._old, what="the end of the old one")
        assert gone(old)()
    assert "that was replaced has ended before its calls: it gave no sign of life" in caplog.text


async def test_a_call_after_the_end_waits_for_the_next_one(files: BrokerFiles) -> None:
    """Even where the end hasn't been seen yet by who starts another one."""
    async with running(files) as run:
        child = run.process._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        await child.ended.wait()
        await run.process.ask(m.NoteDirectory(timedelta(seconds=HANG / 2), issuer=run.name))
        assert run.process.pid not in (0, child.pid)


async def test_a_level_that_comes_into_force_in_a_start(files: BrokerFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is being started then began with the one before."""
    told: list[str] = []
    monkeypatch.setattr(Child, "set_level", lambda _, level: told.append(level))
    run = Running(files, QUICKLY)
    async with run.process.running() as starting:
        await asyncio.sleep(0)
        run.process.set_level("debug")
        await starting
        assert told == ["debug"]


async def test_another_version_that_was_installed_meanwhile(
    files: BrokerFiles, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The two would misunderstand each other: it says what is to be done."""
    monkeypatch.setattr("certplane.broker.issuing.child.__version__", "0.0.1")
    run = Running(files, QUICKLY)
    async with run.process.running() as starting:
        with pytest.raises(OperationError, match="exit status 1"):
            await starting
    assert "while a broker of version 0.0.1 runs: restart the broker" in capfd.readouterr().err


@pytest.mark.parametrize(("flag", "flags"), [("-I", "-P -I -E -s"), ("-E", "-P -E"), ("-s", "-P -s"), ("-B", "-P")])
async def test_the_childs_interpreter_imports_where_the_brokers_does(flag: str, flags: str) -> None:
    """Whoever keeps PYTHONPATH or a user's packages out of the broker keeps them out of both."""
    program = "from certplane.broker.issuing.child import _flags; print(*_flags())"
    asked = await asyncio.create_subprocess_exec(
        sys.executable, flag, "-c", program, stdout=asyncio.subprocess.PIPE, env={}
    )
    output, _ = await asked.communicate()
    assert output.decode().split() == flags.split()


async def test_a_ca_that_is_away_is_told_while_the_call_goes_on(files: BrokerFiles, silent: Silent) -> None:
    """Whoever waits for the step hears why it takes long, seconds after it began and not at its end."""
    silent.server.close()
    heard: list[str] = []
    async with running(files) as run:
        with telling(heard.append):
            call = run.call()
        await until(lambda: len(heard) >= 2, what="two tries that failed")
        assert not call.done()
        call.cancel()
    assert heard[0].startswith("ISSUER_UNAVAILABLE: ")
