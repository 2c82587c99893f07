"""scripts/demo's program as a subprocess: what a newcomer sees, with real parts, with stand-ins, and when it fails."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from certplane.sandbox import parts
from tests.support.parts import need_part
from tests.support.waiting import HANG, blocking_until

pytestmark = pytest.mark.e2e

_COMMAND = [sys.executable, "-m", "certplane.sandbox", "demo"]
_STOPPED = "Everything that was started is stopped."


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The demo's environment: its temporary folders are the test's."""
    need_part("pebble")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return {**os.environ, "TMPDIR": str(temporary)}


def run(environment: dict[str, str], *arguments: str, timeout: float = HANG) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def output_of(output: str, command: str) -> str:
    """What a shown command wrote, up to the next command, heading or blank line."""
    match = re.search(rf"^\$ {re.escape(command)}.*\n((?:(?!\$ ).+\n)*)", output, re.MULTILINE)
    assert match is not None, f"no command {command!r} in:\n{output}"
    return match[1]


CTL = "certplanectl -c hosts/alice.certplane.test/ctl.yml"
AGENT = "certplane-agent -c hosts/web1.certplane.test/agent.yml"


def test_whole_story(environment: dict[str, str]) -> None:
    """The demo enrolls, issues, renews, is refused, shows the audit log and openssl's view, and leaves nothing."""
    finished = run(environment)
    output = finished.stdout
    assert finished.returncode == 0, output
    assert "identity: done: enrolled as web1.certplane.test" in output_of(output, f"{AGENT} enroll")
    assert "FAIL" not in output_of(output, f"{AGENT} check")
    issued = output_of(output, f"{AGENT} run --once")
    assert [name for name in ("web", "apps", "site") if f"{name}: version 1 is active" in issued] == [
        "web",
        "apps",
        "site",
    ]
    assert "web: done: version 2 is in use" in output_of(output, f"{AGENT} renew web")
    refused = output_of(output, f"{AGENT} renew payments")
    assert "PROFILE_NOT_ALLOWED" in refused
    assert "[exit status 1]" in refused
    denial = output_of(output, "certplane-broker -c broker/broker.yml audit tail --type certificate_denied --json")
    assert '"event_type": "certificate_denied"' in denial
    assert '"reason": "policy does not give this profile to this identity"' in denial
    assert "1 host connected now" in output_of(output, f"{CTL} renew --host web1")
    assert "version 3" in output.partition(f"$ {CTL} host web1\n")[2].partition("\n7. ")[0]
    trouble = output.partition(f"$ {CTL} summary\n")[2].partition("\n8. ")[0]
    assert "1 x MISMATCHED NAMES_NOT_ALLOWED apps at web1.certplane.test" in trouble
    assert "make `dns_names` of apps in agent.yml those of profile apps" in trouble
    mended = output_of(output, f"{CTL} certs --host web1 --check")
    assert "*.apps.certplane.test *.dev.certplane.test" in mended
    assert "MISMATCHED" not in mended
    status = output_of(output, f"{AGENT} status") + output.partition("STATE")[2]
    assert "*.apps.certplane.test" in status
    audit = output_of(output, "certplane-broker -c broker/broker.yml audit tail --limit 60")
    assert "\nTIMESTAMP" in f"\n{audit}", "a table, though the demo's output is a pipe"
    assert {"certificate_authorized", "certificate_issued", "certificate_delivered", "certificate_denied"} <= set(
        re.findall(r"certificate_\w+", audit)
    )
    if isinstance(parts.find("openssl"), parts.Part):
        site = output_of(output, "openssl x509 -in hosts/web1.certplane.test/tls/site.cert.pem")
        assert "DNS:*.example.test, DNS:example.test" in site
        for name in ("web", "site"):
            assert f"hosts/web1.certplane.test/tls/{name}.cert.pem: OK" in output
    assert output.rstrip().endswith(_STOPPED)
    assert "PRIVATE KEY" not in output
    assert list(Path(environment["TMPDIR"]).iterdir()) == [], "the temporary folder is gone"


def test_several_brokers(environment: dict[str, str]) -> None:
    """One is killed and one stops, each in the midst of an order: each order ends at another one, and ends once."""
    need_part("postgresql")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user where we are root
        finished = run({**environment, "TMPDIR": folder}, "--brokers", "3", timeout=2 * HANG)  # a lease is waited for
        assert list(Path(folder).iterdir()) == [], "the temporary folders are gone"
    output = finished.stdout
    assert finished.returncode == 0, output
    for part, living in (("1. ", 3), ("3. ", 2), ("5. ", 3)):
        shown = output_of(output[output.index(f"\n{part}") :], f"{CTL} brokers")
        assert len(re.findall(r"\bheld\b", shown)) == living, part
    assert re.search(r"^\$ kill -9 \d+$", output, re.MULTILINE)
    assert re.search(r"^\$ kill \d+$", output, re.MULTILINE)
    audit = output_of(output, "certplane-broker -c broker/1/broker.yml audit tail")
    assert len(re.findall(r"\bcertificate_issued\b", audit)) == 3
    assert "The CA says the same: 3 orders, 3 finalisations, 3 certificates." in output
    assert output.rstrip().endswith(_STOPPED)


def test_terminal(environment: dict[str, str]) -> None:
    """On a terminal the servers and the agent show live what they do, instead of a log."""
    pytest.importorskip("rich")
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        _COMMAND, env={**environment, "TERM": "xterm", "COLUMNS": "150"}, stdout=writing, stderr=writing
    )
    os.close(writing)
    received = bytearray()
    try:
        with contextlib.suppress(OSError):  # EIO: the last one has closed its end
            while data := os.read(reading, 65536):
                received += data
        assert process.wait(timeout=HANG) == 0
    finally:
        os.close(reading)
        if process.poll() is None:
            process.kill()
        process.wait()
    text = received.decode(errors="replace")
    assert "\x1b[?25l" in text, "a live display hides the cursor"
    assert "version 1 is in use" in text
    assert "INFO certplane." not in text
    assert "TIMESTAMP" in text


def test_stand_ins(environment: dict[str, str], tmp_path: Path) -> None:
    """Without step-ca, BIND and openssl the same story is told with the sandbox's own servers, and says so."""
    switched_off = {f"CERTPLANE_PART_{name}": "" for name in ("STEP_CA", "BIND", "OPENSSL")}
    folder = tmp_path / "files"
    finished = run({**environment, **switched_off}, "--folder", str(folder))
    output = finished.stdout
    assert finished.returncode == 0, output
    assert "identity CA: done: the sandbox's own server at https://" in output
    assert "  step-ca (switched off by the environment): the sandbox's own identity CA stands in for it" in output
    assert "  openssl (switched off by the environment): its view of the certificates isn't shown" in output
    assert "$ openssl" not in output
    assert "web: done: version 2 is in use" in output
    assert (folder / "broker" / "broker.yml").is_file(), "a folder that was asked for stays"


@pytest.mark.parametrize(
    ("switched_off", "arguments", "status", "message"),
    [
        pytest.param(
            "PEBBLE",
            [],
            1,
            "demo: pebble is left out: switched off by the environment; run `scripts/setup --again`",
            id="no-public-ca",
        ),
        pytest.param("", ["--folder", "."], 2, "isn't empty; give another --folder", id="folder-in-use"),
        pytest.param("", ["--folder", "file"], 2, "file: File exists; give another --folder", id="folder-is-a-file"),
    ],
)
def test_failures(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    switched_off: str,
    arguments: list[str],
    status: int,
    message: str,
) -> None:
    """What can't be done is one line with its remedy and a status, and nothing stays behind."""
    (tmp_path / "file").touch()
    if switched_off:
        environment[f"CERTPLANE_PART_{switched_off}"] = ""
    finished = subprocess.run(
        [*_COMMAND, *arguments],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert finished.returncode == status
    assert finished.stderr.rstrip().endswith(message)
    assert finished.stderr.count("\n") == 1
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


def test_server_that_does_not_start(environment: dict[str, str]) -> None:
    """A server that ends while it starts is one line with the place of its log, which stays; the others are stopped."""
    finished = subprocess.run(
        _COMMAND,
        env={**environment, "CERTPLANE_PART_PEBBLE": "/bin/false"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert finished.returncode == 1
    told = re.fullmatch(r"demo: Pebble ended while starting.*; the servers' logs are below (\S+)\n", finished.stderr)
    assert told is not None, finished.stderr
    assert (Path(told[1]) / "pebble" / "pebble.log").is_file()
    assert finished.stdout.rstrip().endswith(_STOPPED)


class KeptDemo:
    """`demo --keep` while it runs."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*_COMMAND, "--keep"], env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, mark: str) -> str:
        """The output once it holds `mark`."""

        def found() -> bool:
            ended = self.process.poll() is not None
            shown = mark in self.text()
            assert shown or not ended, self.text()
            return shown

        blocking_until(found, poll=0.1, what=f"{mark!r} in the output")
        return self.text()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("how", ["command", "interrupt"])
def test_keep(environment: dict[str, str], tmp_path: Path, how: str) -> None:
    """With --keep all of it runs on, each command that it names works as it stands, and stopping leaves nothing."""
    grpcurl = need_part("grpcurl")
    demo = KeptDemo(environment, tmp_path / "output")
    try:
        text = demo.wait_for("Ctrl-C stops everything")
        told = text.partition("In another terminal:\n")[2].partition("Ctrl-C stops")[0]
        commands = [line.strip() for line in told.splitlines() if line.startswith("  ")]
        preparation, tried = commands[:2], commands[2:]
        assert preparation[0].startswith("cd ")
        assert sum(command.startswith("grpcurl ") for command in tried) >= 4
        # What lasts until Ctrl-C is ended once it has shown all that there is.
        seen = "until grep -q snapshotEnd watched; do sleep 0.2; done; kill $!; cat watched"
        tried = [f"{each} >watched & {seen}" if each.endswith(" watch") else each for each in tried]
        if how == "interrupt":
            tried = tried[:1]
        script = "\n".join(
            ["set -e", *preparation, *(f"echo '## {number}'\n{command}" for number, command in enumerate(tried))]
        )
        done = subprocess.run(
            ["bash", "-c", script],
            capture_output=True,
            text=True,
            timeout=2 * HANG,  # a dozen programs
            check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "agent: running" in done.stdout
        if how == "command":
            assert '"name": "web1.certplane.test"' in done.stdout, f"{grpcurl.path} saw no identity"
            assert '"status": "SERVING"' in done.stdout
            assert "site: done: version 2 is in use" in done.stderr
            assert '"snapshotEnd"' in done.stdout
            assert '"changedCount":1' in done.stdout
        stop = re.search(r"^  kill (\d+)$", demo.wait_for("  kill "), re.MULTILINE)
        assert stop is not None
        os.kill(int(stop[1]), signal.SIGTERM if how == "command" else signal.SIGINT)
        assert demo.process.wait(timeout=HANG) == 0
    finally:
        demo.end()
    assert demo.text().rstrip().endswith(_STOPPED)
    assert list(Path(environment["TMPDIR"]).iterdir()) == []


def test_interrupted(environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C in the middle stops the servers and removes the files; the status is a shell's for it."""
    log = tmp_path / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(_COMMAND, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        blocking_until(lambda: "$ certplane-agent" in log.read_text(), what="the first command")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANG) == 128 + signal.SIGINT
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    assert log.read_text().rstrip().endswith(_STOPPED)
    assert list(Path(environment["TMPDIR"]).iterdir()) == []
