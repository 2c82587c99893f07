"""The demo: a host gets its identity and its certificates, from the token to what openssl says, in some seconds.

Nothing in it is staged: servers and programs are those of `deployment`, configuration is files, each command that is
shown is run as it is shown, and its output is its own. It stops what it started, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from certplane.errors import CertplaneError
from certplane.runtime.clock import SystemClock
from certplane.runtime.progress import open_progress
from certplane.sandbox import demo_commands, parts
from certplane.sandbox.demo_display import CommandFailedError, Display
from certplane.sandbox.demo_fleet import FleetDemo
from certplane.sandbox.deployment import Deployment, DeploymentOptions, Host
from certplane.sandbox.errors import PartMissingError, ServerStartError
from certplane.sandbox.operator import Operator

_HOST: Final = "web1.certplane.test"
_FILES: Final = f"hosts/{_HOST}"
_OPERATOR: Final = "alice.certplane.test"
_CTL: Final = ("certplanectl", "-c", f"hosts/{_OPERATOR}/ctl.yml")
_AGENT: Final = ("certplane-agent", "-c", f"{_FILES}/agent.yml")
_BROKER: Final = ("certplane-broker", "-c", "broker/broker.yml")

_POLICY: Final[dict[str, Any]] = {
    "version": 1,
    "profiles": {
        "web": {"type": "multi_san", "dns_names": ["www.certplane.test", "api.certplane.test"]},
        "apps": {"type": "wildcard", "dns_names": ["*.apps.certplane.test"]},
        "site": {"type": "mixed", "dns_names": ["example.test", "*.example.test"]},
        "payments": {"type": "multi_san", "dns_names": ["pay.certplane.test"]},
    },
    "hosts": {
        "web1": {"identity": _HOST, "profiles": ["web", "apps", "site"]},
        "pay1": {"identity": "pay1.certplane.test", "profiles": ["payments"]},
    },
    "operators": {"alice": {"identity": _OPERATOR, "roles": ["operator"]}},
}

_CERTIFICATES: Final[tuple[dict[str, Any], ...]] = (
    {
        "name": "web",
        "profile": "web",
        "dns_names": ["www.certplane.test", "api.certplane.test"],
        "reload_command": 'echo "reloading the web server with version $CERTPLANE_VERSION"',
    },
    {"name": "apps", "profile": "apps", "dns_names": ["*.apps.certplane.test"]},
    {"name": "site", "profile": "site", "dns_names": ["example.test", "*.example.test"]},
)
_LOOKS: Final = 100
_BETWEEN_LOOKS: Final = 0.2

_NOT_OURS: Final = {"name": "payments", "profile": "payments", "dns_names": ["pay.certplane.test"]}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """How it is run.

    Attributes:
        keep: leave everything running until a signal comes.
        folder: for all files, empty or not there yet; a new one below the temporary directory by default, which is
            removed in the end unless something failed.
        brokers: with more than one the story is that of several brokers on one PostgreSQL (`demo_fleet`).
    """

    keep: bool = False
    folder: Path | None = None
    brokers: int = 1


def run_demo(options: DemoOptions) -> int:
    """Run it; returns the exit status: 0, 1 for a failure, 2 for a folder that can't be used.

    SIGINT and SIGTERM end it with 130 and 143, as a shell expects; where they are the ordinary end (`keep`), with 0.
    """
    try:
        folder = _open_folder(options)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}", "give another --folder", 2)
    keep_files = options.folder is not None
    try:
        status = asyncio.run(_Demo(folder, options).run())
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except asyncio.CancelledError:
        status = 128 + signal.SIGTERM
    except PartMissingError as error:
        status = _fail(str(error), "run `scripts/setup --again`", 1)
    except (CertplaneError, OSError) as error:
        keep_files = True
        what = "its output is above, the servers'" if isinstance(error, CommandFailedError) else "the servers'"
        status = _fail(str(error).partition("\n")[0], f"{what} logs are below {folder}", 1)
    finally:
        if not keep_files:
            shutil.rmtree(folder, ignore_errors=True)
    return status


class _Demo:
    """One run."""

    def __init__(self, folder: Path, options: DemoOptions) -> None:
        self._folder = folder
        self._keep = options.keep
        self._brokers = options.brokers
        self._programs = Path(sys.executable).parent
        self._show = Display(folder, self._programs)

    async def run(self) -> int:
        """The whole story; the servers are stopped when this returns or raises."""
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        self._show.lines("Certplane's demo: a host, its broker, and all that they talk to, on this machine alone.\n")
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._show.lines, "\nEverything that was started is stopped.")
            if self._brokers > 1:
                fleet = await stack.enter_async_context(FleetDemo.started(self._folder, self._brokers, self._show))
                self._name_left_out()
                self._tell_to_follow()
                await fleet.tell()
                if self._keep:
                    await self._wait(fleet.to_try(self._programs, os.getpid()))
                return 0
            with open_progress(SystemClock(), as_json=False, stream=sys.stdout) as progress:
                options = DeploymentOptions(_POLICY)
                deployment = await stack.enter_async_context(Deployment(self._folder, options, progress))
                host = deployment.add_host(_HOST, _CERTIFICATES)
                await deployment.start_broker()
            self._name_left_out()
            await self._tell(deployment, host)
            if self._keep:
                await self._leave_running(deployment, host)
        return 0

    def _name_left_out(self) -> None:
        stand_ins = {
            "step-ca": "the sandbox's own identity CA stands in for it",
            "bind": "the sandbox's own DNS server stands in for it",
            "openssl": "its view of the certificates isn't shown",
        }
        if self._keep:
            stand_ins["grpcurl"] = "its commands aren't shown"
        found = {name: parts.find(name) for name in stand_ins}
        left_out = {name: part.reason for name, part in found.items() if isinstance(part, parts.LeftOut)}
        if left_out:
            lines = (f"  {name} ({reason}): {stand_ins[name]}" for name, reason in left_out.items())
            self._show.lines("\n".join(["\nLeft out:", *lines]))

    def _tell_to_follow(self) -> None:
        lines = f"\nTo follow in another terminal:\n  cd {self._folder}\n  export PATH={self._programs}:$PATH"
        self._show.lines(lines)

    async def _tell(self, deployment: Deployment, host: Host) -> None:
        show = self._show
        self._tell_to_follow()
        show.heading("1. Policy: the broker decides who gets which names")
        await show.run("cat", "broker/policy.yml")

        show.heading("2. Enrollment: a one-time token becomes an identity, whose key never leaves the host")
        await show.run("ls", f"{_FILES}/token")
        await show.run(*_AGENT, "enroll")
        await show.run(*_AGENT, "check")

        show.heading("3. Certificates: several names, a wildcard, and a domain with its wildcard, by dns-01")
        await show.run(*_AGENT, "run", "--once")
        show.say("Services read links into `current`; one rename switches key, certificate and chain together.")
        await show.run("ls", "-l", f"{_FILES}/state/certificates/web")

        show.heading("4. Renewal: a new key, a new certificate, and the service is told")
        await show.run(*_AGENT, "renew", "web")

        show.heading("5. Refusal: agent.yml now asks for a profile that policy gives to another host")
        host.write_config([*_CERTIFICATES, _NOT_OURS])
        await show.run("grep", "-A3", "name: payments", f"{_FILES}/agent.yml")
        await show.run(*_AGENT, "renew", "payments", status=1)
        show.say("A profile that doesn't exist is answered in the same words. The broker's record has the cause:")
        await show.run(*_BROKER, "audit", "tail", "--type", "certificate_denied", "--json")
        host.write_config(_CERTIFICATES)

        show.heading("6. The fleet: the agent stays connected, an operator sees it and has a certificate renewed")
        await self._tell_of_the_fleet(deployment, host)

        show.heading("7. A trouble: the policy gives a profile another name; found at once, and mended before it hurts")
        await self._tell_of_a_trouble(deployment, host)

        show.heading("8. What the host has, its agent stopped")
        await show.run(*_AGENT, "status")

        show.heading("9. The audit log: what was decided, for whom, and why")
        await show.run(*_BROKER, "audit", "tail", "--limit", "60", table=True)
        await show.run(*_BROKER, "certs", "list", table=True)

        if isinstance(parts.find("openssl"), parts.Part):
            await self._ask_openssl(deployment)

    async def _tell_of_the_fleet(self, deployment: Deployment, host: Host) -> None:
        show = self._show
        alice = Operator(deployment, _OPERATOR)
        show.lines(f"$ {shlex.join(_AGENT)} run &")
        await host.start()
        await host.until_running()
        await show.run("certplane-agent", "-c", f"hosts/{_OPERATOR}/agent.yml", "enroll")
        before = await self._installed(alice, "web")
        await show.run(*_CTL, "fleet", table=True)
        await show.run(
            *_CTL, "renew", "--host", "web1", "--profile", "web", "--reason", "to see it", "--yes", table=True
        )
        await self._installed(alice, "web", before)
        show.say("The broker told the agent, and the agent told the broker each step:")
        await show.run(*_CTL, "host", "web1", table=True)

    async def _tell_of_a_trouble(self, deployment: Deployment, host: Host) -> None:
        """The broker compares what each host asks for with the policy, the moment either changes."""
        show, alice = self._show, Operator(deployment, _OPERATOR)
        names = [*_POLICY["profiles"]["apps"]["dns_names"], "*.dev.certplane.test"]
        before = await self._installed(alice, "apps")
        profiles = {**_POLICY["profiles"], "apps": {"type": "wildcard", "dns_names": names}}
        deployment.write_policy({**_POLICY, "profiles": profiles})
        await show.run("grep", "-A4", "apps:", "broker/policy.yml")
        await show.run(*_BROKER, "reload", table=True)
        await self._mismatch_is_known(alice)
        await show.run(*_CTL, "summary", table=True)
        show.say("Its remedy, on the host:")
        host.write_config([{**each, "dns_names": names} if each["name"] == "apps" else each for each in _CERTIFICATES])
        await show.run("grep", "-A4", "name: apps", f"{_FILES}/agent.yml")
        show.lines(f"$ {shlex.join(_AGENT)} run &")
        await host.start()
        await host.until_running()
        await self._installed(alice, "apps", before)
        await show.run(*_CTL, "certs", "--host", "web1", "--check", table=True)
        await host.stop()

    async def _mismatch_is_known(self, alice: Operator) -> None:
        """Wait until the broker says it of a certificate of the host."""
        for _ in range(_LOOKS):
            answer = await alice.run("certs", "--host", "web1", "--json")
            found = [json.loads(line)["certificate"] for line in answer.stdout.splitlines()]
            if found and found[0].get("health") == "HEALTH_MISMATCHED":
                return
            await asyncio.sleep(_BETWEEN_LOOKS)
        raise ServerStartError("certplane-broker", f"does not say MISMATCHED:\n{answer.stdout}{answer.stderr}")

    async def _installed(self, alice: Operator, name: str, before: str = "") -> str:
        """The serial number of the certificate that the broker knows to be in use, once it isn't the one before."""
        for _ in range(_LOOKS):
            answer = await alice.run("host", "web1", "--json")
            certificates = json.loads(answer.stdout).get("certificates", []) if answer.status == 0 else []
            for each in certificates:
                if each["name"] == name and each["state"] == "STATE_WAITING":
                    serial: str = each["installed"]["serialNumber"]
                    if serial != before:
                        return serial
            await asyncio.sleep(_BETWEEN_LOOKS)
        raise ServerStartError("certplane-agent", f"has not told the broker of its certificate:\n{answer.stderr}")

    async def _ask_openssl(self, deployment: Deployment) -> None:
        show = self._show
        show.heading("10. What openssl says of the installed chain")
        (self._folder / "pebble" / "root.pem").write_bytes((await deployment.pebble.root()).public_bytes(Encoding.PEM))
        for name in ("web", "site"):
            certificate = f"{_FILES}/tls/{name}.cert.pem"
            details = ("-subject", "-issuer", "-dates", "-ext", "subjectAltName")
            await show.run("openssl", "x509", "-in", certificate, "-noout", *details)
            chain = f"{_FILES}/tls/{name}.chain.pem"
            await show.run("openssl", "verify", "-CAfile", "pebble/root.pem", "-untrusted", chain, certificate)

    async def _leave_running(self, deployment: Deployment, host: Host) -> None:
        """Start the agent for good, say what can be tried, and wait."""
        await host.start()
        await host.until_running()
        await self._wait(demo_commands.to_try(deployment, host, Path(_CTL[2]), self._programs, os.getpid()))

    async def _wait(self, to_try: str) -> None:
        """Say what can be tried, and wait for SIGINT or SIGTERM."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            loop.add_signal_handler(number, stopping.set)
        self._show.heading("Running")
        self._show.lines(to_try)
        await stopping.wait()


def _open_folder(options: DemoOptions) -> Path:
    if options.folder is None:
        return Path(tempfile.mkdtemp(prefix="certplane-demo-"))
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise OSError(0, "isn't empty", str(folder))
    folder.chmod(0o700)
    return folder


def _fail(cause: str, remedy: str, status: int) -> int:
    print(f"demo: {cause}; {remedy}", file=sys.stderr)
    return status
