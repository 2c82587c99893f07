"""A whole Certplane on loopback: the servers around it, real configuration files, and the two programs as processes.

The demo, the end-to-end tests and the benchmarks start from here, so that all three run what a user would: nothing is
imported from the programs, and nothing of their configuration is anything but a file.

    folder/
        identity-ca/ dns/ pebble/ cloudflare/    the servers' own
        broker/   broker.yml policy.yml server.{crt,key} root.crt broker.db broker.log
        hosts/<name>/   agent.yml token state/ tls/ agent.log
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from certplane import __version__
from certplane.runtime.progress import Progress, SilentProgress
from certplane.sandbox import parts, servers
from certplane.sandbox.certificates import CertificateAuthority, write_private
from certplane.sandbox.cloudflare_api import CloudflareApi
from certplane.sandbox.errors import ServerStartError
from certplane.sandbox.fault_proxy import FaultProxy
from certplane.sandbox.identity_pki import IdentityRules
from certplane.sandbox.loopback import LOOPBACK, free_port
from certplane.sandbox.pebble import Pebble, PebbleOptions
from certplane.sandbox.ports import DnsServer, IdentityCa
from certplane.sandbox.process import ServerProcess, accepts_tcp

ZONES = ("certplane.test", "example.test")
"""What the DNS server serves; policies name hosts and certificates in it."""

IDENTITY_CA, PUBLIC_CA, DNS, DNS_API, BROKER = "identity CA", "public CA", "DNS server", "DNS API", "broker"
"""The roles, as progress names them."""

_TOKEN_SECRET, _TSIG_SECRET = "cloudflare/sandbox", "rfc2136/sandbox"
_PROGRAM_TIME = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class DeploymentOptions:
    """What differs from the ordinary sandbox.

    Attributes:
        policy: content of policy.yml.
        dns_provider: `cloudflare` (the local API) or `rfc2136` (the DNS server itself).
        broker: laid over broker.yml, section by section; None as a value removes a key.
        secrets: what the broker finds in its environment beside the secrets of its DNS providers.
        identities: how long identities live and what may be renewed.
        pebble: how the public CA behaves.
        proxied: whether a fault proxy stands between the broker and the public CA, for tests that count or meddle.
    """

    policy: Mapping[str, Any]
    dns_provider: str = "cloudflare"
    broker: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    identities: IdentityRules | None = None
    pebble: PebbleOptions | None = None
    proxied: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended."""

    status: int
    stdout: str
    stderr: str


class Deployment:
    """The servers and the broker. Use it as an async context manager; the broker is started by `start_broker`."""

    python = sys.executable
    """What runs the broker: the Python of the environment that it is installed in."""

    def __init__(self, folder: Path, options: DeploymentOptions, progress: Progress | None = None) -> None:
        """Nothing runs yet.

        Args:
            folder: everything's files; made if it isn't there.
            options: what differs from the ordinary sandbox.
            progress: told as each server starts, under its role.
        """
        self.folder = folder
        self.options = options
        self._progress = progress or SilentProgress()
        self.hosts: dict[str, Host] = {}
        self.identity_ca: IdentityCa = servers.identity_ca(folder / "identity-ca", options.identities)
        self.dns: DnsServer = servers.dns_server(folder / "dns", ZONES)
        self.pebble: Pebble
        self.cloudflare: CloudflareApi
        self.proxy: FaultProxy | None = None
        self.broker_root = CertificateAuthority.root("Certplane Sandbox Broker Root")
        self._stack = contextlib.AsyncExitStack()
        self._broker: ServerProcess | None = None
        self.broker_port = 0

    async def __aenter__(self) -> Self:
        """Start the servers and write the broker's files."""
        async with contextlib.AsyncExitStack() as stack:
            self._progress.step(IDENTITY_CA, "starting")
            await stack.enter_async_context(self.identity_ca)
            self._progress.done(IDENTITY_CA, f"{_played_by('step-ca')} at {self.identity_ca.url}")
            self._progress.step(DNS, "starting")
            await stack.enter_async_context(self.dns)
            dns = self.dns.endpoint
            self._progress.done(DNS, f"{_played_by('bind')} at {dns.host_port}")
            self._progress.step(PUBLIC_CA, "starting")
            self.pebble = await stack.enter_async_context(
                Pebble(self.folder / "pebble", dns.host_port, self.options.pebble)
            )
            if self.options.proxied:
                roots = self.pebble.https_roots_file
                proxy = FaultProxy(self.folder / "proxy", self.pebble.directory_url, roots_file=roots)
                self.proxy = stack.enter_context(proxy)
            self._progress.done(PUBLIC_CA, f"{_played_by('pebble')} at {self.pebble.directory_url}")
            self._progress.step(DNS_API, "starting")
            self.cloudflare = await stack.enter_async_context(
                CloudflareApi(self.folder / "cloudflare", dns, https=False)
            )
            self._progress.done(DNS_API, f"Cloudflare's, played by the sandbox, at {self.cloudflare.base_url}")
            self.broker_port = free_port()
            self._write_broker_files()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the agents, the broker and the servers."""
        for host in self.hosts.values():
            await host.stop()
        await self.stop_broker()
        await self._stack.aclose()

    @property
    def broker_folder(self) -> Path:
        """Where the broker's files are."""
        return self.folder / "broker"

    @property
    def broker_config(self) -> Path:
        """broker.yml."""
        return self.broker_folder / "broker.yml"

    @property
    def broker_environment(self) -> dict[str, str]:
        """The secrets that broker.yml names, as the `env` provider reads them."""
        dns = {"CLOUDFLARE_SANDBOX": self.cloudflare.token, "RFC2136_SANDBOX": self.dns.endpoint.key.secret}
        return {**dns, **self.options.secrets}

    @property
    def broker_process(self) -> ServerProcess:
        """The running broker.

        Raises:
            RuntimeError: it was not started.
        """
        if self._broker is None:
            raise RuntimeError("the broker was not started")
        return self._broker

    async def start_broker(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the broker, or start it again; returns once it listens.

        Args:
            environment: added to its environment, such as `CERTPLANE_FAILPOINTS`.
        """
        await self.stop_broker()
        self._progress.step(BROKER, "starting")
        self._broker = ServerProcess(
            "certplane-broker",
            [self.python, "-P", "-m", "certplane.broker", "-c", self.broker_config, "serve"],
            self.broker_folder / "broker.log",
            environment={**self.broker_environment, **(environment or {})},
        )
        await self._broker.start(lambda: accepts_tcp(LOOPBACK, self.broker_port))
        self._progress.done(BROKER, f"certplane-broker {__version__} at localhost:{self.broker_port}")

    async def stop_broker(self) -> None:
        """Ask the broker to end and wait for it."""
        if self._broker is not None:
            await self._broker.stop()

    async def run_broker(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
        """Run a `certplane-broker` command to its end; `environment` is added to the broker's."""
        command = ["-m", "certplane.broker", "-c", str(self.broker_config), *arguments]
        return await run_program(command, {**self.broker_environment, **(environment or {})}, python=self.python)

    def write_policy(self, policy: Mapping[str, Any]) -> None:
        """Replace policy.yml; the broker reads it at its start and on SIGHUP."""
        _write_yaml(self.broker_folder / "policy.yml", policy)

    def write_broker_config(self, broker: Mapping[str, Any] | None = None) -> None:
        """Write broker.yml, with `broker` laid over what the deployment's options say."""
        settings = _laid_over(self._broker_settings(), self.options.broker)
        _write_yaml(self.broker_config, _laid_over(settings, broker or {}))

    def add_host(
        self,
        name: str,
        certificates: Sequence[Mapping[str, Any]] = (),
        *,
        agent: Mapping[str, Any] | None = None,
        token: str | None = None,
    ) -> Host:
        """Write a host's agent.yml and its token; nothing is enrolled yet.

        Args:
            name: the identity, a DNS name.
            certificates: `certificates` of agent.yml; the four output paths are set where they are missing.
            agent: laid over agent.yml.
            token: the one-time token; one for `name` is minted when not given.
        """
        host = Host(self, name)
        host.write_token(token)
        host.write_config(certificates, agent or {})
        self.hosts[name] = host
        return host

    def _write_broker_files(self) -> None:
        folder = self.broker_folder
        folder.mkdir(parents=True)
        self.broker_root.issue("certplane-broker", ["localhost", LOOPBACK]).write(folder, "server")
        (folder / "root.crt").write_bytes(self.broker_root.pem)
        self.write_policy(self.options.policy)
        self.write_broker_config()

    def _broker_settings(self) -> dict[str, Any]:
        folder, dns = self.broker_folder, self.dns.endpoint
        directory_url = self.proxy.url if self.proxy is not None else self.pebble.directory_url
        roots_file = self.proxy.roots_file if self.proxy is not None else self.pebble.https_roots_file
        return {
            "server": {
                "address": f"{LOOPBACK}:{self.broker_port}",
                "tls": {"cert": str(folder / "server.crt"), "key": str(folder / "server.key")},
                "mtls": {"agent_ca_bundle": str(self.identity_ca.roots_file)},
            },
            "policy": {"path": str(folder / "policy.yml")},
            "issuer": {
                "provider": "acme",
                "acme": {
                    "directory_url": directory_url,
                    "account_email": "operator@certplane.test",
                    "account_key": str(folder / "account.key"),
                    "ca_bundle": str(roots_file),
                    "dns_provider": self.options.dns_provider,
                    "propagation": {"nameservers": [dns.host_port], "interval": "100ms", "timeout": "20s"},
                    "cloudflare": {"base_url": self.cloudflare.base_url, "credentials": _TOKEN_SECRET},
                    "rfc2136": {"server": dns.host_port, "tsig_name": dns.key.name, "tsig_secret": _TSIG_SECRET},
                },
            },
            "secrets": {"provider": "env"},
            "store": {"driver": "sqlite", "path": str(folder / "broker.db")},
            "audit": {"enabled": True, "failure_mode": "fail_closed"},
            "logging": {"level": "info", "format": "text", "destination": "stderr"},
        }


class Host:
    """One host: its files and its agent."""

    python = sys.executable
    """What runs the agent: the Python of the environment that it is installed in."""

    def __init__(self, deployment: Deployment, name: str) -> None:
        self.name = name
        self.folder = deployment.folder / "hosts" / name
        self._deployment = deployment
        self._agent: ServerProcess | None = None
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def config(self) -> Path:
        """agent.yml."""
        return self.folder / "agent.yml"

    @property
    def state(self) -> Path:
        """`state_dir`."""
        return self.folder / "state"

    @property
    def token_file(self) -> Path:
        """Where the bootstrap token is until it is used."""
        return self.folder / "token"

    @property
    def identity(self) -> tuple[Path, Path]:
        """Certificate chain and key of the identity, as other programs read them."""
        return self.folder / "tls" / "identity.crt", self.folder / "tls" / "identity.key"

    def output(self, certificate: str, kind: str) -> Path:
        """Where a certificate's `key`, `cert`, `chain` or `fullchain` is for the services of the host."""
        return self.folder / "tls" / f"{certificate}.{kind}.pem"

    def write_token(self, token: str | None = None) -> None:
        """Put a one-time token for this host where the agent looks for it, 0600."""
        self.token_file.unlink(missing_ok=True)
        write_private(self.token_file, (token or self._deployment.identity_ca.mint_token(self.name)).encode())

    def write_config(self, certificates: Sequence[Mapping[str, Any]], agent: Mapping[str, Any] | None = None) -> None:
        """Write agent.yml."""
        deployment, (cert, key) = self._deployment, self.identity
        (self.folder / "tls").mkdir(exist_ok=True)
        settings: dict[str, Any] = {
            "state_dir": str(self.state),
            "identity": {
                "name": self.name,
                "provider": "step-ca",
                "cert": str(cert),
                "key": str(key),
                "issuer_ca_bundle": str(deployment.identity_ca.roots_file),
                "bootstrap_token": str(self.token_file),
                "step_ca": {
                    "url": deployment.identity_ca.url,
                    "fingerprint": deployment.identity_ca.authority.fingerprint,
                },
            },
            "broker": {
                "url": f"https://localhost:{deployment.broker_port}",
                "server_ca_bundle": str(deployment.broker_folder / "root.crt"),
            },
            "certificates": [self._certificate(certificate) for certificate in certificates],
            "logging": {"level": "info", "format": "text", "destination": "stderr"},
        }
        _write_yaml(self.config, _laid_over(settings, agent or {}))

    def command(self, *arguments: str) -> list[str]:
        """The command line of an agent's command."""
        return [self.python, "-P", "-m", "certplane.agent", "-c", str(self.config), *arguments]

    async def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Finished:
        """Run an agent's command to its end."""
        return await run_program(self.command(*arguments)[2:], environment or {}, python=self.python)

    async def start(self, environment: Mapping[str, str] | None = None) -> ServerProcess:
        """Start `certplane-agent run`; returns at once."""
        await self.stop()
        self._agent = ServerProcess(
            "certplane-agent", self.command("run"), self.folder / "agent.log", environment=environment or {}
        )

        async def started() -> bool:
            return True

        await self._agent.start(started)
        return self._agent

    async def until_running(self) -> None:
        """Wait until the started agent does its work: it holds the state's lock and answers other commands.

        Raises:
            ServerStartError: it ended, or did not get that far in the time that a server's start may take.
        """
        agent = self._agent
        if agent is None:
            raise RuntimeError("the agent was not started")
        loop = asyncio.get_running_loop()
        end = loop.time() + agent.ready_within.total_seconds()
        while "the agent runs" not in agent.log_text():
            if not agent.running or loop.time() > end:
                raise ServerStartError("certplane-agent", f"does not run:\n{agent.log_tail()}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop the running agent."""
        if self._agent is not None:
            await self._agent.stop()

    def _certificate(self, certificate: Mapping[str, Any]) -> dict[str, Any]:
        kinds = ("key", "cert", "chain", "fullchain")
        return {**{kind: str(self.output(certificate["name"], kind)) for kind in kinds}, **certificate}


async def run_program(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    time_limit: timedelta = _PROGRAM_TIME,
    python: str = sys.executable,
) -> Finished:
    """Run a Python, by default this one, with `arguments` to its end.

    Raises:
        TimeoutError: it did not end within `time_limit`; it was killed.
    """
    kept = {name: value for name in ("PATH", "HOME", "TMPDIR") if (value := os.environ.get(name))}
    process = await asyncio.create_subprocess_exec(
        python,
        "-P",  # its own packages, and not those of the folder that this is run in
        *arguments,
        env={**kept, "LANG": "C.UTF-8", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(time_limit.total_seconds()):
            stdout, stderr = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Finished(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def _played_by(part: str) -> str:
    """Which program has a role on this machine: the part with its version, or what stands in for it."""
    found = parts.find(part)
    return f"{part} {found.version}".rstrip() if isinstance(found, parts.Part) else "the sandbox's own server"


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, section by section; None removes a key."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _laid_over(below, value)
        else:
            merged[key] = value
    return merged


class _PlainDumper(yaml.SafeDumper):
    """Writes no anchors: the programs refuse them."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class's signature
        return True


def _write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Replace the file at once, since a running program may read it."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(yaml.dump(dict(content), Dumper=_PlainDumper, sort_keys=False), encoding="utf-8")
    new.replace(path)
