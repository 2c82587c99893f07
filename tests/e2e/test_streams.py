"""All three programs end in a line and a status whatever their standard streams are; never in a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.test_broker_program import get_identity, serving
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.e2e

PROGRAMS = ["certplane.agent", "certplane.broker", "certplane.ctl"]
NAMES = {"certplane.agent": "certplane-agent", "certplane.broker": "certplane-broker", "certplane.ctl": "certplanectl"}


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


def _shell(script: str, *arguments: bytes | str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run a script of the shell, with Python as $0 and the arguments as $1 and so on."""
    command: Sequence[bytes | str | Path] = ["/bin/bash", "-c", script, sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, timeout=HANG, check=False)


def _printing(module: str, files: BrokerFiles) -> list[str]:
    """A command of each program that prints something and needs nobody."""
    if module == "certplane.broker":
        files.policy.write_text(POLICY.replace("[guest]", "[viewer]"))  # nothing to remark on
        return [module, "policy", "validate", "--policy", str(files.policy)]
    return [module, "--help"]


@pytest.mark.parametrize("module", PROGRAMS)
@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        pytest.param(">/dev/full", 1, "standard output can't be written: No space left on device", id="full"),
        pytest.param(">&-", 1, "standard output can't be written: Bad file descriptor", id="closed"),
        pytest.param(
            "| (exec <&-; sleep 0.2; true); exit ${PIPESTATUS[0]}", 128 + signal.SIGPIPE, "", id="reader-gone"
        ),
        pytest.param("2>/dev/full", 0, "", id="errors-full"),
        pytest.param("2>&-", 0, "", id="errors-closed"),
        pytest.param("<&-", 0, "", id="input-closed"),
        pytest.param("<&- >&- 2>&-", 1, "", id="all-closed"),
    ],
)
def test_output_that_cannot_be_written(
    module: str, redirection: str, status: int, said: str, files: BrokerFiles
) -> None:
    """A failed write is one line of the program's name and the cause, and status 1; a reader that has gone is no error."""
    result = _shell(f'sleep 0.1; "$0" -m "$@" {redirection}', *_printing(module, files))
    errors = result.stderr.decode()
    assert result.returncode == status, errors
    assert errors == (f"{NAMES[module]}: {said}\n" if said else "")


@pytest.mark.parametrize(
    ("module", "arguments", "option"),
    [
        pytest.param("certplane.ctl", ["renew", "--all", "--yes", "--reason", b"L\xf6schen"], "reason", id="ctl-renew"),
        pytest.param("certplane.ctl", ["renew", "--host", b"\xff", "--yes", "--reason", "x"], "host", id="ctl-list-of-texts"),
        pytest.param("certplane.ctl", ["host", b"w\xe4b"], "name", id="ctl-host"),
        pytest.param("certplane.ctl", ["watch", b"w\xe4b"], "hosts", id="ctl-watch"),
        pytest.param("certplane.agent", ["renew", b"w\xe4b"], "name", id="agent-renew"),
        pytest.param("certplane.broker", ["identity", "deny", "--name", "a.example", "--reason", b"\xfc"], "reason", id="broker-deny"),
        pytest.param("certplane.broker", ["preflight", "--profile", b"\xfc"], "profile", id="broker-preflight"),
        pytest.param("certplane.broker", ["certs", "revoke", b"\xfc"], "certificate-id", id="broker-revoke"),
    ],
)  # fmt: skip
def test_arguments_in_another_encoding(module: str, arguments: list[str | bytes], option: str) -> None:
    """A text argument that isn't UTF-8 is misuse, told with its name, before anything is asked or done."""
    result = _shell('"$0" -m "$@"', module, *arguments)
    assert result.returncode == 2
    assert result.stderr.decode() == f"{NAMES[module]}: {option}: is not UTF-8; use a terminal or a script in UTF-8\n"


@pytest.mark.parametrize("module", PROGRAMS)
def test_paths_may_have_any_name(module: str, tmp_path: Path) -> None:
    """A file's name is bytes, and one that isn't UTF-8 is told like any other."""
    folder = {"certplane.agent": ["status"], "certplane.broker": ["check"], "certplane.ctl": ["fleet"]}[module]
    result = _shell('"$0" -m "$@"', module, *folder, "-c", os.fsencode(tmp_path) + b"/\xe4.yml")
    assert result.returncode == 2
    assert b"does not exist" in result.stderr
    assert b"Traceback" not in result.stderr


@pytest.mark.parametrize("module", PROGRAMS)
def test_output_in_another_encoding(module: str, files: BrokerFiles) -> None:
    """A character that the terminal's encoding lacks is written as an escape."""
    result = subprocess.run(
        [sys.executable, "-m", *_printing(module, files)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_broker_outlives_the_reader_of_its_log(files: BrokerFiles) -> None:
    """A log reader that has gone stops nobody and makes no traceback; the broker serves and stops as told."""
    reading, writing = os.pipe()
    errors = files.directory / "stderr"
    with errors.open("wb") as stderr:
        files.settings["logging"]["destination"] = "stdout"
        files.write()
        process = subprocess.Popen(
            [sys.executable, "-m", "certplane.broker", "serve", "-c", str(files.config)], stdout=writing, stderr=stderr
        )
    os.close(writing)
    with os.fdopen(reading, "rb") as log:
        port = next(line["port"] for line in map(json.loads, log) if line["message"] == "serving")
    assert [bool(get_identity(files, port)) for _ in range(3)] == [True] * 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG) in (0, 128 + signal.SIGPIPE)
    assert errors.read_bytes() == b""


def test_a_full_disk_stops_no_broker(files: BrokerFiles) -> None:
    """With nowhere to log the broker starts, serves and stops; no line of it becomes a traceback."""
    errors = files.directory / "stderr"
    files.settings["logging"]["destination"] = "stdout"
    files.settings["server"]["address"] = "127.0.0.1:0"
    files.write()
    with errors.open("wb") as stderr, Path("/dev/full").open("wb") as full:
        process = subprocess.Popen(
            [sys.executable, "-m", "certplane.broker", "serve", "-c", str(files.config)], stdout=full, stderr=stderr
        )
        blocking_until(lambda: list((files.directory / "broker-control").glob("*.sock")), what="the control socket")
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=HANG)
    assert b"Traceback" not in errors.read_bytes()
    assert b"Logging error" not in errors.read_bytes()


def test_the_helper_still_serves(files: BrokerFiles) -> None:
    """The same broker with a log that works says so: the tests above would notice one that never came up."""
    with serving(files) as program:
        assert get_identity(files, program.port)
        assert program.stop() == 0
