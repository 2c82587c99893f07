"""`certplane-broker` as a subprocess: exit statuses, signals, one line per mistake, and the commands beside a running one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from certplane import __version__
from certplane.rpc.channel import open_channel
from certplane.rpc.credentials import channel_credentials
from certplane.rpc.status import refusal_from_error
from certplane.v1 import enrollment_pb2, enrollment_pb2_grpc
from tests.support.broker_files import BrokerFiles
from tests.support.ca import Leaf
from tests.support.on_terminal import written_on_terminal
from tests.support.status_json import broker_rows
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.e2e

PROGRAM = [sys.executable, "-m", "certplane.broker"]


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, **options)


class Program:
    """A running `certplane-broker serve`; its log is read line by line."""

    def __init__(self, files: BrokerFiles, environment: Mapping[str, str]) -> None:
        self.log_path = files.directory / "broker.log"
        self._log = self.log_path.open("wb")
        command = [*PROGRAM, "serve", "-c", str(files.config)]
        environ = {**os.environ, **environment}
        self.process = subprocess.Popen(command, stderr=self._log, stdout=subprocess.DEVNULL, env=environ)
        self.port = int(self.wait_for(lambda line: line["message"] == "serving")["port"])

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], after: int = 0) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            ended = self.process.poll() is not None  # asked first: what it wrote last counts
            line = next(filter(condition, self.lines()[after:]), None)
            assert line is not None or not ended, self.log_path.read_text()
            return line

        line: dict[str, Any] = blocking_until(found, poll=0.05, what="the line in the log")
        return line

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=HANG)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._log.close()


@contextmanager
def serving(files: BrokerFiles, **environment: str) -> Iterator[Program]:
    program = Program(files, environment)
    try:
        yield program
    finally:
        program.close()


def get_identity(files: BrokerFiles, port: int, identity: Leaf | None = None) -> str:
    """The policy's hash as the broker tells it, or the reason of its refusal."""

    async def call() -> str:
        credentials = channel_credentials(files.ca.root_pem, (identity or files.identity()).pair)
        async with open_channel(f"https://localhost:{port}", credentials) as channel:
            stub = enrollment_pb2_grpc.EnrollmentServiceStub(channel)
            try:
                return (await stub.GetIdentity(enrollment_pb2.GetIdentityRequest(), timeout=HANG)).policy_hash
            except grpc.aio.AioRpcError as error:
                refusal = refusal_from_error(error)
                if refusal is None:
                    raise
                return refusal.reason.value

    return asyncio.run(call())


def json_lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_version() -> None:
    """`--version` says name and version."""
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"certplane-broker {__version__}\n")


def test_help_is_quick_and_tells_the_exit_statuses() -> None:
    """`--help` imports nothing heavy, and tells what the exit statuses mean."""
    code = (
        "import sys\n"
        "from certplane.broker.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print(sorted({'grpc', 'cryptography', 'acme', 'sqlalchemy', 'yaml'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=False)
    assert result.returncode == 0
    assert result.stdout.endswith("[]\n")
    assert "exit statuses:" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stops_when_told(files: BrokerFiles, number: signal.Signals) -> None:
    """TERM and INT stop it with status 0, recorded."""
    with serving(files) as program:
        assert get_identity(files, program.port)
        assert program.stop(number) == 0
        messages = [line["message"] for line in program.lines()]
    assert messages[-3:] == ["stopping", "stopped", "audit checkpoint"]
    kinds = [event["event_type"] for event in json_lines(run("audit", "tail", "-c", files.config).stdout)]
    assert kinds == ["broker_started", "policy_loaded", "identity_activated", "broker_stopped"]


def test_serves_without_uvloop(files: BrokerFiles) -> None:
    """Where uvloop isn't installed, asyncio's own loop serves, and a call that went well is logged as OK."""
    (files.directory / "uvloop.py").write_text("raise ImportError")
    with serving(files, PYTHONPATH=str(files.directory)) as program:
        assert get_identity(files, program.port)
        assert program.wait_for(lambda line: line["message"] == "call")["code"] == "OK"
        assert program.stop() == 0


def test_hup_reads_everything_again(files: BrokerFiles) -> None:
    """HUP puts a new policy in force; one that doesn't load is refused in the log and the broker goes on."""
    with serving(files) as program:
        before = get_identity(files, program.port)
        files.policy.write_text(files.policy.read_text() + "\n# changed\n")
        seen = len(program.lines())
        program.process.send_signal(signal.SIGHUP)
        program.wait_for(lambda line: line["message"] == "policy loaded", seen)
        after = get_identity(files, program.port)
        assert after != before
        files.policy.write_text("version: 1\nprofile: {}\n")
        seen = len(program.lines())
        program.process.send_signal(signal.SIGHUP)
        refused = program.wait_for(lambda line: line["level"] == "error", seen)
        assert f"{files.policy}:2: profile:" in refused["message"]
        assert get_identity(files, program.port) == after
        assert program.stop() == 0
    kinds = [event["event_type"] for event in json_lines(run("audit", "tail", "-c", files.config).stdout)]
    assert kinds.count("policy_loaded") == 2
    assert kinds.count("policy_rejected") == 1


def test_identity_is_shut_out_beside_the_running_broker(files: BrokerFiles) -> None:
    """`identity deny` holds within a second or so, `list` shows it, `allow` takes it back; all of it is audited."""
    config = ("-c", files.config)
    with serving(files) as program:
        policy_hash = get_identity(files, program.port)
        denied = run(*config, "identity", "deny", "--name", files.host.upper(), "--reason", "lost laptop")
        assert (denied.returncode, denied.stderr) == (0, "")
        blocking_until(lambda: get_identity(files, program.port) == "IDENTITY_REVOKED")
        (listed,) = broker_rows(run("identity", "list", *config).stdout)
        assert (listed["name"], listed["reason"]) == (files.host, "lost laptop")
        assert run("identity", "allow", "--name", files.host, *config).returncode == 0
        blocking_until(lambda: get_identity(files, program.port) == policy_hash)
        again = run("identity", "allow", "--name", files.host, *config)
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr.count("\n") == 1
        assert "identity list" in again.stderr
        mistyped = run("identity", "deny", "--name", "nobody.example.org", "--reason", "lost laptop", *config)
        assert mistyped.returncode == 0
        assert "knows no identity nobody.example.org" in mistyped.stderr
        program.stop()
    kinds = [event["event_type"] for event in json_lines(run("audit", "tail", *config).stdout)]
    assert (kinds.count("identity_denied"), kinds.count("identity_allowed")) == (2, 1)


def test_contested_identity_is_settled_beside_the_running_broker(files: BrokerFiles) -> None:
    """`identity list` shows both holders and what to do; that command, as it is printed, decides within a second or so."""
    config = ("-c", files.config)
    copy, owner = (
        files.ca.issue([files.host], not_before=datetime.now(UTC).replace(microsecond=0) - timedelta(hours=hours))
        for hours in (3, 2)
    )
    with serving(files) as program:

        def answer(holder: Leaf) -> str:
            return get_identity(files, program.port, holder)

        policy_hash = answer(owner)
        assert answer(copy) == "IDENTITY_RETIRED"
        assert answer(owner) == policy_hash
        active, retired = broker_rows(run("identity", "list", *config).stdout)
        assert [row["state"] for row in (active, retired)] == ["contested, active", "contested, retired"]
        assert [row["serial_number"] for row in (active, retired)] == [owner.serial_number, copy.serial_number]
        assert {row["source_ip"] for row in (active, retired)} == {"127.0.0.1"}
        assert active["since"] <= retired["since"]

        program_name, *decide = shlex.split(retired["remedy"].partition(": ")[2])
        assert program_name == "certplane-broker"
        decided = run(*decide, *config)
        (row,) = broker_rows(decided.stdout)
        assert (row["name"], row["serial_number"]) == (files.host, copy.serial_number)
        assert owner.serial_number in row["result"]
        blocking_until(lambda: answer(copy) == policy_hash)
        blocking_until(lambda: answer(owner) == "IDENTITY_REVOKED")
        (listed,) = broker_rows(run("identity", "list", *config).stdout)
        assert (listed["state"], listed["serial_number"]) == ("denied", owner.serial_number)
        everything = broker_rows(run("identity", "list", "--all", *config).stdout)
        assert [row["state"] for row in everything] == ["denied", "active"]
        again = run(*decide, *config)
        assert (again.returncode, again.stdout) == (1, "")
        program.stop()
    events = json_lines(run("audit", "tail", *config).stdout)
    kinds = [event["event_type"] for event in events if event.get("identity") == files.host]
    assert [kind for kind in kinds if kind.startswith("identity_")] == [
        "identity_activated",
        "identity_contested",
        "identity_allowed",
        "identity_denied",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--name", "a.example", "--serial", "1f"], id="name and serial"),
        pytest.param(["--serial", "1f"], id="serial without issuer"),
        pytest.param([], id="nothing"),
        pytest.param(["--issuer", "CN=CA", "--serial", "xyz"], id="serial that is none"),
        pytest.param(["--issuer", "what", "--serial", "1f"], id="issuer that is none"),
        pytest.param(["--name", "*.example.org"], id="wildcard"),
        pytest.param(["--name", "a.example", "--reason", "two\nlines"], id="reason of two lines"),
    ],
)
def test_identity_that_is_none(files: BrokerFiles, arguments: list[str]) -> None:
    """What names no identity is one line and status 2."""
    result = run("identity", "deny", *arguments, "-c", files.config)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def key_of(files: BrokerFiles) -> Path:
    return files.directory / "server.key"


def test_check_tells_the_same_without_starting(files: BrokerFiles) -> None:
    """`check` finds what a start would, and changes nothing."""
    good = run("check", "--offline", "-c", files.config)
    assert good.returncode == 0, good.stderr
    assert json.loads(good.stdout)["serverSerialNumber"] == files.pair.serial_number
    assert not (files.directory / "broker.db").exists()
    assert not (files.directory / "account.key").exists()
    key_of(files).chmod(0o644)
    files.policy.write_text("version: 9\n")
    bad = run("check", "--offline", "-c", files.config)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert len(bad.stderr.splitlines()) >= 2


def test_many_connections_at_once_are_no_crash(files: BrokerFiles) -> None:
    """Clients that connect at the same moment don't crash grpc's core (docs/adr/0007 tells what would)."""

    def flood(port: int, end: float) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=HANG).close()

    with serving(files) as program:
        end = time.monotonic() + 4
        threads = [threading.Thread(target=flood, args=(program.port, end)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert program.process.poll() is None
        assert get_identity(files, program.port)


def test_second_broker(files: BrokerFiles) -> None:
    """A second broker on the same store is one line and status 1."""
    with serving(files):
        result = run("serve", "-c", files.config)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert "another broker" in line


def test_port_in_use(files: BrokerFiles) -> None:
    """A taken port is one line and status 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        files.settings["server"]["address"] = f"127.0.0.1:{taken.getsockname()[1]}"
        files.write()
        result = run("serve", "-c", files.config)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("{")]
    assert "can't listen on" in line
    assert "server.address" in line


def test_no_database_yet(files: BrokerFiles) -> None:
    """Commands beside the broker make no database."""
    result = run("certs", "list", "-c", files.config)
    assert result.returncode in (1, 2)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not (files.directory / "broker.db").exists()


def test_policy_validate(files: BrokerFiles) -> None:
    """`policy validate` needs the policy alone and shows what it gives to whom."""
    result = run("policy", "validate", "--policy", files.policy)
    assert result.returncode == 0, result.stderr
    (found,) = json_lines(result.stdout)
    assert [profile["profile"] for profile in found["profiles"]] == ["web"]
    assert [identity["identity"] for identity in found["identities"]] == [files.host, "admin.certplane.test"]
    assert "operators.admin.roles: 'guest' means nothing to the broker" in result.stderr
    operators = "{al: {identity: al.example.org}, bo: {identity: bo.example.org, roles: [viewer]}}"
    files.policy.write_text(f"version: 1\noperators: {operators}\n")
    result = run("policy", "validate", "--policy", files.policy)
    assert result.returncode == 0
    assert "operators.al: has no roles" in result.stderr
    assert "operators.bo" not in result.stderr
    files.policy.write_text("version: 1\nhosts: {web1: {identity: web1.example.org, profiles: [nothing]}}\n")
    result = run("policy", "validate", "--policy", files.policy)
    assert result.returncode == 2
    assert "nothing" in result.stderr


def test_policy_validate_of_private_names(files: BrokerFiles) -> None:
    """A policy alone is checked as far as it goes; with the broker's own broker.yml it is known whether its CA may."""
    files.policy.write_text(
        "profiles: {db: {type: multi_san, dns_names: [db.corp.internal]}}\n"
        "hosts: {a: {identity: a.example, profiles: [db]}}\n"
    )
    alone = run("policy", "validate", "--policy", files.policy)
    assert alone.returncode == 0, alone.stderr
    assert "profiles.db.dns_names[0]: is db.corp.internal" in alone.stderr
    beside = run("policy", "validate", "--policy", files.policy, "-c", files.config)
    assert beside.returncode == 2
    assert "set their ca_bundle in broker.yml" in beside.stderr
    missing = run("policy", "validate", "--policy", files.policy, "-c", files.directory / "nowhere.yml")
    assert missing.returncode == 2


def test_tables_on_a_terminal(files: BrokerFiles) -> None:
    """On a terminal lists are tables; --json and a pipe give JSON."""
    command = [*PROGRAM, "policy", "validate", "--policy", str(files.policy)]
    text = written_on_terminal(command)
    assert json.loads(written_on_terminal([*command, "--json"]))["policyHash"]
    assert "IDENTITY" in text
    assert f"{files.host} " in text


def test_reader_that_leaves(files: BrokerFiles) -> None:
    """`audit tail | head` is no error."""
    with serving(files) as program:
        program.stop()
    command = " ".join([*PROGRAM, "audit", "tail", "-c", str(files.config)])
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | true"], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        pytest.param("hosts: {a: {identity: a.example}}\n", 0, "", id="good"),
        pytest.param("hosts: {a: {identitty: a.example}}\n", 2, "standard input:1: hosts.a.identitty: ", id="bad"),
        pytest.param("", 2, "standard input: gives nothing to anybody", id="empty"),
    ],
)
def test_policy_from_standard_input(text: str, status: int, said: str) -> None:
    """`-` is standard input, so that what a template renders is validated before it is a file."""
    result = run("policy", "validate", "--policy", "-", input=text)
    assert result.returncode == status
    assert said in result.stderr


def test_configuration_from_standard_input(files: BrokerFiles) -> None:
    """The same holds for a configuration that is only looked at."""
    result = run("check", "--offline", "-c", "-", "--json", input=files.config.read_text())
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["configuration"] == "-"
