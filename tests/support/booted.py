"""Machines for tests: Debian with a booted systemd (systemd-nspawn), each with its own files, users, units and network.

All of it lives in namespaces of one process tree: `enter` starts a program in them, and when that ends, or whoever
started it is killed, the kernel ends every process, and with the last one go mounts, networks and the machines' files,
which are an overlay in memory over the root that `scripts/setup` made. Empty control groups may stay after a kill; the
next `enter` removes them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from certplane.sandbox import parts
from tests.support.parts import need_part
from tests.support.waiting import HANG, MINUTES_OF_WORK, blocking_until

_PREFIX = "certplane-test-"
_SWITCH = "10.77.0.1"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PIP_NO_INDEX": "1",
}


class CommandError(AssertionError):
    """A command on a machine ended with another status than it should."""


def why_not() -> str:
    """Why no machine can be booted here; empty if nothing is known to be in the way."""
    if os.geteuid() != 0:
        return "only root can boot machines"
    tried = subprocess.run([*_namespaces(), "true"], capture_output=True, text=True, timeout=HANG, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def need_machines(*names: str) -> None:
    """Nothing is in the way of booting some with these parts; else the test is skipped, or fails where all parts are required."""
    for name in ("nspawn", "debian", *names):
        need_part(name)
    if reason := why_not():
        if parts.all_required():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def enter(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module's `__main__` where machines can be made, to its end; returns what it said."""
    remove_control_groups()
    command = [*_namespaces(), sys.executable, "-P", "-m", module, *arguments]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "CERTPLANE_BOOTED": str(os.getpid())}
    try:
        return subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MINUTES_OF_WORK,
            check=False,
        )
    finally:
        blocking_until(lambda: remove_control_groups(os.getpid()), what="the end of what ran on the machines")


def _namespaces() -> list[str]:
    # The kernel kills `unshare` with the thread that started it, and with it process 1 of the new process namespace.
    unshare = ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    return ["setpriv", "--pdeathsig", "KILL", "--", *unshare, "--"]


def _control_group_folders() -> list[Path]:
    """Where systemd keeps control groups: version 2, or beside version 1, or version 1's hierarchy of its own."""
    top = Path("/sys/fs/cgroup")
    return [path for path in (top, top / "systemd", top / "unified") if (path / "cgroup.procs").exists()]


def remove_control_groups(owner: int | None = None) -> bool:
    """Remove those of a process, or of all that are gone; False while something runs in one."""
    empty = True
    for folder in _control_group_folders():
        for group in folder.glob(f"{_PREFIX}*"):
            pid = int(group.name.removeprefix(_PREFIX).partition("-")[0])
            if pid == owner or (owner is None and not Path(f"/proc/{pid}").exists()):
                for below, _, _ in os.walk(group, topdown=False):
                    with contextlib.suppress(OSError):
                        Path(below).rmdir()
                empty = empty and not group.exists()
    return empty


class World:
    """The place of the machines: a folder in memory and a switch. To be made inside `enter`."""

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        """Make it, with a folder to mount on and the names that all machines know, with their addresses."""
        self.folder, self.names = folder, names
        # Of our own, so that what systemd-nspawn notes there stays in here.
        for path in (Path("/run"), folder):
            path.mkdir(exist_ok=True)
            _run("mount", "-t", "tmpfs", "-o", "mode=755", "certplane-test", path)
        for line in (
            "link set lo up",
            "link add machines type bridge",
            f"addr add {_SWITCH}/24 dev machines",
            "link set machines up",
        ):
            _run("ip", *line.split())


class Machine:
    """A booted Debian.

    Attributes:
        root: its files, to be read and written from here.
    """

    def __init__(
        self, world: World, name: str, *, address: str | None = None, bind: Sequence[tuple[Path, str]] = ()
    ) -> None:
        """Begin to boot it.

        Args:
            world: where it stands.
            name: its short name.
            address: in the switch's network; None: it has the network of this process, at the switch's own address.
            bind: programs of this machine, and where they are there.
        """
        self.name = name
        part = parts.require("debian")
        home = world.folder / name
        self.root = home / "root"
        for path in (home, home / "upper", home / "work", self.root):
            path.mkdir()
        lower = part.path.parent.parent  # not resolved: bin is a link to usr/bin
        options = f"lowerdir={lower},upperdir={home}/upper,workdir={home}/work"
        _run("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        hosts = "".join(
            f"{ip} {host}\n" for host, ip in {"localhost": "127.0.0.1", name: "127.0.1.1", **world.names}.items()
        )
        self.write("/etc/hosts", hosts)
        self.write("/etc/machine-id", "")
        self.write("/etc/hostname", f"{name}\n")
        # What a machine serves is started by the documents' lines.
        self._chroot(
            "systemctl", "--quiet", "mask", "systemd-logind.service", "apt-daily.timer", "apt-daily-upgrade.timer"
        )
        self._chroot("systemctl", "--quiet", "disable", "nginx.service", "haproxy.service", "postfix.service")
        network: list[str] = []
        if address is not None:
            self.write(
                "/etc/systemd/network/10-host0.network",
                f"[Match]\nName=host0\n[Network]\nAddress={address}/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
            )
            self._chroot("systemctl", "--quiet", "enable", "systemd-networkd.service")
            network = ["--network-bridge=machines"]
        group = f"{_PREFIX}{os.environ['CERTPLANE_BOOTED']}-{name}"
        groups = [str(folder / group) for folder in _control_group_folders()]
        join = f'for group in {" ".join(groups)}; do mkdir -p "$group"; echo $$ >"$group/cgroup.procs" || true; done; exec "$@"'
        boot = ["--quiet", "--boot", f"--directory={self.root}", f"--machine={name}", "--register=no", "--keep-unit"]
        boot += ["--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", *network]
        boot += [f"--bind-ro={source}:{target}" for source, target in bind]
        self.log = home / "boot.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", join, "sh", parts.require("nspawn").path, *boot],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> None:
        """Until it has booted."""

        def booted() -> bool:
            assert self._process.poll() is None, f"{self.name} doesn't boot:\n{self.log.read_text(errors='replace')}"
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if not children:
                return False
            self._leader = children[0]
            said = self._nsenter("systemctl is-system-running")
            return said.stdout.strip() in {"running", "degraded"}

        blocking_until(booted, poll=0.2)

    @property
    def first_process(self) -> str:
        """The number of its systemd here, whose namespaces are the machine's."""
        return self._leader

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Make or replace a file of root's."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def read(self, path: str) -> str:
        """The text of a file."""
        return (self.root / path.lstrip("/")).read_text()

    def run(self, script: str, *, status: int = 0) -> str:
        """Run lines of a shell as root in root's home, as at a prompt; the first that fails ends them.

        Raises:
            CommandError: they ended with another status.
        """
        done = self._nsenter(f"cd /root && {{\n{script}\n}}", "-euo", "pipefail")
        if done.returncode != status:
            journal = self._nsenter("journalctl --no-pager -n 40 -o cat").stdout
            raise CommandError(
                f"{self.name}: status {done.returncode}, not {status}\n$ {script}\n{done.stdout}\n-- journal\n{journal}"
            )
        return done.stdout

    def tried(self, script: str) -> tuple[int, str]:
        """Run lines that may fail; their status and what they said."""
        done = self._nsenter(script)
        return done.returncode, done.stdout

    def until(self, script: str, has: str = "") -> str:
        """Run lines again and again until they succeed, and what they say has a text."""
        last: tuple[int, str] = (0, "")

        def well() -> str:
            nonlocal last
            last = self.tried(script)
            return last[1] or " " if last[0] == 0 and has in last[1] else ""

        try:
            return str(blocking_until(well, poll=0.3))
        except AssertionError as error:
            raise CommandError(
                f"{self.name}: never {has!r}\n$ {script}\n{last}\n{self.tried('journalctl --no-pager -n 60 -o cat')[1]}"
            ) from error

    def _nsenter(self, script: str, *options: str) -> subprocess.CompletedProcess[str]:
        variables = [f"{name}={value}" for name, value in _ENVIRONMENT.items()]
        inside = ["env", "-i", *variables, "bash", *options, "-c", script]
        return subprocess.run(
            ["nsenter", "--target", self._leader, "--all", "--", *inside],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=HANG,
            check=False,
        )

    def _chroot(self, *command: str) -> None:
        _run("chroot", self.root, *command)


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"
