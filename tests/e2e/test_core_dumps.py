"""What a crash of the programs leaves behind: their stacks, and no copy of a memory that holds keys."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.test_broker_program import serving
from tests.support.broker_files import BrokerFiles

pytestmark = pytest.mark.e2e

UNLIMITED: Final = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


def abort(process: subprocess.Popen[bytes]) -> bool:
    """End a process as the watchdog does, though its limits allow a dump; whether the kernel made one."""
    resource.prlimit(process.pid, resource.RLIMIT_CORE, UNLIMITED)
    process.send_signal(signal.SIGABRT)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = -signal.SIGABRT
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


@pytest.fixture
def dumping(tmp_path: Path) -> None:
    """A machine on which any other program leaves a dump: else nothing is shown by those that leave none."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard != resource.RLIM_INFINITY and os.geteuid() != 0:
        pytest.skip("the limit of core files can't be raised here (ulimit -Hc)")
    folder = tmp_path / "control"
    folder.mkdir()
    program = [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.read()"]
    with subprocess.Popen(program, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as control:
        assert control.stdout is not None
        control.stdout.readline()
        dumped = abort(control)
    if not dumped:
        pytest.skip("this machine makes no core dumps (kernel.core_pattern)")


@contextmanager
def silent_server() -> Iterator[socket.socket]:
    """Takes connections and says nothing: whoever calls it waits, with its keys in memory."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        yield server


def check(log: str) -> None:
    assert "Fatal Python error: Aborted" in log
    assert "most recent call first" in log


@pytest.mark.usefixtures("dumping")
def test_a_broker_leaves_no_dump(tmp_path: Path) -> None:
    """Ended by the watchdog's signal: the stacks are in its log."""
    with serving(BrokerFiles(tmp_path)) as program:
        assert not abort(program.process)
    check(program.log_path.read_text())


def agent(folder: Path, port: int) -> list[str]:
    (folder / "token").write_text("e30.e30.e30")
    (folder / "token").chmod(0o600)
    config = {
        "state_dir": str(folder / "state"),
        "identity": {
            "name": "web1.certplane.test",
            "bootstrap_token": str(folder / "token"),
            "cert": str(folder / "identity.crt"),
            "key": str(folder / "identity.key"),
            "issuer_ca_bundle": str(folder / "issuer.pem"),
            "step_ca": {"url": f"https://127.0.0.1:{port}", "fingerprint": "ab" * 32, "timeout": "60s"},
        },
        "broker": {"url": "https://127.0.0.1:1", "server_ca_bundle": str(folder / "ca.pem")},
        "certificates": [],
    }
    (folder / "agent.yml").write_text(json.dumps(config))
    return ["certplane.agent", "enroll", "-c", str(folder / "agent.yml")]


def ctl(folder: Path, port: int) -> list[str]:
    files = BrokerFiles(folder)
    leaf = files.identity()
    (folder / "id.crt").write_bytes(leaf.chain_pem)
    (folder / "id.key").write_bytes(leaf.key_pem)
    (folder / "id.key").chmod(0o600)
    (folder / "ca.pem").write_bytes(files.ca.root_pem)
    config = {
        "broker": {"url": f"https://127.0.0.1:{port}", "server_ca_bundle": "ca.pem"},
        "identity": {"cert": "id.crt", "key": "id.key"},
    }
    (folder / "ctl.yml").write_text(json.dumps(config))
    return ["certplane.ctl", "fleet", "-c", str(folder / "ctl.yml")]


@pytest.mark.usefixtures("dumping")
@pytest.mark.parametrize("prepare", [agent, ctl])
def test_a_caller_leaves_no_dump(prepare: type, tmp_path: Path) -> None:
    """So with the programs that hold an identity's key while they wait for an answer."""
    with silent_server() as server:
        port = server.getsockname()[1]
        command = [sys.executable, "-m", *prepare(tmp_path, port)]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            connection, _ = server.accept()
            with connection:
                assert not abort(process)
            assert process.stderr is not None
            check(process.stderr.read().decode())
