"""certplanectl against a running broker and a running agent: the fleet, live, and a renewal asked for from afar."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import termios
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from certplane import __version__
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.operator import Operator
from tests.support.in_terminal import in_terminal
from tests.support.killing import events
from tests.support.parts import need_part
from tests.support.waiting import no_hang, until

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_POLICY: dict[str, Any] = {
    "version": 1,
    "profiles": {"web": {"type": "multi_san", "dns_names": ["www.certplane.test"]}},
    "hosts": {
        "web1": {"identity": "web1.certplane.test", "profiles": ["web"]},
        "web2": {"identity": "web2.certplane.test", "profiles": ["web"]},
    },
    "operators": {
        "alice": {"identity": "alice.certplane.test", "roles": ["operator"]},
        "bob": {"identity": "bob.certplane.test", "roles": ["viewer"]},
    },
}
_WEB = {"name": "web", "profile": "web", "dns_names": ["www.certplane.test"]}


class Fleet:
    """A broker, a host whose agent runs, and two operators."""

    def __init__(self, deployment: Deployment, host: Host, alice: Operator, bob: Operator) -> None:
        self.deployment = deployment
        self.host = host
        self.alice = alice
        self.bob = bob

    async def lines(self, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
        """What a command of alice's prints when it is piped."""
        finished = await self.alice.run(*arguments)
        assert finished.status == status, finished.stderr
        return [json.loads(line) for line in finished.stdout.splitlines()]

    async def web(self) -> dict[str, Any]:
        """What the broker knows of the host's certificate."""
        (host,) = await self.lines("host", "web1")
        return next(each for each in host.get("certificates", ()) if each["name"] == "web")

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The certificate once it is so."""

        async def found() -> dict[str, Any] | None:
            status = await self.web()
            return status if condition(status) else None

        status: dict[str, Any] = await until(found, poll=0.2, what="the certificate's state")
        return status


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    need_part("pebble")
    async with Deployment(tmp_path_factory.mktemp("fleet"), DeploymentOptions(_POLICY)) as deployment:
        host = deployment.add_host("web1.certplane.test", [_WEB])
        alice, bob = (Operator(deployment, f"{name}.certplane.test") for name in ("alice", "bob"))
        await deployment.start_broker()
        for enrolled in (await host.run("enroll"), await alice.enroll(), await bob.enroll()):
            assert enrolled.status == 0, enrolled.stderr
        await host.start()
        await host.until_running()
        made = Fleet(deployment, host, alice, bob)
        await made.until(lambda status: status["state"] in ("STATE_WAITING", "STATE_SERVING"))
        yield made


async def test_the_fleet_as_tables_and_as_lines(fleet: Fleet) -> None:
    """Piped, each host is a line of JSON; `host` shows one by its label, with what it holds."""
    host, never_came = await fleet.lines("fleet", "--sort", "name")
    assert (host["name"], host["label"], host["connected"]) == ("web1.certplane.test", "web1", True)
    assert {each["name"] for each in host["certificates"]} == {"identity", "web"}
    assert await fleet.lines("fleet", "--state", "degraded") == []
    assert await fleet.lines("fleet", "--disconnected") == [never_came]
    assert (never_came["label"], "connected" in never_came) == ("web2", False)
    status = await fleet.web()
    assert status["profile"] == "web"
    assert status["installed"]["serialNumber"] == status["issued"]["serialNumber"]


async def test_the_brokers(fleet: Fleet) -> None:
    """The one that there is, as a line of its message and as a table; it differs from nobody."""
    (broker,) = await fleet.lines("brokers")
    assert (broker["version"], broker["auditMode"], broker["streamCount"]) == (__version__, "fail_closed", "1")
    assert len(broker["policyHash"]) == len(broker["configurationHash"]) == 64
    assert [key["issuer"] for key in broker["accountKeys"]] == ["default"]
    shown = await on_a_terminal(fleet.bob.command("brokers", "-o", "wide"))
    assert f":{fleet.deployment.broker_port}" in shown
    assert "RUNS FOR ALL" in shown


async def test_on_a_terminal_there_is_a_table(fleet: Fleet) -> None:
    """A person sees columns."""
    shown = await on_a_terminal(fleet.bob.command("fleet"))
    assert "CERTIFICATE" in shown
    assert "web1" in shown


async def on_a_terminal(arguments: list[str], columns: int = 0, **variables: str) -> str:
    """What a program writes when its output is a terminal, of so many columns if it says."""
    master, slave = os.openpty()
    if columns:
        termios.tcsetwinsize(slave, (24, columns))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=slave, stdin=slave, env={**environment, "TERM": "xterm", **variables}
    )
    os.close(slave)
    chunks = []
    loop = asyncio.get_running_loop()
    while True:
        try:
            chunk = await loop.run_in_executor(None, os.read, master, 65536)
        except OSError:  # EIO: the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(master)
    assert await process.wait() == 0
    return b"".join(chunks).decode()


_LISTS = (["fleet"], ["certs", "--identities"], ["orders"], ["brokers"], ["summary"])


@pytest.mark.parametrize("columns", [20, 80])
async def test_no_row_is_wider_than_the_terminal(fleet: Fleet, columns: int) -> None:
    """What doesn't fit is left out; what is worst, and of whom, is there at 20 columns too."""
    for command in _LISTS:
        shown = await on_a_terminal(fleet.bob.command(*command), columns, NO_COLOR="1")
        assert "\x1b" not in shown
        rows = [line for line in shown.splitlines() if command != ["summary"] or not line.startswith("    ")]
        assert max(map(len, rows)) <= columns, command
    assert "web1" in await on_a_terminal(fleet.bob.command("fleet"), columns)


async def test_colours_are_for_terminals_that_have_them(fleet: Fleet) -> None:
    """The same words with and without."""
    painted = await on_a_terminal(fleet.bob.command("certs"), 80)
    assert "\x1b[32mOK\x1b[0m" in painted
    for variables in ({"TERM": "dumb"}, {"NO_COLOR": "yes"}):
        plain = await on_a_terminal(fleet.bob.command("certs"), 80, **variables)
        assert "\x1b" not in plain
        assert "OK" in plain


async def test_a_reader_that_has_gone(fleet: Fleet) -> None:
    """As with `| head`: no traceback, and the status of a closed pipe."""
    command = " ".join([sys.executable, *fleet.bob.command("fleet", "-o", "wide")])
    script = f"set -o pipefail; ( {command}; echo status $? >&2 ) | true"
    finished = await asyncio.create_subprocess_exec("bash", "-c", script, stderr=asyncio.subprocess.PIPE)
    _, said = await finished.communicate()
    assert said in (b"status 141\n", b"status 0\n")  # 0: all of it was in the pipe before the reader went


async def test_the_operators_questions(fleet: Fleet) -> None:
    """Who is hurt, what ends soon, what is renewed, who is silent, and what is ordered, each by one command."""
    (summary,) = await fleet.lines("summary")
    assert (summary["hostCount"], summary["connectedHostCount"]) == (2, 1)
    assert [each["host"] for each in summary["missing"]] == ["web2.certplane.test"]
    assert "policy_loaded" in {change["eventType"] for change in summary["changes"]}
    (certificate,) = await fleet.lines("certs", "--expiring-within", "100d", "--sort", "expires")
    status = certificate["certificate"]
    assert (certificate["host"], certificate["issuer"], status["health"]) == (
        "web1.certplane.test",
        "default",
        "HEALTH_OK",
    )
    assert await fleet.lines("certs", "--renewing-within", "1d") == []
    named = (await fleet.alice.run("fleet", "--unheard-for", "1h", "-o", "name")).stdout
    assert named == "web2.certplane.test\n"
    serial = status["installed"]["serialNumber"]
    assert (await fleet.alice.run("certs", "--serial", serial.upper(), "-o", "name")).stdout.strip() == (
        status["installed"]["certificateId"]
    )
    order, *_ = await fleet.lines("orders", "--identity", "web1", "--within", "1h")
    assert (order["order"]["state"], order["identity"]) == ("STATE_ISSUED", "web1.certplane.test")
    assert await fleet.lines("orders", "--open") == []
    assert (await fleet.alice.run("summary", "--check")).status == 0
    (well,) = await fleet.lines("health")
    assert (well["serving"], well["identity"], well["roles"]) == (True, "alice.certplane.test", ["operator"])


async def test_a_renewal_is_waited_for(fleet: Fleet) -> None:
    """Identities too; the last message says how it ended, and so does `renewal` afterwards."""
    for arguments in (["--host", "web1"], ["--all", "--identity"]):
        answer, ended = await fleet.lines("renew", *arguments, "--reason", "seen to its end", "--yes", "--wait")
        assert ended["done"]
        assert [each["progress"] for each in ended["counts"]] == ["PROGRESS_DONE"]
        (again,) = await fleet.lines("renewal", answer["renewalRequestId"])
        assert again["requestedBy"] == "alice.certplane.test"


async def test_a_certificate_is_revoked_and_replaced(fleet: Fleet) -> None:
    """Its holder renews it at once; a second time is told as such."""
    old = (await fleet.web())["installed"]["certificateId"]
    revoke = ("revoke", old, "--as", "superseded", "--reason", "a drill", "--yes")
    (answer,) = await fleet.lines(*revoke)
    assert (answer["holderTold"], answer["identity"]) == (True, "web1.certplane.test")
    await fleet.until(lambda status: status["state"] == "STATE_WAITING" and status["installed"]["certificateId"] != old)
    (again,) = await fleet.lines(*revoke)
    assert again["alreadyRevoked"]


async def test_the_audit_log_from_afar(fleet: Fleet, tmp_path: Path) -> None:
    """Who got a certificate for a name, and why; what was cut; that the log is whole; an export of it."""
    (event,) = await fleet.lines(
        "audit",
        "list",
        "--name",
        "www.certplane.test",
        "--type",
        "certificate_issued",
        "--oldest-first",
        "--limit",
        "1",
    )
    assert (event["record"]["identity"], event["record"]["cause"]) == ("web1.certplane.test", "ordinary")
    last = (await fleet.alice.run("audit", "tail", "-n", "2", "-o", "name")).stdout.splitlines()
    assert last == (await fleet.alice.run("audit", "list", "--limit", "2", "-o", "name")).stdout.splitlines()[::-1]
    (result,) = await fleet.lines("audit", "verify")
    assert "findingCount" not in result
    file = tmp_path / "audit.jsonl"
    exported = await fleet.alice.run("audit", "export", "--to", str(file))
    assert exported.status == 0, exported.stderr
    assert event["eventId"] in file.read_text()
    refused = await fleet.alice.run("audit", "export", "--to", str(file))
    assert (refused.status, "it is there already" in refused.stderr) == (1, True)
    (version,) = await fleet.lines("policy", "history")
    (shown,) = await fleet.lines("policy", "show", version["policyHash"][:12])
    assert shown["policyHash"] == version["policyHash"]


async def test_brokers_and_their_trust(fleet: Fleet) -> None:
    """A reload of all answers for each; a bundle without the hosts' CA says whom it shuts out, and the last broker stays."""
    (reloaded,) = await fleet.lines("broker", "reload", "--all")
    assert reloaded["done"]
    (plan,) = await fleet.lines("trust", "plan", str(fleet.deployment.broker_folder / "root.crt"), status=1)
    assert plan["shutOutHosts"] == ["web1.certplane.test"]
    drained = await fleet.alice.run("broker", "drain", reloaded["brokerName"], "--reason", "a drill", "--yes")
    assert (drained.status, "the last broker" in drained.stderr) == (1, True)
    kept = await fleet.alice.run("forget", "web2.certplane.test", "--reason", "a drill", "--yes")
    assert (kept.status, "the policy still has it" in kept.stderr) == (1, True)


async def test_a_renewal_asked_for_from_afar_is_done_within_seconds(fleet: Fleet) -> None:
    """The broker tells the agent, the agent renews and reports; a watch sees each of it."""
    before, reason = await fleet.web(), "asked for from afar"
    watch = await asyncio.create_subprocess_exec(
        sys.executable, *fleet.bob.command("watch"), stdout=asyncio.subprocess.PIPE
    )
    assert watch.stdout is not None
    try:
        while "snapshotEnd" not in json.loads(await watch.stdout.readline()):
            pass
        (dry,) = await fleet.lines("renew", "--host", "web1", "--reason", reason, "--dry-run")
        assert (dry["certificateCount"], dry["changedCount"]) == (1, 1)
        assert (await fleet.web())["installed"] == before["installed"]
        (answer,) = await fleet.lines("renew", "--host", "web1", "--reason", reason, "--yes")
        assert answer["connectedHostCount"] == 1
        after = await fleet.until(
            lambda status: (
                status["state"] in ("STATE_WAITING", "STATE_SERVING")
                and status["installed"]["serialNumber"] != before["installed"]["serialNumber"]
            )
        )
        states = []
        async with no_hang():
            while not states or states[-1] != (after["state"], after["installed"]["serialNumber"]):
                change = json.loads(await watch.stdout.readline()).get("certificateChange")
                if change is not None and change["certificate"]["name"] == "web":
                    certificate = change["certificate"]
                    states.append((certificate["state"], certificate["installed"]["serialNumber"]))
        assert "STATE_REQUESTING" in {state for state, _ in states}
    finally:
        watch.terminate()
        await watch.wait()
    requested = await events(fleet.deployment, event_type="renewal_requested")
    assert [each["identity"] for each in requested if reason in each["reason"]] == ["alice.certplane.test"]


@pytest.mark.parametrize(
    ("who", "arguments", "status", "said"),
    [
        pytest.param("bob", ["renew", "--all", "--reason", "no", "--yes"], 1, "ROLE_REQUIRED", id="a-viewer-renews"),
        pytest.param("alice", ["renew", "--all", "--reason", "no"], 2, "add --yes", id="nobody-to-ask"),
        pytest.param("alice", ["renew", "--reason", "no"], 2, "nothing is selected", id="nothing-selected"),
        pytest.param("alice", ["host", "nobody"], 1, "certplanectl fleet", id="no-such-host"),
        pytest.param("alice", ["fleet", "--state", "fine"], 2, "there is no such state", id="no-such-state"),
        pytest.param(
            "alice",
            ["fleet", "--state", "expired"],
            2,
            "serving, failed, degraded; or --health with one of: expired",
            id="a-health-for-a-state",
        ),
        pytest.param(
            "alice", ["fleet", "--health", "ill"], 2, "use one of: expired, revoked_in_use", id="no-such-health"
        ),
        pytest.param("alice", ["renew", "--all", "--reason", "x", "--spread", "soon"], 2, "30m", id="no-duration"),
    ],
)
async def test_what_is_refused_says_why(fleet: Fleet, who: str, arguments: list[str], status: int, said: str) -> None:
    """One line on standard error: the cause and what to do, and nothing on standard output."""
    finished = await getattr(fleet, who).run(*arguments)
    assert (finished.status, finished.stdout) == (status, "")
    assert said in finished.stderr
    assert "Traceback" not in finished.stderr


async def test_a_selection_that_matches_nothing_says_so(fleet: Fleet) -> None:
    """A job that reads neither the broker's message nor a terminal sees in its mail that nothing was renewed."""
    finished = await fleet.alice.run("renew", "--host", "nobody", "--reason", "a test", "--yes")
    assert finished.status == 1
    assert "no certificate in force matches; " in finished.stderr


async def test_interrupting_a_watch_is_told_from_terminating_it(fleet: Fleet) -> None:
    """Ctrl-C is how a watch ends: 130, as a shell expects, without a traceback."""
    watch = await asyncio.create_subprocess_exec(
        sys.executable,
        *fleet.bob.command("watch"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert watch.stdout is not None
    await watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, said = await watch.communicate()
    assert (watch.returncode, said) == (130, b"")


async def test_down_to_the_events_of_a_certificate_on_a_full_screen(fleet: Fleet) -> None:
    """From the summary, which the broker makes, to a host, its certificate, and what the audit log has of that."""
    async with in_terminal(fleet.bob.config, "watch") as shown:
        await shown.writes("MISSING  1  web2")
        shown.press("s")
        await shown.writes("policy_loaded")
        shown.press("f/web1\r\r")
        await shown.writes("web1.certplane.test (web1 in the policy)")
        shown.press("\r")
        await shown.writes("Audit events")
        await shown.writes("renewal_reported")
        shown.press("/delivered\rq")
        await shown.ends(0)
    assert "2 hosts, 1 connected; certificates: 2 OK" in shown.text


async def test_no_host_is_an_operator(fleet: Fleet) -> None:
    """A host's own identity can't look at the fleet."""
    cert, key = fleet.host.identity
    config = fleet.alice.config.with_name("as-host.yml")
    text = fleet.alice.config.read_text()
    own_cert, own_key = fleet.alice.identity
    config.write_text(text.replace(str(own_cert), str(cert)).replace(str(own_key), str(key)))
    finished = await fleet.alice.run("-c", str(config), "fleet")
    assert finished.status == 1
    assert "ROLE_REQUIRED" in finished.stderr
    assert "policy.yml" in finished.stderr


async def test_a_watch_outlives_the_broker(fleet: Fleet, tmp_path: Path) -> None:
    """It says that the broker has gone, and shows the fleet anew when it is back; the agent comes back as well."""
    errors = tmp_path / "errors"
    with errors.open("wb") as stderr:
        watch = await asyncio.create_subprocess_exec(
            sys.executable, *fleet.bob.command("watch"), stdout=asyncio.subprocess.PIPE, stderr=stderr
        )
        assert watch.stdout is not None
        try:
            while "snapshotEnd" not in json.loads(await watch.stdout.readline()):
                pass
            await fleet.deployment.start_broker()
            async with no_hang():
                connected = False
                while not connected:
                    message = json.loads(await watch.stdout.readline())
                    connected = message.get("host", {}).get("connected", False)
        finally:
            watch.terminate()
            assert await watch.wait() == 143
    assert "watching again" in errors.read_text()


async def test_a_broker_that_was_never_there_is_a_mistake(fleet: Fleet) -> None:
    """A wrong address ends the command at once with what to check, instead of waiting for good."""
    config = fleet.alice.config.with_name("elsewhere.yml")
    port = str(fleet.deployment.broker_port)
    config.write_text(fleet.alice.config.read_text().replace(f":{port}", ":1"))
    for command in ("fleet", "watch"):
        finished = await fleet.alice.run("-c", str(config), command)
        assert finished.status == 1
        assert "check that the broker runs" in finished.stderr
