"""`certplane-broker reload` says what the running broker took and what it refused, and so does its status line."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_broker_program import get_identity, run, serving
from tests.support.broker_files import POLICY, BrokerFiles
from tests.support.waiting import HANG

pytestmark = pytest.mark.e2e


@pytest.fixture
def files(tmp_path: Path) -> BrokerFiles:
    return BrokerFiles(tmp_path)


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self) -> None:
        self.name = f"certplane-test-{os.getpid()}-{id(self)}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{self.name}")
        self._socket.settimeout(HANG)

    def status_after(self, message: str) -> str:
        """The status line that comes with, or next after, a message that holds `message`."""
        seen = False
        while True:
            text = self._socket.recv(65536).decode()
            seen = seen or message in text
            status = next((line for line in text.splitlines() if line.startswith("STATUS=")), "")
            if seen and status:
                return status.removeprefix("STATUS=")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    made = Manager()
    yield made
    made.close()


def test_says_what_was_taken(files: BrokerFiles, manager: Manager) -> None:
    """A reload that takes everything ends with 0 and names the policy's hash; the broker has it by then."""
    with serving(files, NOTIFY_SOCKET=f"@{manager.name}") as program:
        assert manager.status_after("READY=1") == f"serving on port {program.port}"
        files.policy.write_text(f"{POLICY}# changed\n")
        result = run("reload", "-c", files.config, "--json")
        assert (result.returncode, result.stderr) == (0, "")
        answer = json.loads(result.stdout)
        assert answer["ok"]
        assert f"policy loaded, hash {get_identity(files, program.port)}" in answer["lines"]
        assert manager.status_after("READY=1") == f"serving on port {program.port}"
        assert program.stop() == 0
    stopped = run("reload", "-c", files.config)
    assert stopped.returncode == 1
    assert "no broker with this configuration listens" in stopped.stderr


def _bad_policy(files: BrokerFiles) -> str:
    files.policy.write_text("version: 1\nprofile: {}\n")
    return f"policy refused, the last good one stays in force: {files.policy}:2: profile: is not a known key"


def _empty_policy(files: BrokerFiles) -> str:
    files.policy.write_text("version: 1\nhosts: {}\n")
    return f"policy refused, the last good one stays in force: {files.policy}: gives nothing to anybody"


def _half_policy(files: BrokerFiles) -> str:
    files.policy.write_text("version: 1\noperators: {a: {identity: a.example, roles: [admin]}}\n")
    return "would lock out all of the policy in force: 1 host or service"


def _bad_certificate(files: BrokerFiles) -> str:
    (files.directory / "server.crt").write_text("junk")
    return "trust refused, the last good one stays in force: "


def _bad_configuration(files: BrokerFiles) -> str:
    files.config.write_text(files.config.read_text() + "serverr: {}\n")
    return "configuration refused, the last good one stays in force: "


@pytest.mark.parametrize("spoil", [_bad_policy, _empty_policy, _half_policy, _bad_certificate, _bad_configuration])
def test_says_what_was_refused(files: BrokerFiles, manager: Manager, spoil: Callable[[BrokerFiles], str]) -> None:
    """A file that is refused makes the command fail with the reason, and stands in the status until it is mended."""
    with serving(files, NOTIFY_SOCKET=f"@{manager.name}") as program:
        before = get_identity(files, program.port)
        good = {path: path.read_text() for path in (files.config, files.policy, files.directory / "server.crt")}
        phrase = spoil(files)
        result = run("reload", "-c", files.config)
        assert result.returncode == 1
        assert phrase in result.stderr
        assert phrase in manager.status_after("refused")
        assert get_identity(files, program.port) == before
        for path, text in good.items():
            path.write_text(text)
        assert run("reload", "-c", files.config).returncode == 0
        assert program.stop() == 0


def test_names_the_keys_that_wait_for_a_restart(files: BrokerFiles) -> None:
    """A changed broker.yml is noticed: the log's settings and the limits are taken, every other changed key is named."""
    with serving(files) as program:
        files.settings["dns"] = {"resolvers": ["127.0.0.1:5353"]}
        files.settings["server"]["drain_timeout"] = "3s"
        files.config.write_text(yaml.safe_dump(files.settings))
        waiting = f"{files.config}: takes effect after a restart: dns.resolvers, server.drain_timeout"
        assert waiting in _reloaded(files)
        program.wait_for(lambda line: line["level"] == "warning" and line["message"] == waiting)
        files.settings["logging"]["level"] = "error"
        files.config.write_text(yaml.safe_dump(files.settings))
        assert f"{files.config}: applied: logging.level" in _reloaded(files)
        quiet = len(program.lines())
        assert waiting in _reloaded(files)
        assert program.stop() == 0
        assert len(program.lines()) == quiet


def _reloaded(files: BrokerFiles) -> list[str]:
    result = run("reload", "-c", files.config, "--json")
    assert result.returncode == 0
    lines: list[str] = json.loads(result.stdout)["lines"]
    return lines


def test_a_broken_file_is_told_and_keeps_nothing_else_out(files: BrokerFiles) -> None:
    """What broker.yml has wrong is the broker's to refuse: a renewed certificate is taken all the same."""
    with serving(files) as program:
        before = files.config.read_text()
        files.config.write_text(f"{before}bogus: 1\n")
        files.write_pair(files.ca.issue_server(["localhost", "127.0.0.1"]))
        result = run("reload", "-c", files.config)
        assert result.returncode == 1
        assert "bogus: is not a known key" in result.stderr
        assert "server certificate and agent CA bundle loaded" in result.stderr
        assert program.stop() == 0
    stopped = run("reload", "-c", files.config)
    assert stopped.returncode == 2
    assert "bogus: is not a known key" in stopped.stderr


def test_asks_before_it_removes_much(files: BrokerFiles, manager: Manager) -> None:
    """A policy that removes more than `policy.guard` is refused with what it would remove, and taken with --confirm."""
    hosts = "".join(f"  host{n}: {{identity: host{n}.certplane.test, profiles: [web]}}\n" for n in range(4))
    whole = POLICY.replace("operators:", f"{hosts}operators:")
    files.policy.write_text(whole)
    with serving(files, NOTIFY_SOCKET=f"@{manager.name}") as program:
        before = get_identity(files, program.port)
        files.policy.write_text(POLICY)
        refused = run("reload", "-c", files.config)
        phrase = "would remove 4 of 5 hosts (80 %) and 4 of 5 grants (80 %), and policy.guard allows 10 %: host host0."
        assert refused.returncode == 1
        assert phrase in refused.stderr
        assert "`certplane-broker reload --confirm`" in refused.stderr
        assert phrase in manager.status_after("refused")
        assert get_identity(files, program.port) == before
        confirmed = run("reload", "-c", files.config, "--confirm", "--json")
        assert confirmed.returncode == 0
        lines = json.loads(confirmed.stdout)["lines"]
        assert any(line.startswith("policy: hosts 5 -> 1 (+0 -4); grants 5 -> 1 (+0 -4); lost: host") for line in lines)
        assert get_identity(files, program.port) != before
        events = [json.loads(line) for line in run("audit", "tail", "-c", files.config, "--json").stdout.splitlines()]
        assert program.stop() == 0
    kinds = {event["event_type"]: event for event in events}
    assert "would remove 4 of 5" in kinds["policy_rejected"]["reason"]
    assert ", confirmed: hosts 5 -> 1 (+0 -4)" in kinds["policy_loaded"]["reason"]
    assert "by `certplane-broker reload` of" in kinds["policy_loaded"]["reason"]
