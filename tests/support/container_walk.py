"""packaging/container/Containerfile, step by step, without a container runtime; then its program on a root that nothing can write to.

Run by tests/e2e/test_container_image.py in namespaces of its own. The steps run by chroot in an overlay over the root that tests
boot, which isn't booted here. It stands for the base image; it has systemd, which the base image has not (`USERS`), and
what the packages depend on, so that apt fetches nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from certplane.sandbox import servers
from certplane.sandbox.loopback import LOOPBACK
from certplane.sandbox.pebble import Pebble
from tests.support.booted import World
from tests.support.debian_packages import root
from tests.support.packaged_settings import BROKER, POLICY, broker_pair, broker_settings
from tests.support.waiting import HANG, blocking_until

_FILE = Path(__file__).parents[2] / "packaging" / "container" / "Containerfile"


def steps(text: str) -> list[tuple[str, str]]:
    """Each instruction and what it says."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


class Image:
    """An image under construction, and containers of it."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.folder, self._context = folder, context
        self.root = folder / "root"
        for path in (folder / "upper", folder / "work", self.root):
            path.mkdir(parents=True)
        options = f"lowerdir={root()},upperdir={folder}/upper,workdir={folder}/work"
        run("mount", "-t", "overlay", "-o", options, "overlay", self.root)
        run("mount", "-t", "proc", "proc", self.root / "proc")
        shutil.rmtree(self.root / "opt" / "certplane")  # of the root, no image has it
        self._arguments: dict[str, str] = {}
        self.user = ""
        self.volumes: list[str] = []
        self.entrypoint: list[str] = []

    def build(self, arguments: dict[str, str]) -> None:
        """Carry every step out; one that isn't known here fails."""
        for word, rest in steps(_FILE.read_text()):
            said = re.sub(r"\$\{(\w+)\}", lambda found: self._arguments.get(found[1], ""), rest)
            match word:
                case "ARG":
                    name, _, default = rest.partition("=")
                    self._arguments[name] = arguments.get(name, default.strip('"'))
                case "COPY":
                    *sources, target = said.split()
                    for file in (path for source in sources for path in self._context.glob(source)):
                        (self.root / target.strip("/")).mkdir(exist_ok=True)
                        shutil.copy(file, self.root / target.strip("/"))
                case "RUN":
                    # Nothing is fetched: what apt would look for is installed.
                    run("chroot", self.root, "sh", "-euc", said.replace("apt-get update && ", ""))
                case "USER":
                    self.user = said
                case "VOLUME":
                    self.volumes.append(said)
                case "ENTRYPOINT":
                    self.entrypoint = json.loads(said)
                case "FROM" | "CMD":
                    pass
                case _:
                    raise AssertionError(f"the test doesn't know {word}")

    def freeze(self, writable: Path) -> None:
        """From now on its root is read-only, but for a volume."""
        (volume,) = self.volumes
        shutil.copytree(self.root / volume.strip("/"), writable)
        shutil.chown(writable, *map(int, self.user.split(":")))
        run("mount", "--bind", writable, self.root / volume.strip("/"))
        run("mount", "-o", "remount,ro", self.root)

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        """The entry point in a container: as its user, without a capability."""
        user, _, group = self.user.partition(":")
        drop = [
            "setpriv",
            f"--reuid={user}",
            f"--regid={group}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
        ]
        with log.open("wb") as out:
            return subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--",
                    "chroot",
                    self.root,
                    *drop,
                    "--inh-caps=-all",
                    "--",
                    *self.entrypoint,
                    *arguments,
                ],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CREDENTIALS_DIRECTORY": "/etc/certplane/secrets"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )


def run(*command: str | Path) -> str:
    """A command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


def serves(image: Image, log: Path) -> None:
    """The broker is up on a root that it can't write to, ends at SIGTERM, and nothing of it runs as root."""
    broker = image.start("serve", "-c", "/etc/certplane/broker.yml", log=log)
    try:

        def up() -> bool:
            assert broker.poll() is None, log.read_text()
            return '"serving"' in log.read_text()

        blocking_until(up)
        status = Path(f"/proc/{broker.pid}/status").read_text()
        (users,) = re.findall(r"^Uid:\s+(.*)$", status, re.MULTILINE)
        assert set(users.split()) == {image.user.partition(":")[0]}
        for kind in ("Eff", "Prm", "Bnd"):
            assert re.search(rf"^Cap{kind}:\s+0+$", status, re.MULTILINE), status
        broker.terminate()
        assert broker.wait(timeout=HANG) == 0, log.read_text()
    finally:
        broker.kill()
    assert "Traceback" not in log.read_text()


async def main(folder: Path, debs: Path) -> None:
    """An image of the broker, and a container of it."""
    World(folder / "world", {})
    image = Image(folder / "world" / "image", debs)
    image.build({"PROGRAM": "broker", "USERS": "systemd"})
    assert not (image.root / "packages").exists()
    assert image.user.partition(":")[0] not in {"0", "root"}
    async with (
        servers.dns_server(folder / "dns", ("example.com",)) as dns,
        Pebble(folder / "pebble", dns.endpoint.host_port) as pebble,
        servers.identity_ca(folder / "ca") as ca,
    ):
        uid, gid = map(int, image.user.split(":"))
        pair = await broker_pair(ca, folder)
        files = {
            "broker.yml": yaml.safe_dump(broker_settings(pebble, dns)),
            "policy.yml": yaml.safe_dump(POLICY),
            "secrets/dns-api-token": dns.endpoint.key.secret,
            "broker/agent-ca.pem": ca.roots_file.read_text(),
            **{f"broker/server.{kind}": text for kind, text in pair.items()},
        }
        for name, text in files.items():
            file = image.root / "etc" / "certplane" / name
            file.write_text(text)
            file.chmod(0o600)
            shutil.chown(file, uid, gid)
            shutil.chown(file.parent, uid, gid)
        (image.root / "etc" / "pebble.pem").write_text(pebble.https_roots_file.read_text())
        (image.root / "etc" / "hosts").write_text(f"{LOOPBACK} localhost {BROKER}\n")
        image.freeze(folder / "world" / "volume")
        await asyncio.to_thread(serves, image, folder / "broker.log")
    assert (folder / "world" / "volume" / "broker.db").exists(), "what is to stay is in the volume"


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:])))
